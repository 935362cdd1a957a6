/* plan_print.c: what is predicted of a training step, as JSON (docs/plan.md) and as text. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/term.h"
#include "cli/plan.h"

#define DAY 86400.0

static double exposed(const double *part) { return part[HD_SIM_TENSOR] + part[HD_SIM_PIPELINE] + part[HD_SIM_DATA]; }

static double rate(const planned *p, double amount) { return p->sim.step > 0 ? amount / p->sim.step : 0; }

static double days(const planned *p) { return p->tokens > 0 ? p->config->tokens / rate(p, p->tokens) / DAY : 0; }

static double usd(const planned *p) { return days(p) * 24 * p->cluster.price * hd_cluster_nodes(&p->cluster); }

/* The rank that has the least memory left. */
static const hd_sim_rank *fullest(const planned *p)
{
    const hd_sim_rank *worst = &p->sim.rank[0];
    for (int i = 1; i < p->sim.n_ranks; i++)
        if (p->sim.rank[i].peak > worst->peak) worst = &p->sim.rank[i];
    return worst;
}

/* What limits the step, in words. */
static const char *limit_text(const char *limit)
{
    static const struct { const char *part, *text; } texts[] = {
        {"gemm", "matrix products: a quicker device, or more of them"},
        {"memory-bound", "reading and writing device memory between products"},
        {"tensor-parallel", "collectives of tensor parallelism: less tp, or tp within a quicker link"},
        {"pipeline-transfer", "sending activations between stages"},
        {"bubble", "waiting for other stages: more micro-batches, interleaving (v=2), or layers balanced otherwise"},
        {"data-parallel", "reducing gradients and gathering parameters: more micro-batches, or a larger batch"},
        {"idle", "waiting for slower ranks of the same stage"},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!strcmp(limit, texts[i].part)) return texts[i].text;
    return limit;
}

/* ---- JSON ---- */

static json_t *describe_parts(const double *part, double step)
{
    json_t *j = json_object();
    for (int i = 0; i < HD_SIM_PARTS; i++) json_object_set_new(j, hd_sim_part_name((hd_sim_part)i), json_real(part[i]));
    json_object_set_new(j, "step", json_real(step));
    return j;
}

static json_t *describe_bytes(const planned *p, const double *bytes)
{
    json_t *j = json_object();
    for (int l = 0; l < p->cluster.n_levels; l++) json_object_set_new(j, p->cluster.level[l].name, json_real(bytes[l]));
    return j;
}

static json_t *describe_memory(const hd_sim_rank *r)
{
    json_t *j = json_object();
    for (int k = 0; k < HD_SIM_KINDS; k++) json_object_set_new(j, hd_sim_kind_name((hd_sim_kind)k), json_integer((json_int_t)r->kind[k]));
    json_object_set_new(j, "peak", json_integer((json_int_t)r->peak));
    json_object_set_new(j, "workspace", json_integer((json_int_t)r->workspace));
    json_object_set_new(j, "capacity", json_integer((json_int_t)r->capacity));
    json_object_set_new(j, "fits", json_boolean(r->peak <= r->capacity));
    return j;
}

static json_t *describe_ranks(const planned *p)
{
    json_t *out = json_array();
    for (int i = 0; i < p->sim.n_ranks; i++) {
        const hd_sim_rank *r = &p->sim.rank[i];
        int stage = hd_plan_stage_of(&p->programs.plan, r->rank);
        json_array_append_new(out, json_pack("{s:i, s:i, s:i, s:o, s:f, s:f, s:f, s:o, s:o}", "rank", r->rank, "alike", r->alike, "stage", stage, "parts",
                                             describe_parts(r->part, p->sim.step), "hidden", r->hidden, "flops", r->flops, "hardware_flops", r->hardware_flops, "bytes",
                                             describe_bytes(p, r->bytes), "memory", describe_memory(r)));
    }
    return out;
}

static json_t *describe_mesh(const hd_mesh *m)
{
    json_t *j = json_object();
    for (int a = 0; a < m->n; a++) json_object_set_new(j, m->axis[a].name, json_integer(m->axis[a].size));
    return j;
}

/* Where they are of different meshes: each stage's; else none. */
static json_t *describe_stages(const hd_plan *plan)
{
    json_t *j = json_array();
    for (int i = 0; i < plan->n_stages && plan->n_meshes; i++) json_array_append_new(j, describe_mesh(&plan->meshes[plan->stages[i]]));
    return j;
}

