/* Programs of several ranks, each a thread with an endpoint, a store and an executor of its own, against one rank. Graphs are partitioned by hand. */
#include "small_graphs.h"

#include <pthread.h>
#include <stdlib.h>
#include "graph/op.h"
#include "passes/partition.h"

/* ---- running a world ---- */

enum { MOST_RANKS = 8 };

typedef struct member {
    hd_graph *graph;       /* of its stage */
    hd_program *program;
    hd_store *store;
    hd_team *team;
    hd_exec *exec;
    hd_comm *comm;
    hd_backend *backend;
    hd_exec_hooks hooks;
    int steps, rc;
    hd_error err;
} member;

static void *run_member(void *arg)
{
    member *m = arg;
    for (int i = 0; i < m->steps && !m->rc; i++) m->rc = hd_exec_step(m->exec, &m->hooks, &m->err);
    if (m->rc) hd_comm_abort(m->comm, m->err.message);
    return NULL;
}

static void check_text(const hd_program *p)
{
    hd_str first, second;
    hd_error err = {0};
    hd_program *back;
    hd_str_init(&first);
    hd_str_init(&second);
    hd_program_dump(p, &first);
    hd_program_parse(first.data, first.len, "text", &back, &err);
    assert_string_equal(err.message, "");
    hd_program_dump(back, &second);
    assert_string_equal(first.data, second.data);
    hd_program_free(back);
    hd_str_free(&first);
    hd_str_free(&second);
}

typedef struct crew { member m[MOST_RANKS]; hd_comm *comm[MOST_RANKS]; hd_backend backend; int n; } crew;

/* graphs[stage]; rank r is of stage r / (n / stages): the pipeline's axis comes first. */
static void crew_open(crew *w, hd_graph **graphs, int stages, const hd_plan *plan, const char *backend, int threads)
{
    hd_error err = {0};
    const hd_program *programs[MOST_RANKS];
    *w = (crew){.n = hd_mesh_size(&graphs[0]->mesh)};
    hd_backend_open(&w->backend, backend, &err);
    assert_int_equal(hd_comm_local(w->n, 20, w->comm, &err), 0);
    for (int r = 0; r < w->n; r++) {
        member *m = &w->m[r];
        m->graph = graphs[r / (w->n / stages)];
        m->comm = w->comm[r];
        hd_lower(m->graph, plan, &w->backend.target, &m->program, &err);
        if (!err.code) hd_program_verify(m->program, &err);
        assert_string_equal(err.message, "");
        check_text(m->program);
        programs[r / (w->n / stages)] = m->program;
        m->store = hd_store_new_rank(m->graph, 1, r, &err);
        m->team = hd_team_new(threads, false, &err);
        hd_rank rank = {r, m->comm};
        if (!err.code) m->exec = hd_exec_new_rank(m->program, m->store, &w->backend, m->team, NULL, &rank, &err);
        assert_string_equal(err.message, "");
    }
    if (stages > 1) hd_program_verify_world(programs, stages, &err);
    assert_string_equal(err.message, "");
}

static void crew_run(crew *w, int steps)
{
    pthread_t thread[MOST_RANKS];
    for (int r = 0; r < w->n; r++) {
        w->m[r].steps = steps;
        assert_int_equal(pthread_create(&thread[r], NULL, run_member, &w->m[r]), 0);
    }
    for (int r = 0; r < w->n; r++) pthread_join(thread[r], NULL);
    for (int r = 0; r < w->n; r++)
        if (w->m[r].rc) fail_msg("rank %d: %s", r, w->m[r].err.message);
}

static void crew_close(crew *w)
{
    for (int r = 0; r < w->n; r++) {
        hd_exec_free(w->m[r].exec);
        hd_team_free(w->m[r].team);
        hd_store_free(w->m[r].store);
        hd_program_free(w->m[r].program);
    }
    for (int r = 0; r < w->n; r++) hd_comm_free(w->comm[r]);
}

/* ---- every conversion, over uneven pieces ---- */

enum { T = 5, D = 3, H = 7, MOST = 64 };

