/* plan_size.c: heddle plan --budget: how large a model and how many tokens a budget is best spent on, what that takes on a cluster, and what to rent. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/term.h"
#include "cli/plan.h"
#include "cluster/size.h"

#define DAY 86400.0
enum { MOST_OFFERS = 24 };

typedef struct budget { double flops, usd, tokens; } budget; /* one of them is not 0 */

/* A cluster of as many nodes as finish in time. */
typedef struct offer { hd_cluster cluster; hd_rental rental; double node_hours; } offer;

typedef struct sizing {
    const plan_config *c;
    hd_size_law law;
    budget budget;
    offer offers[MOST_OFFERS]; int n;
    hd_model model;        /* of which the budget trains as much as it can */
    double parameters, per_token; /* of it; 0: none was named. FLOPs */
} sizing;

/* ---- reading ---- */

/* "1e23", "1e23 FLOPs", "20000usd", "$20000". */
static int read_budget(const plan_config *c, budget *out, hd_error *err)
{
    const char *text = c->budget, *unit;
    char *end;
    *out = (budget){.tokens = c->tokens};
    if (!text) return 0;
    bool dollars = *text == '$';
    double v = strtod(text + dollars, &end);
    for (unit = end; *unit == ' '; unit++) {}
    dollars |= !strcasecmp(unit, "usd");
    if (end == text || !(v > 0) || !isfinite(v) || (*unit && strcasecmp(unit, "usd") && strcasecmp(unit, "flops") && strcasecmp(unit, "flop")))
        return hd_fail(err, HD_EINVAL, "--budget must be a number of FLOPs (3.14e23) or of dollars (20000usd), not \"%.60s\"", text);
    *out = (budget){.flops = dollars ? 0 : v, .usd = dollars ? v : 0};
    return 0;
}

/* So many nodes that it is done in --days, where the size is left open by the name. */
static int grow(sizing *s, offer *o, const char *name, hd_error *err)
{
    char sized[160];
    double seconds = o->rental.seconds;
    if (strchr(name, ':') || strchr(name, '/') || !(seconds > s->c->days * DAY)) return 0;
    double nodes = ceil(seconds / (s->c->days * DAY)), devices = nodes * hd_cluster_devices(&o->cluster) / hd_cluster_nodes(&o->cluster);
    if (devices > 1 << 20) return 0;
    snprintf(sized, sizeof sized, "%.120s:%.0f", name, devices);
    hd_error ignored = {0};
    hd_cluster larger;
    if (hd_cluster_find(sized, &larger, &ignored)) return 0;
    hd_cluster_free(&o->cluster);
    o->cluster = larger;
    return hd_size_rent(&o->cluster, s->law, s->c->utilisation, s->budget.flops, s->budget.usd, &o->rental, err);
}

static int add_offer(sizing *s, const char *name, hd_error *err)
{
    offer *o = &s->offers[s->n];
    if (s->n == MOST_OFFERS) return hd_fail(err, HD_EINVAL, "--clusters names more than %d", MOST_OFFERS);
    int rc = hd_cluster_find(name, &o->cluster, err);
    if (rc) return rc;
    s->n++;
    rc = hd_size_rent(&o->cluster, s->law, s->c->utilisation, s->budget.flops, s->budget.usd, &o->rental, err);
    if (!rc) rc = grow(s, o, name, err);
    o->node_hours = o->rental.seconds / 3600 * hd_cluster_nodes(&o->cluster);
    return rc;
}

/* Of "all", with a budget in dollars, those without a price are left out. */
static int add_all(sizing *s, hd_error *err)
{
    const char *name;
    for (int i = 0; (name = hd_cluster_shipped_name(i)); i++) {
        hd_cluster c;
        int rc = hd_cluster_find(name, &c, err);
        bool priced = !rc && c.price > 0;
        if (!rc) hd_cluster_free(&c);
        if (!rc && (priced || s->budget.flops > 0)) rc = add_offer(s, name, err);
        if (rc) return rc;
    }
    return 0;
}

static int add_offers(sizing *s, hd_error *err)
{
    char names[1024], *save, *name;
    if (!s->c->clusters) return add_offer(s, s->c->cluster, err);
    if (!strcmp(s->c->clusters, "all")) return add_all(s, err);
    if (strlen(s->c->clusters) >= sizeof names) return hd_fail(err, HD_EINVAL, "--clusters is longer than %zu characters", sizeof names - 1);
    strcpy(names, s->c->clusters);
    int rc = 0;
    for (name = strtok_r(names, ",", &save); name && !rc; name = strtok_r(NULL, ",", &save)) rc = add_offer(s, name, err);
    return rc || s->n ? rc : hd_fail(err, HD_EINVAL, "--clusters must be \"all\" or names of clusters, with commas between them");
}

