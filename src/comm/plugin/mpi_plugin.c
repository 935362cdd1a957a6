/* mpi_plugin.c: the table of comm/mpi_plugin.h over one MPI; compiled once per MPI with its headers, HD_MPI_NAME saying which. */
#include "comm/mpi_plugin.h"

#include <mpi.h>
#include <string.h>

_Static_assert(sizeof(MPI_Request) <= sizeof(hd_mpi_request), "an MPI's request fits");

static char text[MPI_MAX_ERROR_STRING + 64]; /* of the last failure; one MPI in a process */

static int check(int rc)
{
    int n = 0;
    if (rc == MPI_SUCCESS) return 0;
    if (MPI_Error_string(rc, text, &n)) strcpy(text, "an MPI call failed");
    for (char *p = text; *p; p++)
        if (*p == '\n') *p = ' ';
    return -1;
}

static int plugin_init(int *rank, int *size, int *greatest_tag)
{
    int before = 0, level = 0, found = 0;
    int *bound = NULL;
    MPI_Initialized(&before);
    if (before) return strcpy(text, "MPI was initialised already in this process"), -1;
    if (check(MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level))) return -1;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &bound, &found);
    *greatest_tag = found && bound ? *bound : 32767;
    return check(MPI_Comm_rank(MPI_COMM_WORLD, rank)) || check(MPI_Comm_size(MPI_COMM_WORLD, size)) ? -1 : 0;
}

static MPI_Request load(const hd_mpi_request *r)
{
    MPI_Request request;
    memcpy(&request, r, sizeof request);
    return request;
}

static void store(hd_mpi_request *r, MPI_Request request) { memcpy(r, &request, sizeof request); }

static int plugin_isend(const void *data, size_t bytes, int to, int tag, hd_mpi_request *out)
{
    MPI_Request request = MPI_REQUEST_NULL;
    int rc = check(MPI_Isend(data, (int)bytes, MPI_BYTE, to, tag, MPI_COMM_WORLD, &request));
    store(out, request);
    return rc;
}

static int plugin_irecv(void *data, size_t bytes, int from, int tag, hd_mpi_request *out)
{
    MPI_Request request = MPI_REQUEST_NULL;
    int rc = check(MPI_Irecv(data, (int)bytes, MPI_BYTE, from == HD_MPI_ANY ? MPI_ANY_SOURCE : from, tag, MPI_COMM_WORLD, &request));
    store(out, request);
    return rc;
}

static int plugin_test(hd_mpi_request *r, bool *done, int *from, size_t *bytes)
{
    MPI_Request request = load(r);
    MPI_Status status;
    int flag = 0, n = 0;
    if (check(MPI_Test(&request, &flag, &status))) return -1;
    store(r, request);
    *done = flag != 0;
    if (!flag) return 0;
    MPI_Get_count(&status, MPI_BYTE, &n);
    if (from) *from = status.MPI_SOURCE;
    if (bytes) *bytes = n > 0 ? (size_t)n : 0;
    return 0;
}

static int plugin_cancel(hd_mpi_request *r)
{
    MPI_Request request = load(r);
    int rc = check(MPI_Cancel(&request));
    if (!rc) rc = check(MPI_Request_free(&request));
    store(r, MPI_REQUEST_NULL);
    return rc;
}

static void plugin_abort(int code) { MPI_Abort(MPI_COMM_WORLD, code); }
static int plugin_finalize(void) { return check(MPI_Finalize()); }
static const char *plugin_why(void) { return text; }

__attribute__((visibility("default"))) const hd_mpi_plugin hd_mpi_plugin_table = {
    .version = HD_MPI_PLUGIN_VERSION, .name = HD_MPI_NAME, .init = plugin_init, .isend = plugin_isend, .irecv = plugin_irecv, .test = plugin_test,
    .cancel = plugin_cancel, .abort = plugin_abort, .finalize = plugin_finalize, .why = plugin_why,
};
