/* fuse_elementwise.c: chains of elementwise nodes -> one `fused` node each.
 *
 * A group stands where its last member stood, so it may take in a node only while everything outside that reads one of its members comes later.
 * Addends that a kernel could accumulate for nothing (op->can_accumulate) are left to lowering. */
#include "graph/op.h"
#include "passes/passes.h"

typedef struct fuser {
    hd_graph *g;
    int *group;        /* [nodes] the group a node is in, named after its first member; -1: none */
    int *last;         /* [nodes] by group: index of its last member */
    int *n_members;    /* [nodes] by group */
    int *uses;         /* [values] readers, outputs and pairs included */
    int **reader;      /* [values] indices of reading nodes, ascending */
} fuser;

static bool is_elementwise(const hd_node *n)
{
    return n->op->attrs_size == sizeof(hd_ew_attrs) && n->n_out == 1 && !strcmp(n->op->name, hd_ew_name((hd_ew)n->op->code));
}

static bool small_float(const hd_graph *g, hd_value v)
{
    hd_dtype t = g->values[v].type.dtype;
    return t == HD_F32 || t == HD_BF16 || t == HD_F16;
}

/* add(a, b) where a kernel can write the sum itself. */
static bool left_to_accumulate(const fuser *f, const hd_node *n)
{
    const hd_graph *g = f->g;
    if (n->op->code != HD_EW_ADD || g->values[n->out[0]].type.dtype != HD_F32) return false;
    for (int k = 0; k < 2; k++) {
        const hd_value_info *v = &g->values[n->in[k]];
        if (v->node >= 0 && g->nodes[v->node]->op->can_accumulate && f->uses[n->in[k]] == 1 && v->type.dtype == HD_F32 &&
            hd_shape_equal(&v->type.shape, &g->values[n->out[0]].type.shape))
            return true;
    }
    return false;
}

static bool fusable(const fuser *f, const hd_node *n)
{
    if (n->chunk < 0 || !is_elementwise(n) || !small_float(f->g, n->out[0]) || left_to_accumulate(f, n)) return false;
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k] == HD_NONE || !small_float(f->g, n->in[k])) return false;
    return true;
}

/* The union of groups a and b, were it placed at position `end`. */
static bool inside(const fuser *f, int node, int a, int b)
{
    return f->group[node] == a || f->group[node] == b;
}

/* Whether nothing outside the union reads a member of a before position `end`. */
static bool readers_come_after(const fuser *f, int a, int b, int end)
{
    const hd_graph *g = f->g;
    for (int i = a; i <= f->last[a]; i++) {
        if (f->group[i] != a) continue;
        const int *r = f->reader[g->nodes[i]->out[0]];
        for (; *r >= 0 && *r < end; r++)
            if (!inside(f, *r, a, b)) return false;
    }
    return true;
}

/* Distinct values that the union would read from outside. */
static int count_operands(const fuser *f, int a, int b, int end)
{
    const hd_graph *g = f->g;
    hd_value seen[3 * HD_CHAIN_MAX];
    int n = 0;
    for (int m = a < b ? a : b; m <= end; m++) {
        if (!inside(f, m, a, b)) continue;
        for (int k = 0; k < g->nodes[m]->n_in; k++) {
            hd_value v = g->nodes[m]->in[k];
            int p = g->values[v].node, s = 0;
            if (p >= 0 && inside(f, p, a, b)) continue;
            while (s < n && seen[s] != v) s++;
            if (s == n) seen[n++] = v;
        }
    }
    return n;
}

/* Equal shapes at coordinate 0 of a mesh need not be equal elsewhere. */
static bool same_pieces(const hd_graph *g, hd_value x, hd_value y)
{
    const hd_value_info *a = &g->values[x], *b = &g->values[y];
    if (!a->layout && !b->layout) return true;
    const hd_shape *u = a->layout ? &a->whole : &a->type.shape, *v = b->layout ? &b->whole : &b->type.shape;
    return hd_shape_equal(u, v) && hd_layout_equal(&g->mesh, a->layout, b->layout, u);
}

