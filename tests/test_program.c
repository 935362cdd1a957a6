/* Lowering, placement, text, verifier. Random graphs are run against a naive evaluator that gives every value memory of its own. */
#include "small_graphs.h"

#include <stdlib.h>
#include "graph/op.h"

/* ---- placement ---- */

static void random_blocks(hd_rng *r, hd_block *b, int n)
{
    int style = (int)hd_rng_below(r, 3);
    for (int i = 0; i < n; i++) {
        int length = style == 0 ? (int)hd_rng_below(r, 40) : style == 1 ? (int)hd_rng_below(r, 4) : i % 3 ? 2 : 2 * (n - i); /* the last: forward and backward */
        b[i] = (hd_block){.bytes = (int64_t)hd_rng_below(r, style == 2 ? 8 : 3000) * 64 + 1, .first = i, .last = i + length};
        if (hd_rng_below(r, 20) == 0) b[i].bytes <<= 10;
    }
}

static void check_placement(const hd_block *b, int n, int64_t size)
{
    for (int i = 0; i < n; i++) {
        assert_true(b[i].offset >= 0 && b[i].offset % (b[i].bytes >= 1 << 20 ? 4096 : 64) == 0 && b[i].offset + b[i].bytes <= size);
        for (int k = 0; k < i; k++) {
            bool time = b[i].first <= b[k].last && b[k].first <= b[i].last;
            bool space = b[i].offset < b[k].offset + b[k].bytes && b[k].offset < b[i].offset + b[i].bytes;
            if (time && space) fail_msg("blocks %d and %d of %d overlap", i, k, n);
        }
    }
}

static void test_placement(void **state)
{
    (void)state;
    hd_rng r = hd_rng_new(11);
    double excess = 0, worst = 0;
    enum { ROUNDS = 120, MOST = 150 };
    for (int round = 0; round < ROUNDS; round++) {
        hd_block b[MOST];
        int n = 1 + (int)hd_rng_below(&r, MOST);
        int64_t size, bound;
        random_blocks(&r, b, n);
        assert_int_equal(hd_place(b, n, &size, &bound, NULL), 0);
        check_placement(b, n, size);
        assert_true(bound <= size);
        double over = (double)(size - bound) / (double)bound;
        excess += over / ROUNDS;
        if (over > worst) worst = over;
    }
    if (!(excess < 0.03 && worst < 0.25)) fail_msg("%.1f %% above the bound on average, %.1f %% at worst", 100 * excess, 100 * worst);
}

/* ---- text ---- */

static hd_program *lower(const hd_graph *g, const char *backend, int micro, bool pack)
{
    hd_error err = {0};
    hd_backend b;
    hd_program *p = NULL;
    hd_plan plan = hd_plan_default();
    plan.micro_batches = micro;
    plan.threads = 2;
    plan.pack = pack;
    hd_backend_open(&b, backend, &err);
    hd_lower(g, &plan, &b.target, &p, &err);
    assert_string_equal(err.message, "");
    return p;
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
    assert_int_equal(p->n_calls, back->n_calls);
    hd_program_free(back);
    hd_str_free(&first);
    hd_str_free(&second);
}

static void test_text(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        hd_graph *g = i & 1 ? small_training(6, false, i & 2 ? 1 : 0) : small_model(6, i & 2);
        hd_program *p = lower(g, "cpu", i & 4 ? 3 : 1, !(i & 1));
        check_text(p);
        hd_program_free(p);
        hd_graph_free(g);
    }
}

static void expect_message(const char *text, const char *message)
{
    hd_error err = {0};
    hd_program *p;
    assert_true(hd_program_parse(text, strlen(text), "x", &p, &err) < 0);
    if (!strstr(err.message, message)) fail_msg("\"%s\" instead of \"%s\"", err.message, message);
}

#define HEAD "program threads=1 arena=4096 bound=0\n"
#define INPUT "buffer %0 input f32[4] plain inputs device micro=split arena=0 copies=1 offset=0 bytes=16 ; x\n"
#define RESULT "buffer %1 scratch f32[4] plain scratch device micro=split arena=0 copies=1 offset=64 bytes=16 ; y\n"

