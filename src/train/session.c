#include "train/session.h"

#include <stdio.h>
#include "base/term.h"
#include "exec/pieces.h"
#include "ops/ops.h"
#include "train/ranks.h"

static hd_cost node_cost(const hd_graph *g, const hd_node *n)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    for (int k = 0; k < n->n_in; k++) in[k] = n->in[k] == HD_NONE ? (hd_type){.absent = true, .shape.sym = -1} : g->values[n->in[k]].type;
    for (int k = 0; k < n->n_out; k++) out[k] = g->values[n->out[k]].type;
    hd_sig sig = {.op = n->op, .in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .attrs = n->attrs};
    hd_cost cost = {0};
    if (n->op->cost) n->op->cost(&sig, &cost);
    return cost;
}

double hd_graph_flops(const hd_graph *g)
{
    double flops = 0;
    for (size_t i = 0; i < g->n_nodes; i++) flops += node_cost(g, g->nodes[i]).flops;
    return flops;
}

/* ---- from forward graphs to programs ---- */

/* Training only: evaluation takes sequences whole. The plan's slices, or those of the by-hand form. */
static void find_slices(hd_graph *g, const hd_session_options *o, hd_plan *plan)
{
    hd_value tokens = hd_graph_find(g, "tokens");
    int64_t sequence = o->sequence || tokens == HD_NONE ? o->sequence : g->values[tokens].type.shape.dim[0];
    *plan = o->plan;
    if (o->parallel.dp && !g->err.code) hd_parallel_slices(&o->parallel, sequence, plan, &g->err);
}

static void make_whole(hd_graph *g, bool train, const hd_session_options *o)
{
    hd_plan plan;
    hd_pass_fuse_residual_norm(g);
    hd_pass_precision(g, o->plan.precision);
    if (o->lora) hd_pass_lora(g, o->lora);
    if (train) find_slices(g, o, &plan), hd_pass_slices(g, plan.slices, plan.n_slices);
    if (train) hd_step_append(g, &o->step), hd_pass_slices_backward(g, plan.slices, plan.n_slices);
    else hd_graph_cse(g), hd_graph_dce(g);
}

/* ---- of a mesh: one rank's part ---- */

typedef struct pins { hd_pin *list; int n; } pins;

static void add_pin(pins *p, const char *path, const char *layout)
{
    hd_pin *pin = &p->list[p->n];
    if (strlen(path) >= sizeof pin->pattern || strlen(layout) >= sizeof pin->layout) return; /* too long to be named: the pass chooses as it did before */
    strcpy(pin->pattern, path);
    strcpy(pin->layout, layout);
    p->n++;
}

static bool matches_any(const hd_graph *g, const char *pattern)
{
    for (size_t i = 0; i < g->n_values; i++)
        if (hd_path_match(pattern, g->values[i].path)) return true;
    return false;
}

/* The plan's pins over one mesh; of a second graph those that it has values for, and its parameters and states as they lie already. */
static int collect_pins(const hd_session *s, const hd_graph *g, const hd_plan *plan, int mesh, pins *out, hd_error *err)
{
    bool second = s->names && s->names->n_all;
    size_t most = (size_t)plan->n_pins + (second ? s->names->n_all : 0);
    *out = (pins){hd_calloc(most + 1, sizeof *out->list), 0};
    if (!out->list) return hd_fail_memory(err, most * sizeof *out->list, "a plan's layouts");
    for (int i = 0; i < plan->n_pins; i++)
        if (plan->pin_mesh[i] == mesh && (!second || matches_any(g, plan->pins[i].pattern))) out->list[out->n++] = plan->pins[i];
    for (size_t i = 0; second && i < s->names->n_all; i++) {
        const hd_whole *w = &s->names->all[i];
        hd_str text;
        if (plan->n_meshes && plan->stages[w->stage] != mesh) continue;
        hd_str_init(&text);
        hd_mesh own = hd_plan_stage_mesh(plan, w->stage);
        hd_layout_print(&own, w->layout, w->type.shape.rank, &text);
        if (hd_graph_find(g, w->path) != HD_NONE) add_pin(out, w->path, text.data);
        hd_str_free(&text);
    }
    return 0;
}

static int pass_error(const hd_graph *g, hd_error *err)
{
    return g->err.code ? hd_fail(err, g->err.code, "%s", g->err.message) : 0;
}

