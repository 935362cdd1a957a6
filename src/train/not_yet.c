/* not_yet.c: weak stand-ins for what other branches bring; goes away with them. */
#include "exec/exec.h"
#include "passes/partition.h"
#define WEAK __attribute__((weak))
#define NOT(err) hd_fail(err, HD_EUNSUPPORTED, "not there yet")
int WEAK hd_pass_partition(hd_graph *g, const hd_mesh *mesh, const hd_pin *pins, int n) { (void)mesh, (void)pins, (void)n; return NOT(&g->err); }
int WEAK hd_pass_chunks(hd_graph *g, const char *const *first, int n) { (void)first, (void)n; return NOT(&g->err); }
hd_graph WEAK *hd_graph_stage(const hd_graph *g, int stage, int stages, hd_error *err) { (void)g, (void)stage, (void)stages, NOT(err); return NULL; }
int WEAK hd_comm_local(int n, double deadline, hd_comm **out, hd_error *err) { (void)n, (void)deadline, (void)out; return NOT(err); }
int WEAK hd_comm_mpi(double deadline, hd_comm **out, hd_error *err) { (void)deadline, (void)out; return NOT(err); }
bool WEAK hd_comm_mpi_launched(int *rank, int *size) { (void)rank, (void)size; return false; }
void WEAK hd_comm_free(hd_comm *c) { (void)c; }
int WEAK hd_comm_size(const hd_comm *c) { (void)c; return 1; }
const char WEAK *hd_comm_transport(const hd_comm *c) { (void)c; return "local"; }
void WEAK hd_comm_abort(hd_comm *c, const char *why) { (void)c, (void)why; }
hd_comm_group WEAK *hd_comm_group_get(hd_comm *c, const int *ranks, int n, hd_error *err) { (void)c, (void)ranks, (void)n, NOT(err); return NULL; }
int WEAK hd_comm_do(hd_comm *c, hd_comm_group *g, const hd_transfer *t, hd_error *err) { (void)c, (void)g, (void)t; return NOT(err); }
int WEAK hd_comm_barrier(hd_comm *c, hd_comm_group *g, hd_error *err) { (void)c, (void)g; return NOT(err); }
hd_store WEAK *hd_store_new_rank(const hd_graph *g, uint64_t seed, int rank, hd_error *err) { (void)rank; return hd_store_new(g, seed, err); }
hd_exec WEAK *hd_exec_new_rank(const hd_program *program, hd_store *store, const hd_backend *backend, hd_team *team, hd_exec *host, const hd_rank *rank, hd_error *err)
{
    (void)rank;
    return hd_exec_new_sharing(program, store, backend, team, host, err);
}
const hd_rank WEAK *hd_exec_rank(const hd_exec *e) { (void)e; return NULL; }
int WEAK hd_exec_put(hd_exec *e, const char *name, const void *whole, hd_error *err)
{
    hd_tensor t;
    if (hd_program_input(hd_exec_program(e), name) < 0) return 0;
    int rc = hd_exec_input(e, name, &t, err);
    if (!rc) memcpy(t.data, whole, hd_tensor_bytes(&t));
    return rc;
}