static void test_hostile_text(void **state)
{
    (void)state;
    expect_message("", "x:1: expected program ");
    expect_message("nonsense\n", "x:1: expected program ");
    expect_message("program threads=9999 arena=0 bound=0\n", "x:1: expected a number in range");
    expect_message(HEAD "what\n", "x:2: expected symbol, buffer");
    expect_message(HEAD "buffer %1 input\n", "x:2: expected a number in range");
    expect_message(HEAD "buffer %0 input f33[4] plain\n", "x:2: expected an element type");
    expect_message(HEAD "buffer %0 input f32[4, -1] plain\n", "x:2: expected a number in range");
    expect_message(HEAD "buffer %0 input f32[1,1,1,1,1,1,1,1,1] plain\n", "x:2: expected at most 8 dimensions");
    expect_message(HEAD "buffer %0 input f32[$0<=4] plain\n", "x:2: expected a number in range");
    expect_message(HEAD "buffer %0 input f32[1099511627776, 1099511627776] plain inputs device micro=split arena=0 copies=1 offset=0 bytes=16 ; x\n",
                   "other bytes than its type says");
    expect_message(HEAD "buffer %0 input f32[4] plain inputs device micro=split arena=0 copies=1 offset=8192 bytes=16 ; x\n", "out of the arena");
    expect_message(HEAD INPUT "  %1 = neg(%0) dtype=f32 ; n\n", "x:3: expected a segment");
    expect_message(HEAD INPUT "segment forward\n  %1 = neg(%0) dtype=f32 ; n\n", "x:4: expected a number in range");
    expect_message(HEAD INPUT RESULT "segment forward\n  %1 = nog(%0) ; n\n", "x:5: expected an op");
    expect_message(HEAD INPUT RESULT "segment forward\n  %1 = neg(%0) dtype=f32 stuff ; n\n", "x:5: neg: \"stuff\" is not name=value");
    expect_message(HEAD INPUT RESULT "segment forward\n  %1 = neg(%0) dtype=f16 ; n\n", "result of another type");
    expect_message(HEAD INPUT RESULT "segment forward\n  %1 = neg(%0, %0) dtype=f32 ; n\n", "wrong number of operands");
    expect_message(HEAD INPUT RESULT "segment forward\n  %1 += neg(%0) dtype=f32 ; n\n", "cannot accumulate");
    expect_message(HEAD INPUT RESULT "segment forward\n  %0 = neg(%0) dtype=f32 ; n\n", "writes to a constant or an input");
    expect_message(HEAD INPUT RESULT "segment forward\n  %1 = neg(%1) dtype=f32 ; n\ncall forward micro=0 slice=0\n", "before it is written");
    expect_message(HEAD INPUT RESULT "segment backward\nsegment forward\n", "x:5: expected segments in order");
    expect_message(HEAD INPUT RESULT "segment forward\ncall backward micro=0 slice=0\n", "x:5: expected a segment that there is");
    expect_message(HEAD INPUT RESULT "output y %1\nsegment forward\ncall forward micro=0 slice=0\n", "before it is written");
}

#define MESH "program threads=1 arena=4096 bound=0 mesh=dp:2:data,tp:2:model\n"
#define PIECE "buffer %0 input f32[3, 4] plain inputs device micro=split arena=0 copies=1 offset=0 bytes=48 "
#define SUM "buffer %1 scratch f32[3, 4] plain scratch device micro=split arena=0 copies=1 offset=64 bytes=48 ; y\n"

