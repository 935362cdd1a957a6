/* Checkpoints of many ranks: the files are those of one rank to the byte, and any mesh goes on from any other's. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/rng.h"
#include "exec/pieces.h"
#include "models/lm.h"
#include "models/weights.h"
#include "train/checkpoint.h"
#include "train/step.h"

#define COUNT(a) (int)(sizeof(a) / sizeof *(a))

static void need(int rc, const hd_error *e)
{
    if (rc) fail_msg("%s", e->message);
}

/* ---- meshes, and how values lie over them ---- */

static const hd_mesh meshes[] = {
    {2, {{"dp", 2, HD_AXIS_DATA}, {"tp", 2, HD_AXIS_MODEL}}},
    {1, {{"tp", 3, HD_AXIS_MODEL}}},
    {1, {{"dp", 2, HD_AXIS_DATA}}},
    {2, {{"pp", 2, HD_AXIS_PIPELINE}, {"dp", 3, HD_AXIS_DATA}}},
    {1, {{"tp", 5, HD_AXIS_MODEL}}}, /* more ranks than heads, and than some extents */
    {1, {{"tp", 1, HD_AXIS_MODEL}}},
};

/* Some layout that differs from path to path: dimensions cut by one axis, by two, by none, in units. */
static void choose_layout(const hd_mesh *m, const char *path, const hd_shape *s, hd_layout *out)
{
    uint64_t h = hd_hash_string(path);
    *out = (hd_layout){0};
    for (int a = 0; a < m->n && s->rank; a++, h /= 7) {
        hd_dim_layout *d = &out->dim[h % 7 % (unsigned)s->rank];
        if (m->axis[a].role == HD_AXIS_PIPELINE || h % 5 == 0) continue;
        d->axis[d->n] = (int8_t)a;
        d->unit[d->n++] = 1 + (int64_t)(h % 3);
    }
}

static int stage_of(const hd_mesh *m, const char *path)
{
    return hd_mesh_find(m, "pp") < 0 ? 0 : (int)(hd_hash_string(path) % (uint64_t)m->axis[0].size);
}

/* ---- stores ---- */

typedef struct model { hd_lm_config config; hd_graph *graph; hd_store *whole; } model;

static void make_model(model *m)
{
    static const char text[] = "{\"architectures\": [\"GPT2LMHeadModel\"], \"model_type\": \"gpt2\", \"n_embd\": 12, \"n_head\": 3, \"n_layer\": 2, \"n_positions\": 16, "
                               "\"vocab_size\": 29}";
    hd_error e = {0};
    need(hd_lm_config_parse(&m->config, text, sizeof text - 1, "config", &e), &e);
    hd_lm_options o = {.mode = HD_LM_TRAIN, .compute = HD_F32, .param = HD_F32, .tokens = 8, .sequence = 8};
    m->graph = hd_lm_graph(&m->config, &o, &e);
    need(m->graph ? 0 : -1, &e);
    assert_int_equal(hd_step_append(m->graph, &(hd_step_options){.beta1 = 0.9, .beta2 = 0.9, .eps = 1e-8}), 0);
    m->whole = hd_store_new(m->graph, 3, &e);
    need(m->whole ? 0 : -1, &e);
    for (size_t i = 0; i < m->whole->n_tensors; i++) { /* optimizer states are zeros at first, norms ones */
        hd_store_tensor *t = m->whole->tensors[i];
        hd_rng r = hd_rng_new(hd_hash_string(t->path));
        for (int64_t k = 0; k < hd_shape_count(&t->type.shape); k++) ((float *)t->data)[k] = (float)hd_rng_normal(&r);
    }
}

static void free_model(model *m)
{
    hd_store_free(m->whole);
    hd_graph_free(m->graph);
}

