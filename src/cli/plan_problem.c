/* plan_problem.c: heddle plan stages, slices, pipedream: one level of planning alone, from a text file that a person brings. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <jansson.h>

#include "base/file.h"
#include "cli/cli.h"
#include "planners/pipedream.h"
#include "planners/slices.h"
#include "planners/stages.h"

typedef struct problem_config {
    const char *profile, *devices, *bandwidth;
    int64_t micro_batches, stages;
    bool json;
} problem_config;

#define AT(field) offsetof(problem_config, field)
#define PROFILE {"profile", HD_SET_STRING, AT(profile), NULL, 0, 0, "FILE", "the problem; its format is described above"}
#define JSON {"json", HD_SET_BOOL, AT(json), NULL, 0, 0, NULL, "one JSON object with the keys of docs/plan-problems.md"}
enum { MAX_DEVICES = 1 << 20, MAX_PROFILE = 1 << 30 };

/* Prints j or, without --json, text; frees both. */
static int print(const problem_config *c, json_t *j, hd_str *text, hd_error *err)
{
    char *dump = c->json && j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    bool failed = c->json ? !dump : text->failed;
    if (!failed) puts(c->json ? dump : text->data);
    json_decref(j);
    free(dump);
    hd_str_free(text);
    return failed ? hd_fail_memory(err, 0, "a plan") : 0;
}

static int read_profile(const problem_config *c, hd_str *text, hd_error *err)
{
    hd_str_init(text);
    if (!c->profile) return hd_fail(err, HD_EINVAL, "--profile FILE is missing");
    return hd_file_read(text, c->profile, MAX_PROFILE, err);
}

/* One number, or two with a comma between; returns how many, or 0 with an error. */
static int read_pair(const char *flag, const char *text, double least, double most, double *out, hd_error *err)
{
    char *end = NULL;
    int n = 0;
    for (const char *at = text; at && n < 2; at = *end == ',' ? end + 1 : NULL) {
        out[n] = strtod(at, &end);
        if (end == at || (*end && *end != ',') || !(out[n] >= least && out[n] <= most)) n = 2, end = NULL;
        if (!end) break;
        n++;
    }
    if (!text) hd_fail(err, HD_EINVAL, "%s is missing", flag);
    else if (!end || *end) hd_fail(err, HD_EINVAL, "%s must be a number from %g to %g, or two with a comma between (inside a machine, between machines), is \"%s\"",
                                   flag, least, most, text);
    return err->code ? 0 : n;
}

static int read_devices(const problem_config *c, int *out, int *levels, hd_error *err)
{
    double v[2];
    *levels = read_pair("--devices", c->devices, 1, MAX_DEVICES, v, err);
    for (int i = 0; i < *levels; i++) {
        out[i] = (int)v[i];
        if ((double)out[i] != v[i]) return hd_fail(err, HD_EINVAL, "--devices %s: not a whole number", c->devices);
    }
    return err->code;
}

/* ---- stages ---- */

static json_t *describe_stages(const hd_stage_profile *p, const hd_stage_plan *plan, int devices, int64_t micro)
{
    json_t *choice = json_array();
    for (int i = 0; i < plan->n; i++) {
        const hd_stage_option *o = &p->options[plan->option[i]];
        json_array_append_new(choice, json_pack("{s:i, s:i, s:i, s:s, s:f, s:i}", "first_layer", o->first, "last_layer", o->last, "submesh_devices", o->devices,
                                                "config", o->config, "cost", o->cost, "max_succeeding_stages", o->max_succeeding));
    }
    return json_pack("{s:f, s:f, s:f, s:i, s:I, s:o}", "objective", plan->objective, "sum", plan->sum, "greatest", plan->greatest, "devices", devices,
                     "micro_batches", (json_int_t)micro, "choice", choice);
}

static void print_stages(const hd_stage_profile *p, const hd_stage_plan *plan, int64_t micro, hd_str *out)
{
    hd_str_printf(out, "objective %.9g = sum %.9g + %lld x greatest %.9g\n%8s %-14s %8s %12s  %s", plan->objective, plan->sum, (long long)micro - 1,
                  plan->greatest, "stage", "layers", "devices", "cost", "config");
    for (int i = 0; i < plan->n; i++) {
        const hd_stage_option *o = &p->options[plan->option[i]];
        char layers[32];
        snprintf(layers, sizeof layers, "%d-%d", o->first, o->last);
        hd_str_printf(out, "\n%8d %-14s %8d %12.6g  %s", i, layers, o->devices, o->cost, o->config);
    }
}

static int solve_stages(const problem_config *c, const hd_stage_profile *p, int devices, hd_error *err)
{
    hd_stage_plan plan;
    hd_str text;
    int rc = hd_stages_solve(p, devices, c->micro_batches, &plan, err);
    hd_str_init(&text);
    if (!rc) print_stages(p, &plan, c->micro_batches, &text);
    if (!rc) rc = print(c, describe_stages(p, &plan, devices, c->micro_batches), &text, err);
    hd_str_free(&text);
    hd_stage_plan_free(&plan);
    return rc;
}

