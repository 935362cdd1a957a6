/* plan_search.c: heddle plan, where a planner finds the plan: the job it is given, and what is said of its answer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/term.h"
#include "cli/plan.h"

int hd_plan_is_searched(const plan_config *c, const hd_cluster *cluster, bool *searched, hd_error *err)
{
    hd_parallel p = hd_parallel_default();
    bool named = c->planner && strcmp(c->planner, "given");
    *searched = false;
    if (named && !hd_planner_find(c->planner)) {
        char known[160] = "";
        for (int i = 0; hd_planner_name(i); i++) snprintf(known + strlen(known), sizeof known - strlen(known), "%s, ", hd_planner_name(i));
        return hd_fail(err, HD_EINVAL, "--planner %s: there are %sand given", c->planner, known);
    }
    if (named && c->plan) return hd_fail(err, HD_EINVAL, "--plan is a plan already: leave --planner %s out", c->planner);
    if (c->plan || (c->planner && !named)) return 0;
    int rc = c->parallel ? hd_parallel_parse(c->parallel, &p, err) : 0, devices = hd_cluster_devices(cluster);
    if (c->devices > 0 && c->devices < devices) devices = (int)c->devices;
    *searched = !rc && (named || p.open || !c->parallel || hd_parallel_ranks(&p) < devices);
    return rc;
}

/* ---- the job ---- */

static int read_memory(const char *text, int64_t *out, hd_error *err)
{
    char *end;
    if (!text) return 0;
    double n = strtod(text, &end);
    const char *units = "KMGT", *unit = *end ? strchr(units, *end) : NULL;
    if (unit) n *= (double)((int64_t)1 << 10 * (unit - units + 1)), end++;
    if (end == text || *end || !(n >= 1) || n > 1e18) return hd_fail(err, HD_EINVAL, "--device-memory: \"%s\" is no number of bytes such as 1500000000, 512M or 16G", text);
    *out = (int64_t)n;
    return 0;
}

static int read_forbidden(const char *text, uint32_t *out, hd_error *err)
{
    for (const char *at = text; at && *at;) {
        size_t n = strcspn(at, ",");
        int key = 0;
        while (key < HD_KEY_AUTO && (strlen(hd_parallel_key_name((hd_parallel_key)key)) != n || strncmp(at, hd_parallel_key_name((hd_parallel_key)key), n))) key++;
        if (key == HD_KEY_AUTO) return hd_fail(err, HD_EINVAL, "--forbid: --parallel has no key \"%.*s\"", (int)n, at);
        *out |= 1u << key;
        at += n + (at[n] == ',');
    }
    return 0;
}

static int read_pins(const hd_setting_list *texts, hd_pin *pins, hd_error *err)
{
    for (int i = 0; i < texts->n; i++) {
        const char *equals = strchr(texts->item[i], '=');
        if (!equals || equals == texts->item[i] || !equals[1] || (size_t)(equals - texts->item[i]) >= sizeof pins->pattern || strlen(equals + 1) >= sizeof pins->layout)
            return hd_fail(err, HD_EINVAL, "--pin: \"%s\" is no NAME=LAYOUT, such as layers.*.mlp.up=tp,-", texts->item[i]);
        snprintf(pins[i].pattern, sizeof pins->pattern, "%.*s", (int)(equals - texts->item[i]), texts->item[i]);
        snprintf(pins[i].layout, sizeof pins->layout, "%s", equals + 1);
    }
    return 0;
}

/* Axes that forms have; what stands between commas is one dimension's. */
static int check_axes(const hd_pin *pin, hd_error *err)
{
    static const char *const names[] = {"dp", "cp", "tp", "max", "micro"};
    for (const char *at = pin->layout + (pin->layout[0] == '='); *at;) {
        size_t n = strspn(at, "abcdefghijklmnopqrstuvwxyz_"), known = 0;
        for (size_t i = 0; n && i < sizeof names / sizeof *names; i++) known += strlen(names[i]) == n && !strncmp(at, names[i], n);
        if (n && !known) return hd_fail(err, HD_EINVAL, "--pin %s=%s: a plan has the axes dp, cp and tp, and not \"%.*s\"", pin->pattern, pin->layout, (int)n, at);
        if (!n && !strchr(",.-*+= 0123456789", *at)) return hd_fail(err, HD_EINVAL, "--pin %s=%s: \"%c\" is no part of a layout, such as tp,-", pin->pattern, pin->layout, *at);
        at += n ? n : 1;
    }
    return 0;
}