static void add_piece(hd_store *s, const hd_store_tensor *from, bool fill)
{
    hd_error e = {0};
    hd_layout *layout = hd_arena_alloc(&s->memory, sizeof *layout);
    hd_store_tensor *t;
    assert_non_null(layout);
    choose_layout(&s->mesh, from->path, &from->type.shape, layout);
    hd_type type = from->type;
    type.shape = hd_layout_shape(&s->mesh, layout, &from->type.shape, s->rank);
    need(hd_store_add(s, from->path, &type, HD_PLAIN, from->kind, 0, &t, &e), &e);
    t->layout = layout;
    t->whole = from->type.shape;
    if (fill) hd_layout_take(&s->mesh, layout, &from->type.shape, s->rank, 4, from->data, t->data);
}

static hd_store *rank_store(const model *m, const hd_mesh *mesh, int rank, bool fill)
{
    hd_error e = {0};
    hd_store *s = hd_store_new(NULL, 0, &e);
    need(s ? 0 : -1, &e);
    s->mesh = *mesh;
    s->rank = rank;
    int stage = hd_mesh_find(mesh, "pp") < 0 ? 0 : hd_mesh_coordinate(mesh, rank, 0);
    need(hd_store_list_graph(s, m->graph, 0, &e), &e);
    for (size_t i = 0; i < m->whole->n_tensors; i++)
        if (stage_of(mesh, m->whole->tensors[i]->path) == stage) add_piece(s, m->whole->tensors[i], fill);
    return s;
}

/* ---- saving and loading ---- */

typedef struct writer { const model *model; const hd_store *store; } writer;

static int write_model(void *arg, const char *dir, hd_share *share, hd_error *err)
{
    const writer *w = arg;
    return hd_lm_save_share(w->store, &w->model->config, dir, HD_F32, 20000, share, err);
}

static hd_saving saving_of(const char *out, writer *w)
{
    return (hd_saving){.out = out, .at = {.step = 3, .samples = 24, .seed = 5}, .model = {write_model, w}, .store = w->store};
}

/* What hd_checkpoint_save does, the ranks one after another. */
static void save_ranks(const model *m, const hd_mesh *mesh, const char *out)
{
    hd_error e = {0};
    hd_share frame = {0};
    int64_t written = 0;
    int n = hd_mesh_size(mesh);
    for (int r = -1; r < n; r++) {
        hd_store *s = rank_store(m, mesh, r < 0 ? 0 : r, true);
        writer w = {m, s};
        hd_saving saving = saving_of(out, &w);
        hd_share share = {0};
        need(r < 0 ? hd_saving_frame(&saving, &frame, &e) : hd_saving_pieces(&saving, &share, &e), &e);
        written += share.written;
        if (r == n - 1) need(hd_saving_finish(&saving, NULL, 0, &e), &e);
        hd_store_free(s);
    }
    assert_true(frame.total > 0);
    assert_int_equal(written, frame.total);
}

static void save_one(const model *m, const char *out)
{
    hd_error e = {0};
    writer w = {m, m->whole};
    hd_saving saving = saving_of(out, &w);
    need(hd_checkpoint_save(&saving, NULL, 0, NULL, &e), &e);
}

static void expect_same_files(const char *a, const char *b)
{
    char command[1024];
    snprintf(command, sizeof command, "diff -r %s/step-3 %s/step-3", a, b);
    assert_int_equal(system(command), 0);
}

static void expect_pieces(const model *m, const hd_mesh *mesh, int rank, const char *dir)
{
    hd_error e = {0};
    hd_store *got = rank_store(m, mesh, rank, false), *want = rank_store(m, mesh, rank, true);
    need(hd_lm_weights_load(got, &m->config, dir, &e), &e);
    need(hd_checkpoint_load_state(dir, got, &e), &e);
    for (size_t i = 0; i < want->n_tensors; i++)
        if (memcmp(got->tensors[i]->data, want->tensors[i]->data, (size_t)want->tensors[i]->bytes))
            fail_msg("%s of rank %d of %d is not what was saved", want->tensors[i]->path, rank, hd_mesh_size(mesh));
    hd_store_free(got);
    hd_store_free(want);
}

