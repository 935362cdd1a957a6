/* plan.c: heddle plan: what a step of a model will take on a cluster, under a plan that is given by hand, without the cluster. */
#include "cli/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/term.h"
#include "cli/cli.h"
#include "report/plan_html.h"
#include "report/trace_chrome.h"

#define AT(field) offsetof(plan_config, field)
static const hd_setting settings[] = {
    {"cluster", HD_SET_STRING, AT(cluster), "cpu", 0, 0, "CLUSTER", "the machines: a file (heddle calibrate writes one), or NAME:N, a shipped one of N devices"},
    {"parallel", HD_SET_STRING, AT(parallel), NULL, 0, 0, "TEXT", "how the work is split over ranks, as heddle train takes it"},
    {"planner", HD_SET_STRING, AT(planner), NULL, 0, 0, "NAME", "who finds what --parallel leaves open: search, exhaustive, megatron, zero, data-parallel, flexflow; given: nobody, keys that aren't given have their defaults"},
    {"devices", HD_SET_INT, AT(devices), "0", 0, 1e6, "N", "use so many of the cluster's devices; 0: all"},
    {"device_memory", HD_SET_STRING, AT(device_memory), NULL, 0, 0, "BYTES", "of a device that may be used at most: bytes, or with K, M, G (of 1024)"},
    {"forbid", HD_SET_STRING, AT(forbid), NULL, 0, 0, "KEYS", "keys of --parallel that the planner leaves at their defaults: tp,recompute"},
    {"pin", HD_SET_LIST, AT(pins), NULL, 0, 0, "NAME=LAYOUT", "keep parameters whose names match NAME (with *) in a layout over the plan's axes, such as tp,-: rows over tp"},
    {"keep_micro_batches", HD_SET_BOOL, AT(keep_micro_batches), NULL, 0, 0, NULL, "the planner may not divide a step's samples in another way than --batch and --micro-batches do"},
    {"search_nodes", HD_SET_INT, AT(search_nodes), "0", 0, 1e9, "N", "plans that are simulated whole at most; 0: some dozens"},
    {"search_time", HD_SET_NUMBER, AT(search_time), "0", 0, 1e6, "S", "stop searching then, with the best so far; 0: no limit"},
    {"search_threads", HD_SET_INT, AT(search_threads), "0", 0, 256, "N", "threads that search; 0: one per core. The plan is the same"},
    {"explain", HD_SET_BOOL, AT(explain), NULL, 0, 0, NULL, "how many plans there were by each choice, what cut them off, and why the next best lost"},
    {"plan", HD_SET_STRING, AT(plan), NULL, 0, 0, "FILE", "a plan (JSON) instead of --parallel, --micro-batches and --precision"},
    {"mode", HD_SET_STRING, AT(mode), "train", 0, 0, "train|generate", "a training step, or generating text"},
    {"batch", HD_SET_INT, AT(batch), "8", 1, 1e6, "N", "sequences (samples) in a micro-batch, of all data-parallel ranks; generate: sequences at once"},
    {"micro_batches", HD_SET_INT, AT(micro_batches), "1", 1, 1e6, "N", "micro-batches summed up before each update"},
    {"sequence", HD_SET_INT, AT(sequence), "256", 1, 1e7, "N", "tokens in a sequence; generate: in a prompt"},
    {"context", HD_SET_INT, AT(context), "0", 0, 1e7, "N", "generate: most tokens of prompt and text together; 0: twice the prompt"},
    {"precision", HD_SET_STRING, AT(precision), "f32", 0, 0, "f32|bf16", "of products and activations; master weights are f32"},
    {"attention", HD_SET_STRING, AT(attention), "fused", 0, 0, "fused|materialised", "materialised: scores are written to memory, as before fused attention"},
    {"half_stream", HD_SET_BOOL, AT(half_stream), NULL, 0, 0, NULL, "the residual stream is in the precision of products, not f32"},
    {"optimizer", HD_SET_STRING, AT(optimizer), "adamw", 0, 0, "adamw|sgd", "how parameters are updated"},
    {"clip", HD_SET_NUMBER, AT(clip), "1", 0, 1e9, "X", "gradients are clipped to this norm; 0: not"},
    {"threads", HD_SET_INT, AT(threads), "0", 0, 256, "N", "of a rank on CPUs; 0: a node's cores over its ranks"},
    {"tokens", HD_SET_NUMBER, AT(tokens), NULL, 0, 1e18, "N", "say the days and the money that training on so many tokens takes"},
    {"budget", HD_SET_STRING, AT(budget), NULL, 0, 0, "AMOUNT", "the best size and number of tokens for 3.14e23 (FLOPs) or 20000usd; MODEL may be left out"},
    {"clusters", HD_SET_STRING, AT(clusters), NULL, 0, 0, "NAMES", "with --budget: rank these clusters (all, or names with commas) by what they give for money"},
    {"law", HD_SET_STRING, AT(law), "chinchilla", 0, 0, "LAW", "of sizes: kaplan, chinchilla (20 tokens a parameter) or chinchilla-loss"},
    {"utilisation", HD_SET_NUMBER, AT(utilisation), "0.4", 0.001, 1, "X", "with --budget: share of the peak that training reaches"},
    {"days", HD_SET_NUMBER, AT(days), "30", 0.01, 10000, "N", "with --budget: clusters named without a size get as many nodes as are done in so many days"},
    {"json", HD_SET_BOOL, AT(json), NULL, 0, 0, NULL, "one JSON object with the keys of docs/plan.md"},
    {"out", HD_SET_STRING, AT(out), NULL, 0, 0, "FILE", "save the plan, for heddle train --plan"},
    {"report", HD_SET_STRING, AT(report), NULL, 0, 0, "FILE", "write it all as one HTML file, for somebody who wasn't there"},
    {"measured", HD_SET_STRING, AT(measured), NULL, 0, 0, "FILE", "a trace of heddle train --trace, to stand beside what is predicted in the report"},
    {"trace", HD_SET_STRING, AT(trace), NULL, 0, 0, "FILE", "write the predicted events as Chrome trace JSON"},
    {0},
};

