/* calibrate_ops.c: times single kernels as the executor runs them: the same kernel (hd_cpu_kernel_find at this machine's instruction set), the same team, one
 * meeting of the team behind it.
 *
 * Caches as in a step: operands lie in a pool several times the size of the last-level cache, each run takes the next piece of it, and what the kernel
 * before would have written (hd_case.warm) is touched just before the clock starts, by the threads that will read it. So small activations are warm, weights
 * and what was kept for the backward pass are cold. Several teams, each as a rank is, start every run together and share the memory's bandwidth. */
#include <ctype.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "cluster/calibrate_cases.h"
#include "cluster/calibrate_int.h"
#include "graph/op.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/gemm.h"

#define POOL_BYTES ((size_t)160 << 20)    /* of operands */
#define RESULT_BYTES ((size_t)128 << 20)
#define FILL 0x3c                         /* bytes that make finite, normal numbers in f32, bf16 and f16 */
enum { MOST_TEAMS = 64, MOST_RUNS = 25, LEAST_RUNS = 3, MOST_TEXT = 256 };

/* ---- several teams at once ---- */

typedef struct gate {
    int n;
    _Atomic int arrived, turn;
    _Atomic bool broken; /* not all of them could be started */
    double value[MOST_TEAMS];
} gate;

typedef struct rig {
    hd_calibration *calibration;
    gate *gate;        /* of the ranks of this process; NULL: one alone, or the job's (calibration->all) */
    int index, threads, teams;
    double seconds;    /* for each case */
    double begin;      /* of the first */
    bool pinned;
    const hd_case *cases; int n_cases;
    double *result;    /* [n_cases] seconds; 0: not measured */
    double bandwidth;  /* of all teams together, lately; 0: not known */
    /* its own */
    double *at_bandwidth; /* [n_cases] */
    hd_team *team;
    const hd_kernel *reader;
    hd_isa isa;
    char *pool, *results;
    size_t at, result_at;
    void *workspace; size_t workspace_bytes;
    hd_error err;
    pthread_t thread;
    bool started;
} rig;

static void meet_gate(gate *g)
{
    int turn = atomic_load(&g->turn);
    if (atomic_fetch_add(&g->arrived, 1) == g->n - 1) {
        atomic_store(&g->arrived, 0);
        atomic_store(&g->turn, turn + 1);
        return;
    }
    for (int spins = 0; atomic_load(&g->turn) == turn && !atomic_load(&g->broken); spins++)
        if (spins > 2000) sched_yield();
}

static void meet(rig *r)
{
    if (r->gate) meet_gate(r->gate);
    else if (r->calibration->all) hd_comm_barrier(r->calibration->options->comm, r->calibration->all, &r->err);
}

/* The greatest of what the teams say. */
static double agree(rig *r, double mine)
{
    double most = mine;
    if (r->gate) {
        r->gate->value[r->index] = mine;
        meet_gate(r->gate);
        for (int i = 0; i < r->gate->n; i++) most = fmax(most, r->gate->value[i]);
        meet_gate(r->gate);
        if (atomic_load(&r->gate->broken)) most = INFINITY;
    } else if (r->calibration->all) {
        hd_transfer t = {.kind = HD_ALL_REDUCE, .dtype = HD_F64, .max = true, .in = &mine, .out = &most, .count = 1};
        hd_comm_do(r->calibration->options->comm, r->calibration->all, &t, &r->err);
    }
    return most;
}

/* ---- one case, from its texts ---- */

typedef struct prepared {
    const hd_op *op;
    const hd_case *from;
    _Alignas(16) char attrs[1024];
    hd_type in_type[HD_MAX_OPERANDS], out_type[HD_MAX_RESULTS];
    char fill[HD_MAX_OPERANDS]; /* of integers */
    hd_tensor in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_kernel_args args;
    hd_kernel kernel;
    void *index[HD_MAX_OPERANDS]; /* integers, the same in every run */
    size_t packed_bytes;          /* of operand 1, where it lies packed; what is in it makes no difference */
    rig *rig;
    double begin, end;
} prepared;

