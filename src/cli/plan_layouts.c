/* plan_layouts.c: heddle plan layouts: the layouts of a network's values on a mesh: with a plain alpha-beta model, communication alone; or on a cluster. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <jansson.h>

#include "cli/cli.h"
#include "models/model.h"
#include "passes/passes.h"
#include "plan/plan.h"
#include "planners/layouts.h"
#include "train/step.h"

typedef struct layouts_config {
    const char *graph, *mesh, *cluster, *alpha, *beta, *force, *prefer, *forbid, *solver, *optimizer, *precision, *plan_out;
    int64_t batch, sequence, micro_batches, search_nodes;
    double memory, search_time;
    bool json;
} layouts_config;

#define AT(field) offsetof(layouts_config, field)
static const hd_setting settings[] = {
    {"graph", HD_SET_STRING, AT(graph), NULL, 0, 0, "FILE", "a network file, or a language model's config.json"},
    {"mesh", HD_SET_STRING, AT(mesh), NULL, 0, 0, "AxB", "devices along each axis: 4, 2x4 or 2x2x2"},
    {"cluster", HD_SET_STRING, AT(cluster), NULL, 0, 0, "CLUSTER", "take what kernels and collectives take on these machines, a file or NAME:N; without, --alpha and --beta"},
    {"alpha", HD_SET_STRING, AT(alpha), NULL, 0, 0, "A[,A]", "seconds that a collective takes whatever it sends, of each axis or of all; without the flag 1e-5"},
    {"beta", HD_SET_STRING, AT(beta), NULL, 0, 0, "B[,B]", "seconds a byte, likewise; without the flag 1e-10"},
    {"batch", HD_SET_INT, AT(batch), "0", 0, 1e7, "N", "samples (sequences) of a micro-batch; 0: what the file's section train says, else 64"},
    {"micro_batches", HD_SET_INT, AT(micro_batches), "1", 1, 1e6, "N", "with --cluster: forward and backward passes in a step"},
    {"precision", HD_SET_STRING, AT(precision), "f32", 0, 0, "f32|bf16", "with --cluster: of products and activations"},
    {"sequence", HD_SET_INT, AT(sequence), "128", 1, 1e6, "N", "tokens in a sequence of a language model"},
    {"optimizer", HD_SET_STRING, AT(optimizer), "adamw", 0, 0, "adamw|sgd", "what the update keeps: two states a parameter, or none"},
    {"memory", HD_SET_NUMBER, AT(memory), "0", 0, 1e18, "BYTES", "of a rank at most, for parameters, states, gradients and what forward keeps for backward; 0: endless"},
    {"force", HD_SET_STRING, AT(force), NULL, 0, 0, "data-parallel", "every node that has samples cuts them and nothing else"},
    {"prefer", HD_SET_STRING, AT(prefer), NULL, 0, 0, "reduce-scatter", "an all-reduce counts as the two halves that it can be taken apart into"},
    {"forbid", HD_SET_STRING, AT(forbid), NULL, 0, 0, "KINDS", "collectives not to be used: all-reduce, all-gather, reduce-scatter, all-to-all, with commas between"},
    {"solver", HD_SET_STRING, AT(solver), "exact", 0, 0, "exact|ilp", "Heddle's own, or CBC on the same problem"},
    {"search_nodes", HD_SET_INT, AT(search_nodes), "0", 0, 1e9, "N", "branches at most; 0: 20000, and fewer where they are large"},
    {"search_time", HD_SET_NUMBER, AT(search_time), "0", 0, 1e7, "SECONDS", "by the clock at most, after which the best so far is given with its gap; 0: endless"},
    {"plan_out", HD_SET_STRING, AT(plan_out), NULL, 0, 0, "FILE", "with --cluster: write the plan, for heddle train --plan FILE"},
    {"json", HD_SET_BOOL, AT(json), NULL, 0, 0, NULL, "one JSON object with the keys of docs/plan-problems.md"},
    {0},
};

/* ---- the problem ---- */