static void test_hostile_ranks(void **state)
{
    (void)state;
    expect_message("program threads=1 arena=0 bound=0 stage=2/2\n", "x:1: expected a number in range");
    expect_message("program threads=1 arena=0 bound=0 stage=1/2 mesh=pp:3:pipeline\n", "one of 2 stages, but its mesh is for 3");
    expect_message("program threads=1 arena=0 bound=0 mesh=dp:2\n", "x:1: expected :");
    expect_message("program threads=1 arena=0 bound=0 mesh=dp:70000:data\n", "x:1: expected a number in range");
    expect_message("program threads=1 arena=0 bound=0 mesh=dp:300:data,tp:300:model\n", "x:1: expected a number in range");
    expect_message("program threads=1 arena=0 bound=0 mesh=dp:2:data,dp:2:data\n", "x:1: expected axes of different names");
    expect_message("program threads=1 arena=0 bound=0 mesh=dp:2:what\n", "x:1: expected data, model or pipeline");
    expect_message(MESH PIECE "whole=[5, 4] layout={xp,-} ; x\n", "x:2: layout \"xp,-\": the mesh has no axis");
    expect_message(MESH PIECE "whole=[5, 4] layout={dp,- ; x\n", "x:2: expected a layout in braces");
    expect_message(MESH PIECE "whole=[9, 4] layout={dp,-} ; x\n", "isn't the piece that its layout says");
    expect_message(HEAD PIECE "whole=[3, 4] layout={-,-} ; x\n", "the program no mesh");
    expect_message(MESH PIECE "; x\n" SUM "segment forward\n  %1 = .comm(%0) ; n\n", "x:5: expected an op");
    expect_message(MESH PIECE "; x\n" SUM "segment forward\n  %1 = all_reduce(%0) axes=pp dim=0 extent=3 ; n\n", "over axes that the mesh lacks");
    expect_message(HEAD PIECE "; x\n" SUM "segment forward\n  %1 = all_reduce(%0) axes=dp dim=0 extent=3 ; n\n", "the program has no mesh");
    expect_message(MESH PIECE "; x\n" SUM "segment forward\n  () = send(%0) from=0 to=1 number=0 dtype=f32 ; n\n", "reaches another stage");
    expect_message(MESH PIECE "; x\n" SUM "segment forward\n  %1 = neg(%0) dtype=f32 @split=9:{dp} ; n\n", "has no such loop to cut");
    expect_message(MESH "buffer %0 scratch f32[4] plain scratch device micro=split arena=0 copies=3 offset=0 bytes=16 ; x\n", "more copies than there are calls");
    expect_message(HEAD INPUT RESULT "segment prepare chunk=1\n", "x:4: expected the end of the line");
    expect_message(HEAD INPUT RESULT "segment backward\nsegment backward chunk=1\n", "x:5: expected segments in order");
}

/* Random damage to a good text: an error or a program that verifies, never a crash. */
static void test_damaged_text(void **state)
{
    (void)state;
    hd_graph *g = small_training(3, false, 1);
    hd_program *p = lower(g, "cpu", 2, false);
    hd_str text;
    hd_str_init(&text);
    hd_program_dump(p, &text);
    hd_rng r = hd_rng_new(3);
    int refused = 0;
    for (int i = 0; i < 400; i++) {
        hd_error err = {0};
        hd_program *back;
        size_t at = hd_rng_below(&r, text.len), other = hd_rng_below(&r, text.len);
        char kept = text.data[at];
        text.data[at] = hd_rng_below(&r, 2) ? text.data[other] : (char)('0' + hd_rng_below(&r, 10));
        size_t n = hd_rng_below(&r, 8) ? text.len : at;
        refused += hd_program_parse(text.data, n, "text", &back, &err) < 0;
        assert_true(back ? err.code == 0 : err.code < 0);
        hd_program_free(back);
        text.data[at] = kept;
    }
    assert_true(refused > 100);
    hd_str_free(&text);
    hd_program_free(p);
    hd_graph_free(g);
}

/* ---- the verifier finds seeded faults ---- */

static int verify_code(const hd_program *p)
{
    hd_error err = {0};
    return hd_program_verify(p, &err);
}