static hd_mesh square(void)
{
    return (hd_mesh){.n = 2, .axis = {{"dp", 2, HD_AXIS_DATA}, {"tp", 2, HD_AXIS_MODEL}}};
}

/* v lies so; its type is that at coordinate 0 already. */
static hd_value lay(hd_graph *g, hd_value v, const char *text, int64_t rows, int64_t cols)
{
    if (!g->mesh.n) return v;
    hd_error err = {0};
    hd_layout *l = hd_arena_alloc(&g->arena, sizeof *l);
    hd_value_info *i = &g->values[v];
    i->whole = hd_type_of(HD_F32, 2, (int64_t[]){rows, cols}).shape;
    assert_int_equal(hd_layout_parse(&g->mesh, text, 2, l, &err), 0);
    hd_shape s = hd_layout_shape(&g->mesh, l, &i->whole, 0);
    assert_true(hd_shape_equal(&s, &i->type.shape));
    i->layout = l;
    return v;
}

static hd_type piece(const hd_graph *g, const char *text, int64_t rows, int64_t cols)
{
    hd_type t = hd_type_of(HD_F32, 2, (int64_t[]){rows, cols});
    hd_layout l;
    if (!g->mesh.n) return t;
    hd_layout_parse(&g->mesh, text, 2, &l, NULL);
    t.shape = hd_layout_shape(&g->mesh, &l, &t.shape, 0);
    return t;
}

/* A conversion; in the whole graph, another name for the same. */
static hd_value convert(hd_graph *g, const char *op, const char *name, hd_value x, hd_comm_attrs a, const char *layout, int64_t rows, int64_t cols)
{
    if (!g->mesh.n) return hd_scale(g, x, 1);
    return lay(g, hd_graph_node(g, op, name, &a, &x, 1), layout, rows, cols);
}

static const char *const outputs[] = {"sum", "gathered", "scattered", "exchanged", "cut", "first", "greatest", "placed"};
static const char *const layouts[] = {"dp,-", "-,-", "dp,tp", "dp.tp,-", "dp,tp", "dp,-", "dp,-", "dp,-"};
static const int64_t columns[] = {D, D, D, H, D, D, D, D};

static hd_graph *conversions(bool parts)
{
    hd_graph *g = hd_graph_new();
    if (parts) g->mesh = square();
    hd_value x = lay(g, hd_graph_input(g, "x", piece(g, "dp,-", T, D), HD_TIME_SPLIT), "dp,-", T, D);
    hd_value w = lay(g, hd_graph_param(g, "w", piece(g, "-,tp", D, H), (hd_init){HD_INIT_NORMAL, 1}, true, true), "-,tp", D, H);
    hd_value v = lay(g, hd_graph_param(g, "v", piece(g, "tp,-", H, D), (hd_init){HD_INIT_UNIFORM, 1}, true, true), "tp,-", H, D);
    hd_value h = lay(g, hd_contract(g, "h", "td,dh->th", x, w, HD_F32), "dp,tp", T, H);
    hd_value y = lay(g, hd_contract(g, "y", "th,hd->td", h, v, HD_F32), "dp,- +tp", T, D);
    hd_value z[8];
    z[0] = convert(g, "all_reduce", "sum", y, (hd_comm_attrs){.axes = "tp"}, "dp,-", T, D);
    z[1] = convert(g, "all_gather", "gathered", z[0], (hd_comm_attrs){.axes = "dp", .dim = 0, .extent = T}, "-,-", T, D);
    z[2] = convert(g, "reduce_scatter", "scattered", y, (hd_comm_attrs){.axes = "tp", .dim = 1, .extent = 2}, "dp,tp", T, D);
    z[3] = convert(g, "all_to_all", "exchanged", h, (hd_comm_attrs){.axes = "tp", .dim = 1, .extent = H, .to = 0, .to_extent = 2}, "dp.tp,-", T, H);
    z[4] = convert(g, "shard", "cut", z[0], (hd_comm_attrs){.axes = "tp", .dim = 1, .extent = 2}, "dp,tp", T, D);
    hd_value first = convert(g, "keep_first", "kept", z[0], (hd_comm_attrs){.axes = "tp"}, "dp,- +tp", T, D);
    z[5] = convert(g, "all_reduce", "first", first, (hd_comm_attrs){.axes = "tp"}, "dp,-", T, D);
    z[6] = convert(g, "all_reduce", "greatest", z[0], (hd_comm_attrs){.axes = "tp", .max = true}, "dp,-", T, D);
    hd_value placed = convert(g, "place", "amid_zeros", z[4], (hd_comm_attrs){.axes = "tp", .dim = 1, .extent = D}, "dp,- +tp", T, D);
    z[7] = convert(g, "all_reduce", "placed", placed, (hd_comm_attrs){.axes = "tp"}, "dp,-", T, D);
    for (int i = 0; i < 8; i++) hd_graph_output(g, outputs[i], z[i]);
    assert_string_equal(g->err.message, "");
    return g;
}