static json_t *describe_plan(const planned *p)
{
    const hd_plan *plan = &p->programs.plan;
    json_t *mesh = describe_mesh(&plan->mesh);
    return json_pack("{s:i, s:o, s:o, s:s, s:i, s:I, s:I, s:I, s:s, s:s, s:s?}", "ranks", p->sim.ranks, "mesh", mesh, "stages", describe_stages(plan), "schedule", hd_schedule_name(plan->schedule), "chunks",
                     plan->chunks, "micro_batches", (json_int_t)plan->micro_batches, "batch", (json_int_t)p->config->batch, "sequence",
                     (json_int_t)(p->model.is_network ? 0 : p->config->sequence), "precision", hd_dtype_name(p->precision), "attention", p->config->attention, "parallel",
                     p->config->parallel);
}

static json_t *describe_step(const planned *p)
{
    const hd_sim_result *r = &p->sim;
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:s, s:s}", "seconds", r->step, "tokens_per_second", rate(p, p->tokens), "samples_per_second",
                     rate(p, p->samples), "model_flops", p->programs.flops, "hardware_flops", r->hardware_flops, "model_flops_utilisation",
                     hd_plan_utilisation(p, p->programs.flops), "hardware_flops_utilisation", hd_plan_utilisation(p, r->hardware_flops), "tflops_per_device",
                     rate(p, p->programs.flops) / r->ranks / 1e12, "hardware_tflops_per_device", rate(p, r->hardware_flops) / r->ranks / 1e12, "bubble_fraction", r->bubble,
                     "limit", r->limit, "limit_text", limit_text(r->limit));
}

json_t *hd_plan_describe(const planned *p)
{
    char fingerprint[24];
    const hd_cluster *c = &p->cluster;
    snprintf(fingerprint, sizeof fingerprint, "%016llx", (unsigned long long)p->programs.fingerprint);
    json_t *j = json_pack("{s:s, s:{s:s, s:I, s:s}, s:{s:s, s:s, s:i, s:i, s:f}, s:o, s:o, s:o, s:{s:f, s:f, s:o}, s:o, s:o}", "kind", "prediction", "model", "path", p->path,
                          "parameters", (json_int_t)p->programs.parameters, "fingerprint", fingerprint, "cluster", "name", c->name, "device", c->device.name, "devices",
                          hd_cluster_devices(c), "nodes", hd_cluster_nodes(c), "price", c->price, "plan", describe_plan(p), "step", describe_step(p), "parts",
                          describe_parts(p->sim.part, p->sim.step), "communication", "exposed", exposed(p->sim.part), "hidden", p->sim.hidden, "bytes",
                          describe_bytes(p, p->sim.bytes), "memory", describe_memory(fullest(p)), "ranks", describe_ranks(p));
    if (j && p->config->tokens > 0 && p->tokens > 0)
        json_object_set_new(j, "training", json_pack("{s:f, s:f, s:f}", "tokens", p->config->tokens, "days", days(p), "usd", usd(p)));
    if (j && p->planner) json_object_set_new(j, "search", hd_plan_describe_search(p));
    if (j) json_object_set_new(json_object_get(j, "memory"), "rank", json_integer(fullest(p)->rank));
    return j;
}

/* ---- text ---- */

static void print_plan(const planned *p, hd_str *out)
{
    const hd_plan *plan = &p->programs.plan;
    hd_str_printf(out, "plan            ");
    for (int a = 0; a < plan->mesh.n; a++) hd_str_printf(out, "%s %d x ", plan->mesh.axis[a].name, plan->mesh.axis[a].size);
    for (int i = 0; i < plan->n_stages && plan->n_meshes; i++) {
        const hd_mesh *m = &plan->meshes[plan->stages[i]];
        for (int a = 0; a < m->n; a++) hd_str_printf(out, "%s%s %d", a ? " x " : "", m->axis[a].name, m->axis[a].size);
        hd_str_puts(out, i + 1 < plan->n_stages ? " | " : ": ");
    }
    hd_str_printf(out, "%d rank%s in all; %lld micro-batch%s of %lld", p->sim.ranks, p->sim.ranks == 1 ? "" : "s", (long long)plan->micro_batches,
                  plan->micro_batches == 1 ? "" : "es", (long long)p->config->batch);
    if (!p->model.is_network) hd_str_printf(out, " sequences of %lld tokens", (long long)p->config->sequence);
    else hd_str_printf(out, " samples");
    hd_str_printf(out, ", %s", hd_dtype_name(p->precision));
    if (p->programs.n > 1) hd_str_printf(out, ", %s", hd_schedule_name(plan->schedule));
    if (plan->chunks > 1) hd_str_printf(out, ", %d chunks a stage", plan->chunks);
    hd_str_printf(out, "\n");
}