/* Exchanges each instruction with the first that reads its result. */
static int seed_swaps(hd_program *p, int *seeded)
{
    int missed = 0;
    for (int s = 0; s < p->n_segments; s++) {
        hd_instr *x = (hd_instr *)p->segments[s].instrs;
        for (int i = 0; i < p->segments[s].n_instrs; i++) {
            int reader = -1;
            for (int k = i + 1; k < p->segments[s].n_instrs && reader < 0 && x[i].n_out && x[i].out[0] >= 0; k++)
                for (int o = 0; o < x[k].n_in; o++)
                    if (x[k].in[o] == x[i].out[0]) reader = k;
            bool sum = reader >= 0 && (x[i].accumulate || x[reader].accumulate || x[reader].in[0] == x[reader].out[0]);
            if (reader < 0 || sum) continue;
            hd_instr kept = x[i];
            x[i] = x[reader];
            x[reader] = kept;
            (*seeded)++;
            if (verify_code(p) == 0) missed++, printf("not found: %s exchanged with %s\n", x[reader].path, x[i].path);
            kept = x[i];
            x[i] = x[reader];
            x[reader] = kept;
        }
    }
    return missed;
}

/* Moves a buffer onto another that is live at the same time. */
static int seed_overlaps(hd_program *p, hd_rng *r, int *seeded)
{
    int missed = 0;
    hd_life *lives = malloc((size_t)p->n_buffers * sizeof *lives);
    assert_non_null(lives);
    hd_program_lives(p, lives);
    for (int i = 0; i < 300; i++) {
        int a = (int)hd_rng_below(r, (uint64_t)p->n_buffers), b = (int)hd_rng_below(r, (uint64_t)p->n_buffers);
        bool strictly = lives[a].last > lives[b].first && lives[b].last > lives[a].first && lives[a].first != lives[b].first;
        if (p->buffers[a].class == HD_BUFFER_OUTPUT || p->buffers[b].class == HD_BUFFER_OUTPUT) continue; /* theirs also before they are written */
        if (a == b || lives[a].last < 0 || lives[b].last < 0 || !strictly || p->buffers[b].offset + p->buffers[a].bytes > p->arena_bytes) continue;
        int64_t kept = p->buffers[a].offset;
        p->buffers[a].offset = p->buffers[b].offset;
        (*seeded)++;
        if (verify_code(p) == 0) missed++, printf("not found: %s [%d, %d] over %s [%d, %d]\n", p->buffers[a].path, lives[a].first, lives[a].last, p->buffers[b].path, lives[b].first, lives[b].last);
        p->buffers[a].offset = kept;
    }
    free(lives);
    return missed;
}

static void test_verifier(void **state)
{
    (void)state;
    hd_rng r = hd_rng_new(9);
    int seeded = 0, missed = 0;
    for (int micro = 1; micro <= 3; micro += 2) {
        hd_graph *g = small_training(4, false, 1);
        hd_program *p = lower(g, "reference", micro, false);
        assert_int_equal(verify_code(p), 0);
        missed += seed_swaps(p, &seeded) + seed_overlaps(p, &r, &seeded);
        hd_program_free(p);
        hd_graph_free(g);
    }
    assert_true(seeded > 150);
    if (missed) fail_msg("%d of %d faults were not found", missed, seeded);
}

/* ---- what lowering promises ---- */


static void test_tied_embedding_has_one_gradient(void **state)
{
    (void)state;
    for (int micro = 1; micro <= 2; micro++) {
        hd_graph *g = small_training(4, false, 0);
        hd_program *p = lower(g, "reference", micro, false);
        int adds = 0, tables = 0;
        for (int i = 0; i < p->n_buffers; i++) {
            const hd_buffer *b = &p->buffers[i];
            tables += hd_buffer_in_arena(p, i) && b->type.shape.rank == 2 && b->type.shape.dim[0] == VOCAB;
        }
        for (int s = 0; s < p->n_segments; s++)
            for (int i = 0; i < p->segments[s].n_instrs; i++) adds += p->segments[s].instrs[i].accumulate == HD_ACCUMULATE_ALWAYS;
        assert_int_equal(tables, 1);
        assert_true(adds >= 1);
        hd_program_free(p);
        hd_graph_free(g);
    }
}