static int read_model(sizing *s, const char *path, hd_error *err)
{
    int rc = hd_model_open(&s->model, path, err);
    if (rc || s->model.is_network) return rc ? rc : hd_fail(err, HD_EINVAL, "--budget sizes language models, and %s is a network file", path);
    const hd_lm_config *m = &s->model.config;
    s->parameters = (double)hd_lm_config_parameters(m);
    s->per_token = hd_lm_train_flops(m, s->c->sequence, s->c->sequence, HD_ATTENTION_FUSED, false) / (double)s->c->sequence;
    return 0;
}

/* ---- ranking ---- */

/* Cheapest first; of a budget in dollars that which does most. Those of unknown price come last, the quickest first. */
static int by_worth(const void *a, const void *b)
{
    const hd_rental *x = &((const offer *)a)->rental, *y = &((const offer *)b)->rental;
    if (x->flops_per_usd != y->flops_per_usd) return x->flops_per_usd > y->flops_per_usd ? -1 : 1;
    return x->seconds < y->seconds ? -1 : x->seconds > y->seconds;
}

/* ---- printing ---- */

static void number(hd_str *out, const char *name, double v)
{
    static const struct { double unit; const char *name; } units[] = {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1, ""}};
    int i = 0;
    while (i < 3 && v < units[i].unit) i++;
    hd_str_printf(out, "%s%.3g %s", name, v / units[i].unit, units[i].name);
}

static void print_laws(const sizing *s, double flops, hd_str *out)
{
    for (int l = 0; l < HD_SIZE_LAWS; l++) {
        hd_size z;
        int64_t layers, width;
        hd_size_for_flops((hd_size_law)l, flops, &z);
        hd_size_shape(z.parameters, &layers, &width);
        hd_str_printf(out, "  %-16s", hd_size_law_name((hd_size_law)l));
        number(out, "", z.parameters);
        number(out, " parameters, ", z.tokens);
        hd_str_printf(out, " tokens, loss %.3f, for instance %d layers of width %d; states %.3g TB%s\n", z.loss, (int)layers, (int)width,
                      hd_size_states(z.parameters, 2, 0, 1) / 1e12, l == (int)s->law ? "  <- --law" : "");
    }
}

static void print_model(const sizing *s, double flops, hd_str *out)
{
    if (!(s->parameters > 0)) return;
    double tokens = flops / s->per_token;
    number(out, "the model: ", s->parameters);
    number(out, " parameters; the budget trains it on ", tokens);
    hd_str_printf(out, " tokens (%.1f a parameter), loss %.3f\n", tokens / s->parameters, hd_size_loss(s->parameters, tokens));
}

static void print_offers(const sizing *s, hd_str *out)
{
    hd_str_printf(out, "%-16s %8s %8s %12s %10s %12s %11s %10s %8s\n", "cluster", "devices", "USD/hour", "FLOPs/USD", "days", "USD", "parameters", "tokens", "loss");
    for (int i = 0; i < s->n; i++) {
        const offer *o = &s->offers[i];
        const hd_rental *r = &o->rental;
        char price[24] = "-", worth[24] = "-", usd[24] = "-";
        if (r->price > 0) {
            snprintf(price, sizeof price, "%.2f", r->price);
            snprintf(worth, sizeof worth, "%.3g", r->flops_per_usd);
            snprintf(usd, sizeof usd, "%.0f", r->usd);
        }
        hd_str_printf(out, "%-16s %8d %8s %12s %10.2f %12s %10.3gB %9.3gB %8.3f\n", o->cluster.name, hd_cluster_devices(&o->cluster), price, worth, r->seconds / DAY, usd,
                      r->size.parameters / 1e9, r->size.tokens / 1e9, r->size.loss);
    }
}