static bool can_merge(const fuser *f, int a, int b, int end)
{
    const hd_graph *g = f->g;
    hd_value x = g->nodes[a]->out[0], y = g->nodes[b]->out[0];
    if (2 * (f->n_members[a] + f->n_members[b]) > HD_CHAIN_MAX) return false; /* each step may need a rounding step */
    return g->nodes[a]->phase == g->nodes[b]->phase && g->nodes[a]->chunk == g->nodes[b]->chunk &&
           g->nodes[a]->slice == g->nodes[b]->slice && g->values[x].micro == g->values[y].micro &&
           hd_shape_equal(&g->values[x].type.shape, &g->values[y].type.shape) && same_pieces(g, x, y) && readers_come_after(f, a, b, end) &&
           count_operands(f, a, b, end) <= HD_MAX_OPERANDS;
}

static void merge(fuser *f, int a, int b)
{
    int into = a < b ? a : b, from = a < b ? b : a;
    for (int i = from; i <= f->last[from]; i++)
        if (f->group[i] == from) f->group[i] = into;
    f->n_members[into] += f->n_members[from];
    if (f->last[from] > f->last[into]) f->last[into] = f->last[from];
}

static void place_node(fuser *f, int i)
{
    const hd_graph *g = f->g;
    hd_node *n = g->nodes[i];
    f->group[i] = -1;
    if (!fusable(f, n)) return;
    f->group[i] = f->last[i] = i;
    f->n_members[i] = 1;
    for (int k = 0; k < n->n_in; k++) {
        int p = g->values[n->in[k]].node;
        if (p < 0 || f->group[p] < 0 || f->group[p] == f->group[i]) continue;
        if (can_merge(f, f->group[p], f->group[i], i)) merge(f, f->group[p], f->group[i]);
    }
}

/* ---- building the fused node ---- */

typedef struct chain {
    hd_fused_attrs at;
    hd_value in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    int *reg; /* [values] the register of a member's result, -1: none; shared scratch */
} chain;

/* Operands first: a value from another group has a register there, which is not one of this chain's. */
static uint8_t operand_register(const chain *c, hd_value v)
{
    for (int i = 0; i < c->at.n_in; i++)
        if (c->in[i] == v) return (uint8_t)i;
    return (uint8_t)c->reg[v];
}

static void collect_operands(const fuser *f, int at, chain *c)
{
    const hd_graph *g = f->g;
    for (int i = at; i <= f->last[at]; i++) {
        if (f->group[i] != at) continue;
        for (int k = 0; k < g->nodes[i]->n_in; k++) {
            hd_value v = g->nodes[i]->in[k];
            int p = g->values[v].node, s = 0;
            if (p >= 0 && f->group[p] == at) continue;
            while (s < c->at.n_in && c->in[s] != v) s++;
            if (s == c->at.n_in) c->in[c->at.n_in++] = v;
        }
    }
}

static void add_step(chain *c, hd_ew op, double imm, const uint8_t *arg, hd_dtype dtype)
{
    hd_chain_step *s = &c->at.step[c->at.n_steps++];
    *s = (hd_chain_step){.op = (uint8_t)op, .imm = imm, .dtype = dtype};
    for (int k = 0; k < hd_ew_arity(op); k++) s->arg[k] = arg[k];
}

/* Readers inside and outside the group (outputs and states count as outside). */
static void count_readers(const fuser *f, int at, hd_value v, int *members, int *others)
{
    *members = 0;
    for (const int *r = f->reader[v]; *r >= 0; r++) *members += f->group[*r] == at;
    *others = f->uses[v] - *members;
}

static bool build_chain(const fuser *f, int at, chain *c)
{
    const hd_graph *g = f->g;
    collect_operands(f, at, c);
    for (int i = at; i <= f->last[at]; i++) {
        if (f->group[i] != at) continue;
        const hd_node *n = g->nodes[i];
        const hd_ew_attrs *a = n->attrs;
        uint8_t arg[3] = {0};
        for (int k = 0; k < n->n_in; k++) arg[k] = operand_register(c, n->in[k]);
        add_step(c, (hd_ew)n->op->code, a->imm, arg, a->dtype);
        int members, others;
        count_readers(f, at, n->out[0], &members, &others);
        uint8_t reg = (uint8_t)(c->at.n_in + c->at.n_steps - 1);
        if (members && a->dtype != HD_F32 && n->op->code != HD_EW_CAST) {
            add_step(c, HD_EW_CAST, 0, &reg, a->dtype);
            reg++;
        }
        c->reg[n->out[0]] = reg;
        if (!others) continue;
        if (c->at.n_out == HD_MAX_RESULTS) return false;
        c->at.out[c->at.n_out] = reg;
        c->at.out_dtype[c->at.n_out] = g->values[n->out[0]].type.dtype;
        c->out[c->at.n_out++] = n->out[0];
    }
    return true;
}