static int cut_chunks(hd_graph *g, const hd_plan *plan, hd_error *err)
{
    const char *first[HD_MAX_CUTS];
    int chunks = hd_plan_stages(plan) * plan->chunks;
    if (chunks <= 1) return 0;
    if (plan->n_cuts != chunks - 1)
        return hd_fail(err, HD_EINVAL, "the plan cuts the network into %d pieces, but %d stages of %d chunks are %d", plan->n_cuts + 1, hd_plan_stages(plan),
                       plan->chunks, chunks);
    for (int i = 0; i < plan->n_cuts; i++) first[i] = plan->cuts[i];
    hd_pass_chunks(g, first, plan->n_cuts);
    return pass_error(g, err);
}

/* Those axes of the text, "cp.tp", that the mesh has. */
static uint32_t axes_of(const hd_mesh *m, const char *text)
{
    uint32_t mask = 0;
    for (const char *at = text; *at; at += *at == '.') {
        size_t n = strcspn(at, ".");
        for (int a = 0; a < m->n; a++)
            if (strlen(m->axis[a].name) == n && !strncmp(m->axis[a].name, at, n)) mask |= 1u << a;
        at += n;
    }
    return mask;
}

static void set_token_axes(hd_graph *g, const hd_plan *plan)
{
    g->ring = axes_of(&plan->mesh, plan->ring);
    g->zigzag = axes_of(&plan->mesh, plan->zigzag);
}

/* ---- stages of different meshes ---- */

/* The pins of each mesh, once, and those of each stage. */
static int collect_all_pins(const hd_session *s, const hd_graph *g, const hd_plan *plan, pins *of_mesh, hd_stage_pins *out, hd_error *err)
{
    int rc = 0;
    for (int m = 0; m < plan->n_meshes && !rc; m++) rc = collect_pins(s, g, plan, m, &of_mesh[m], err);
    for (int i = 0; i < plan->n_stages && !rc; i++) {
        hd_mesh own = hd_plan_stage_mesh(plan, i);
        const pins *p = &of_mesh[plan->stages[i]];
        out[i] = (hd_stage_pins){p->list, p->n, axes_of(&own, plan->ring), axes_of(&own, plan->zigzag)};
    }
    return rc;
}

/* All stages of g, which has its chunks, into part[plan->n_stages]; only: as hd_graph_stages. Lists what they keep. */
static int cut_stages(hd_session *s, const hd_graph *g, const hd_plan *plan, int only, hd_graph **part, hd_error *err)
{
    hd_arena memory = {0};
    hd_stages stages;
    pins of_mesh[HD_MAX_MESHES] = {0};
    hd_stage_pins *all = hd_calloc((size_t)plan->n_stages + 1, sizeof *all);
    int rc = !all || hd_plan_list_stages(plan, &memory, &stages) ? hd_fail_memory(err, sizeof(hd_mesh), "the meshes of a pipeline") : 0;
    if (!rc) rc = collect_all_pins(s, g, plan, of_mesh, all, err);
    if (!rc) rc = hd_graph_stages(g, &stages, all, plan->keep_gathered, only, part, err);
    for (int i = 0; i < plan->n_stages && !rc; i++) {
        rc = hd_store_list_graph(s->names, part[i], i, err);
        if (rc || (only >= 0 && i != only)) continue;
        if (plan->half_wire) hd_pass_narrow_sums(part[i], HD_BF16);
        hd_pass_deal(part[i]);
        rc = pass_error(part[i], err);
    }
    for (int m = 0; m < plan->n_meshes; m++) hd_free(of_mesh[m].list);
    hd_free(all);
    hd_arena_free(&memory);
    return rc;
}

/* *g becomes the stage that the rank is in. */
static int cut_for_mesh(hd_session *s, hd_graph **g, const hd_plan *plan, const hd_rank *rank, hd_error *err)
{
    hd_graph **part = hd_calloc((size_t)plan->n_stages + 1, sizeof *part);
    int mine = hd_plan_stage_of(plan, rank->rank), rc = part ? cut_stages(s, *g, plan, mine, part, err) : hd_fail_memory(err, 0, "the stages of a pipeline");
    if (!rc) {
        hd_graph_free(*g);
        *g = part[mine];
    }
    for (int i = 0; part && i < plan->n_stages; i++)
        if (rc || i != mine) hd_graph_free(part[i]);
    hd_free(part);
    return rc;
}

/* ---- all ranks' part of it ---- */

