/* mpi_plugin.h: what a plug-in for an MPI gives the core: one table of functions that move bytes, and nothing else.
 *
 * A plug-in is plugin/mpi_plugin.c, built once against each MPI's headers (their ABIs differ); heddle finds the right one at run time (mpi_load.c). All
 * functions are called by one thread, the one that called init. They return 0, or -1 with a text in plug-in's own words from why(). */
#ifndef HD_COMM_MPI_PLUGIN_H
#define HD_COMM_MPI_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define HD_MPI_PLUGIN_VERSION 1
#define HD_MPI_PLUGIN_SYMBOL "hd_mpi_plugin_table"
#define HD_MPI_ANY (-1)

/* Room for any MPI's request (an int or a pointer). */
typedef struct hd_mpi_request { uintptr_t handle; } hd_mpi_request;

typedef struct hd_mpi_plugin {
    int version;       /* HD_MPI_PLUGIN_VERSION */
    const char *name;  /* "openmpi", "mpich" */
    int (*init)(int *rank, int *size, int *greatest_tag); /* MPI_Init_thread; -1 too when it was called before in this process */
    int (*isend)(const void *data, size_t bytes, int to, int tag, hd_mpi_request *out);          /* bytes < 2^31 */
    int (*irecv)(void *data, size_t bytes, int from, int tag, hd_mpi_request *out);              /* from may be HD_MPI_ANY */
    int (*test)(hd_mpi_request *request, bool *done, int *from, size_t *bytes);                  /* from and bytes: of a receive that is done */
    int (*cancel)(hd_mpi_request *request);   /* a receive; it is given back */
    void (*abort)(int code);                  /* MPI_Abort: ends all processes */
    int (*finalize)(void);
    const char *(*why)(void);                 /* of the last -1 */
} hd_mpi_plugin;

#endif