static int run_stages(const void *config, const char *const *words, int n_words, hd_error *err)
{
    const problem_config *c = config;
    hd_str text;
    hd_stage_profile p = {0};
    int devices[2], levels;
    (void)words, (void)n_words;
    int rc = read_devices(c, devices, &levels, err);
    if (!rc && levels > 1) rc = hd_fail(err, HD_EINVAL, "--devices %s: one number here", c->devices);
    if (rc) return rc;
    rc = read_profile(c, &text, err);
    if (!rc) rc = hd_stage_profile_parse(text.data, text.len, c->profile, &p, err);
    if (!rc) rc = solve_stages(c, &p, devices[0], err);
    hd_stage_profile_free(&p);
    hd_str_free(&text);
    return rc;
}

/* ---- slices ---- */

static json_t *describe_slices(const hd_slice_profile *p, const hd_slice_plan *plan, int64_t stages)
{
    json_t *choice = json_array(), *lengths = json_array();
    for (int i = 0; i < plan->n; i++) {
        const hd_slice_option *o = &p->options[plan->option[i]];
        json_array_append_new(choice, json_pack("{s:i, s:i, s:f}", "len", o->length, "ctx", o->context, "ms", o->cost));
        json_array_append_new(lengths, json_integer(o->length));
    }
    return json_pack("{s:f, s:f, s:f, s:I, s:i, s:o, s:o}", "objective", plan->objective, "sum", plan->sum, "greatest", plan->greatest, "stages",
                     (json_int_t)stages, "tokens", p->tokens, "slices", lengths, "choice", choice);
}

static int run_slices(const void *config, const char *const *words, int n_words, hd_error *err)
{
    const problem_config *c = config;
    hd_str text, out;
    hd_slice_profile p = {0};
    hd_slice_plan plan = {0};
    (void)words, (void)n_words;
    hd_str_init(&out);
    int rc = read_profile(c, &text, err);
    if (!rc) rc = hd_slice_profile_parse(text.data, text.len, c->profile, &p, err);
    if (!rc) rc = hd_slices_solve(&p, (int)c->stages, &plan, err);
    if (!rc) {
        hd_str_printf(&out, "objective %.9g ms = sum %.9g + %lld x greatest %.9g\n%d tokens in %d slices:", plan.objective, plan.sum, (long long)c->stages - 1,
                      plan.greatest, p.tokens, plan.n);
        for (int i = 0; i < plan.n; i++) hd_str_printf(&out, "%c%d", i ? ':' : ' ', p.options[plan.option[i]].length);
        rc = print(c, describe_slices(&p, &plan, c->stages), &out, err);
    }
    hd_slice_plan_free(&plan);
    hd_slice_profile_free(&p);
    hd_str_free(&text);
    hd_str_free(&out);
    return rc;
}

/* ---- PipeDream ---- */

static json_t *describe_dream(const hd_profiled_graph *g, const hd_pipedream_plan *plan)
{
    json_t *choice = json_array(), *replication = json_array(), *split = json_array();
    for (int i = 0; i < plan->n; i++) {
        const hd_pipedream_stage *s = &plan->stages[i];
        json_t *nodes = json_array();
        for (int k = s->first; k <= s->last; k++) json_array_append_new(nodes, json_string(g->nodes[plan->order[k]].name));
        if (i) json_array_append_new(split, json_string(g->nodes[plan->order[s->first]].name));
        json_array_append_new(replication, json_integer(s->replicas * s->machines));
        json_array_append_new(choice, json_pack("{s:o, s:i, s:i}", "nodes", nodes, "replicas", s->replicas, "machines", s->machines));
    }
    return json_pack("{s:f, s:s, s:o, s:o, s:o}", "objective", plan->bottleneck, "unit", "ms", "replication", replication, "split", split, "choice", choice);
}

static void print_dream(const hd_profiled_graph *g, const hd_pipedream_plan *plan, hd_str *out)
{
    hd_str_printf(out, "bottleneck %.9g ms for a micro-batch\n%8s %9s %9s  %s", plan->bottleneck, "stage", "replicas", "machines", "nodes");
    for (int i = 0; i < plan->n; i++) {
        const hd_pipedream_stage *s = &plan->stages[i];
        hd_str_printf(out, "\n%8d %9d %9d  %s", i, s->replicas, s->machines, g->nodes[plan->order[s->first]].name);
        if (s->last > s->first) hd_str_printf(out, " .. %s (%d nodes)", g->nodes[plan->order[s->last]].name, s->last - s->first + 1);
    }
}