static int put_x(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    (void)arg, (void)call;
    float x[T * D];
    if (kind != HD_SEGMENT_FORWARD) return 0;
    for (int i = 0; i < T * D; i++) x[i] = sinf((float)i * 1.7f);
    return hd_exec_put(e, "x", x, err);
}

static void check_pieces(crew *w, rig *one, int threads)
{
    for (int r = 0; r < w->n; r++)
        for (int k = 0; k < 8; k++) {
            hd_tensor all, got;
            hd_layout l;
            hd_mesh mesh = square();
            float want[MOST];
            hd_exec_output(one->exec, outputs[k], &all, NULL);
            hd_exec_output(w->m[r].exec, outputs[k], &got, NULL);
            hd_layout_parse(&mesh, layouts[k], 2, &l, NULL);
            hd_shape whole = hd_type_of(HD_F32, 2, (int64_t[]){T, columns[k]}).shape, s = hd_layout_shape(&mesh, &l, &whole, r);
            hd_layout_take(&mesh, &l, &whole, r, 4, all.data, want);
            assert_int_equal(hd_tensor_count(&got), hd_shape_count(&s));
            for (int64_t i = 0; i < hd_tensor_count(&got); i++)
                if (!(fabsf(((float *)got.data)[i] - want[i]) <= 1e-5f))
                    fail_msg("%d threads, rank %d, %s[%d]: %g, not %g", threads, r, outputs[k], (int)i, ((float *)got.data)[i], want[i]);
        }
}

static void test_conversions(void **state)
{
    (void)state;
    hd_plan plan = hd_plan_default();
    for (int threads = 1; threads <= 2; threads++) {
        crew w;
        rig one;
        hd_graph *whole = conversions(false), *parts = conversions(true);
        rig_open(&one, whole, "reference", 1, 1);
        hd_exec_hooks hooks = {.before = put_x};
        assert_int_equal(hd_exec_step(one.exec, &hooks, &one.err), 0);
        plan.threads = threads;
        crew_open(&w, &parts, 1, &plan, threads == 1 ? "reference" : "cpu", threads);
        for (int r = 0; r < w.n; r++) w.m[r].hooks = hooks;
        crew_run(&w, 3);
        check_pieces(&w, &one, threads);
        hd_comm_count count[16];
        int n = hd_program_count(w.m[0].program, count, 16);
        assert_int_equal(n, 4);
        assert_string_equal(count[0].op, "all_reduce");
        assert_int_equal(count[0].transfers, 4);
        assert_int_equal(count[0].bytes, 4 * 3 * D * 4); /* 2 (n - 1) / n of [3, D] each */
        crew_close(&w);
        rig_close(&one, false);
        hd_graph_free(whole);
        hd_graph_free(parts);
    }
}

/* ---- pipelines ---- */

enum { ROWS = 3, WIDE = 4, MICRO = 4 };

static hd_value pass(hd_graph *g, const char *name, int from, int to)
{
    hd_pipe_attrs a = {.from = from, .to = to, .dtype = HD_F32, .shape = {.rank = 2, .dim = {ROWS, WIDE}}};
    hd_value v = hd_graph_node(g, "recv", name, &a, NULL, 0);
    g->values[v].micro = HD_TIME_SPLIT;
    return v;
}