static void test_memory(void **state)
{
    (void)state;
    hd_graph *g = small_training(32, false, 0);
    hd_program *one = lower(g, "reference", 1, false), *many = lower(g, "reference", 2, false);
    hd_memory a, b;
    assert_int_equal(hd_program_memory(one, &a, NULL), 0);
    assert_int_equal(hd_program_memory(many, &b, NULL), 0);
    int64_t parameters = 4 * (VOCAB * WIDTH + LAYERS * (3 * WIDTH * HIDDEN + 2 * WIDTH));
    assert_int_equal(a.role[HD_ROLE_PARAMETER], parameters);
    assert_int_equal(a.role[HD_ROLE_OPTIMIZER], 2 * parameters);
    assert_in_range(b.role[HD_ROLE_GRADIENT], parameters, parameters + 16); /* accumulators, and the loss */
    assert_true(a.role[HD_ROLE_GRADIENT] < parameters / 2);                 /* dies as the update goes along */
    assert_true(a.arena >= one->arena_bound && a.arena <= one->arena_bound + one->arena_bound / 20);
    assert_int_equal(a.total, a.store + a.arena);
    hd_program_free(one);
    hd_program_free(many);
    hd_graph_free(g);
}

static void test_states_in_a_circle(void **state)
{
    (void)state;
    hd_graph *g = hd_graph_new();
    hd_type t = hd_type_of(HD_F32, 1, (int64_t[]){4});
    hd_value a = hd_graph_state(g, "a", t, (hd_init){HD_INIT_CONSTANT, 1}), b = hd_graph_state(g, "b", t, (hd_init){HD_INIT_CONSTANT, 2});
    hd_graph_pair(g, a, b);
    hd_graph_pair(g, b, a);
    hd_error err = {0};
    hd_backend be;
    hd_program *p;
    hd_plan plan = hd_plan_default();
    hd_backend_open(&be, "reference", &err);
    assert_int_equal(hd_lower(g, &plan, &be.target, &p, &err), HD_EUNSUPPORTED);
    assert_null(p);
    hd_graph_free(g);
}

/* ---- random graphs against a naive evaluator ---- */

enum { ROWS = 4, COLS = 6, MOST_VALUES = 200 };

typedef struct naive {
    const hd_graph *g;
    float *data[MOST_VALUES]; /* one block per value */
    bool late[MOST_VALUES];   /* known only after the last micro-batch */
} naive;

static bool is_sum(const hd_node *n)
{
    return !strcmp(n->op->name, "micro_sum");
}

static void naive_new(naive *e, const hd_graph *g, const hd_store *store)
{
    *e = (naive){.g = g};
    assert_true(g->n_values <= MOST_VALUES);
    for (size_t v = 0; v < g->n_values; v++) {
        const hd_value_info *i = &g->values[v];
        size_t bytes = (size_t)hd_shape_count(&i->type.shape) * 4;
        e->data[v] = calloc(1, bytes);
        assert_non_null(e->data[v]);
        if (i->kind == HD_PARAM || i->kind == HD_STATE) memcpy(e->data[v], hd_store_find(store, i->path)->data, bytes);
        if (i->kind == HD_CONST) memcpy(e->data[v], i->data, bytes);
        if (i->kind != HD_RESULT) continue;
        const hd_node *n = g->nodes[i->node];
        e->late[v] = is_sum(n);
        for (int k = 0; k < n->n_in; k++) e->late[v] |= e->late[n->in[k]];
    }
}

static void naive_free(naive *e)
{
    for (size_t v = 0; v < e->g->n_values; v++) free(e->data[v]);
}

static void naive_node(naive *e, const hd_node *n, bool add)
{
    hd_tensor t[HD_MAX_OPERANDS + 1] = {0};
    for (int k = 0; k <= n->n_in; k++) {
        hd_value v = k < n->n_in ? n->in[k] : n->out[0];
        const hd_type *type = &e->g->values[v].type;
        t[k] = (hd_tensor){.data = e->data[v], .dtype = type->dtype, .rank = type->shape.rank};
        memcpy(t[k].dim, type->shape.dim, sizeof t[k].dim);
    }
    hd_tensor *out = &t[n->n_in];
    if (n->op->is_view) {
        for (int64_t i = 0; i < hd_tensor_count(out); i++) {
            float x = ((float *)t[0].data)[i];
            if (add) ((float *)out->data)[i] += x;
            else ((float *)out->data)[i] = x;
        }
        return;
    }
    hd_kernel_args a = {.in = t, .out = out, .n_in = n->n_in, .n_out = 1, .code = n->op->code, .attrs = n->attrs, .threads = 1};
    n->op->reference(&a);
}