static void test_save_and_load(void **state)
{
    model m = {0};
    char one[64], many[80], dir[128];
    make_model(&m);
    snprintf(one, sizeof one, "%s/one", (char *)*state);
    save_one(&m, one);
    for (int i = 0; i < COUNT(meshes); i++) {
        snprintf(many, sizeof many, "%s/many-%d", (char *)*state, i);
        snprintf(dir, sizeof dir, "%s/step-3", many);
        save_ranks(&m, &meshes[i], many);
        expect_same_files(one, many);
        for (int k = 0; k < COUNT(meshes); k++)
            for (int r = 0; r < hd_mesh_size(&meshes[k]); r++) expect_pieces(&m, &meshes[k], r, dir);
    }
    free_model(&m);
}

/* ---- ranks that talk ---- */

typedef struct talker {
    pthread_t thread;
    const model *model;
    const char *out;
    int fault; /* this rank's directory is another's */
    hd_rank rank;
    int rc;
    hd_error err;
} talker;

static void *save_together(void *arg)
{
    talker *t = arg;
    hd_store *s = rank_store(t->model, &meshes[0], t->rank.rank, true);
    writer w = {t->model, s};
    hd_saving saving = saving_of(t->rank.rank == t->fault ? "/nowhere" : t->out, &w);
    t->rc = hd_checkpoint_save(&saving, NULL, 0, &t->rank, &t->err);
    if (t->rc) hd_comm_abort(t->rank.comm, t->err.message);
    hd_store_free(s);
    return NULL;
}

static void run_talkers(const model *m, const char *out, int fault, talker t[4])
{
    hd_error e = {0};
    hd_comm *comm[4];
    need(hd_comm_local(4, 20, comm, &e), &e);
    for (int r = 0; r < 4; r++) {
        t[r] = (talker){.model = m, .out = out, .fault = fault, .rank = {r, comm[r]}};
        assert_int_equal(pthread_create(&t[r].thread, NULL, save_together, &t[r]), 0);
    }
    for (int r = 0; r < 4; r++) pthread_join(t[r].thread, NULL);
    for (int r = 0; r < 4; r++) hd_comm_free(comm[r]);
}

static void test_save_together(void **state)
{
    model m = {0};
    talker t[4];
    char one[64], many[64];
    make_model(&m);
    snprintf(one, sizeof one, "%s/alone", (char *)*state);
    snprintf(many, sizeof many, "%s/together", (char *)*state);
    save_one(&m, one);
    run_talkers(&m, many, -1, t);
    for (int r = 0; r < 4; r++) need(t[r].rc, &t[r].err);
    expect_same_files(one, many);
    free_model(&m);
}

/* One rank fails: all end, and nothing new is left behind. */
static void test_save_fails(void **state)
{
    model m = {0};
    talker t[4];
    char out[64], path[128];
    make_model(&m);
    snprintf(out, sizeof out, "%s/failing", (char *)*state);
    run_talkers(&m, out, 2, t);
    assert_int_equal(t[2].rc, HD_EIO);
    for (int r = 0; r < 4; r++) assert_true(t[r].rc < 0); /* what others see depends on how far they are: HD_ECOMM, or that the first took the files away */
    snprintf(path, sizeof path, "%s/.step-3.partial", out);
    assert_false(hd_file_exists(path));
    snprintf(path, sizeof path, "%s/step-3", out);
    assert_false(hd_file_exists(path));
    free_model(&m);
}

typedef struct agreeing { pthread_t thread; hd_rank rank; int64_t sum[2], max; char word[16]; } agreeing;

static void *agree(void *arg)
{
    agreeing *a = arg;
    hd_error e = {0};
    int r = a->rank.rank;
    a->sum[0] = r + 1;
    a->sum[1] = (int64_t)1 << (40 + r);
    a->max = r == 1 ? 7 : -r;
    snprintf(a->word, sizeof a->word, "word of %d", r);
    if (hd_ranks_sum(&a->rank, a->sum, 2, &e) || hd_ranks_max(&a->rank, &a->max, 1, &e) || hd_ranks_tell(&a->rank, 2, a->word, sizeof a->word, &e) ||
        hd_ranks_barrier(&a->rank, &e))
        a->max = -100;
    return NULL;
}

