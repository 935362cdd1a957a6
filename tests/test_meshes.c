/* Stages of different meshes: what crosses between them is sent once, by the ranks that hold it in equal shares; programs of such stages fit together, are
 * read back as they are printed, and are refused where the two ends disagree. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "base/rng.h"
#include "models/lm.h"
#include "train/session.h"

enum { MOST_STAGES = 4, SEQUENCE = 9 };

static void need(int rc, const hd_error *err)
{
    if (rc) fail_msg("%s", err->message);
}

/* ---- rows ---- */

static hd_mesh random_mesh(hd_rng *r)
{
    hd_mesh m = {.n = 1, .axis = {{"pp", 1, HD_AXIS_PIPELINE}}};
    for (int a = (int)hd_rng_below(r, 3); a > 0; a--) {
        m.axis[m.n] = (hd_mesh_axis){.size = 1 + (int)hd_rng_below(r, 4), .role = HD_AXIS_DATA};
        snprintf(m.axis[m.n].name, sizeof m.axis[m.n].name, "a%d", m.n);
        m.n++;
    }
    return m;
}

/* Rows over some of the axes, in either order. */
static hd_layout random_rows(hd_rng *r, const hd_mesh *m)
{
    hd_layout l = {0};
    bool back = hd_rng_below(r, 2);
    for (int i = 1; i < m->n; i++) {
        if (hd_rng_below(r, 2)) continue;
        l.dim[0].axis[l.dim[0].n] = (int8_t)(back ? m->n - i : i);
        l.dim[0].unit[l.dim[0].n++] = 1 + (int64_t)hd_rng_below(r, 3);
    }
    return l;
}

/* How many ranks hold the same rows as one. */
static int replicas(const hd_mesh *m, const hd_layout *l)
{
    int n = hd_mesh_size(m);
    for (int k = 0; k < l->dim[0].n; k++) n /= m->axis[l->dim[0].axis[k]].size;
    return n;
}

static void check_rows(const hd_end *s, const hd_end *t, const hd_shape *whole)
{
    int times[64] = {0};
    for (int from = 0; from < hd_mesh_size(s->mesh); from++) {
        int64_t first, last, begin, sent = 0, share;
        hd_dim_piece(s->mesh, &s->layout->dim[0], whole->dim[0], from, &first, &last);
        share = (last - first) / replicas(s->mesh, s->layout);
        for (int to = 0; to < hd_mesh_size(t->mesh); to++) {
            int64_t low, high, rows = hd_crossing_rows(s, from, t, to, whole, &begin);
            hd_dim_piece(t->mesh, &t->layout->dim[0], whole->dim[0], to, &low, &high);
            if (!rows) continue;
            assert_true(begin >= first && begin + rows <= last && begin >= low && begin + rows <= high); /* what it has, and what is wanted */
            for (int64_t k = begin; k < begin + rows; k++) times[k]++;
            sent += rows;
        }
        assert_true(sent == share || sent == share + 1);
    }
    for (int k = 0; k < whole->dim[0]; k++) assert_int_equal(times[k], 1);
}

static void test_rows(void **state)
{
    (void)state;
    hd_rng r = hd_rng_new(7);
    for (int round = 0; round < 3000; round++) {
        hd_mesh from = random_mesh(&r), to = random_mesh(&r);
        hd_shape whole = {.rank = 2, .sym = -1, .dim = {(int64_t)hd_rng_below(&r, 30), 3}};
        hd_layout l = random_rows(&r, &from), wanted = random_rows(&r, &to), landing = hd_crossing_landing(&to, &wanted, 2);
        assert_true(hd_crossing_fits(&l, 2) && hd_crossing_fits(&landing, 2));
        check_rows(&(hd_end){&from, &l}, &(hd_end){&to, &landing}, &whole);
    }
}

/* A scalar goes to every rank, from ranks by turns. */
static void test_scalar(void **state)
{
    (void)state;
    const hd_mesh from = {2, {{"pp", 1, HD_AXIS_PIPELINE}, {"dp", 2, HD_AXIS_DATA}}}, to = {2, {{"pp", 1, HD_AXIS_PIPELINE}, {"tp", 3, HD_AXIS_MODEL}}};
    const hd_layout whole = {0};
    const hd_shape scalar = {.sym = -1};
    int64_t begin;
    for (int r = 0; r < 3; r++)
        for (int s = 0; s < 2; s++)
            assert_int_equal(hd_crossing_rows(&(hd_end){&from, &whole}, s, &(hd_end){&to, &whole}, r, &scalar, &begin), r % 2 == s);
}

/* What cannot be sent as it lies: cut columns become rows, addends are scattered. */
static void test_start(void **state)
{
    (void)state;
    hd_layout l = {.dim = {{.n = 1, .axis = {1}, .unit = {4}}, {.n = 1, .axis = {2}, .unit = {2}}}, .partial = 1u << 3}, to = hd_crossing_start(&l, 2);
    assert_false(hd_crossing_fits(&l, 2));
    assert_true(hd_crossing_fits(&to, 2));
    assert_true(to.dim[0].n == 3 && to.dim[0].axis[0] == 1 && to.dim[0].axis[1] == 2 && to.dim[0].axis[2] == 3 && to.dim[1].n == 0 && !to.partial);
    assert_true(to.dim[0].unit[0] == 4);
}