static void naive_states(naive *e, bool late)
{
    const hd_graph *g = e->g;
    for (size_t i = 0; i < g->n_pairs; i++) {
        hd_value in = g->pairs[i].in, out = g->pairs[i].out;
        if ((g->values[out].micro == HD_TIME_REPLICATE) == late) memcpy(e->data[in], e->data[out], (size_t)hd_shape_count(&g->values[in].type.shape) * 4);
    }
}

static void fill_random_input(float *x, int64_t n, const char *name, int step, int micro)
{
    uint64_t key = hd_hash_mix(hd_hash_mix(hd_hash_string(name), (uint64_t)step), (uint64_t)micro);
    for (int64_t i = 0; i < n; i++) x[i] = hd_uniform24(hd_philox_block(key, (uint64_t)i, 0).word[0]) - 0.5f;
}

static void naive_step(naive *e, int step, int micro)
{
    const hd_graph *g = e->g;
    for (int m = 0; m < micro; m++) {
        for (size_t v = 0; v < g->n_values; v++) {
            const hd_value_info *i = &g->values[v];
            if (i->kind == HD_INPUT) fill_random_input(e->data[v], hd_shape_count(&i->type.shape), i->path, step, i->micro == HD_TIME_SPLIT ? m : 0);
        }
        for (size_t i = 0; i < g->n_nodes; i++)
            if (!e->late[g->nodes[i]->out[0]] || is_sum(g->nodes[i])) naive_node(e, g->nodes[i], is_sum(g->nodes[i]) && m > 0);
        naive_states(e, false);
    }
    for (size_t i = 0; i < g->n_nodes; i++)
        if (e->late[g->nodes[i]->out[0]] && !is_sum(g->nodes[i])) naive_node(e, g->nodes[i], false);
    naive_states(e, true);
}

static hd_value pick(hd_rng *r, const hd_value *pool, int n)
{
    return pool[hd_rng_below(r, 3) ? n - 1 - (int)hd_rng_below(r, (uint64_t)(n < 5 ? n : 5)) : (int)hd_rng_below(r, (uint64_t)n)];
}

static hd_value random_node(hd_graph *g, hd_rng *r, const hd_value *pool, int n)
{
    hd_value x = pick(r, pool, n), y = pick(r, pool, n);
    switch (hd_rng_below(r, 8)) {
    case 0: return hd_elementwise(g, NULL, HD_EW_TANH, x, HD_NONE, HD_NONE, 0);
    case 1: return hd_mul(g, x, hd_elementwise(g, NULL, HD_EW_SIGMOID, y, HD_NONE, HD_NONE, 0));
    case 2: return hd_reshape(g, NULL, hd_reshape(g, NULL, x, 1, (int64_t[]){ROWS * COLS}), 2, (int64_t[]){ROWS, COLS});
    case 3: case 4: return hd_contract(g, NULL, "rc,cd->rd", x, hd_graph_param(g, hd_arena_printf(&g->arena, "w%d", (int)g->n_values), hd_type_of(HD_F32, 2, (int64_t[]){COLS, COLS}),
                                                                              (hd_init){HD_INIT_NORMAL, 0.4}, true, true), HD_F32);
    default: return hd_add(g, x, y);
    }
}

/* Values of one type [ROWS, COLS] under tanh, products, sums, reshapes; sums over micro-batches, and more on top of them; states per step and
 * per micro-batch; some outputs. */