static void send(hd_graph *g, hd_value x, int from, int to)
{
    hd_pipe_attrs a = {.from = from, .to = to};
    hd_graph_node(g, "send", "sent", &a, &x, 1);
}

static bool own(int chunk, int stage, int stages)
{
    return chunk % stages == stage;
}

/* Layers h' = tanh(h w), one a chunk; loss = half the sum of the squares of the last. The step is scaled by 1 / (1 + squares of all gradients). */
static hd_graph *pipeline(int stage, int stages, int layers)
{
    hd_graph *g = hd_graph_new();
    hd_value w[8], h[9] = {HD_NONE}, y, d = HD_NONE, sum = HD_NONE, grad[8];
    if (stages > 1) g->mesh = (hd_mesh){.n = 1, .axis = {{"pp", stages, HD_AXIS_PIPELINE}}};
    if (stage == 0) h[0] = hd_graph_input(g, "x", hd_type_of(HD_F32, 2, (int64_t[]){ROWS, WIDE}), HD_TIME_SPLIT);
    for (int c = 0; c < layers; c++) {
        char name[16];
        snprintf(name, sizeof name, "w%d", c);
        g->chunk = c;
        if (!own(c, stage, stages)) continue;
        w[c] = hd_graph_param(g, name, hd_type_of(HD_F32, 2, (int64_t[]){WIDE, WIDE}), (hd_init){HD_INIT_NORMAL, 0.5}, true, true);
        if (c && stages > 1) h[c] = pass(g, "h", c - 1, c);
        y = hd_contract(g, "z", "td,de->te", h[c], w[c], HD_F32);
        h[c + 1] = hd_elementwise(g, "y", HD_EW_TANH, y, HD_NONE, HD_NONE, 0);
        if (c + 1 < layers && stages > 1) send(g, h[c + 1], c, c + 1);
    }
    hd_value kept[9];
    memcpy(kept, h, sizeof h);
    g->phase = HD_BACKWARD;
    for (int c = layers - 1; c >= 0; c--) {
        g->chunk = c;
        if (!own(c, stage, stages)) continue;
        if (c == layers - 1) d = h[layers];
        else if (stages > 1) d = pass(g, "d", c + 1, c);
        hd_value out = hd_graph_node(g, "tanh", "again", &(hd_ew_attrs){.dtype = HD_F32}, (hd_value[]){hd_contract(g, "zz", "td,de->te", kept[c], w[c], HD_F32)}, 1);
        hd_value dz = hd_elementwise(g, "dz", HD_EW_TANH_GRAD, out, d, HD_NONE, 0);
        hd_value dw = hd_contract(g, "dw", "td,te->de", kept[c], dz, HD_F32);
        grad[c] = hd_graph_node(g, "micro_sum", "grad", NULL, &dw, 1);
        if (c) d = hd_contract(g, "dh", "te,de->td", dz, w[c], HD_F32);
        if (c && stages > 1) send(g, d, c, c - 1);
    }
    g->phase = HD_UPDATE;
    for (int c = 0; c < layers; c++)
        if (own(c, stage, stages)) sum = hd_add(g, sum, hd_graph_node(g, "sum_squares", "squares", NULL, &grad[c], 1));
    if (stages > 1) sum = hd_graph_node(g, "all_reduce", "norm", &(hd_comm_attrs){.axes = "pp"}, &sum, 1);
    hd_value factor = hd_elementwise(g, "factor", HD_EW_POWI, hd_elementwise(g, "one", HD_EW_OFFSET, sum, HD_NONE, HD_NONE, 1), HD_NONE, HD_NONE, -1);
    for (int c = 0; c < layers; c++)
        if (own(c, stage, stages)) hd_graph_pair(g, w[c], hd_elementwise(g, "new", HD_EW_SUB, w[c], hd_mul(g, grad[c], factor), HD_NONE, 0));
    hd_graph_output(g, "norm", sum);
    assert_string_equal(g->err.message, "");
    return g;
}

static int put_micro(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    (void)arg;
    float x[ROWS * WIDE];
    if (kind != HD_SEGMENT_FORWARD) return 0;
    for (int i = 0; i < ROWS * WIDE; i++) x[i] = sinf((float)(i + 31 * call->micro));
    return hd_exec_put(e, "x", x, err);
}