/* text with '@' replaced by the dtype and "$X" by extents. */
static void expand(const char *text, const hd_case *c, char *out, size_t size)
{
    size_t n = 0;
    for (; *text && n + 24 < size; text++) {
        if (*text == '@') n += (size_t)snprintf(out + n, size - n, "%s", hd_dtype_name(c->dtype));
        else if (*text == '$' && isupper((unsigned char)text[1])) n += (size_t)snprintf(out + n, size - n, "%lld", (long long)c->size.of[*++text - 'A']);
        else out[n++] = *text;
    }
    out[n] = 0;
}

/* One operand's type: "@[T,D]", "i32[T]:p", "-". */
static bool read_operand(const char *text, const hd_case *c, hd_type *t, char *fill)
{
    char name[16] = "";
    const char *open = strchr(text, '[');
    *t = (hd_type){.shape.sym = -1};
    if (!strcmp(text, "-")) return t->absent = true;
    if (!open || open - text >= (int)sizeof name) return false;
    memcpy(name, text, (size_t)(open - text));
    if (!strcmp(name, "@")) t->dtype = c->dtype;
    else if (hd_dtype_parse(name, &t->dtype) && !(t->blocks = hd_quant_by_name(name))) return false;
    if (t->blocks) t->dtype = HD_F32;
    for (const char *p = open + 1; *p && *p != ']'; p++)
        if (*p != ',') t->shape.dim[t->shape.rank++] = c->size.of[*p - 'A'];
    const char *colon = strchr(open, ':');
    *fill = colon ? colon[1] : 0;
    return true;
}

static int64_t index_value(const hd_case *c, char fill, int64_t i)
{
    int64_t sequence = c->size.of['S' - 'A'], rows = c->size.of['V' - 'A'];
    switch (fill) {
    case 'p': return i % sequence;
    case 's': return i / sequence;
    case 'l': return sequence - 1;
    case 'v': return (int64_t)((uint64_t)i * 2654435761u % (uint64_t)rows);
    case 'i': return i;
    default: return 0;
    }
}

static bool fill_index(prepared *p, int i)
{
    int64_t n = hd_shape_count(&p->in_type[i].shape);
    p->index[i] = hd_calloc((size_t)n + 8, 8);
    for (int64_t k = 0; k < n && p->index[i]; k++) hd_store_f64(p->index[i], p->in_type[i].dtype, k, (double)index_value(p->from, p->fill[i], k));
    return p->index[i] != NULL;
}

static hd_tensor tensor_of(const hd_type *t)
{
    hd_tensor x = {.dtype = t->dtype, .blocks = t->blocks, .rank = t->shape.rank};
    memcpy(x.dim, t->shape.dim, sizeof x.dim);
    x.data = t->absent ? NULL : (void *)64; /* there; its place is chosen for each run */
    return x;
}

static bool read_operands(prepared *p)
{
    char text[MOST_TEXT], *at = text, *word;
    snprintf(text, sizeof text, "%s", p->from->operands);
    while ((word = strsep(&at, " "))) {
        int i = p->args.n_in++;
        if (!read_operand(word, p->from, &p->in_type[i], &p->fill[i])) return false;
        p->in[i] = tensor_of(&p->in_type[i]);
        if (!p->in_type[i].absent && !hd_dtype_is_float(p->in_type[i].dtype) && !fill_index(p, i)) return false;
    }
    return true;
}

static hd_sig sig_of(const prepared *p)
{
    return (hd_sig){p->op, p->in_type, p->out_type, p->args.n_in, p->args.n_out, p->attrs};
}

static bool find_kernel(prepared *p)
{
    rig *r = p->rig;
    p->args.in = p->in, p->args.out = p->out, p->args.attrs = p->attrs, p->args.code = p->op->code;
    p->args.team = r->team, p->args.threads = r->threads;
    const hd_kernel *k = hd_cpu_kernel_find(p->op->name, r->isa, &p->args);
    if (!k) return false;
    p->kernel = *k;
    size_t want = k->workspace ? k->workspace(&p->args, r->threads) : 0;
    if (want > r->workspace_bytes) {
        if (r->workspace) hd_unmap_memory(r->workspace, r->workspace_bytes);
        r->workspace = hd_map_memory(want);
        r->workspace_bytes = r->workspace ? want : 0;
    }
    p->args.workspace = want ? r->workspace : NULL;
    return !want || r->workspace;
}