static void print_text(const sizing *s, hd_str *out)
{
    double flops = s->offers[0].rental.size.flops;
    if (s->budget.usd > 0) hd_str_printf(out, "%.0f USD on %s: %.3g FLOPs\n", s->budget.usd, s->offers[0].cluster.name, flops);
    else hd_str_printf(out, "%.3g FLOPs\n", flops);
    print_laws(s, flops, out);
    print_model(s, flops, out);
    hd_str_printf(out, "at %.0f %% of the 16-bit peak (--utilisation)%s\n", 100 * s->c->utilisation, s->n > 1 ? ", cheapest first" : "");
    print_offers(s, out);
}

static json_t *describe_size(const hd_size *z)
{
    int64_t layers, width;
    hd_size_shape(z->parameters, &layers, &width);
    return json_pack("{s:f, s:f, s:f, s:f, s:I, s:I, s:f}", "flops", z->flops, "parameters", z->parameters, "tokens", z->tokens, "loss", z->loss, "layers",
                     (json_int_t)layers, "width", (json_int_t)width, "state_bytes", hd_size_states(z->parameters, 2, 0, 1));
}

static json_t *describe(const sizing *s)
{
    json_t *j = json_pack("{s:s, s:f, s:f, s:s, s:f, s:{}, s:[]}", "kind", "sizing", "budget_flops", s->budget.flops, "budget_usd", s->budget.usd, "law",
                          hd_size_law_name(s->law), "utilisation", s->c->utilisation, "laws", "clusters");
    json_t *laws = json_object_get(j, "laws"), *list = json_object_get(j, "clusters");
    double flops = s->offers[0].rental.size.flops;
    for (int l = 0; l < HD_SIZE_LAWS; l++) {
        hd_size z;
        hd_size_for_flops((hd_size_law)l, flops, &z);
        json_object_set_new(laws, hd_size_law_name((hd_size_law)l), describe_size(&z));
    }
    if (s->parameters > 0)
        json_object_set_new(j, "model", json_pack("{s:f, s:f, s:f}", "parameters", s->parameters, "tokens", flops / s->per_token, "loss",
                                                  hd_size_loss(s->parameters, flops / s->per_token)));
    for (int i = 0; i < s->n; i++) {
        const offer *o = &s->offers[i];
        json_array_append_new(list, json_pack("{s:s, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:o}", "name", o->cluster.name, "devices", hd_cluster_devices(&o->cluster), "nodes",
                                              hd_cluster_nodes(&o->cluster), "price", o->rental.price, "flops_per_usd", o->rental.flops_per_usd, "days",
                                              o->rental.seconds / DAY, "node_hours", o->node_hours, "usd", o->rental.usd, "size", describe_size(&o->rental.size)));
    }
    return j;
}

static int print(const sizing *s, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    json_t *j = s->c->json ? describe(s) : NULL;
    char *dump = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    if (dump) hd_str_printf(&text, "%s\n", dump);
    else if (!s->c->json) print_text(s, &text);
    bool failed = text.failed || (s->c->json && !dump);
    if (!failed) fputs(text.data, stdout);
    json_decref(j);
    free(dump);
    hd_str_free(&text);
    return failed ? hd_fail_memory(err, 0, "a budget's text") : fflush(stdout) ? hd_fail_errno(err, "standard output") : 0;
}

/* ---- the whole ---- */

static int prepare(sizing *s, const char *const *words, int n_words, hd_error *err)
{
    if (hd_size_law_parse(s->c->law, &s->law))
        return hd_fail(err, HD_EINVAL, "--law must be kaplan, chinchilla or chinchilla-loss, not \"%.40s\"", s->c->law);
    int rc = read_budget(s->c, &s->budget, err);
    if (!rc && n_words) rc = read_model(s, words[0], err);
    if (rc) return rc;
    if (s->budget.tokens > 0) { /* what so many tokens are best for */
        hd_size z;
        hd_size_for_tokens(s->law, s->budget.tokens, &z);
        s->budget.flops = z.flops;
    }
    rc = add_offers(s, err);
    if (!rc) qsort(s->offers, (size_t)s->n, sizeof *s->offers, by_worth);
    return rc;
}

int hd_plan_size(const plan_config *c, const char *const *words, int n_words, hd_error *err)
{
    sizing *s = hd_calloc(1, sizeof *s);
    if (!s) return hd_fail_memory(err, sizeof *s, "a budget");
    s->c = c;
    int rc = prepare(s, words, n_words, err);
    if (!rc) rc = print(s, err);
    for (int i = 0; i < s->n; i++) hd_cluster_free(&s->offers[i].cluster);
    hd_model_close(&s->model);
    hd_free(s);
    return rc;
}