static int solve_dream(const problem_config *c, const hd_profiled_graph *g, const hd_pipedream_machines *m, hd_error *err)
{
    hd_pipedream_plan plan;
    hd_str text;
    hd_str_init(&text);
    int rc = hd_pipedream_solve(g, m, &plan, err);
    if (!rc) print_dream(g, &plan, &text);
    if (!rc) rc = print(c, describe_dream(g, &plan), &text, err);
    hd_str_free(&text);
    hd_pipedream_plan_free(&plan);
    return rc;
}

static int run_pipedream(const void *config, const char *const *words, int n_words, hd_error *err)
{
    const problem_config *c = config;
    hd_str text;
    hd_profiled_graph g = {0};
    hd_pipedream_machines m = {0};
    (void)words, (void)n_words;
    int rc = read_devices(c, m.count, &m.levels, err), bands = rc ? 0 : read_pair("--bandwidth", c->bandwidth, 1e-3, 1e18, m.bandwidth, err);
    if (!rc) rc = err->code;
    if (!rc && bands != m.levels)
        rc = hd_fail(err, HD_EINVAL, "--devices %s and --bandwidth %s: as many bandwidths as levels of machines, please", c->devices, c->bandwidth);
    if (!rc && (double)m.count[0] * (m.levels > 1 ? m.count[1] : 1) > 4096) rc = hd_fail(err, HD_EINVAL, "--devices %s: over 4096", c->devices);
    if (rc) return rc;
    rc = read_profile(c, &text, err);
    if (!rc) rc = hd_profiled_graph_parse(text.data, text.len, c->profile, &g, err);
    if (!rc) rc = solve_dream(c, &g, &m, err);
    hd_profiled_graph_free(&g);
    hd_str_free(&text);
    return rc;
}

/* ---- the commands ---- */

static const hd_setting stage_settings[] = {
    PROFILE,
    {"devices", HD_SET_STRING, AT(devices), NULL, 0, 0, "N", "how many there are; all are used"},
    {"micro_batches", HD_SET_INT, AT(micro_batches), "1", 1, 1e9, "M", "of a step"},
    JSON,
    {0},
};

const hd_command hd_cmd_plan_stages = {
    .name = "plan stages",
    .usage = "--profile FILE --devices N --micro-batches M",
    .summary = "layers to pipeline stages on submeshes, by Alpa's programme, from a profile",
    .details = "The profile has a line for each way to run layers first .. last as one stage, tab-separated: first_layer, last_layer,\n"
               "submesh_devices, config (any word), cost of one micro-batch (inf: impossible), max_succeeding_stages (for how many stages behind\n"
               "it its memory suffices; -1: never). # begins a comment. Found is the least sum of costs + (M - 1) x the greatest, over stages that\n"
               "cover all layers with exactly N devices (Zheng et al. 2022, section 5.2).",
    .settings = stage_settings,
    .config_size = sizeof(problem_config),
    .run = run_stages,
};

static const hd_setting slice_settings[] = {
    PROFILE,
    {"stages", HD_SET_INT, AT(stages), "1", 1, 1e6, "K", "of the pipeline"},
    JSON,
    {0},
};

const hd_command hd_cmd_plan_slices = {
    .name = "plan slices",
    .usage = "--profile FILE --stages K",
    .summary = "a sequence to slices of tokens, by TeraPipe's programme, from a profile",
    .details = "The profile has a line for each slice that may be, tab-separated: len (tokens), ctx (tokens before it), ms (what one stage takes).\n"
               "# begins a comment. Found is the least sum + (K - 1) x the greatest over slices that make up the whole sequence, the greatest\n"
               "len + ctx (Li et al. 2021, section 3.3).",
    .settings = slice_settings,
    .config_size = sizeof(problem_config),
    .run = run_slices,
};

static const hd_setting dream_settings[] = {
    PROFILE,
    {"devices", HD_SET_STRING, AT(devices), NULL, 0, 0, "N[,M]", "devices; or devices of a machine, and machines"},
    {"bandwidth", HD_SET_STRING, AT(bandwidth), NULL, 0, 0, "B[,C]", "bytes a second between devices; or within a machine, and between machines"},
    JSON,
    {0},
};

const hd_command hd_cmd_plan_pipedream = {
    .name = "plan pipedream",
    .usage = "--profile graph.txt --devices N --bandwidth B",
    .summary = "a profiled graph to replicated stages, by PipeDream's optimizer",
    .details = "The profile is PipeDream's own: \"node1 -- WHAT -- forward_compute_time=MS, backward_compute_time=MS, activation_size=BYTES,\n"
               "parameter_size=BYTES\" and edges \"<tab>node1 -- node2\". Found is the least time of the slowest stage or link, and with it which nodes\n"
               "go together and how often each stage is replicated (Narayanan et al. 2019, section 3.1), for one level of machines or two.",
    .settings = dream_settings,
    .config_size = sizeof(problem_config),
    .run = run_pipedream,
};