/* ---- predicting ---- */

static int read_plan(const plan_config *c, planned *p, hd_session_options *o, hd_error *err)
{
    if (c->plan && c->parallel) return hd_fail(err, HD_EINVAL, "--plan says how the work is split: leave --parallel out");
    if (c->plan) {
        int rc = hd_plan_load(c->plan, &o->plan, err);
        p->precision = o->plan.precision;
        return rc;
    }
    p->precision = strcmp(c->precision, "bf16") ? HD_F32 : HD_BF16;
    o->plan = hd_plan_default();
    o->plan.micro_batches = c->micro_batches;
    o->plan.precision = p->precision;
    if (p->planner) o->parallel = p->form;
    return !p->planner && c->parallel ? hd_parallel_parse(c->parallel, &o->parallel, err) : 0;
}

static int fail_devices(const plan_config *c, const planned *p, int ranks, hd_error *err)
{
    char more[96];
    int devices = hd_cluster_devices(&p->cluster), node = hd_cluster_group(&p->cluster, p->cluster.node_level);
    snprintf(more, sizeof more, "--cluster %s:%d", p->cluster.name, (ranks + node - 1) / node * node);
    return hd_fail(err, HD_EINVAL, "the plan is for %d ranks, and the cluster %s has %d device%s: %d too few. What would help: %s, or splitting over fewer", ranks,
                   p->cluster.name, devices, devices == 1 ? "" : "s", ranks - devices, hd_file_exists(c->cluster) ? "a larger cluster" : more);
}

hd_step_options hd_plan_step(const plan_config *c)
{
    return (hd_step_options){.optimizer = strcmp(c->optimizer, "sgd") ? HD_ADAMW : HD_SGD, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = c->clip};
}

static int fill_options(const plan_config *c, planned *p, hd_session_options *o, hd_error *err)
{
    *o = (hd_session_options){.sequence = p->model.is_network ? 0 : c->sequence};
    o->step = hd_plan_step(c);
    int rc = read_plan(c, p, o, err);
    if (rc) return rc;
    int ranks = hd_session_ranks(o);
    if (ranks > hd_cluster_devices(&p->cluster)) return fail_devices(c, p, ranks, err);
    if (!c->plan || !o->plan.threads) hd_planning_target(&p->cluster, ranks, (int)c->threads, &o->plan);
    else snprintf(o->plan.backend, sizeof o->plan.backend, "%s", p->cluster.device.cores ? "cpu" : "null");
    return 0;
}