/* On a cluster parameters rather than activations are moved over the first axis where nothing else is said, as plans have it. */
static int read_mesh(const char *text, bool cluster, hd_mesh *m, hd_error *err)
{
    static const char *const plain[] = {"x", "y", "z"}, *const named[] = {"dp", "tp", "tp1"};
    const char *const *names = cluster ? named : plain, *at = text;
    *m = (hd_mesh){0};
    if (!text) return hd_fail(err, HD_EINVAL, "--mesh is missing: devices along each axis, such as 2x4");
    while (m->n < 3) {
        char *end;
        long size = strtol(at, &end, 10);
        if (end == at || size < 1 || size > 4096 || (*end && *end != 'x')) break;
        hd_mesh_axis *a = &m->axis[m->n];
        a->size = (int)size, a->role = cluster && !m->n ? HD_AXIS_DATA : HD_AXIS_MODEL;
        snprintf(a->name, sizeof a->name, "%s", names[m->n++]);
        if (!*end) return hd_mesh_size(m) <= HD_MAX_RANKS ? 0 : hd_fail(err, HD_EINVAL, "--mesh %s: more than %d devices", text, HD_MAX_RANKS);
        at = end + 1;
    }
    return hd_fail(err, HD_EINVAL, "--mesh must be up to three numbers from 1 with x between, such as 2x4, is \"%s\"", text);
}

/* As many numbers as axes, or one for all. */
static int read_rates(const char *flag, const char *text, int n, double *out, hd_error *err)
{
    const char *at = text;
    int k = 0;
    for (;; k++) {
        char *end;
        double v = strtod(at, &end);
        if (end == at || !(v >= 0 && v < 1e6) || (*end && *end != ',') || k == n) break;
        out[k] = v;
        if (!*end && k == 0)
            for (int i = 1; i < n; i++) out[i] = v;
        if (!*end && (k == 0 || k == n - 1)) return 0;
        if (!*end) break;
        at = end + 1;
    }
    return hd_fail(err, HD_EINVAL, "%s must be one number from 0, or one for each of the mesh's %d axes with commas between, is \"%s\"", flag, n, text);
}

static int read_forbidden(const char *text, uint32_t *out, hd_error *err)
{
    char copy[256];
    if (!text) return 0;
    if (strlen(text) >= sizeof copy) return hd_fail(err, HD_EINVAL, "--forbid: too long");
    memcpy(copy, text, strlen(text) + 1);
    for (char *rest = copy, *one; (one = strsep(&rest, ","));) {
        hd_collective k;
        if (hd_collective_parse(one, &k)) return hd_fail(err, HD_EINVAL, "--forbid: there is no collective \"%s\"; there are all-reduce, all-gather, reduce-scatter, all-to-all", one);
        *out |= 1u << k;
    }
    return 0;
}

static int64_t batch_of(const layouts_config *c, const hd_model *m)
{
    const json_t *train = m->is_network ? hd_network_section(m->network, "train") : NULL;
    int64_t said = json_integer_value(json_object_get(train, "batch"));
    return c->batch ? c->batch : said > 0 ? said : 64;
}