/* Chunks and, where all stages are of one mesh, layouts: of the whole graph, whichever stage is taken out of it afterwards. */
static int partition_whole(hd_session *s, hd_graph *g, const hd_plan *plan, hd_error *err)
{
    pins p = {0};
    if (!s->names && !(s->names = hd_store_new(NULL, 0, err))) return err->code;
    int rc = cut_chunks(g, plan, err);
    g->rows_micro = plan->sparse ? plan->micro_batches : 0;
    if (rc || plan->n_meshes) return rc;
    rc = collect_pins(s, g, plan, 0, &p, err);
    if (!rc) {
        set_token_axes(g, plan);
        hd_pass_partition(g, &plan->mesh, p.list, p.n, plan->keep_gathered);
        if (plan->half_wire) hd_pass_narrow_sums(g, HD_BF16);
        if (plan->scatter) hd_pass_scatter(g, hd_plan_stages(plan));
        rc = pass_error(g, err);
    }
    hd_free(p.list);
    return rc ? rc : hd_store_list_graph(s->names, g, 0, err);
}

/* One stage of a partitioned graph. */
static hd_graph *take_stage(const hd_graph *g, const hd_plan *plan, int stage, hd_error *err)
{
    hd_graph *part = hd_graph_stage(g, stage, hd_plan_stages(plan), false, err);
    if (!part) return NULL;
    part->stage = stage;
    set_token_axes(part, plan);
    hd_pass_deal(part);
    if (!pass_error(part, err)) return part;
    hd_graph_free(part);
    return NULL;
}

/* *g becomes what the rank does of it. */
static int cut_for_rank(hd_session *s, hd_graph **g, const hd_plan *plan, const hd_rank *rank, hd_error *err)
{
    int stages = hd_plan_stages(plan), pp = hd_mesh_find(&plan->mesh, "pp"), stage = pp < 0 ? 0 : hd_mesh_coordinate(&plan->mesh, rank->rank, pp);
    int rc = partition_whole(s, *g, plan, err);
    if (!rc && plan->n_meshes) return cut_for_mesh(s, g, plan, rank, err);
    if (!rc && stages <= 1) rc = hd_pass_deal(*g) ? pass_error(*g, err) : 0;
    if (rc || stages <= 1) return rc;
    hd_graph *part = take_stage(*g, plan, stage, err);
    if (!part) return err->code;
    hd_graph_free(*g);
    *g = part;
    return 0;
}

/* ---- programs ---- */

int hd_session_ranks(const hd_session_options *o)
{
    return o->parallel.dp ? (int)hd_parallel_ranks(&o->parallel) : hd_plan_ranks(&o->plan);
}

bool hd_session_is_rank(const hd_session_options *o)
{
    return hd_session_ranks(o) > 1 || hd_plan_is_meshed(&o->plan);
}

/* The plan as lowering is given it: what was open is filled in from the whole graph. */
static int plan_of(const hd_session_options *o, bool train, const hd_graph *whole, hd_plan *plan, hd_error *err)
{
    *plan = o->plan;
    bool alone = !hd_session_is_rank(o);
    if (alone && !o->parallel.dp) {
        if (!train) plan->micro_batches = 1;
        int rc = train && plan->fingerprint ? hd_plan_check(plan, whole, err) : 0;
        plan->fingerprint = 0; /* of the whole graph, not of a fused one */
        return rc;
    }
    if (o->rank.rank >= hd_session_ranks(o)) return hd_fail(err, HD_EINVAL, "the plan is for %d ranks, and this is number %d", hd_session_ranks(o), o->rank.rank);
    if (o->lora && !alone)
        return hd_fail(err, HD_EUNSUPPORTED, "adapters (--lora-rank) are trained on one rank only, and the plan is for %d", hd_session_ranks(o));
    bool given = plan->fingerprint != 0;
    if (train) hd_plan_complete(plan, whole);
    int rc = o->parallel.dp ? hd_parallel_expand(&o->parallel, whole, o->sequence, plan, err) : 0;
    if (!rc && train) rc = hd_plan_check(plan, given ? whole : NULL, err);
    if (!train) plan->micro_batches = 1;
    plan->fingerprint = 0; /* of the whole graph, not of a rank's */
    plan->threads = hd_session_threads(o);
    return rc;
}