/* Each names parameters of the network, and says where all their dimensions are. */
static int check_pins(const hd_planner_job *job, hd_error *err)
{
    const hd_planner_network *n = &job->network;
    hd_graph *g = job->n_pins ? n->graph(n->context, job->micro_batches ? job->micro_batches : 1, 0, err) : NULL;
    int rc = job->n_pins && !g ? err->code : 0;
    for (int i = 0; i < job->n_pins && !rc; i++) {
        const hd_pin *pin = &job->pins[i];
        int dims = 1, found = 0;
        for (const char *at = pin->layout; *at; at++) dims += *at == ',';
        rc = check_axes(pin, err);
        for (size_t v = 0; v < g->n_values && !rc; v++) {
            const hd_value_info *x = &g->values[v];
            if (x->kind != HD_PARAM || !hd_path_match(pin->pattern, x->path)) continue;
            found++;
            if (x->type.shape.rank != dims)
                rc = hd_fail(err, HD_EINVAL, "--pin %s=%s: %s has %d dimension%s, and the layout %d", pin->pattern, pin->layout, x->path, x->type.shape.rank, x->type.shape.rank == 1 ? "" : "s", dims);
        }
        if (!rc && !found) rc = hd_fail(err, HD_EINVAL, "--pin %s: the network has no parameter of that name", pin->pattern);
    }
    hd_graph_free(g);
    return rc;
}

static hd_planning planning_of(const planned *p)
{
    const plan_config *c = p->config;
    return (hd_planning){.model = &p->model, .cluster = &p->cluster, .precision = p->precision, .half_stream = c->half_stream,
                         .attention = strcmp(c->attention, "fused") ? HD_ATTENTION_MATERIALISED : HD_ATTENTION_FUSED, .step = hd_plan_step(c),
                         .samples = c->batch * c->micro_batches, .sequence = c->sequence, .threads = (int)c->threads};
}

static int make_job(const planned *p, const hd_planning *planning, hd_pin *pins, hd_planner_job *job, hd_error *err)
{
    const plan_config *c = p->config;
    *job = (hd_planner_job){.cluster = &p->cluster, .ranks = (int)c->devices, .nodes = c->search_nodes, .seconds = c->search_time, .threads = (int)c->search_threads, .pins = pins, .n_pins = c->pins.n};
    int rc = hd_planning_network(planning, &job->network, err);
    if (!rc && c->parallel) rc = hd_parallel_parse(c->parallel, &job->pinned, err);
    if (!rc) rc = read_memory(c->device_memory, &job->memory, err);
    if (!rc) rc = read_forbidden(c->forbid, &job->forbidden, err);
    if (!rc) rc = read_pins(&c->pins, pins, err);
    if (c->keep_micro_batches || job->network.whole_batch) job->micro_batches = c->micro_batches;
    return rc ? rc : check_pins(job, err);
}

static int take_best(planned *p, hd_error *err)
{
    const hd_plan_found *best = &p->answer.best[0];
    hd_str text;
    hd_str_init(&text);
    int rc = hd_parallel_print(&best->form, &text) ? hd_fail_memory(err, 0, "a plan") : 0;
    snprintf(p->text, sizeof p->text, "%s", text.data);
    hd_str_free(&text);
    p->form = best->form;
    p->own = *p->config;
    p->own.batch = p->config->batch * p->config->micro_batches / best->micro_batches;
    p->own.micro_batches = best->micro_batches;
    p->own.parallel = p->text;
    p->config = &p->own;
    return rc;
}

