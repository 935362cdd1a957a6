/* lora.c: low-rank adapters on products with parameters. */
#include <math.h>
#include <stdio.h>
#include "graph/op.h"
#include "passes/passes.h"

/* The labels of one product: x (times the weight), by what becomes of them. */
typedef struct product {
    char x[16], w[16], y[16]; /* as they stand in the specification */
    char k[16], n[16];        /* of the weight: summed, kept */
    char rank;                /* a letter that none of them uses */
    int weight;               /* operand index of the weight */
} product;

/* The parameter behind an operand, through the cast to the compute dtype. */
static hd_value parameter_of(const hd_graph *g, hd_value v)
{
    const hd_value_info *i = &g->values[v];
    if (i->kind == HD_RESULT && !strcmp(g->nodes[i->node]->op->name, "cast")) v = g->nodes[i->node]->in[0];
    return g->values[v].kind == HD_PARAM ? v : HD_NONE;
}

static bool matches(const hd_lora_options *o, const char *path)
{
    for (int i = 0; i < o->n_patterns; i++)
        if (hd_glob_match(o->pattern[i], path)) return true;
    return false;
}

static bool copy_labels(char *to, const char *from, const char *end)
{
    size_t n = (size_t)(end - from);
    if (n > HD_MAX_RANK) return false;
    memcpy(to, from, n);
    to[n] = 0;
    return true;
}

/* False when a label is in both factors and the result: a batch of products has no one low-rank factorisation. */
static bool read_product(const char *spec, int weight, product *p)
{
    const char *comma = strchr(spec, ','), *arrow = strstr(spec, "->");
    *p = (product){.weight = weight};
    if (!comma || !arrow || !copy_labels(weight ? p->x : p->w, spec, comma) || !copy_labels(weight ? p->w : p->x, comma + 1, arrow) ||
        !copy_labels(p->y, arrow + 2, strchr(arrow, 0)))
        return false;
    for (const char *l = p->w; *l; l++) {
        bool in_x = strchr(p->x, *l), in_y = strchr(p->y, *l);
        if (in_x == in_y) return false;
        char *to = in_x ? p->k : p->n;
        to[strlen(to)] = *l;
    }
    for (p->rank = 'z'; strchr(spec, p->rank);) p->rank--;
    return *p->k && *p->n;
}

static int64_t extent_of(const hd_graph *g, hd_value w, const product *p, char label)
{
    return g->values[w].type.shape.dim[strchr(p->w, label) - p->w];
}

static hd_type factor_type(const hd_graph *g, hd_value w, const product *p, const char *labels, int64_t rank, bool rank_first)
{
    int64_t dims[HD_MAX_RANK];
    int n = 0;
    if (rank_first) dims[n++] = rank;
    for (; *labels; labels++) dims[n++] = extent_of(g, w, p, *labels);
    if (!rank_first) dims[n++] = rank;
    return hd_type_of(HD_F32, n, dims);
}

/* x with its summed labels replaced by the rank, last. */
static void reduced_labels(const product *p, char *out)
{
    for (const char *l = p->x; *l; l++)
        if (!strchr(p->k, *l)) *out++ = *l;
    *out++ = p->rank;
    *out = 0;
}

static void replace_reads(hd_graph *g, hd_value from, hd_value to, size_t n_nodes)
{
    for (size_t i = 0; i < n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++)
            if (g->nodes[i]->in[k] == from) g->nodes[i]->in[k] = to;
    for (size_t i = 0; i < g->n_outputs; i++)
        if (g->outputs[i].value == from) g->outputs[i].value = to;
}

static int adapt(hd_graph *g, const hd_lora_options *o, const hd_node *n, hd_value w, const product *p)
{
    char a_spec[80], b_spec[80], inner[16], name[300];
    hd_value x = n->in[1 - p->weight], y = n->out[0];
    hd_dtype compute = g->values[x].type.dtype;
    size_t before = g->n_nodes;
    double fan_in = 1;
    for (const char *l = p->k; *l; l++) fan_in *= (double)extent_of(g, w, p, *l);
    g->scope = g->values[w].path;
    hd_value a = hd_graph_param(g, "lora_a", factor_type(g, w, p, p->k, o->rank, true), (hd_init){HD_INIT_NORMAL, 1 / sqrt(fan_in)}, true, false);
    hd_value b = hd_graph_param(g, "lora_b", factor_type(g, w, p, p->n, o->rank, false), (hd_init){HD_INIT_CONSTANT, 0}, true, false);
    reduced_labels(p, inner);
    snprintf(a_spec, sizeof a_spec, "%s,%c%s->%s", p->x, p->rank, p->k, inner);
    snprintf(b_spec, sizeof b_spec, "%s,%s%c->%s", inner, p->n, p->rank, p->y);
    snprintf(name, sizeof name, "%s.lora", n->path);
    g->scope = name;
    hd_value t = hd_contract(g, "down", a_spec, x, hd_cast(g, NULL, a, compute), compute);
    hd_value d = hd_contract(g, "up", b_spec, t, hd_cast(g, NULL, b, compute), HD_F32);
    d = hd_cast(g, NULL, hd_add(g, y, hd_scale(g, d, o->alpha / (double)o->rank)), g->err.code ? HD_F32 : g->values[y].type.dtype);
    g->scope = "";
    if (!g->err.code) replace_reads(g, y, d, before);
    return g->err.code;
}