/* Of a rank's graph, which is changed. */
static int lower_graph(hd_graph *g, bool train, const hd_session_options *o, const hd_plan *plan, const hd_target *target, hd_program **out, hd_error *err)
{
    if (train && plan->n_recompute) hd_pass_recompute(g, plan->recompute, plan->n_recompute);
    if (train && !o->unfused) hd_pass_recompute_elementwise(g);
    if (train && !plan->regather) hd_pass_share_gathers(g);
    if (!o->unfused) hd_pass_fuse_elementwise(g);
    int rc = hd_graph_verify(g, err);
    return rc ? rc : hd_lower(g, plan, target, out, err);
}

static int make_program(hd_session *s, int which, const hd_session_options *o, hd_error *err)
{
    hd_graph **g = &s->graph[which];
    bool train = which == HD_TRAIN_PROGRAM;
    if (!*g) return 0;
    make_whole(*g, train, o);
    hd_plan plan;
    int rc = pass_error(*g, err);
    if (!rc) rc = plan_of(o, train, *g, &plan, err);
    if (!rc && hd_plan_is_meshed(&plan)) rc = cut_for_rank(s, g, &plan, &o->rank, err);
    if (!rc) rc = lower_graph(*g, train, o, &plan, &s->backend.target, &s->program[which], err);
    double calls = train ? (double)plan.micro_batches : 1;
    if (!rc) s->flops[which] = calls * hd_graph_flops(*g); /* the update is counted with each micro-batch: a few operations per parameter */
    return rc;
}

/* ---- programs of all stages ---- */

/* given: the stage's graph, where it has been cut already; it is freed. */
static int lower_stage(hd_programs *p, const hd_session_options *o, const hd_target *target, int stage, hd_graph *given, hd_error *err)
{
    hd_graph *part = given ? given : p->n == 1 ? p->graph : take_stage(p->graph, &p->plan, stage, err);
    if (!part) return err->code;
    int rc = lower_graph(part, p->train, o, &p->plan, target, &p->stage[stage], err);
    if (part != p->graph) hd_graph_free(part);
    return rc;
}

/* Stages of different meshes are cut together, others one by one. */
static int lower_stages(hd_programs *p, hd_session *s, const hd_session_options *o, hd_error *err)
{
    hd_graph **part = hd_calloc((size_t)p->n + 1, sizeof *part);
    int rc = part ? 0 : hd_fail_memory(err, (size_t)p->n * sizeof *part, "the stages of a pipeline"), next = 0;
    if (!rc && hd_plan_is_meshed(&p->plan)) rc = partition_whole(s, p->graph, &p->plan, err);
    if (!rc && p->plan.n_meshes) rc = cut_stages(s, p->graph, &p->plan, -1, part, err);
    else if (!rc && p->n == 1 && hd_pass_deal(p->graph)) rc = pass_error(p->graph, err);
    for (; next < p->n && !rc; next++) rc = lower_stage(p, o, &s->backend.target, next, part[next], err);
    for (; part && next < p->n; next++) hd_graph_free(part[next]);
    hd_free(part);
    return rc;
}

/* What of a node's operations the model asks for: products alone, as is the custom (Narayanan et al. 2021, section 5.1). attention_grad makes the scores
 * again, one of its five products. */
static double model_flops(const hd_graph *g, const hd_node *n)
{
    static const hd_op *const products[] = {&hd_op_contract, &hd_op_conv2d, &hd_op_conv2d_grad_x, &hd_op_conv2d_grad_w, &hd_op_attention};
    if (n->op == &hd_op_attention_grad) return node_cost(g, n).flops * 4 / 5;
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        if (n->op == products[i]) return node_cost(g, n).flops;
    return 0;
}

static void count_whole(hd_programs *p)
{
    const hd_graph *g = p->graph;
    for (size_t v = 0; v < g->n_values; v++)
        if (g->values[v].kind == HD_PARAM) p->parameters += hd_shape_count(&g->values[v].type.shape);
    for (size_t i = 0; i < g->n_nodes; i++) p->flops += model_flops(g, g->nodes[i]) * (double)(p->train ? p->plan.micro_batches : 1);
}

int hd_session_whole(hd_graph *g, bool train, const hd_session_options *o, hd_error *err)
{
    make_whole(g, train, o);
    return pass_error(g, err);
}