/* ---- programs ---- */

typedef struct job {
    hd_session_options o;
    bool tied;
    int64_t batch;
    hd_session session[MOST_STAGES];
    const hd_program *program[MOST_STAGES];
    int stages;
} job;

static hd_graph *model(const job *j)
{
    hd_error err = {0};
    hd_lm_config c;
    hd_lm_config_preset(&c, HD_ARCH_GPT2);
    c.layers = 4, c.width = 12, c.heads = c.kv_heads = 3, c.mlp_width = 20, c.vocab = 23, c.max_positions = 16, c.tie_embeddings = j->tied;
    need(hd_lm_config_check(&c, "test", &err), &err);
    hd_lm_options o = {.mode = HD_LM_TRAIN, .compute = HD_F32, .param = HD_F32, .tokens = j->batch * SEQUENCE, .sequence = SEQUENCE};
    hd_graph *g = hd_lm_graph(&c, &o, &err);
    need(g ? 0 : err.code, &err);
    return g;
}

static void begin_job(job *j, const char *parallel, bool tied, int64_t batch, int64_t micro)
{
    hd_error err = {0};
    *j = (job){.o = {.plan = hd_plan_default(), .sequence = SEQUENCE}, .tied = tied, .batch = batch};
    snprintf(j->o.plan.backend, sizeof j->o.plan.backend, "null");
    j->o.plan.micro_batches = micro;
    j->o.plan.threads = 1;
    j->o.step = (hd_step_options){.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1};
    need(hd_parallel_parse(parallel, &j->o.parallel, &err), &err);
    j->stages = (int)j->o.parallel.pp;
    for (int s = 0, rank = 0; s < j->stages; s++) {
        j->o.rank.rank = rank;
        need(hd_session_init(&j->session[s], model(j), NULL, &j->o, &err), &err);
        j->program[s] = j->session[s].program[HD_TRAIN_PROGRAM];
        assert_int_equal(j->program[s]->stage, s);
        assert_int_equal(hd_program_first_rank(j->program[s]), rank);
        rank += j->program[s]->meshes.n ? hd_mesh_size(&j->program[s]->mesh) : hd_program_ranks(j->program[s]) / j->stages;
    }
}

static void end_job(job *j)
{
    for (int s = 0; s < j->stages; s++) hd_session_free(&j->session[s]);
}

/* Elements that all ranks of the stage send in x, and those of the whole value. */
static int64_t count_sent(const hd_program *p, const hd_instr *x, int64_t *whole)
{
    hd_crossing c;
    hd_error err = {0};
    int64_t sent = 0, begin;
    need(hd_program_crossing(p, x, &c, &err), &err);
    for (int from = 0; from < hd_mesh_size(c.sender.mesh); from++)
        for (int to = 0; to < hd_mesh_size(c.receiver.mesh); to++) sent += hd_crossing_rows(&c.sender, from, &c.receiver, to, &c.whole, &begin);
    *whole = hd_shape_count(&c.whole);
    return sent * hd_row_elements(&c.whole);
}

/* Every send of a step crosses once; how many there are. */
static int check_sends(const hd_program *p)
{
    int n = 0;
    for (int s = 0; s < p->n_segments; s++) {
        hd_instr_iter it = hd_segment_instrs(p, s);
        for (const hd_instr *x; (x = hd_instr_next(&it));) {
            if (x->opcode != HD_COMM || !x->op->has_effect) continue;
            int64_t whole, sent = count_sent(p, x, &whole);
            assert_int_equal(sent, whole);
            n++;
        }
    }
    return n;
}

static void check_text(const hd_program *p)
{
    hd_error err = {0};
    hd_program *back;
    hd_str text, again;
    hd_str_init(&text);
    hd_str_init(&again);
    hd_program_dump(p, &text);
    need(hd_program_parse(text.data, text.len, "text", &back, &err), &err);
    hd_program_dump(back, &again);
    assert_string_equal(text.data, again.data);
    hd_program_free(back);
    hd_str_free(&text);
    hd_str_free(&again);
}

static void test_programs(void **state)
{
    static const struct { const char *parallel; bool tied; int64_t batch, micro; int sends; /* of the first stage */ } cases[] = {
        {"dp=2|tp=3", false, 4, 3, 1}, {"tp=2|dp=1", true, 2, 2, 2}, {"dp=3|tp=2,sp|dp=2", true, 5, 4, 2}, {"dp=2,zero=3|dp=2,tp=2,zero=2,schedule=zero-bubble", true, 4, 3, 2},
        {"tp=3,sp|dp=3,zero=1,schedule=gpipe", false, 3, 2, 1}, {"dp=2|tp=2,v=2", true, 2, 4, 4}, {"pp=2,dp=2|tp=3,dp=2", true, 4, 2, 2}, {"dp=2|tp=2,slices=3", false, 2, 2, 3},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        job j;
        hd_error err = {0};
        begin_job(&j, cases[i].parallel, cases[i].tied, cases[i].batch, cases[i].micro);
        for (int s = 0; s < j.stages; s++) {
            int sends = check_sends(j.program[s]);
            if (s == 0 && sends != cases[i].sends) fail_msg("%s: the first stage has %d sends instead of %d", cases[i].parallel, sends, cases[i].sends);
            need(hd_program_verify(j.program[s], &err), &err);
            check_text(j.program[s]);
        }
        need(hd_program_verify_world(j.program, j.stages, &err), &err);
        end_job(&j);
    }
}