static hd_graph *random_graph(hd_rng *r)
{
    hd_graph *g = hd_graph_new();
    hd_type t = hd_type_of(HD_F32, 2, (int64_t[]){ROWS, COLS});
    hd_value pool[MOST_VALUES], late[MOST_VALUES], start[2] = {hd_graph_input(g, "x", t, HD_TIME_SPLIT), hd_graph_input(g, "once", t, HD_TIME_REPLICATE)};
    hd_value running = hd_graph_state(g, "running", t, (hd_init){HD_INIT_NORMAL, 1}), kept = hd_graph_state(g, "kept", t, (hd_init){HD_INIT_NORMAL, 1});
    int n = 0, n_late = 0;
    memcpy(pool, start, sizeof start);
    n = 2;
    for (int i = 0, most = 4 + (int)hd_rng_below(r, 14); i < most; i++) {
        if (i == most / 2) g->phase = HD_BACKWARD;
        pool[n] = random_node(g, r, pool, n), n++;
    }
    if (hd_rng_below(r, 2)) pool[n++] = hd_add(g, hd_scale(g, running, 0.5), pool[0]);
    hd_value split[MOST_VALUES];
    int n_split = 0;
    for (int i = 0; i < n; i++)
        if (g->values[pool[i]].micro == HD_TIME_SPLIT) split[n_split++] = pool[i];
    hd_graph_pair(g, running, hd_add(g, running, pick(r, split, n_split)));
    for (int i = 0, most = 1 + (int)hd_rng_below(r, 4); i < most; i++) {
        hd_value x = pick(r, split, n_split);
        late[n_late++] = hd_graph_node(g, "micro_sum", NULL, NULL, &x, 1);
    }
    g->phase = HD_UPDATE;
    late[n_late++] = kept;
    for (int i = 0, most = (int)hd_rng_below(r, 5); i < most; i++) late[n_late] = random_node(g, r, late, n_late), n_late++;
    hd_graph_output(g, "last", late[n_late - 1]);
    hd_graph_output(g, "some", pick(r, late, n_late));
    hd_value next = pick(r, late, n_late);
    if (next != kept) hd_graph_pair(g, kept, next);
    if (hd_rng_below(r, 2)) hd_graph_output(g, "piece", pick(r, split, n_split));
    assert_string_equal(g->err.message, "");
    return g;
}

typedef struct random_feed { int step; } random_feed;

static int feed_random(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    const random_feed *f = arg;
    hd_tensor t;
    (void)err;
    if (kind != HD_SEGMENT_FORWARD && kind != HD_SEGMENT_BACKWARD) return 0; /* a random graph may have no forward segment */
    assert_int_equal(hd_exec_input(e, "x", &t, NULL), 0);
    fill_random_input(t.data, ROWS * COLS, "x", f->step, call->micro);
    return 0;
}

static void expect_close(const float *want, const float *got, const char *what, int graph)
{
    for (int i = 0; i < ROWS * COLS; i++)
        if (!(fabsf(want[i] - got[i]) <= 1e-4f * (1 + fabsf(want[i])))) fail_msg("graph %d, %s[%d]: %g instead of %g", graph, what, i, got[i], want[i]);
}

static void compare_with_naive(const hd_graph *g, int graph, int micro, const char *backend)
{
    rig r;
    naive e;
    rig_open(&r, g, backend, micro, 1);
    check_text(r.program);
    naive_new(&e, g, r.store);
    for (int step = 0; step < 2; step++) {
        hd_tensor once;
        random_feed f = {step};
        hd_exec_hooks hooks = {.arg = &f, .before = feed_random};
        hd_exec_input(r.exec, "once", &once, NULL);
        fill_random_input(once.data, ROWS * COLS, "once", step, 0);
        hd_tensor x;
        hd_exec_input(r.exec, "x", &x, NULL);
        fill_random_input(x.data, ROWS * COLS, "x", step, 0);
        assert_int_equal(hd_exec_step(r.exec, &hooks, &r.err), 0);
        naive_step(&e, step, micro);
        for (size_t i = 0; i < g->n_outputs; i++) {
            hd_tensor t;
            hd_value v = g->outputs[i].value;
            hd_exec_output(r.exec, g->outputs[i].name, &t, NULL);
            if (g->values[v].kind == HD_RESULT) expect_close(e.data[v], t.data, g->outputs[i].name, graph);
        }
        expect_close(e.data[hd_graph_find(g, "running")], hd_store_find(r.store, "running")->data, "running", graph);
        expect_close(e.data[hd_graph_find(g, "kept")], hd_store_find(r.store, "kept")->data, "kept", graph);
    }
    naive_free(&e);
    rig_close(&r, false);
}

