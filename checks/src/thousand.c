/* thousand.c: GPT-3 175B on 1,024 ranks (tensor 8 x pipeline 16 x data 8, 64 micro-batches): every stage lowered and verified, all stages' calls
 * checked against each other, and every rank's schedule run on the null back end.
 *
 *   check_thousand [PARALLEL [MICRO [LAYERS]]] */
#include "base/term.h"
#include "ranks_run.h"

typedef struct thousand {
    hd_lm_config c;
    hd_programs programs;
    int ranks;
    int64_t calls, instrs;
} thousand;

/* Brown et al. 2020, table 2.1: 96 layers, width 12288, 96 heads of 128; vocabulary padded to 51200 as in Narayanan et al. 2021. */
static void set_model(thousand *t, int64_t layers)
{
    hd_lm_config_preset(&t->c, HD_ARCH_GPT2);
    t->c.layers = layers, t->c.width = 12288, t->c.heads = t->c.kv_heads = 96, t->c.head_dim = 128, t->c.mlp_width = 4 * 12288, t->c.vocab = 51200;
    t->c.max_positions = 2048;
}

static int lower(thousand *t, const char *parallel, int64_t micro, hd_error *err)
{
    enum { BATCH = 8, SEQUENCE = 2048 };
    hd_session_options o = {.plan = hd_plan_default(), .seed = 1, .sequence = SEQUENCE};
    o.plan.micro_batches = micro;
    o.plan.precision = HD_BF16;
    o.plan.threads = 1;
    snprintf(o.plan.backend, sizeof o.plan.backend, "null");
    o.step = (hd_step_options){.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1};
    int rc = hd_parallel_parse(parallel, &o.parallel, err);
    hd_lm_options lm = {.mode = HD_LM_TRAIN, .compute = HD_BF16, .param = HD_F32, .tokens = BATCH * SEQUENCE, .sequence = SEQUENCE};
    hd_graph *g = rc ? NULL : hd_lm_graph(&t->c, &lm, err);
    rc = g ? hd_programs_make(&t->programs, g, true, &o, err) : err->code;
    for (int s = 0; s < t->programs.n && !rc; s++) rc = hd_program_verify(t->programs.stage[s], err);
    t->ranks = hd_plan_ranks(&t->programs.plan);
    return rc;
}

/* A store of the stage's tensors that nobody fills: pages never touched take no memory. */
static hd_store *empty_store(const hd_program *p, hd_error *err)
{
    hd_store *s = hd_store_new(NULL, 0, err);
    for (int b = 0; s && b < p->n_buffers; b++) {
        const hd_buffer *x = &p->buffers[b];
        if (x->view_of >= 0 || x->data || hd_buffer_in_arena(p, b) || hd_store_find(s, x->path)) continue;
        if (hd_store_add(s, x->path, &x->type, x->format, HD_PARAM, x->bytes, NULL, err)) return NULL;
    }
    return s;
}

static int run_stage(thousand *t, int stage, hd_error *err)
{
    const hd_program *p = t->programs.stage[stage];
    const hd_plan *plan = &t->programs.plan;
    int first = hd_plan_first_rank(plan, stage), each = hd_plan_first_rank(plan, stage + 1) - first, rc = 0;
    hd_backend backend;
    hd_team *team = hd_team_new(1, false, err);
    hd_store *store = empty_store(p, err);
    rc = hd_backend_open(&backend, "null", err);
    if (!team || !store) rc = err->code;
    for (int r = 0; r < each && !rc; r++) {
        hd_rank rank = {.rank = first + r};
        hd_exec *e = hd_exec_new_rank(p, store, &backend, team, NULL, &rank, err);
        rc = e ? hd_exec_step(e, NULL, err) : err->code;
        hd_exec_free(e);
        t->calls += p->n_calls;
        for (int k = 0; k < p->n_calls; k++) t->instrs += p->segments[p->calls[k].segment].n_instrs;
    }
    hd_store_free(store);
    hd_team_free(team);
    return rc;
}

int main(int argc, char **argv)
{
    thousand *t = calloc(1, sizeof *t);
    hd_error err = {0};
    double begin = hd_time();
    set_model(t, argc > 3 ? atoll(argv[3]) : 96);
    int rc = lower(t, argc > 1 ? argv[1] : "dp=8,tp=8,pp=16,schedule=1f1b", argc > 2 ? atoll(argv[2]) : 64, &err);
    printf("lowered and verified: %d stages in %.1f s\n", t->programs.n, hd_time() - begin);
    if (!rc) rc = hd_program_verify_world((const hd_program *const *)t->programs.stage, t->programs.n, &err);
    printf("stages checked against each other: %.1f s\n", hd_time() - begin);
    for (int s = 0; s < t->programs.n && !rc; s++) rc = run_stage(t, s, &err);
    if (rc) printf("failed: %s\n", err.message);
    printf("ranks %d calls %lld instructions %lld seconds %.1f peak_bytes %llu\n", t->ranks, (long long)t->calls, (long long)t->instrs, hd_time() - begin,
           (unsigned long long)hd_memory_peak());
    hd_programs_free(&t->programs);
    free(t);
    return rc ? 1 : 0;
}