int hd_plan_search(planned *p, hd_error *err)
{
    hd_planning planning = planning_of(p);
    hd_planner_job job;
    p->pins = hd_calloc((size_t)p->config->pins.n + 1, sizeof *p->pins);
    int rc = p->pins ? make_job(p, &planning, p->pins, &job, err) : hd_fail_memory(err, 0, "pinned layouts");
    p->planner = hd_planner_find(p->config->planner ? p->config->planner : hd_planner_name(0));
    if (!rc) rc = p->planner->find(&job, &p->answer, err);
    if (!rc && !p->answer.n) rc = hd_fail(err, HD_ENOPLAN, "%s", p->answer.why);
    return rc ? rc : take_best(p, err);
}

/* ---- what is said of it ---- */

static void form_text(const hd_plan_found *f, hd_str *out)
{
    size_t begin = out->len;
    hd_parallel_print(&f->form, out);
    if (out->len == begin) hd_str_puts(out, "one rank");
    if (f->pins) hd_str_puts(out, " with layouts of its own");
    hd_str_printf(out, ", %lld micro-batch%s", (long long)f->micro_batches, f->micro_batches == 1 ? "" : "es");
}

/* Where a form that lost spends what it takes longer. */
static void why_it_lost(const hd_plan_found *best, const hd_plan_found *f, hd_str *out)
{
    int most = 0;
    for (int i = 1; i < HD_SIM_PARTS; i++)
        if (f->part[i] - best->part[i] > f->part[most] - best->part[most]) most = i;
    hd_str_printf(out, "%.1f %% slower", 100 * (f->step / best->step - 1));
    if (f->step > best->step * 1.0005) hd_str_printf(out, ", mostly %s (%+.4g s)", hd_sim_part_name((hd_sim_part)most), f->part[most] - best->part[most]);
}

void hd_plan_print_search(const planned *p, hd_str *out)
{
    const hd_planner_answer *a = &p->answer;
    hd_str_printf(out, "chosen          ");
    form_text(&a->best[0], out);
    hd_str_printf(out, "\n                by %s: %lld forms considered, %lld estimated exactly, %lld simulated, in %.2f s%s\n", p->planner->name, (long long)a->considered,
                  (long long)a->estimated, (long long)a->tried, a->seconds, a->cut_off ? "; more --search-nodes may find better ones" : "");
    for (int i = 1; i < a->n && (i < 4 || p->config->explain); i++) {
        hd_str_puts(out, i == 1 ? "next best       " : "                ");
        form_text(&a->best[i], out);
        hd_str_puts(out, ": ");
        why_it_lost(&a->best[0], &a->best[i], out);
        hd_str_puts(out, "\n");
    }
    if (!p->config->explain) return;
    hd_str_printf(out, "\n%-40s %10s %10s\n", "forms by choice, and by what cut them", "considered", "cut");
    for (int i = 0; i < a->n_counts; i++) hd_str_printf(out, "  %-38s %10lld %10lld\n", a->count[i].what, (long long)a->count[i].considered, (long long)a->count[i].cut);
}

json_t *hd_plan_describe_search(const planned *p)
{
    const hd_planner_answer *a = &p->answer;
    json_t *best = json_array(), *counts = json_array();
    for (int i = 0; i < a->n; i++) {
        const hd_plan_found *f = &a->best[i];
        hd_str text;
        hd_str_init(&text);
        hd_parallel_print(&f->form, &text);
        json_array_append_new(best, json_pack("{s:s, s:b, s:I, s:f, s:f, s:I, s:I, s:s}", "parallel", text.data, "own_layouts", f->pins != NULL, "micro_batches",
                                              (json_int_t)f->micro_batches, "step", f->step, "estimate", f->estimate, "peak", (json_int_t)f->peak, "capacity",
                                              (json_int_t)f->capacity, "limit", f->limit));
        hd_str_free(&text);
    }
    for (int i = 0; i < a->n_counts; i++)
        json_array_append_new(counts, json_pack("{s:s, s:I, s:I}", "what", a->count[i].what, "considered", (json_int_t)a->count[i].considered, "cut", (json_int_t)a->count[i].cut));
    return json_pack("{s:s, s:I, s:I, s:I, s:b, s:f, s:o, s:o}", "planner", p->planner->name, "considered", (json_int_t)a->considered, "estimated", (json_int_t)a->estimated,
                     "tried", (json_int_t)a->tried, "cut_off", a->cut_off, "seconds", a->seconds, "best", best, "counts", counts);
}