int hd_programs_make(hd_programs *p, hd_graph *g, bool train, const hd_session_options *o, hd_error *err)
{
    hd_session s = {0};
    *p = (hd_programs){.graph = g, .train = train};
    int rc = hd_backend_open(&s.backend, o->plan.backend[0] ? o->plan.backend : "cpu", err);
    if (!rc) rc = hd_session_whole(g, train, o, err);
    if (!rc) rc = plan_of(o, train, g, &p->plan, err);
    if (!rc) p->fingerprint = hd_graph_fingerprint(g), count_whole(p);
    hd_plan filled = {0};
    if (!rc) hd_plan_complete(&filled, g), p->plan.rows = filled.rows;
    p->n = rc ? 0 : hd_plan_stages(&p->plan);
    p->stage = hd_calloc((size_t)p->n + 1, sizeof *p->stage);
    if (!rc && !p->stage) rc = hd_fail_memory(err, (size_t)p->n * sizeof *p->stage, "the programs of a pipeline");
    if (!rc) rc = lower_stages(p, &s, o, err);
    hd_session_free(&s);
    if (rc) hd_programs_free(p);
    return rc;
}

/* ---- memory ---- */

static bool shares_process(const hd_rank *rank)
{
    return rank->comm && !strcmp(hd_comm_transport(rank->comm), "local");
}

static int predict(hd_session *s, const hd_session_options *o, hd_error *err)
{
    int64_t arena = 0, store = 0;
    for (int i = 0; i < HD_SESSION_PROGRAMS; i++) {
        hd_memory m;
        if (!s->program[i]) continue;
        if (hd_program_memory(s->program[i], &m, err)) return err->code;
        if (!o->share_arena || m.arena > arena) arena += m.arena; /* hd_exec_new_sharing: too large to share is apart */
        if (m.store > store) store = m.store;
    }
    int64_t all = arena + store;
    s->rank_bytes = all;
    int rc = shares_process(&o->rank) ? hd_ranks_sum(&o->rank, &all, 1, err) : 0;
    s->predicted_bytes = (int64_t)hd_memory_resident() + all;
    return rc;
}

int hd_session_threads(const hd_session_options *o)
{
    if (o->plan.threads) return o->plan.threads;
    int here = hd_session_ranks(o), threads;
    if (o->rank.comm && !shares_process(&o->rank)) here = hd_ranks_on_host(here);
    threads = hd_core_count() / here;
    return threads < 1 ? 1 : threads;
}

int hd_session_init(hd_session *s, hd_graph *train, hd_graph *eval, const hd_session_options *o, hd_error *err)
{
    *s = (hd_session){.graph = {train, eval}, .rank = o->rank};
    int rc = hd_backend_open(&s->backend, o->plan.backend[0] ? o->plan.backend : "cpu", err);
    for (int i = 0; i < HD_SESSION_PROGRAMS && !rc; i++) rc = make_program(s, i, o, err);
    if (!rc) rc = predict(s, o, err);
    if (rc) hd_session_free(s);
    return rc;
}

void hd_session_free(hd_session *s)
{
    for (int i = 0; i < HD_SESSION_PROGRAMS; i++) {
        hd_exec_free(s->exec[i]);
        hd_program_free(s->program[i]);
        hd_graph_free(s->graph[i]);
    }
    hd_store_free(s->store);
    hd_store_free(s->names);
    hd_team_free(s->team);
    *s = (hd_session){0};
}

/* ---- ready to run ---- */

/* Of the rank that needs most, which all ranks name. */
static int check_device(const hd_session *s, const hd_session_options *o, hd_error *err)
{
    char need[24], have[24];
    int ranks = hd_session_ranks(o);
    int64_t most = s->rank_bytes;
    int rc = o->device_memory ? hd_ranks_max(&o->rank, &most, 1, err) : 0;
    int64_t who = s->rank_bytes == most ? ranks - o->rank.rank : 0;
    if (!rc && o->device_memory) rc = hd_ranks_max(&o->rank, &who, 1, err);
    if (rc || !o->device_memory || most <= o->device_memory) return rc;
    hd_format_bytes(need, (double)most);
    hd_format_bytes(have, (double)o->device_memory);
    return hd_fail(err, HD_EMEMCAP, "rank %d needs %lld bytes (%s) and --device-memory allows %lld (%s): try recompute=full or zero=1 to 3 in --parallel, more ranks, "
                   "or a smaller --batch with more --micro-batches", (int)(ranks - who), (long long)most, need, (long long)o->device_memory, have);
}

