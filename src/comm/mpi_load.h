/* mpi_load.h: who started this process, and the plug-in for that MPI. */
#ifndef HD_COMM_MPI_LOAD_H
#define HD_COMM_MPI_LOAD_H

#include "comm/mpi_plugin.h"

/* Loads the first plug-in that is there of those that fit the launcher. It stays loaded: an MPI can't be unloaded. */
int hd_mpi_load(const hd_mpi_plugin **out, hd_error *err);

#endif