/* Whether an output is the old value of the state that the step overwrites: refused. */
static bool is_refused(const hd_graph *g)
{
    hd_error err = {0};
    hd_backend b;
    hd_program *p;
    hd_plan plan = hd_plan_default();
    hd_backend_open(&b, "reference", &err);
    bool refused = hd_lower(g, &plan, &b.target, &p, &err) == HD_EUNSUPPORTED;
    hd_program_free(p);
    return refused;
}

static void test_random_graphs(void **state)
{
    (void)state;
    int run = 0;
    for (int i = 0; i < 150; i++) {
        hd_rng r = hd_rng_new((uint64_t)i);
        hd_graph *g = random_graph(&r);
        bool refused = is_refused(g);
        for (int micro = 1; micro <= 3 && !refused; micro++) compare_with_naive(g, i, micro, i % 2 ? "reference" : "cpu");
        run += !refused;
        hd_graph_free(g);
    }
    assert_true(run > 80);
}

/* ---- the Plan ---- */

static void expect_plan_error(const char *text, const char *message)
{
    hd_error err = {0};
    hd_plan p;
    assert_true(hd_plan_parse(text, strlen(text), "plan.json", &p, &err) < 0);
    if (!strstr(err.message, message)) fail_msg("\"%s\" instead of \"%s\"", err.message, message);
}

static void test_plan(void **state)
{
    (void)state;
    hd_graph *g = small_model(4, false), *other = small_model(5, false);
    hd_plan p = hd_plan_default(), q;
    hd_error err = {0};
    hd_str text;
    hd_str_init(&text);
    p.micro_batches = 8;
    p.precision = HD_BF16;
    p.pack = true;
    hd_plan_complete(&p, g);
    assert_int_equal(hd_plan_check(&p, g, &err), 0);
    assert_int_equal(hd_plan_print(&p, &text), 0);
    assert_int_equal(hd_plan_parse(text.data, text.len, "plan.json", &q, &err), 0);
    assert_true(q.fingerprint == p.fingerprint && q.micro_batches == 8 && q.precision == HD_BF16 && q.threads == p.threads && q.pack);
    assert_string_equal(q.backend, "cpu");
    assert_true(q.rows == p.rows && p.rows > 0);
    assert_int_equal(hd_plan_check(&q, other, &err), HD_EINVAL);
    assert_non_null(strstr(err.message, "these have"));
    q.rows = 0; /* a plan of before there were any */
    err = (hd_error){0};
    assert_int_equal(hd_plan_check(&q, other, &err), HD_EINVAL);
    assert_non_null(strstr(err.message, "another network"));
    expect_plan_error("{\"micro_batchs\": 2}", "no key \"micro_batchs\"");
    expect_plan_error("{\"micro_batches\": 0}", "micro_batches");
    expect_plan_error("{\"version\": 2}", "version 2");
    expect_plan_error("{\"fingerprint\": \"xyz\"}", "fingerprint");
    expect_plan_error("{\"precision\": \"i8\"}", "precision");
    expect_plan_error("[1]", "must be a JSON object");
    hd_str_free(&text);
    hd_graph_free(g);
    hd_graph_free(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_placement),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_hostile_text),
        cmocka_unit_test(test_hostile_ranks),
        cmocka_unit_test(test_damaged_text),
        cmocka_unit_test(test_verifier),
        cmocka_unit_test(test_tied_embedding_has_one_gradient),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_states_in_a_circle),
        cmocka_unit_test(test_random_graphs),
        cmocka_unit_test(test_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