static void compare_pipeline(hd_schedule_kind schedule, int stages, int chunks, int micro)
{
    crew w;
    rig one;
    hd_graph *whole = pipeline(0, 1, stages * chunks), *parts[MOST_RANKS];
    hd_plan plan = hd_plan_default();
    for (int s = 0; s < stages; s++) parts[s] = pipeline(s, stages, stages * chunks);
    plan.schedule = schedule;
    plan.chunks = chunks;
    plan.micro_batches = micro;
    plan.threads = 1;
    plan.mesh = parts[0]->mesh;
    rig_open(&one, whole, "reference", micro, 1);
    hd_exec_hooks hooks = {.before = put_micro};
    for (int i = 0; i < 3; i++) assert_int_equal(hd_exec_step(one.exec, &hooks, &one.err), 0);
    crew_open(&w, parts, stages, &plan, "reference", 1);
    for (int r = 0; r < w.n; r++) w.m[r].hooks = hooks;
    crew_run(&w, 3);
    for (int c = 0; c < stages * chunks; c++) {
        char name[16];
        snprintf(name, sizeof name, "w%d", c);
        const float *want = hd_store_find(one.store, name)->data, *got = hd_store_find(w.m[c % stages].store, name)->data;
        for (int i = 0; i < WIDE * WIDE; i++)
            if (!(fabsf(want[i] - got[i]) <= 1e-5f)) fail_msg("%s, %d stages, %s[%d]: %g, not %g", hd_schedule_name(schedule), stages, name, i, got[i], want[i]);
    }
    crew_close(&w);
    rig_close(&one, false);
    hd_graph_free(whole);
    for (int s = 0; s < stages; s++) hd_graph_free(parts[s]);
}

static void test_pipelines(void **state)
{
    (void)state;
    for (int micro = 1; micro <= 6; micro++)
        for (int stages = 2; stages <= 4; stages++) {
            compare_pipeline(HD_SCHEDULE_GPIPE, stages, 1, micro);
            compare_pipeline(HD_SCHEDULE_1F1B, stages, 1, micro);
            compare_pipeline(HD_SCHEDULE_ZERO_BUBBLE, stages, 1, micro);
            if (micro % stages == 0) compare_pipeline(HD_SCHEDULE_INTERLEAVED, stages, 2, micro);
        }
}

/* Stages that wait for each other, and ends that don't fit. */
static void test_stuck_pipelines(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_backend backend;
    hd_program *p[2], *other;
    hd_plan plan = hd_plan_default();
    hd_graph *parts[2] = {pipeline(0, 2, 2), pipeline(1, 2, 2)};
    hd_backend_open(&backend, "null", &err);
    plan.micro_batches = 4;
    plan.schedule = HD_SCHEDULE_1F1B;
    plan.mesh = parts[0]->mesh;
    for (int s = 0; s < 2; s++) assert_int_equal(hd_lower(parts[s], &plan, &backend.target, &p[s], &err), 0);
    assert_int_equal(hd_program_verify_world((const hd_program *const *)p, 2, &err), 0);
    plan.micro_batches = 3; /* one micro-batch fewer: stage 1 waits for what nobody sends */
    assert_int_equal(hd_lower(parts[0], &plan, &backend.target, &other, &err), 0);
    const hd_program *uneven[2] = {other, p[1]};
    assert_int_equal(hd_program_verify_world(uneven, 2, &err), HD_EFORMAT);
    assert_non_null(strstr(err.message, "waits for ever"));
    int calls = p[0]->n_calls; /* stage 0 asks for a gradient before it has sent the activations */
    hd_call kept = p[0]->calls[0];
    for (int i = 0; i < calls; i++)
        if (p[0]->segments[p[0]->calls[i].segment].kind == HD_SEGMENT_BACKWARD) {
            p[0]->calls[0] = p[0]->calls[i];
            p[0]->calls[i] = kept;
            break;
        }
    assert_int_equal(hd_program_verify_world((const hd_program *const *)p, 2, &err), HD_EFORMAT);
    const hd_program *swapped[2] = {p[1], p[0]};
    assert_int_equal(hd_program_verify_world(swapped, 2, &err), HD_EINVAL);
    for (int s = 0; s < 2; s++) {
        hd_program_free(p[s]);
        hd_graph_free(parts[s]);
    }
    hd_program_free(other);
}