static int make_programs(const plan_config *c, planned *p, hd_error *err)
{
    hd_session_options o;
    int rc = fill_options(c, p, &o, err);
    if (rc) return rc;
    hd_model_options m = {.mode = HD_LM_TRAIN, .precision = p->precision, .batch = c->batch, .sequence = c->sequence, .half_stream = c->half_stream,
                          .attention = strcmp(c->attention, "fused") ? HD_ATTENTION_MATERIALISED : HD_ATTENTION_FUSED};
    hd_graph *g = hd_model_graph(&p->model, &m, err);
    rc = g ? hd_programs_make(&p->programs, g, true, &o, err) : err->code;
    if (rc) return rc;
    p->samples = (double)c->batch * (double)p->programs.plan.micro_batches;
    p->tokens = p->model.is_network ? 0 : p->samples * (double)c->sequence;
    p->peak_flops = p->cluster.device.flops[p->precision] > 0 ? p->cluster.device.flops[p->precision] : p->cluster.device.flops[HD_F32];
    return 0;
}

/* Traces of few ranks show each, those of many events keep calls only. */
static int simulate(planned *p, hd_error *err)
{
    enum { MOST_EVENTS = 200000, FEW_RANKS = 16 };
    const plan_config *c = p->config;
    bool traced = c->report || c->trace;
    int64_t events = 0;
    for (int i = 0; i < p->programs.n; i++) events += hd_program_events(p->programs.stage[i]);
    p->trace.by_call = events > MOST_EVENTS;
    hd_sim_options o = {.trace = traced ? &p->trace : NULL, .no_merge = traced && hd_plan_ranks(&p->programs.plan) <= FEW_RANKS};
    return hd_simulate((const hd_program *const *)p->programs.stage, p->programs.n, &p->cluster, &o, &p->sim, err);
}

int hd_plan_predict(const plan_config *c, const char *model, planned *p, hd_error *err)
{
    bool searched = false;
    *p = (planned){.config = c, .path = model, .precision = strcmp(c->precision, "bf16") ? HD_F32 : HD_BF16};
    int rc = hd_cluster_find(c->cluster, &p->cluster, err);
    if (!rc) rc = hd_model_open(&p->model, model, err);
    if (!rc) rc = hd_plan_is_searched(c, &p->cluster, &searched, err);
    if (!rc && searched) rc = hd_plan_search(p, err);
    if (!rc) rc = make_programs(p->config, p, err);
    if (!rc) rc = simulate(p, err);
    if (rc) hd_plan_free(p);
    return rc;
}

void hd_plan_free(planned *p)
{
    hd_planner_answer_free(&p->answer);
    hd_free(p->pins);
    hd_sim_result_free(&p->sim);
    hd_trace_free(&p->trace);
    hd_programs_free(&p->programs);
    hd_cluster_free(&p->cluster);
    hd_model_close(&p->model);
    *p = (planned){0};
}

double hd_plan_utilisation(const planned *p, double flops)
{
    double devices = p->cluster.device.cores ? hd_cluster_nodes(&p->cluster) : p->sim.ranks; /* of a CPU the rates are the node's */
    return p->sim.step > 0 ? flops / p->sim.step / devices / p->peak_flops : 0;
}

/* ---- the command ---- */

/* As it was given: what machine it runs on is left open. */
static int save_plan(const planned *p, hd_error *err)
{
    hd_plan plan = p->programs.plan;
    plan.fingerprint = p->programs.fingerprint;
    plan.threads = 0;
    plan.backend[0] = 0;
    return hd_plan_save(&plan, p->config->out, err);
}

/* Beyond so many ranks files show one of each stage. */
enum { MOST_SHOWN = 64 };

static void write_command(const planned *p, hd_str *out)
{
    const plan_config *c = p->config;
    hd_str_printf(out, "heddle plan %s --cluster %s", p->path, c->cluster);
    if (c->parallel) hd_str_printf(out, " --parallel %s", c->parallel);
    if (c->plan) hd_str_printf(out, " --plan %s", c->plan);
    hd_str_printf(out, " --batch %lld --micro-batches %lld", (long long)c->batch, (long long)p->programs.plan.micro_batches);
    if (!p->model.is_network) hd_str_printf(out, " --sequence %lld", (long long)c->sequence);
    hd_str_printf(out, " --precision %s", hd_dtype_name(p->precision));
}