static int check_memory(const hd_session *s, const hd_session_options *o, hd_error *err)
{
    if (check_device(s, o, err)) return err->code;
    char need[24], have[24];
    int64_t now = (int64_t)hd_memory_resident(), cap = o->memory ? o->memory : (int64_t)hd_memory_available() + now;
    if (s->predicted_bytes <= cap) return 0;
    hd_format_bytes(need, (double)s->predicted_bytes);
    hd_format_bytes(have, (double)cap);
    return hd_fail(err, HD_EMEMCAP, "this needs %lld bytes (%s) of memory and %lld (%s) are %s: try a smaller --batch or --sequence, or --precision bf16",
                   (long long)s->predicted_bytes, need, (long long)cap, have, o->memory ? "allowed" : "available");
}

/* A tensor that several stages hold is saved by the first of them. */
static int find_guests(hd_store *s, const hd_program *p, const hd_rank *rank, hd_error *err)
{
    if (p->stages == 1 || !rank->comm) return 0;
    int stages = p->stages, stage = p->stage;
    int64_t *claim = hd_calloc(s->n_all + 1, sizeof *claim);
    if (!claim) return hd_fail_memory(err, s->n_all * sizeof *claim, "the list of a model's state");
    for (size_t i = 0; i < s->n_all; i++) claim[i] = hd_store_find(s, s->all[i].path) ? stages - stage : 0;
    int rc = hd_ranks_max(rank, claim, (int64_t)s->n_all, err);
    for (size_t i = 0; i < s->n_all && !rc; i++) {
        hd_store_tensor *t = hd_store_find(s, s->all[i].path);
        if (t) t->guest = claim[i] != stages - stage;
        else if (!claim[i]) rc = hd_fail(err, HD_EINVAL, "no stage of the pipeline uses %s", s->all[i].path);
    }
    hd_free(claim);
    return rc;
}

/* The rank's store of the graphs' parameters and states, and with stages the list of all. */
static int make_store(hd_session *s, const hd_session_options *o, hd_error *err)
{
    const hd_graph *first = s->graph[HD_TRAIN_PROGRAM] ? s->graph[HD_TRAIN_PROGRAM] : s->graph[HD_EVAL_PROGRAM];
    const hd_program *p = s->program[s->graph[HD_TRAIN_PROGRAM] ? HD_TRAIN_PROGRAM : HD_EVAL_PROGRAM];
    s->store = s->names ? hd_store_new_rank(first, o->seed, hd_program_place(p, o->rank.rank), err) : hd_store_new(first, o->seed, err);
    if (!s->store) return err->code;
    for (int i = 0; i < HD_SESSION_PROGRAMS; i++)
        if (s->graph[i] && hd_store_add_graph(s->store, s->graph[i], o->seed, err)) return err->code;
    if (!s->names) return 0;
    s->store->all = s->names->all; /* s->names lives as long */
    s->store->n_all = s->names->n_all;
    return find_guests(s->store, p, &o->rank, err);
}

int hd_session_start(hd_session *s, const hd_session_options *o, hd_error *err)
{
    bool alone = !hd_session_is_rank(o);
    int rc = check_memory(s, o, err);
    if (rc) return rc;
    s->team = hd_team_new(hd_session_threads(o), true, err);
    if (!s->team || make_store(s, o, err)) return err->code;
    for (int i = 0; i < HD_SESSION_PROGRAMS; i++) {
        if (!s->program[i]) continue;
        hd_exec *host = o->share_arena ? s->exec[HD_TRAIN_PROGRAM] : NULL;
        s->exec[i] = hd_exec_new_rank(s->program[i], s->store, &s->backend, s->team, host, alone ? NULL : &s->rank, err);
        if (!s->exec[i]) return err->code;
    }
    return 0;
}

int hd_session_merge_lora(hd_session *s, const hd_session_options *o, hd_error *err)
{
    hd_plan plan = hd_plan_default();
    plan.threads = o->plan.threads;
    hd_program *program = NULL;
    hd_exec *exec = NULL;
    const hd_graph *adapted = s->graph[HD_TRAIN_PROGRAM] ? s->graph[HD_TRAIN_PROGRAM] : s->graph[HD_EVAL_PROGRAM];
    hd_graph *g = hd_lora_merge_graph(adapted, o->lora, err);
    int rc = g ? hd_lower(g, &plan, &s->backend.target, &program, err) : err->code;
    if (!rc && !(exec = hd_exec_new(program, s->store, &s->backend, s->team, err))) rc = err->code;
    if (!rc) rc = hd_exec_step(exec, NULL, err);
    hd_exec_free(exec);
    hd_program_free(program);
    hd_graph_free(g);
    return rc;
}