static size_t operand_bytes(const prepared *p, int i)
{
    return i == 1 && p->packed_bytes ? p->packed_bytes : hd_tensor_bytes(&p->in[i]);
}

/* False where it makes no sense; to be discarded all the same. */
static bool read_case(prepared *p, rig *r, const hd_case *c)
{
    char text[MOST_TEXT];
    *p = (prepared){.op = hd_op_find(c->op), .from = c, .rig = r};
    if (!p->op) return false;
    hd_attrs_preset(p->op, p->attrs);
    expand(c->attrs, c, text, sizeof text);
    if ((*text && hd_attrs_parse(p->op, text, p->attrs, &r->err)) || !read_operands(p)) return false;
    hd_sig s = sig_of(p);
    p->args.n_out = p->op->infer(&s, p->out_type, &r->err);
    for (int i = 0; i < p->args.n_out; i++) {
        if (c->unread & 1u << i) p->out_type[i] = (hd_type){.dtype = p->out_type[i].dtype, .absent = true, .shape.sym = -1};
        p->out[i] = tensor_of(&p->out_type[i]);
    }
    if (c->packed) {
        p->in[1].format = HD_PACKED;
        const hd_tensor *w = &p->in[1];
        p->packed_bytes = w->blocks ? hd_blocks_packed_bytes(r->isa, w->blocks, w->dim[0], w->dim[1])
                                    : hd_gemm_packed_bytes(r->isa, ((const hd_contract_attrs *)p->attrs)->spec, w);
    }
    for (int i = 0; i < p->args.n_in; i++)
        if (operand_bytes(p, i) > RESULT_BYTES) return false;
    return p->args.n_out > 0 && (!c->packed || p->packed_bytes);
}

static void discard(prepared *p)
{
    for (int i = 0; i < p->args.n_in; i++) hd_free(p->index[i]);
}

/* ---- one run ---- */

static void *take(char *pool, size_t size, size_t *at, size_t bytes)
{
    size_t want = (bytes + 4095) / 4096 * 4096 + 192; /* the odd lines keep pieces from falling on the same sets of a cache */
    if (*at + want > size) *at = 0;
    void *p = pool + *at;
    *at += want;
    return p;
}

static void place(prepared *p)
{
    rig *r = p->rig;
    for (int i = 0; i < p->args.n_in; i++) {
        size_t bytes = operand_bytes(p, i);
        if (!p->in[i].data) continue;
        if (p->index[i]) p->in[i].data = p->index[i];
        else if (p->from->in_place & 1u << i) p->in[i].data = take(r->results, RESULT_BYTES, &r->result_at, bytes);
        else p->in[i].data = take(r->pool, POOL_BYTES, &r->at, bytes);
    }
    for (int i = 0; i < p->args.n_out; i++)
        if (p->out[i].data)
            p->out[i].data = p->from->in_place & 1u << i ? p->in[i].data : take(r->results, RESULT_BYTES, &r->result_at, hd_tensor_bytes(&p->out[i]));
}

static void touch(const prepared *p, int tid)
{
    for (int i = 0; i < p->args.n_in; i++) {
        int64_t begin, end;
        if (!(p->from->warm & 1u << i) || !p->in[i].data) continue;
        hd_split((int64_t)hd_tensor_bytes(&p->in[i]), 64, tid, p->rig->threads, &begin, &end);
        volatile char *data = p->in[i].data;
        for (int64_t k = begin; k < end; k += 64) data[k] = data[k];
    }
}

static void timed_member(void *arg, int tid)
{
    prepared *p = arg;
    hd_kernel_args a = p->args;
    a.tid = tid;
    touch(p, tid);
    hd_team_barrier(a.team, tid);
    if (tid == 0) {
        meet(p->rig);
        p->begin = hd_time();
    }
    hd_team_barrier(a.team, tid);
    p->kernel.run(&a);
    hd_team_barrier(a.team, tid);
    if (tid == 0) p->end = hd_time();
}