static int write_report(const planned *p, hd_error *err)
{
    hd_str title, command;
    hd_trace measured = {0};
    hd_str_init(&title);
    hd_str_init(&command);
    double parameters = (double)p->programs.parameters;
    hd_str_printf(&title, "%.4g %s parameters on %d rank%s of %s", parameters / (parameters >= 1e9 ? 1e9 : 1e6), parameters >= 1e9 ? "billion" : "million", p->sim.ranks,
                  p->sim.ranks == 1 ? "" : "s", p->cluster.name);
    write_command(p, &command);
    int rc = title.failed || command.failed ? hd_fail_memory(err, 0, "a report") : p->config->measured ? hd_chrome_read(p->config->measured, &measured, err) : 0;
    hd_report r = {.title = title.data, .command = command.data, .plan = &p->programs.plan, .programs = (const hd_program *const *)p->programs.stage,
                   .n_programs = p->programs.n, .cluster = &p->cluster, .sim = &p->sim, .predicted = &p->trace, .measured = p->config->measured ? &measured : NULL,
                   .tokens = p->tokens, .samples = p->samples};
    if (!rc) rc = hd_report_html(&r, p->config->report, err);
    hd_trace_free(&measured);
    hd_str_free(&title);
    hd_str_free(&command);
    return rc;
}

static int write_files(const planned *p, hd_error *err)
{
    const plan_config *c = p->config;
    int rc = c->out ? save_plan(p, err) : 0;
    if (!rc && c->trace) rc = hd_chrome_write(c->trace, &p->trace, p->programs.stage[0], p->sim.ranks > MOST_SHOWN, err);
    return rc || !c->report ? rc : write_report(p, err);
}

static int print(const planned *p, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    json_t *j = p->config->json ? hd_plan_describe(p) : NULL;
    char *dump = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    if (!p->config->json) hd_plan_print_text(p, &text);
    else if (dump) hd_str_printf(&text, "%s\n", dump);
    bool failed = text.failed || (p->config->json && !dump);
    if (!failed) fputs(text.data, stdout);
    json_decref(j);
    free(dump);
    hd_str_free(&text);
    return failed ? hd_fail_memory(err, 0, "a prediction") : fflush(stdout) ? hd_fail_errno(err, "standard output") : 0;
}

static int run(const void *config_, const char *const *words, int n_words, hd_error *err)
{
    const plan_config *c = config_;
    planned p;
    if (c->measured && !c->report) return hd_fail(err, HD_EINVAL, "--measured stands in a report: give --report FILE with it");
    if (c->clusters && !c->budget) return hd_fail(err, HD_EINVAL, "--clusters ranks what to rent for a budget: give --budget with it");
    if (c->budget || (!n_words && c->tokens > 0)) return hd_plan_size(c, words, n_words, err);
    if (n_words != 1) return hd_fail(err, HD_EINVAL, "name one model: a directory, a config.json or a network file");
    if (!strcmp(c->mode, "generate")) return hd_plan_serve(c, words[0], err);
    int rc = hd_plan_predict(c, words[0], &p, err);
    if (rc) return rc;
    rc = print(&p, err);
    if (!rc) rc = write_files(&p, err);
    if (!rc) rc = hd_sim_check_memory(&p.sim, err);
    hd_plan_free(&p);
    return rc;
}

const hd_command hd_cmd_plan = {
    .name = "plan",
    .usage = "MODEL --cluster CLUSTER [flags] | [MODEL] --budget AMOUNT [flags]",
    .summary = "what training or generating will take in time, memory and money, without running it",
    .details = "MODEL is a directory, a config.json or a network file; only its shape is read. The plan is lowered into the Programs that\n"
               "`heddle train` would run, for every stage, and a simulator goes through them on the cluster's figures. A plan that needs more\n"
               "memory than a device has is an error that names rank, kind, amount and what would help, after all has been printed.\n"
               "With --budget, or --tokens and no model, it says instead what size of model and how many tokens that is best spent on\n"
               "(Kaplan et al. 2020, Hoffmann et al. 2022), and how long and how dear it is on a cluster, or on each of --clusters.",
    .settings = settings,
    .config_size = sizeof(plan_config),
    .max_words = 1,
    .run = run,
};