static void print_parts(const planned *p, hd_str *out)
{
    const hd_sim_result *r = &p->sim;
    hd_str_printf(out, "\nwhere a rank's step goes (mean of %d)\n", r->ranks);
    for (int i = 0; i < HD_SIM_PARTS; i++)
        hd_str_printf(out, "  %-18s %12.6f s  %5.1f %%\n", hd_sim_part_name((hd_sim_part)i), r->part[i], r->step > 0 ? 100 * r->part[i] / r->step : 0);
    hd_str_printf(out, "communication   %.6f s exposed, %.6f s hidden beside computing\n", exposed(r->part), r->hidden);
    for (int l = 0; l < p->cluster.n_levels; l++) {
        char all[24], each[24];
        if (!(r->bytes[l] > 0)) continue;
        hd_str_printf(out, "  over %-12s %s a step, %s a rank\n", p->cluster.level[l].name, hd_format_bytes(all, r->bytes[l]), hd_format_bytes(each, r->bytes[l] / r->ranks));
    }
}

static void print_memory(const planned *p, hd_str *out)
{
    const hd_sim_rank *r = fullest(p);
    char text[24], have[24];
    hd_str_printf(out, "\nmemory of rank %d, which takes most\n", r->rank);
    for (int k = 0; k < HD_SIM_KINDS; k++) hd_str_printf(out, "  %-18s %12s\n", hd_sim_kind_name((hd_sim_kind)k), hd_format_bytes(text, (double)r->kind[k]));
    hd_format_bytes(text, (double)r->peak);
    hd_format_bytes(have, (double)r->capacity);
    hd_str_printf(out, "  %-18s %12s of %s: %.1f %%\n", "peak", text, have, 100 * (double)r->peak / (double)r->capacity);
}

static void print_money(const planned *p, hd_str *out)
{
    if (!(p->config->tokens > 0) || !(p->tokens > 0)) return;
    hd_str_printf(out, "\n%.4g tokens     %.4g days", p->config->tokens, days(p));
    if (p->cluster.price > 0) hd_str_printf(out, ", %.4g USD at %.2f an hour for each of %d nodes", usd(p), p->cluster.price, hd_cluster_nodes(&p->cluster));
    hd_str_printf(out, "\n");
}

void hd_plan_print_text(const planned *p, hd_str *out)
{
    const hd_sim_result *r = &p->sim;
    double parameters = (double)p->programs.parameters;
    const char *unit = parameters >= 1e9 ? "billion" : "million";
    hd_str_printf(out, "model           %s: %.4g %s parameters\n", p->path, parameters / (parameters >= 1e9 ? 1e9 : 1e6), unit);
    hd_str_printf(out, "cluster         %s: %d x %s in %d node%s\n", p->cluster.name, hd_cluster_devices(&p->cluster), p->cluster.device.name, hd_cluster_nodes(&p->cluster),
                  hd_cluster_nodes(&p->cluster) == 1 ? "" : "s");
    print_plan(p, out);
    if (p->planner) hd_plan_print_search(p, out);
    hd_str_printf(out, "\nstep            %.6g s", r->step);
    if (p->tokens > 0) hd_str_printf(out, ", %.6g tokens a second\n", rate(p, p->tokens));
    else hd_str_printf(out, ", %.6g samples a second\n", rate(p, p->samples));
    hd_str_printf(out, "utilisation     %.1f %% of the peak by the model's products, %.1f %% with what is computed again\n", 100 * hd_plan_utilisation(p, p->programs.flops),
                  100 * hd_plan_utilisation(p, r->hardware_flops));
    hd_str_printf(out, "achieved        %.4g TFLOP/s a device (%.4g with what is computed again)\n", rate(p, p->programs.flops) / r->ranks / 1e12,
                  rate(p, r->hardware_flops) / r->ranks / 1e12);
    hd_str_printf(out, "bubble          %.2f %%\n", 100 * r->bubble);
    hd_str_printf(out, "limit           %s\n", limit_text(r->limit));
    print_parts(p, out);
    print_memory(p, out);
    print_money(p, out);
}
