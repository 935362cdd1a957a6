#include "cluster/measure.h"

#include <stdlib.h>
#include "base/mem.h"
#include "base/term.h"

#define MAX_ROUNDS 64
#define MAX_THREADS 256
#define ITERATIONS 100000 /* about 5 ms */

typedef struct measurement {
    const hd_kernel *kernel;
    hd_team *team;
    hd_tensor in, out;
    double work[MAX_THREADS];
} measurement;

static void member(void *arg, int tid)
{
    measurement *m = arg;
    hd_kernel_args a = {.in = &m->in, .n_in = 1, .out = &m->out, .n_out = 1, .code = ITERATIONS, .team = m->team, .tid = tid, .threads = hd_team_size(m->team)};
    m->kernel->run(&a);
}

static double one_round(measurement *m)
{
    double start = hd_time(), work = 0;
    hd_team_run(m->team, member, m);
    double seconds = hd_time() - start;
    for (int i = 0; i < hd_team_size(m->team); i++) work += m->work[i];
    return work / seconds;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The rounds' figures in ascending order. False when out of memory. */
static bool run_rounds(hd_bound bound, hd_team *team, hd_isa isa, int rounds, void *buffer, double *figure)
{
    static const char *const names[] = {[HD_BOUND_F32] = "measure.f32", [HD_BOUND_BF16] = "measure.bf16", [HD_BOUND_I8] = "measure.i8", [HD_BOUND_READ] = "measure.read"};
    measurement m = {.kernel = hd_cpu_kernel_find(names[bound], isa, NULL), .team = team};
    if (!m.kernel) m.kernel = hd_cpu_kernel_find(names[HD_BOUND_F32], isa, NULL);
    m.out = (hd_tensor){.data = m.work, .dtype = HD_F64, .rank = 1, .dim = {MAX_THREADS}};
    void *own = NULL;
    if (bound == HD_BOUND_READ) {
        if (!buffer) buffer = own = hd_map_memory(HD_MEASURE_READ_BYTES);
        if (!buffer) return false;
        if (own) memset(own, 1, HD_MEASURE_READ_BYTES);
        m.in = (hd_tensor){.data = buffer, .dtype = HD_U8, .rank = 1, .dim = {(int64_t)HD_MEASURE_READ_BYTES}};
    }
    for (int i = 0; i < rounds; i++) figure[i] = one_round(&m);
    qsort(figure, (size_t)rounds, sizeof *figure, by_value);
    if (own) hd_unmap_memory(own, HD_MEASURE_READ_BYTES);
    return true;
}

double hd_measure(hd_bound bound, hd_team *team, hd_isa isa, int rounds, void *buffer)
{
    double figure[MAX_ROUNDS];
    if (rounds > MAX_ROUNDS) rounds = MAX_ROUNDS;
    return run_rounds(bound, team, isa, rounds, buffer, figure) ? figure[rounds - 1] : 0;
}

double hd_measure_median(hd_bound bound, hd_team *team, hd_isa isa, int rounds, void *buffer)
{
    double figure[MAX_ROUNDS];
    if (rounds > MAX_ROUNDS) rounds = MAX_ROUNDS;
    return run_rounds(bound, team, isa, rounds, buffer, figure) ? figure[rounds / 2] : 0;
}