/* What is received lies in rows that no two ranks share, and is gathered by the next instruction. */
static void test_landing(void **state)
{
    (void)state;
    job j;
    begin_job(&j, "dp=2|tp=3", false, 4, 2);
    const hd_program *p = j.program[1];
    hd_instr_iter it = hd_segment_instrs(p, hd_program_segment(p, HD_SEGMENT_FORWARD));
    const hd_instr *x;
    while ((x = hd_instr_next(&it)) && strcmp(x->op ? x->op->name : "", "recv")) {}
    assert_non_null(x);
    assert_int_equal(hd_layout_axes(p->buffers[x->out[0]].layout, 2), 2u); /* tp */
    const hd_instr *next = hd_instr_next(&it);
    assert_string_equal(next->op->name, "all_gather");
    assert_int_equal(next->in[0], x->out[0]);
    end_job(&j);
}

/* The counts of `inspect --count`: three micro-batches of 4 sequences, half of the rows from each of two ranks. */
static void test_counts(void **state)
{
    (void)state;
    job j;
    hd_comm_count c[16];
    begin_job(&j, "dp=2|tp=3", false, 4, 3);
    int n = hd_program_count(j.program[0], c, 16), seen = 0;
    for (int i = 0; i < n; i++) {
        if (!strcmp(c[i].op, "send")) assert_int_equal(c[i].bytes, 3 * 2 * SEQUENCE * 12 * 4), seen++;
        if (!strcmp(c[i].op, "recv")) assert_int_equal(c[i].bytes, 3 * 2 * SEQUENCE * 12 * 4), seen++;
    }
    assert_int_equal(seen, 2);
    n = hd_program_count(j.program[1], c, 16);
    for (int i = 0; i < n; i++)
        if (!strcmp(c[i].op, "send")) assert_int_equal(c[i].bytes, 3 * 4 * SEQUENCE / 3 * 12 * 4), seen++;
    assert_int_equal(seen, 3);
    end_job(&j);
}

/* ---- what doesn't fit ---- */

static hd_program *with(const hd_program *p, const char *from, const char *to, hd_error *err)
{
    hd_str text, changed;
    hd_program *out = NULL;
    hd_str_init(&text);
    hd_str_init(&changed);
    hd_program_dump(p, &text);
    char *at = strstr(text.data, from);
    assert_non_null(at);
    hd_str_add(&changed, text.data, (size_t)(at - text.data));
    hd_str_puts(&changed, to);
    hd_str_puts(&changed, at + strlen(from));
    hd_program_parse(changed.data, changed.len, "changed", &out, err);
    hd_str_free(&text);
    hd_str_free(&changed);
    return out;
}

static void test_wrong_programs(void **state)
{
    static const struct { const char *from, *to, *message; } cases[] = {
        {" there=tp,-", " there=-,tp", "only rows are cut"}, {" there=tp,-", " there=dp,-", "dp"}, {"stage 1 first=2", "stage 1 first=3", "in range"},
        {" to=1 ", " to=2 ", "isn't between this stage"}, {"mesh=pp:1:pipeline,dp:2:data\nstage", "mesh=pp:1:pipeline,dp:1:data\nstage", ""},
        {"stage 1 first=2 mesh=pp:1:pipeline,", "stage 1 first=2 mesh=", "pipeline's axis"}, {"axes=pp ", "axes=pp.dp ", "no all_reduce over \"pp\""},
    };
    (void)state;
    job j;
    begin_job(&j, "dp=2|tp=3", false, 4, 2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error err = {0};
        hd_program *p = with(j.program[0], cases[i].from, cases[i].to, &err);
        if (p) fail_msg("%s for %s was taken", cases[i].to, cases[i].from);
        if (!strstr(err.message, cases[i].message)) fail_msg("%s: \"%s\" instead of \"%s\"", cases[i].to, err.message, cases[i].message);
    }
    hd_error err = {0};
    hd_program *p = with(j.program[0], " there=tp,-", " there=tp*5,-", &err); /* right by itself, but not what the other end says */
    need(p ? 0 : err.code, &err);
    const hd_program *both[] = {p, j.program[1]};
    assert_true(hd_program_verify_world(both, 2, &err) < 0);
    assert_non_null(strstr(err.message, "receives another"));
    hd_program_free(p);
    end_job(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows), cmocka_unit_test(test_scalar), cmocka_unit_test(test_start), cmocka_unit_test(test_programs), cmocka_unit_test(test_landing),
        cmocka_unit_test(test_counts), cmocka_unit_test(test_wrong_programs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