static hd_graph *make_graph(const layouts_config *c, int64_t *batch, hd_error *err)
{
    hd_model m;
    hd_step_options step = {.optimizer = strcmp(c->optimizer, "sgd") ? HD_ADAMW : HD_SGD, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
    if (!c->graph) hd_fail(err, HD_EINVAL, "--graph FILE is missing");
    if (err->code || hd_model_open(&m, c->graph, err)) return NULL;
    *batch = batch_of(c, &m);
    hd_dtype precision = strcmp(c->precision, "bf16") ? HD_F32 : HD_BF16;
    hd_graph *g = hd_model_graph(&m, &(hd_model_options){.mode = HD_LM_TRAIN, .precision = precision, .batch = *batch, .sequence = c->sequence}, err);
    hd_model_close(&m);
    if (g && c->cluster) hd_pass_fuse_residual_norm(g), hd_pass_precision(g, precision); /* as heddle train has it */
    if (!g || !hd_step_append(g, &step)) return g;
    hd_fail(err, g->err.code, "%s: %s", c->graph, g->err.message);
    hd_graph_free(g);
    return NULL;
}

static int read_cluster(const layouts_config *c, hd_layout_problem *p, hd_cluster *cluster, hd_error *err)
{
    if (!c->cluster) return 0;
    if (c->alpha || c->beta) return hd_fail(err, HD_EINVAL, "--cluster says what collectives take: leave --alpha and --beta out");
    int rc = hd_cluster_find(c->cluster, cluster, err);
    if (rc) return rc;
    p->cluster = cluster, p->threads = 1, p->micro_batches = c->micro_batches, p->overlap = HD_LAYOUT_OVERLAP;
    if (cluster->device.cores && cluster->device.cores > hd_mesh_size(&p->mesh)) p->threads = cluster->device.cores / hd_mesh_size(&p->mesh);
    if (hd_mesh_size(&p->mesh) <= hd_cluster_devices(cluster)) return 0;
    return hd_fail(err, HD_EINVAL, "--mesh %s has %d devices, and --cluster %s has %d", c->mesh, hd_mesh_size(&p->mesh), c->cluster, hd_cluster_devices(cluster));
}

static int check_flags(const layouts_config *c, hd_error *err)
{
    if (strcmp(c->precision, "f32") && strcmp(c->precision, "bf16")) return hd_fail(err, HD_EINVAL, "--precision must be f32 or bf16, is \"%s\"", c->precision);
    if (c->cluster) return 0;
    if (c->plan_out) return hd_fail(err, HD_EINVAL, "--plan-out wants --cluster: a plan is for machines");
    if (c->micro_batches > 1 || strcmp(c->precision, "f32")) return hd_fail(err, HD_EINVAL, "--micro-batches and --precision want --cluster");
    return 0;
}

static int read_problem(const layouts_config *c, hd_layout_problem *p, hd_cluster *cluster, hd_error *err)
{
    *p = (hd_layout_problem){.memory = c->memory > 0 ? (int64_t)c->memory : -1, .data_parallel = c->force, .prefer_reduce_scatter = c->prefer,
                             .search = {.nodes = c->search_nodes, .seconds = c->search_time}, .ilp_seconds = c->search_time, .ilp = !strcmp(c->solver, "ilp")};
    if (c->force && strcmp(c->force, "data-parallel")) return hd_fail(err, HD_EINVAL, "--force must be data-parallel, is \"%s\"", c->force);
    if (c->prefer && strcmp(c->prefer, "reduce-scatter")) return hd_fail(err, HD_EINVAL, "--prefer must be reduce-scatter, is \"%s\"", c->prefer);
    int rc = check_flags(c, err);
    if (!rc) rc = read_mesh(c->mesh, c->cluster, &p->mesh, err);
    if (!rc) rc = read_rates("--alpha", c->alpha ? c->alpha : "1e-5", p->mesh.n, p->alpha, err);
    if (!rc) rc = read_rates("--beta", c->beta ? c->beta : "1e-10", p->mesh.n, p->beta, err);
    if (!rc) rc = read_cluster(c, p, cluster, err);
    return rc ? rc : read_forbidden(c->forbid, &p->forbidden, err);
}

/* ---- the answer ---- */

/* What a person asks for first: inputs, parameters, their states. */
static bool is_leaf(const hd_value_info *v) { return (v->kind == HD_INPUT && v->type.shape.rank) || v->kind == HD_PARAM || v->kind == HD_STATE; }

static void layout_text(const hd_layout_problem *p, const hd_layout_answer *a, size_t v, hd_str *out)
{
    hd_str_clear(out);
    hd_layout_print(&p->mesh, &a->held[v], p->graph->values[v].type.shape.rank, out);
}

static json_t *describe(const hd_layout_problem *p, const hd_layout_answer *a)
{
    json_t *values = json_object(), *nodes = json_object(), *collectives = json_object();
    hd_str text;
    hd_str_init(&text);
    for (size_t v = 0; v < p->graph->n_values; v++) {
        layout_text(p, a, v, &text);
        json_object_set_new(values, p->graph->values[v].path, json_string(text.data));
    }
    for (int i = 0; i < a->n_nodes; i++) {
        json_t *loops = json_array();
        for (int k = 0; k < p->mesh.n; k++) json_array_append_new(loops, json_integer(a->nodes[i].loop[k]));
        json_object_set_new(nodes, a->nodes[i].node->path, loops);
    }
    for (int k = 0; k < HD_COLL_KINDS; k++)
        json_object_set_new(collectives, hd_collective_name((hd_collective)k), json_pack("{s:I, s:I, s:f}", "count", (json_int_t)a->traffic[k].count, "combined",
                                                                                         (json_int_t)a->traffic[k].combined, "bytes", a->traffic[k].bytes));
    hd_str_free(&text);
    return json_pack("{s:f, s:f, s:f, s:b, s:I, s:i, s:f, s:f, s:o, s:o, s:o}", "objective", a->seconds, "bound", a->bound, "computing", a->work, "optimal", a->proven,
                     "memory", (json_int_t)a->memory, "variables", a->variables, "build_seconds", a->build_seconds, "solve_seconds", a->solve_seconds, "collectives",
                     collectives, "choice", values, "loops", nodes);
}

static void print_text(const hd_layout_problem *p, const hd_layout_answer *a, hd_str *out)
{
    hd_str text;
    hd_str_init(&text);
    if (p->cluster) hd_str_printf(out, "%.6g s a step, of which %.6g s computing\n", a->seconds, a->work);
    hd_str_printf(out, "communication %.6g s a step%s; %.4g bytes of a rank; %d choices, %.3f s to find\n", a->seconds > a->work ? a->seconds - a->work : 0,
                  a->proven ? ", which is least" : "", (double)a->memory, a->variables, a->build_seconds + a->solve_seconds);
    if (!a->proven) hd_str_printf(out, "no choice takes less than %.6g s: a gap of %.3g %%, for --search-nodes or --search-time to close\n", a->bound, 100 * (1 - a->bound / a->seconds));
    for (int k = 0; k < HD_COLL_KINDS; k++)
        if (a->traffic[k].count)
            hd_str_printf(out, "  %-15s %4lld, %lld with gradients put together; %.6g bytes\n", hd_collective_name((hd_collective)k), (long long)a->traffic[k].count,
                          (long long)a->traffic[k].combined, a->traffic[k].bytes);
    for (size_t v = 0; v < p->graph->n_values; v++) {
        if (!is_leaf(&p->graph->values[v])) continue;
        layout_text(p, a, v, &text);
        hd_str_printf(out, "  %-40s %s\n", p->graph->values[v].path, text.data);
    }
    hd_str_free(&text);
}

static int print(const layouts_config *c, const hd_layout_problem *p, const hd_layout_answer *a, hd_error *err)
{
    hd_str text;
    json_t *j = c->json ? describe(p, a) : NULL;
    char *dump = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    hd_str_init(&text);
    if (dump) hd_str_printf(&text, "%s\n", dump);
    else if (!c->json) print_text(p, a, &text);
    bool failed = text.failed || (c->json && !dump);
    if (!failed) fputs(text.data, stdout);
    json_decref(j);
    free(dump);
    hd_str_free(&text);
    return failed ? hd_fail_memory(err, 0, "a plan of layouts") : 0;
}

/* ---- the plan ---- */

static int write_plan(const layouts_config *c, const hd_layout_problem *p, const hd_layout_answer *a, hd_error *err)
{
    hd_plan *plan = c->plan_out ? hd_malloc(sizeof *plan) : NULL;
    if (!c->plan_out) return 0;
    if (!plan) return hd_fail_memory(err, sizeof *plan, "a plan");
    *plan = hd_plan_default();
    plan->micro_batches = c->micro_batches;
    plan->precision = strcmp(c->precision, "bf16") ? HD_F32 : HD_BF16;
    plan->mesh = p->mesh;
    int rc = hd_layout_pins(p, a, false, plan->pins, HD_MAX_PINS, &plan->n_pins, err);
    if (!rc) rc = hd_plan_save(plan, c->plan_out, err);
    hd_free(plan);
    return rc;
}

static int infeasible(const layouts_config *c, const hd_layout_answer *a, hd_error *err)
{
    if (c->memory > 0 && a->memory > (int64_t)c->memory)
        return hd_fail(err, HD_EINVAL, "infeasible: --memory %.0f bytes, and every choice of layouts takes at least %lld: %lld too few", c->memory, (long long)a->memory,
                       (long long)(a->memory - (int64_t)c->memory));
    if (c->memory > 0) return hd_fail(err, HD_EINVAL, "infeasible: no choice of layouts was found within --memory %.0f bytes", c->memory);
    return hd_fail(err, HD_EINVAL, "infeasible: %s leaves no way to bring every value to where it is read", c->forbid ? "--forbid" : c->force ? "--force" : "the network");
}

static int run(const void *config, const char *const *words, int n_words, hd_error *err)
{
    const layouts_config *c = config;
    hd_layout_problem p;
    hd_layout_answer a = {0};
    hd_cluster cluster = {0};
    int64_t batch;
    (void)words, (void)n_words;
    int rc = read_problem(c, &p, &cluster, err);
    hd_graph *g = rc ? NULL : make_graph(c, &batch, err);
    p.graph = g;
    rc = g ? hd_layouts_solve(&p, &a, err) : err->code;
    if (!rc) rc = a.feasible ? write_plan(c, &p, &a, err) : infeasible(c, &a, err);
    if (!rc) rc = print(c, &p, &a, err);
    hd_layout_answer_free(&a);
    hd_cluster_free(&cluster);
    hd_graph_free(g);
    return rc;
}

const hd_command hd_cmd_plan_layouts = {
    .name = "plan layouts",
    .usage = "--graph FILE --mesh AxB [--cluster CLUSTER] [flags]",
    .summary = "layouts of a network's values on a mesh, so that a step takes least",
    .details = "A whole training step of the network: forward, backward, update. For every node a way to divide it, for every value a layout in which it\n"
               "is held: at least communication by an alpha-beta model of collectives, or with --cluster in the least time by what its kernels and collectives\n"
               "take (docs/plan-problems.md); exactly, within a limit of memory. --plan-out writes what heddle train --plan replays on as many ranks.",
    .settings = settings,
    .config_size = sizeof(layouts_config),
    .run = run,
};