static void test_agreement(void **state)
{
    (void)state;
    hd_error e = {0};
    hd_comm *comm[3];
    agreeing a[3];
    need(hd_comm_local(3, 20, comm, &e), &e);
    for (int r = 0; r < 3; r++) {
        a[r] = (agreeing){.rank = {r, comm[r]}};
        assert_int_equal(pthread_create(&a[r].thread, NULL, agree, &a[r]), 0);
    }
    for (int r = 0; r < 3; r++) pthread_join(a[r].thread, NULL);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(a[r].sum[0], 6);
        assert_true(a[r].sum[1] == (int64_t)7 << 40);
        assert_int_equal(a[r].max, 7);
        assert_string_equal(a[r].word, "word of 2");
        hd_comm_free(comm[r]);
    }
    int64_t alone = 5;
    need(hd_ranks_sum(NULL, &alone, 1, &e), &e);
    assert_int_equal(alone, 5);
}

/* A piece that nobody has is noticed; so is a directory that isn't the one that the first rank made. */
static void test_missing(void **state)
{
    hd_error e = {0};
    model m = {0};
    char out[64], file[128];
    hd_share frame = {0}, share = {0};
    make_model(&m);
    snprintf(out, sizeof out, "%s/missing", (char *)*state);
    hd_store *s = rank_store(&m, &meshes[1], 1, true);
    writer w = {&m, s};
    hd_saving saving = saving_of(out, &w);
    need(hd_saving_frame(&saving, &frame, &e), &e);
    need(hd_saving_pieces(&saving, &share, &e), &e);
    assert_true(share.written > 0 && share.written < frame.total);
    snprintf(file, sizeof file, "%s/.step-3.partial/state.safetensors", out);
    assert_int_equal(truncate(file, 100), 0);
    assert_int_equal(hd_saving_pieces(&saving, &share, &e), HD_EIO);
    assert_non_null(strstr(e.message, "state.safetensors"));
    e = (hd_error){0};
    assert_int_equal(unlink(file), 0);
    assert_int_equal(hd_saving_pieces(&saving, &share, &e), HD_EIO);
    assert_false(hd_file_exists(file)); /* ranks never make what the first did not */
    hd_store_free(s);
    free_model(&m);
}

/* Only what hd_layout_take takes, in its order, and every element of the whole once. */
static void test_runs(void **state)
{
    (void)state;
    static const hd_shape shapes[] = {{3, -1, {5, 7, 3}}, {1, -1, {11}}, {0, -1, {0}}, {2, -1, {0, 4}}, {4, -1, {2, 3, 1, 5}}};
    for (int i = 0; i < COUNT(shapes); i++) {
        for (int k = 0; k < COUNT(meshes); k++) {
            int32_t whole[256] = {0}, piece[256];
            int64_t n = hd_shape_count(&shapes[i]);
            hd_layout layout;
            for (int64_t x = 0; x < n; x++) whole[x] = (int32_t)x;
            choose_layout(&meshes[k], i % 2 ? "a" : "some.path", &shapes[i], &layout);
            for (int r = 0; r < hd_mesh_size(&meshes[k]); r++) {
                hd_run_iter it = hd_layout_runs(&meshes[k], &layout, &shapes[i], r);
                hd_shape mine = hd_layout_shape(&meshes[k], &layout, &shapes[i], r);
                int64_t at = 0;
                hd_layout_take(&meshes[k], &layout, &shapes[i], r, 4, whole, piece);
                for (hd_run run; hd_run_next(&it, &run); at += run.count) {
                    assert_int_equal(run.piece, at);
                    assert_true(run.count > 0);
                    for (int64_t x = 0; x < run.count; x++) assert_int_equal(piece[run.piece + x], run.whole + x);
                }
                assert_int_equal(at, hd_shape_count(&mine));
            }
        }
    }
}

static int make_dir(void **state)
{
    static char dir[] = "/tmp/heddle-ranks-XXXXXX";
    *state = mkdtemp(dir);
    return *state ? 0 : -1;
}

static int remove_dir(void **state)
{
    return hd_remove_tree(*state, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_runs), cmocka_unit_test(test_save_and_load), cmocka_unit_test(test_missing),
                                       cmocka_unit_test(test_save_together), cmocka_unit_test(test_save_fails), cmocka_unit_test(test_agreement)};
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