static double run_once(prepared *p)
{
    place(p);
    hd_team_run(p->rig->team, timed_member, p);
    return p->end - p->begin;
}

/* ---- all cases, by one team ---- */

enum { BANDWIDTH_EVERY = 24 };
#define SAME_BANDWIDTH 0.15

static void read_member(void *arg, int tid)
{
    rig *r = arg;
    double ignored[256];
    hd_tensor in = {.data = r->pool, .dtype = HD_U8, .rank = 1, .dim = {POOL_BYTES}}, out = {.data = ignored, .dtype = HD_F64, .rank = 1, .dim = {256}};
    hd_kernel_args a = {.in = &in, .n_in = 1, .out = &out, .n_out = 1, .code = 1, .team = r->team, .tid = tid, .threads = r->threads};
    r->reader->run(&a);
}

/* How fast all cores read memory at this moment: what entries that stream are brought to the cluster's bandwidth by. */
static void measure_bandwidth(rig *r)
{
    double x[3];
    if (r->threads * r->teams < hd_core_count() || !r->reader || r->calibration->all) return;
    for (int i = 0; i < 3; i++) {
        meet(r);
        double begin = hd_time();
        hd_team_run(r->team, read_member, r);
        x[i] = (double)POOL_BYTES * r->teams / agree(r, hd_time() - begin);
    }
    r->bandwidth = hd_calibration_median(x, 3);
}

/* Runs of the i-th case, of which one takes so long. Where cores are busy with other things meeting takes long too: what is late takes the least. */
static int choose_runs(rig *r, int i, double one)
{
    bool late = agree(r, hd_time() - r->begin > r->seconds * (i + 1)) > 0;
    int runs = late ? 1 : (int)(r->seconds / (one + 1e-5));
    if (late) return runs;
    return runs > MOST_RUNS ? MOST_RUNS : runs < LEAST_RUNS ? LEAST_RUNS : runs;
}

static double measure(prepared *p, int i)
{
    rig *r = p->rig;
    double x[MOST_RUNS];
    if (p->from->in_place) memset(r->results, FILL, RESULT_BYTES);
    int runs = choose_runs(r, i, agree(r, run_once(p)));
    for (int k = 0; k < runs; k++) x[k] = run_once(p);
    return hd_calibration_median(x, runs);
}

static bool make_rig(rig *r)
{
    r->isa = hd_isa_detect();
    r->team = hd_team_new(r->threads, true, &r->err);
    r->reader = hd_cpu_kernel_find("measure.read", r->isa, NULL);
    r->pool = hd_map_memory(POOL_BYTES);
    r->results = hd_map_memory(RESULT_BYTES);
    if (!r->team || !r->pool || !r->results) return false;
    memset(r->pool, FILL, POOL_BYTES);
    memset(r->results, FILL, RESULT_BYTES);
    return true;
}

static void free_rig(rig *r)
{
    hd_team_free(r->team);
    if (r->pool) hd_unmap_memory(r->pool, POOL_BYTES);
    if (r->results) hd_unmap_memory(r->results, RESULT_BYTES);
    if (r->workspace) hd_unmap_memory(r->workspace, r->workspace_bytes);
}

static void *rig_main(void *arg)
{
    rig *r = arg;
    if (r->pinned) hd_thread_pin(r->index * r->threads, r->threads);
    bool ready = make_rig(r);
    if (agree(r, ready ? 0 : 1) > 0) ready = false;
    prepared *p = ready ? hd_malloc(sizeof *p) : NULL;
    if (agree(r, p ? 0 : 1) > 0) ready = false;
    r->begin = hd_time();
    for (int i = 0; i < r->n_cases && ready; i++) {
        if (i % BANDWIDTH_EVERY == 0) measure_bandwidth(r);
        r->at_bandwidth[i] = r->bandwidth;
        r->result[i] = read_case(p, r, &r->cases[i]) && find_kernel(p) ? measure(p, i) : 0;
        discard(p);
        if (r->index == 0) hd_calibration_step(r->calibration, r->seconds, r->cases[i].op);
    }
    if (!ready) hd_fail(&r->err, HD_ENOMEM, "memory for calibration");
    hd_free(p);
    free_rig(r);
    return NULL;
}