int hd_pass_lora(hd_graph *g, const hd_lora_options *o)
{
    if (g->err.code) return g->err.code;
    size_t n_nodes = g->n_nodes, n_values = g->n_values;
    int adapted = 0;
    for (size_t v = 0; v < n_values; v++) g->values[v].trainable = false;
    for (size_t i = 0; i < n_nodes && !g->err.code; i++) {
        const hd_node *n = g->nodes[i];
        if (strcmp(n->op->name, "contract")) continue;
        for (int k = 0; k < 2; k++) {
            hd_value w = parameter_of(g, n->in[k]);
            product p;
            if (w == HD_NONE || !matches(o, g->values[w].path) || !read_product(((const hd_contract_attrs *)n->attrs)->spec, k, &p)) continue;
            adapt(g, o, n, w, &p);
            adapted++;
        }
    }
    if (!adapted && !g->err.code) {
        hd_str paths;
        hd_str_init(&paths);
        for (size_t v = 0; v < n_values && paths.len < 200; v++)
            if (g->values[v].kind == HD_PARAM) hd_str_printf(&paths, " %s", g->values[v].path);
        hd_graph_fail(g, HD_EINVAL, "no product with a parameter matches the LoRA targets; parameters are%s ...", paths.data);
        hd_str_free(&paths);
    }
    return hd_graph_sort(g);
}

/* ---- merging ---- */

static void merge_one(hd_graph *m, const hd_graph *g, const hd_lora_options *o, hd_value w, const product *p)
{
    char spec[80], path[300];
    const char *base = g->values[w].path;
    hd_type type = g->values[w].type;
    hd_init zero = {HD_INIT_CONSTANT, 0};
    hd_value target = hd_graph_param(m, base, type, zero, false, false);
    snprintf(path, sizeof path, "%s.lora_a", base);
    hd_value a = hd_graph_param(m, path, factor_type(g, w, p, p->k, o->rank, true), zero, false, false);
    snprintf(path, sizeof path, "%s.lora_b", base);
    hd_value b = hd_graph_param(m, path, factor_type(g, w, p, p->n, o->rank, false), zero, false, false);
    snprintf(spec, sizeof spec, "%s%c,%c%s->%s", p->n, p->rank, p->rank, p->k, p->w);
    snprintf(path, sizeof path, "merge.%s", base);
    hd_value d = hd_scale(m, hd_contract(m, path, spec, b, a, HD_F32), o->alpha / (double)o->rank);
    hd_graph_pair(m, target, hd_cast(m, NULL, hd_add(m, target, d), type.dtype));
}

hd_graph *hd_lora_merge_graph(const hd_graph *g, const hd_lora_options *o, hd_error *err)
{
    hd_graph *m = hd_graph_new();
    if (!m) return hd_fail_memory(err, sizeof *m, "a graph"), NULL;
    m->phase = HD_UPDATE;
    for (size_t i = 0; i < g->n_nodes && !m->err.code; i++) {
        const hd_node *n = g->nodes[i];
        if (strcmp(n->op->name, "contract")) continue;
        for (int k = 0; k < 2; k++) {
            hd_value w = parameter_of(g, n->in[k]);
            product p;
            char adapter[300];
            if (w == HD_NONE) continue;
            snprintf(adapter, sizeof adapter, "%s.lora_a", g->values[w].path);
            if (hd_graph_find(g, adapter) == HD_NONE || hd_graph_find(m, g->values[w].path) != HD_NONE) continue;
            if (read_product(((const hd_contract_attrs *)n->attrs)->spec, k, &p)) merge_one(m, g, o, w, &p);
        }
    }
    if (!m->err.code) return m;
    hd_fail(err, m->err.code, "%s", m->err.message);
    hd_graph_free(m);
    return NULL;
}
