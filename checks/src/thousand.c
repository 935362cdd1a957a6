/* thousand.c: GPT-3 175B on 1,024 ranks (tensor 8 x pipeline 16 x data 8, 64 micro-batches): every stage lowered and verified, all stages' calls
 * checked against each other, and every rank's schedule run on the null back end.
 *
 *   check_thousand [PARALLEL [MICRO [LAYERS]]] */
#include "base/term.h"
#include "ranks_run.h"

enum { MAX_STAGES = 64 };

typedef struct thousand {
    hd_session_options o;
    hd_lm_config c;
    int64_t micro_tokens;
    hd_session session[MAX_STAGES];
    const hd_program *program[MAX_STAGES];
    int stages, ranks;
    int64_t calls, instrs;
} thousand;

/* Brown et al. 2020, table 2.1: 96 layers, width 12288, 96 heads of 128; vocabulary padded to 51200 as in Narayanan et al. 2021. */
static void set_model(thousand *t, int64_t layers)
{
    hd_lm_config_preset(&t->c, HD_ARCH_GPT2);
    t->c.layers = layers, t->c.width = 12288, t->c.heads = t->c.kv_heads = 96, t->c.head_dim = 128, t->c.mlp_width = 4 * 12288, t->c.vocab = 51200;
    t->c.max_positions = 2048;
}

static hd_graph *build(thousand *t, int64_t batch, hd_error *err)
{
    hd_lm_options lm = {.mode = HD_LM_TRAIN, .compute = HD_BF16, .param = HD_F32, .tokens = batch * 2048, .sequence = 2048};
    return hd_lm_graph(&t->c, &lm, err);
}

static int make_plan(thousand *t, const char *parallel, int64_t micro, hd_error *err)
{
    hd_parallel p;
    t->o = (hd_session_options){.plan = hd_plan_default(), .seed = 1};
    t->o.plan.micro_batches = micro;
    t->o.plan.precision = HD_BF16;
    t->o.plan.threads = 1;
    snprintf(t->o.plan.backend, sizeof t->o.plan.backend, "null");
    t->o.step = (hd_step_options){.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1};
    hd_graph *g = build(t, 8, err);
    if (g) hd_pass_fuse_residual_norm(g), hd_pass_precision(g, HD_BF16);
    int rc = g ? hd_step_append(g, &t->o.step) : err->code;
    if (!rc) rc = hd_parallel_parse(parallel, &p, err);
    if (!rc) rc = hd_parallel_expand(&p, g, 2048, &t->o.plan, err);
    hd_graph_free(g);
    t->stages = hd_plan_stages(&t->o.plan);
    t->ranks = hd_plan_ranks(&t->o.plan);
    return rc;
}

static int lower_stage(thousand *t, int stage, hd_error *err)
{
    hd_rank rank = {.rank = hd_plan_first_rank(&t->o.plan, stage)};
    t->o.rank = rank;
    hd_graph *g = build(t, 8, err);
    int rc = g ? hd_session_init(&t->session[stage], g, NULL, &t->o, err) : err->code;
    if (rc) return rc;
    t->program[stage] = t->session[stage].program[HD_TRAIN_PROGRAM];
    return hd_program_verify(t->program[stage], err);
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
    const hd_program *p = t->program[stage];
    int first = hd_plan_first_rank(&t->o.plan, stage), each = hd_plan_first_rank(&t->o.plan, stage + 1) - first, rc = 0;
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
    int rc = make_plan(t, argc > 1 ? argv[1] : "dp=8,tp=8,pp=16,schedule=1f1b", argc > 2 ? atoll(argv[2]) : 64, &err);
    for (int s = 0; s < t->stages && !rc; s++) rc = lower_stage(t, s, &err);
    printf("lowered and verified: %d stages in %.1f s\n", t->stages, hd_time() - begin);
    if (!rc) rc = hd_program_verify_world(t->program, t->stages, &err);
    printf("stages checked against each other: %.1f s\n", hd_time() - begin);
    for (int s = 0; s < t->stages && !rc; s++) rc = run_stage(t, s, &err);
    if (rc) printf("failed: %s\n", err.message);
    printf("ranks %d calls %lld instructions %lld seconds %.1f peak_bytes %llu\n", t->ranks, (long long)t->calls, (long long)t->instrs, hd_time() - begin,
           (unsigned long long)hd_memory_peak());
    for (int s = 0; s < t->stages; s++) hd_session_free(&t->session[s]);
    free(t);
    return rc ? 1 : 0;
}