/* ---- a language model, cut by the passes ---- */

static int put_tokens(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    enum { N = 6 };
    int32_t token[N], target[N];
    float weight = 0.1f;
    (void)arg;
    int rc = hd_exec_put(e, "weight", &weight, err);
    float lr = 0.01f, step = 1;
    if (!rc) rc = hd_exec_put(e, "lr", &lr, err);
    if (!rc) rc = hd_exec_put(e, "step", &step, err);
    if (rc || kind != HD_SEGMENT_FORWARD) return rc;
    for (int i = 0; i < N; i++) {
        uint64_t h = hd_hash_mix(7, (uint64_t)(i + N * call->micro));
        token[i] = (int32_t)(h % VOCAB);
        target[i] = (int32_t)(h / VOCAB % VOCAB);
    }
    rc = hd_exec_put(e, "token", token, err);
    return rc ? rc : hd_exec_put(e, "target", target, err);
}

static void compare_stores(const crew *w, const hd_store *one)
{
    int compared = 0;
    for (int r = 0; r < w->n; r++)
        for (size_t k = 0; k < w->m[r].store->n_tensors; k++) {
            const hd_store_tensor *t = w->m[r].store->tensors[k], *all = hd_store_find(one, t->path);
            if (!all) continue;
            const float *want = all->data, *got = t->data;
            for (int64_t i = 0; i < all->bytes / 4; i++)
                if (!(fabsf(want[i] - got[i]) <= 1e-4f)) fail_msg("rank %d, %s[%d]: %g, not %g", r, t->path, (int)i, got[i], want[i]);
            compared++;
        }
    assert_true(compared > 20);
}

static void compare_model(hd_schedule_kind schedule, int chunks)
{
    static const char *const cuts[] = {"layers.0.y", "layers.1.u", "layers.2.v"};
    crew w;
    rig one;
    hd_error err = {0};
    hd_graph *whole = small_training(6, false, 0.5), *g = small_training(6, false, 0.5), *parts[2];
    hd_plan plan = hd_plan_default();
    g->mesh = plan.mesh = (hd_mesh){.n = 1, .axis = {{"pp", 2, HD_AXIS_PIPELINE}}};
    assert_int_equal(hd_pass_chunks(g, cuts, 2 * chunks - 1), 0);
    for (int s = 0; s < 2; s++) parts[s] = hd_graph_stage(g, s, 2, false, &err);
    assert_string_equal(err.message, "");
    plan.schedule = schedule;
    plan.chunks = chunks;
    plan.micro_batches = 4;
    plan.threads = 1;
    rig_open(&one, whole, "reference", 4, 1);
    hd_exec_hooks hooks = {.before = put_tokens};
    for (int i = 0; i < 2; i++) assert_int_equal(hd_exec_step(one.exec, &hooks, &one.err), 0);
    crew_open(&w, parts, 2, &plan, "reference", 1);
    for (int r = 0; r < w.n; r++) w.m[r].hooks = hooks;
    crew_run(&w, 2);
    compare_stores(&w, one.store);
    crew_close(&w);
    rig_close(&one, false);
    hd_graph_free(whole);
    hd_graph_free(g);
    for (int s = 0; s < 2; s++) hd_graph_free(parts[s]);
}

static void test_language_model_in_stages(void **state)
{
    (void)state;
    compare_model(HD_SCHEDULE_GPIPE, 1);
    compare_model(HD_SCHEDULE_1F1B, 1);
    compare_model(HD_SCHEDULE_ZERO_BUBBLE, 1);
    compare_model(HD_SCHEDULE_INTERLEAVED, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_pipelines),
        cmocka_unit_test(test_stuck_pipelines),
        cmocka_unit_test(test_language_model_in_stages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