static int replace_group(fuser *f, int at, int *reg, bool *keep)
{
    hd_graph *g = f->g;
    chain c = {.reg = reg};
    if (!build_chain(f, at, &c)) return 0;
    int last = f->last[at];
    hd_node *n = hd_arena_alloc(&g->arena, sizeof *n);
    if (!n) return hd_fail_memory(&g->err, sizeof *n, "a fused node");
    *n = (hd_node){.op = hd_op_find("fused"), .path = g->nodes[last]->path, .phase = g->nodes[last]->phase,
                    .chunk = g->nodes[last]->chunk, .slice = g->nodes[last]->slice, .n_in = c.at.n_in, .n_out = c.at.n_out};
    n->attrs = hd_arena_copy(&g->arena, &c.at, sizeof c.at);
    n->in = hd_arena_copy(&g->arena, c.in, (size_t)c.at.n_in * sizeof *c.in);
    n->out = hd_arena_copy(&g->arena, c.out, (size_t)c.at.n_out * sizeof *c.out);
    if (!n->attrs || !n->in || !n->out) return hd_fail_memory(&g->err, sizeof c, "a fused node");
    for (int i = at; i < last; i++)
        if (f->group[i] == at) keep[i] = false;
    g->nodes[last] = n;
    for (int k = 0; k < n->n_out; k++) {
        g->values[n->out[k]].node = last;
        g->values[n->out[k]].result = k;
    }
    return 0;
}

/* ---- the pass ---- */

static int index_readers(fuser *f)
{
    hd_graph *g = f->g;
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++)
            if (g->nodes[i]->in[k] != HD_NONE) f->uses[g->nodes[i]->in[k]]++;
    for (size_t v = 0; v < g->n_values; v++) {
        f->reader[v] = hd_arena_alloc(&g->arena, ((size_t)f->uses[v] + 1) * sizeof **f->reader);
        if (!f->reader[v]) return hd_fail_memory(&g->err, g->n_values, "fusion");
        f->reader[v][0] = -1;
        f->uses[v] = 0;
    }
    for (size_t i = 0; i < g->n_nodes; i++) {
        for (int k = 0; k < g->nodes[i]->n_in; k++) {
            hd_value v = g->nodes[i]->in[k];
            if (v == HD_NONE) continue;
            f->reader[v][f->uses[v]++] = (int)i;
            f->reader[v][f->uses[v]] = -1;
        }
    }
    for (size_t i = 0; i < g->n_outputs; i++) f->uses[g->outputs[i].value]++;
    for (size_t i = 0; i < g->n_pairs; i++) f->uses[g->pairs[i].out]++;
    return 0;
}

static int run(fuser *f, int *reg, bool *keep)
{
    hd_graph *g = f->g;
    if (index_readers(f)) return g->err.code;
    for (size_t i = 0; i < g->n_nodes; i++) place_node(f, (int)i);
    for (size_t v = 0; v < g->n_values; v++) reg[v] = -1;
    for (size_t i = 0; i < g->n_nodes; i++) keep[i] = true;
    for (size_t i = 0; i < g->n_nodes && !g->err.code; i++)
        if (f->group[i] == (int)i && f->n_members[i] > 1) replace_group(f, (int)i, reg, keep);
    hd_graph_keep_nodes(g, keep);
    return g->err.code;
}

int hd_pass_fuse_elementwise(hd_graph *g)
{
    if (g->err.code) return g->err.code;
    size_t n = g->n_nodes + 1, nv = g->n_values + 1;
    fuser f = {.g = g, .group = hd_calloc(n, sizeof(int)), .last = hd_calloc(n, sizeof(int)), .n_members = hd_calloc(n, sizeof(int)),
               .uses = hd_calloc(nv, sizeof(int)), .reader = hd_calloc(nv, sizeof(int *))};
    int *reg = hd_calloc(nv, sizeof *reg);
    bool *keep = hd_calloc(n, sizeof *keep);
    if (f.group && f.last && f.n_members && f.uses && f.reader && reg && keep) run(&f, reg, keep);
    else hd_fail_memory(&g->err, n, "fusion");
    hd_free(f.group);
    hd_free(f.last);
    hd_free(f.n_members);
    hd_free(f.uses);
    hd_free(f.reader);
    hd_free(reg);
    hd_free(keep);
    return g->err.code;
}
