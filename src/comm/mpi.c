#include "comm/comm.h"

int hd_comm_mpi(double deadline, hd_comm **out, hd_error *err)
{
    (void)deadline;
    *out = NULL;
    return hd_fail(err, HD_EUNSUPPORTED, "this heddle was built without MPI");
}
