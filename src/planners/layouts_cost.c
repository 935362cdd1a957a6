/* layouts_cost.c: what a way to divide a node costs, what a conversion costs, and what is sent in all. */
#include <math.h>
#include <string.h>

#include "planners/layouts_int.h"

static const char *const collective_names[HD_COLL_KINDS] = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"};
const char *hd_collective_name(hd_collective k) { return collective_names[k]; }

int hd_collective_parse(const char *name, hd_collective *out)
{
    for (int k = 0; k < HD_COLL_KINDS; k++)
        if (!strcmp(name, collective_names[k])) return *out = (hd_collective)k, 0;
    return HD_EINVAL;
}

/* ---- what a conversion costs ---- */

static const struct { const char *op; hd_collective kind; double factor; } prices[] = {
    {"all_reduce", HD_COLL_ALL_REDUCE, 2}, {"all_gather", HD_COLL_ALL_GATHER, 1}, {"reduce_scatter", HD_COLL_REDUCE_SCATTER, 1}, {"all_to_all", HD_COLL_ALL_TO_ALL, 1}};

static int price_of(const hd_convert_step *s)
{
    for (int k = 0; k < (int)(sizeof prices / sizeof *prices); k++)
        if (!strcmp(s->op, prices[k].op)) return k;
    return -1; /* sends nothing */
}

/* Bytes on the larger side of a step: what an all-gather makes, what others take. */
static double step_bytes(const hd_layout_builder *b, hd_value v, const hd_convert_step *s, const hd_layout *before)
{
    return hd_part_bytes(&b->part, v, prices[price_of(s)].kind == HD_COLL_ALL_GATHER ? &s->after : before);
}

static double step_seconds(const hd_layout_builder *b, hd_value v, const hd_convert_step *s, const hd_layout *before)
{
    const hd_layout_problem *p = b->p;
    int k = price_of(s);
    double bytes = step_bytes(b, v, s, before), seconds = 0;
    if (p->forbidden >> prices[k].kind & 1) return INFINITY;
    for (int i = 0; i < s->n_axes; i++) {
        int a = s->axes[i];
        double n = p->mesh.axis[a].size, halves = p->prefer_reduce_scatter && prices[k].kind == HD_COLL_ALL_REDUCE ? 2 : 1;
        if (n > 1) seconds += halves * p->alpha[a] + prices[k].factor * (n - 1) / n * p->beta[a] * bytes;
    }
    return seconds;
}

int64_t hd_layout_conversion(const hd_layout_builder *b, hd_value v, const hd_layout *from, const hd_layout *to, const hd_node *reader)
{
    (void)reader;
    hd_convert_step steps[HD_MAX_STEPS];
    int n = hd_part_steps(&b->p->mesh, &b->part.value[v].whole, from, to, steps);
    double seconds = 0;
    for (int i = 0; i < n; i++)
        if (price_of(&steps[i]) >= 0) seconds += step_seconds(b, v, &steps[i], i ? &steps[i - 1].after : from);
    return isinf(seconds) ? HD_NEVER : (int64_t)(seconds * HD_PICO + 0.5);
}

/* ---- what a way to divide a node costs ---- */

int64_t hd_layout_work(const hd_layout_builder *b, const hd_node *n, const hd_way *w) { return (void)b, (void)n, (void)w, 0; }

/* An operand that stands twice is brought into one layout once. */
bool hd_layout_read_before(const hd_layout_builder *b, const hd_node *n, const hd_way *w, int k)
{
    for (int i = 0; i < k; i++)
        if (n->in[i] == n->in[k] && hd_layout_equal(&b->p->mesh, &w->in[i], &w->in[k], &b->part.value[n->in[k]].whole)) return true;
    return false;
}

/* ---- what is sent in all ---- */

typedef struct counter { hd_layout_answer *out; uint32_t late[HD_COLL_KINDS][64]; int n_late[HD_COLL_KINDS]; } counter;

/* Late collectives of one kind over the same axes go as one message. */
static bool is_joined(counter *c, hd_collective kind, uint32_t axes)
{
    for (int i = 0; i < c->n_late[kind]; i++)
        if (c->late[kind][i] == axes) return true;
    if (c->n_late[kind] < 64) c->late[kind][c->n_late[kind]++] = axes;
    return false;
}

static void count_conversion(const hd_layout_builder *b, counter *c, hd_value v, const hd_layout *from, const hd_layout *to, bool late)
{
    hd_convert_step steps[HD_MAX_STEPS];
    int n = hd_part_steps(&b->p->mesh, &b->part.value[v].whole, from, to, steps);
    for (int i = 0; i < n; i++) {
        int k = price_of(&steps[i]);
        uint32_t axes = 0;
        if (k < 0) continue;
        for (int a = 0; a < steps[i].n_axes; a++) axes |= 1u << steps[i].axes[a];
        hd_layout_traffic *t = &c->out->traffic[prices[k].kind];
        bool joins = late && (prices[k].kind == HD_COLL_ALL_REDUCE || prices[k].kind == HD_COLL_REDUCE_SCATTER);
        t->count++;
        t->combined += !(joins && is_joined(c, prices[k].kind, axes));
        t->bytes += step_bytes(b, v, &steps[i], i ? &steps[i - 1].after : from);
    }
}

void hd_layout_count(const hd_layout_builder *b, const int *choice, hd_layout_answer *out)
{
    const hd_graph *g = b->g;
    static const hd_layout whole;
    counter c = {.out = out};
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        const hd_way *w = &b->ways[i].list[choice[i]];
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k] != HD_NONE && !hd_layout_read_before(b, n, w, k)) count_conversion(b, &c, n->in[k], &out->held[n->in[k]], &w->in[k], b->late[n->in[k]]);
        for (int r = 0; r < n->n_out; r++)
            if (b->held[n->out[r]].n) count_conversion(b, &c, n->out[r], &w->out[r], &out->held[n->out[r]], b->late[n->out[r]]);
    }
    for (size_t k = 0; k < g->n_pairs; k++)
        if (g->pairs[k].in != g->pairs[k].out) count_conversion(b, &c, g->pairs[k].out, &out->held[g->pairs[k].out], &out->held[g->pairs[k].in], true);
    for (size_t k = 0; k < g->n_outputs; k++) count_conversion(b, &c, g->outputs[k].value, &out->held[g->outputs[k].value], &whole, true);
}