/* ---- entries ---- */

static int add_entry(hd_calibration *c, rig *r, int i, double seconds)
{
    prepared *p = hd_malloc(sizeof *p);
    if (!p) return hd_fail_memory(&c->err, sizeof *p, "a case of calibration");
    bool ok = read_case(p, r, &r->cases[i]);
    hd_profile_entry e = {.threads = r->threads, .teams = r->teams, .seconds = seconds};
    hd_sig s = sig_of(p);
    if (ok) {
        hd_cost_key(&s, r->cases[i].packed ? 2 : 0, e.op);
        e.dtype = hd_cost_dtype(&s);
        hd_cost_features(&s, e.x);
        double then = r->at_bandwidth[i];
        if (fabs(then / c->out->device.bandwidth - 1) < SAME_BANDWIDTH) then = 0; /* the pool is shorter, and caches hold some of it */
        if (then > 0) e.seconds = hd_cost_at_bandwidth(c->out, &e, then, c->out->device.bandwidth);
    }
    discard(p);
    hd_free(p);
    return ok ? hd_calibration_add(c, &e) : 0;
}

static int add_entries(hd_calibration *c, rig *rigs, int n)
{
    int rc = 0;
    for (int i = 0; i < rigs[0].n_cases && !rc; i++) {
        double sum = 0;
        for (int t = 0; t < n; t++) sum += rigs[t].result[i];
        if (sum > 0) rc = add_entry(c, &rigs[0], i, sum / n);
    }
    return rc;
}

/* ---- a combination of threads and teams ---- */

static int run_rigs(hd_calibration *c, rig *rigs, int n)
{
    gate g = {.n = n};
    int rc = 0;
    for (int i = 0; i < n; i++) rigs[i].gate = n > 1 ? &g : NULL;
    for (int i = 0; i < n && !rc; i++) {
        rigs[i].started = !pthread_create(&rigs[i].thread, NULL, rig_main, &rigs[i]);
        if (!rigs[i].started) rc = hd_fail(&c->err, HD_ENOMEM, "a thread for calibration could not be started");
    }
    if (rc) atomic_store(&g.broken, true);
    for (int i = 0; i < n; i++)
        if (rigs[i].started) pthread_join(rigs[i].thread, NULL);
    for (int i = 0; i < n && !rc; i++)
        if (rigs[i].err.code == HD_ENOMEM) rc = hd_fail(&c->err, HD_ENOMEM, "%s", rigs[i].err.message);
    return rc;
}

int hd_calibrate_ops(hd_calibration *c, int threads, int teams, double seconds)
{
    int n_cases, n = c->all ? 1 : teams;
    hd_case *cases = hd_calibrate_cases(&n_cases);
    rig *rigs = hd_calloc((size_t)n, sizeof *rigs);
    double *results = cases ? hd_calloc(2 * (size_t)n * (size_t)n_cases, sizeof *results) : NULL;
    int rc = cases && rigs && results && n <= MOST_TEAMS ? 0 : hd_fail(&c->err, HD_ENOMEM, "memory for calibration");
    for (int i = 0; i < n && !rc; i++)
        rigs[i] = (rig){.calibration = c, .index = i, .threads = threads, .teams = teams, .seconds = seconds / n_cases, .cases = cases, .n_cases = n_cases,
                        .pinned = n > 1 && n * threads <= hd_core_count(), .result = results + 2 * (size_t)i * (size_t)n_cases,
                        .at_bandwidth = results + (2 * (size_t)i + 1) * (size_t)n_cases};
    if (!rc) rc = run_rigs(c, rigs, n);
    if (!rc) rc = add_entries(c, rigs, n);
    hd_free(results);
    hd_free(rigs);
    hd_free(cases);
    return rc;
}
