/* slices.c: the forward pass of a sequence cut into slices of tokens (TeraPipe, Li et al. 2021), Graph -> Graph.
 *
 * Every node over the tokens of a call becomes one node a slice, "<path>@0", "<path>@1", ...; what sums over tokens is added up. A token attends to
 * itself and to what comes before it, so slice s of attention reads the keys and values of slices 0 .. s: those of s appended to the prefix before.
 * Differentiating the result gives backward: dK and dV of a prefix are those of the slice's own attention plus the leading rows of the next prefix's,
 * which exist once later slices are through, so slices go backwards there.
 *
 * Rows of a call are batch x sequence; a slice has batch x length of them, in the same order. */
#include <stdio.h>
#include <string.h>

#include "graph/op.h"
#include "passes/partition.h"
#include "passes/passes.h"

enum { Q, K, V, QPOS, KPOS, QSEG, KSEG }; /* attention's operands */

typedef struct slicer {
    hd_graph *g;
    const int64_t *length; /* [n] */
    int64_t begin[HD_MAX_SLICES + 1];
    int n;
    int64_t rows, batch, sequence;
    size_t n_values;       /* of the graph before */
    hd_value **piece;      /* [values][n] of what is cut; NULL: whole */
    hd_value **prefix;     /* [values][n] slices 0 .. s in one */
    hd_value *instead;     /* [values] what takes its place whole: itself, or the sum over slices */
} slicer;

static bool is_op(const hd_node *n, const char *name) { return !strcmp(n->op->name, name); }

static hd_value *new_pieces(slicer *s)
{
    hd_value *p = hd_arena_alloc(&s->g->arena, (size_t)s->n * sizeof *p);
    if (!p) hd_fail_memory(&s->g->err, sizeof *p, "cutting tokens");
    return p;
}

static const char *name_of(slicer *s, const char *prefix, hd_value v, int slice)
{
    return hd_arena_printf(&s->g->arena, "%s%s@%d", prefix, s->g->values[v].path, slice);
}

/* ---- rows as [batch, rows of one sequence] and back ---- */

static hd_value reshape_rows(slicer *s, const char *name, hd_value x, int64_t per_sequence)
{
    const hd_shape *from = &s->g->values[x].type.shape;
    int64_t dims[HD_MAX_RANK] = {s->batch, per_sequence};
    if (from->rank + 1 > HD_MAX_RANK) return hd_graph_fail(s->g, HD_EUNSUPPORTED, "%s: has too many dimensions to be cut", s->g->values[x].path);
    for (int d = 1; d < from->rank; d++) dims[d + 1] = from->dim[d];
    return hd_reshape(s->g, name, x, from->rank + 1, dims);
}

static hd_value flatten_rows(slicer *s, const char *name, hd_value x)
{
    const hd_shape *from = &s->g->values[x].type.shape;
    int64_t dims[HD_MAX_RANK] = {from->dim[0] * from->dim[1]};
    for (int d = 2; d < from->rank; d++) dims[d - 1] = from->dim[d];
    return hd_reshape(s->g, name, x, from->rank - 1, dims);
}

/* Rows begin .. end of each sequence of a whole value. */
static hd_value take_rows(slicer *s, const char *name, hd_value x, int64_t begin, int64_t end)
{
    hd_graph *g = s->g;
    hd_slice_attrs at = {.axis = s->batch > 1, .begin = begin, .end = end};
    if (begin == 0 && end == s->sequence) return x;
    if (s->batch == 1) return hd_graph_node(g, "slice", name, &at, &x, 1);
    x = reshape_rows(s, hd_arena_printf(&g->arena, "%s.sequences", name), x, s->sequence);
    x = hd_graph_node(g, "slice", hd_arena_printf(&g->arena, "%s.rows", name), &at, &x, 1);
    return g->err.code ? HD_NONE : flatten_rows(s, name, x);
}

/* a's rows of each sequence, then b's. */
static hd_value append_rows(slicer *s, const char *name, hd_value a, int64_t rows_a, hd_value b, int64_t rows_b)
{
    hd_graph *g = s->g;
    hd_axis_attrs at = {.axis = s->batch > 1};
    if (s->batch == 1) return hd_graph_node(g, "concat", name, &at, (hd_value[]){a, b}, 2);
    a = reshape_rows(s, hd_arena_printf(&g->arena, "%s.before", name), a, rows_a);
    b = reshape_rows(s, hd_arena_printf(&g->arena, "%s.own", name), b, rows_b);
    hd_value y = hd_graph_node(g, "concat", hd_arena_printf(&g->arena, "%s.sequences", name), &at, (hd_value[]){a, b}, 2);
    return g->err.code ? HD_NONE : flatten_rows(s, name, y);
}

/* ---- pieces of values ---- */

static bool is_cut_input(const slicer *s, hd_value v)
{
    const hd_value_info *i = &s->g->values[v];
    return i->kind == HD_INPUT && i->micro == HD_TIME_SPLIT && i->type.shape.rank > 0 && i->type.shape.dim[0] == s->rows;
}

static bool is_cut(const slicer *s, hd_value v)
{
    return v != HD_NONE && (s->piece[v] || is_cut_input(s, v));
}

static hd_value *pieces(slicer *s, hd_value v)
{
    hd_graph *g = s->g;
    if (s->piece[v]) return s->piece[v];
    hd_value *p = new_pieces(s);
    for (int k = 0; k < s->n && p; k++) {
        g->slice = k;
        p[k] = take_rows(s, name_of(s, "slice.", v, k), v, s->begin[k], s->begin[k + 1]); /* a pin of the input isn't one of its slices */
    }
    return s->piece[v] = p;
}

/* Slices 0 .. s of v in one, for each s. They stand outside their layer's names: what is recomputed by layers leaves them alone. */
static hd_value *prefixes(slicer *s, hd_value v)
{
    hd_graph *g = s->g;
    if (s->prefix[v]) return s->prefix[v];
    bool input = is_cut_input(s, v);
    hd_value *own = pieces(s, v), *p = new_pieces(s);
    for (int k = 0; k < s->n && p && !g->err.code; k++) {
        const char *name = name_of(s, "prefix.", v, k);
        g->slice = k;
        if (input) p[k] = take_rows(s, name, v, 0, s->begin[k + 1]);
        else p[k] = k ? append_rows(s, name, p[k - 1], s->begin[k], own[k], s->length[k]) : own[k];
    }
    return s->prefix[v] = p;
}

/* ---- nodes ---- */

static void fail(slicer *s, const hd_node *n, const char *why)
{
    hd_fail(&s->g->err, HD_EUNSUPPORTED, "%s: tokens cannot be cut into slices: %s %s", n->path, n->op->name, why);
}

/* Whether each row of n's first result comes of that row of its cut operands alone (1), or it is a sum over them (0); -1: neither. */
static int rows_of(const slicer *s, const hd_node *n)
{
    const hd_graph *g = s->g;
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_loops l = {0};
    int kind = -1;
    for (int k = 0; k < n->n_in; k++) in[k] = n->in[k] == HD_NONE ? (hd_type){.absent = true, .shape.sym = -1} : g->values[n->in[k]].type;
    for (int k = 0; k < n->n_out; k++) out[k] = g->values[n->out[k]].type;
    n->op->loops(&(hd_sig){n->op, in, out, n->n_in, n->n_out, n->attrs}, &l);
    for (int k = 0; k < n->n_in; k++) {
        if (!is_cut(s, n->in[k])) continue;
        const hd_dim_map *from = &l.in[k][0], *to = &l.out[0][0];
        if (from->n != 1) return -1;
        bool row = out[0].shape.rank > 0 && to->n == 1 && to->loop[0] == from->loop[0];
        bool sum = !row && (l.reduced >> from->loop[0] & 1) && is_op(n, "reduce_sum");
        int this = row ? 1 : sum ? 0 : -1;
        if (this < 0 || (kind >= 0 && kind != this)) return -1;
        kind = this;
    }
    return kind;
}

static void keep_node(slicer *s, hd_node *n)
{
    hd_graph *g = s->g;
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k] != HD_NONE) n->in[k] = s->instead[n->in[k]];
    if (hd_grow(&g->nodes, &g->cap_nodes, g->n_nodes + 1, sizeof *g->nodes)) {
        hd_fail_memory(&g->err, sizeof *n, "cutting tokens");
        return;
    }
    g->nodes[g->n_nodes++] = n;
    for (int k = 0; k < n->n_out; k++) g->values[n->out[k]].node = (int)g->n_nodes - 1;
}

/* n for one slice; the extents that reshape and broadcast name shrink with it. */
static hd_value clone_node(slicer *s, const hd_node *n, int slice)
{
    hd_value in[HD_MAX_OPERANDS];
    _Alignas(16) char attrs[1024];
    for (int k = 0; k < n->n_in; k++) {
        in[k] = n->in[k] == HD_NONE ? HD_NONE : s->instead[n->in[k]];
        const hd_value *cut = is_cut(s, n->in[k]) ? pieces(s, n->in[k]) : NULL;
        if (cut) in[k] = cut[slice];
    }
    if (s->g->err.code) return HD_NONE;
    if (n->op->attrs_size) memcpy(attrs, n->attrs, n->op->attrs_size);
    hd_dims_attrs *dims = (hd_dims_attrs *)attrs;
    bool extents = is_op(n, "reshape") || is_op(n, "broadcast");
    if (extents && dims->rank > 0 && dims->dim[0] == s->rows) dims->dim[0] = s->batch * s->length[slice];
    s->g->slice = slice;
    return hd_graph_node(s->g, n->op->name, name_of(s, "", n->out[0], slice), attrs, in, n->n_in);
}

/* Result k of every clone is a piece of n's, or none may be read. */
static void keep_pieces(slicer *s, const hd_node *n, const hd_value *made)
{
    hd_graph *g = s->g;
    for (int k = 0; k < n->n_out; k++) {
        hd_value *p = new_pieces(s);
        for (int i = 0; i < s->n && p; i++) {
            p[i] = hd_graph_result(g, made[i], k);
            const hd_shape *whole = &g->values[n->out[k]].type.shape, *part = &g->values[p[i]].type.shape;
            if (whole->rank < 1 || whole->dim[0] != s->rows || part->dim[0] != s->batch * s->length[i]) {
                fail(s, n, "gives something that isn't a row for each");
                return;
            }
        }
        s->piece[n->out[k]] = p;
    }
}

static void cut_rows(slicer *s, const hd_node *n)
{
    hd_value made[HD_MAX_SLICES];
    for (int i = 0; i < s->n && !s->g->err.code; i++) made[i] = clone_node(s, n, i);
    if (!s->g->err.code) keep_pieces(s, n, made);
}

static void cut_sum(slicer *s, const hd_node *n)
{
    hd_value sum = HD_NONE;
    for (int i = 0; i < s->n && !s->g->err.code; i++) {
        hd_value part = clone_node(s, n, i);
        sum = hd_add(s->g, sum, part);
    }
    s->instead[n->out[0]] = sum;
}

/* Queries of a slice, keys and values up to its end. */
static void cut_attention(slicer *s, const hd_node *n)
{
    hd_graph *g = s->g;
    hd_value made[HD_MAX_SLICES];
    hd_attention_attrs at = *(const hd_attention_attrs *)n->attrs;
    int64_t most = at.max_keys ? at.max_keys : s->sequence;
    if (!at.causal) {
        fail(s, n, "sees what comes later");
        return;
    }
    if (s->batch > 1 && at.block != s->sequence) {
        fail(s, n, "isn't known to keep to its sequence");
        return;
    }
    for (int k = 0; k < n->n_in; k++)
        if (!is_cut(s, n->in[k])) {
            fail(s, n, "has operands that aren't of these tokens");
            return;
        }
    for (int i = 0; i < s->n && !g->err.code; i++) {
        hd_value in[KSEG + 1];
        for (int k = 0; k <= KSEG && !g->err.code; k++) {
            bool of_keys = k == K || k == V || k == KPOS || k == KSEG;
            const hd_value *from = (of_keys ? prefixes : pieces)(s, n->in[k]);
            in[k] = from ? from[i] : HD_NONE;
        }
        if (g->err.code) return;
        at.block = s->batch > 1 ? s->begin[i + 1] : 0;
        at.max_keys = most < s->begin[i + 1] ? most : s->begin[i + 1];
        g->slice = i;
        made[i] = hd_graph_node(g, n->op->name, name_of(s, "", n->out[0], i), &at, in, KSEG + 1);
    }
    if (!g->err.code) keep_pieces(s, n, made);
}

static void cut_node(slicer *s, hd_node *n)
{
    bool cut = false;
    for (int k = 0; k < n->n_in; k++) cut |= is_cut(s, n->in[k]);
    s->g->phase = n->phase;
    s->g->slice = 0;
    if (!cut) {
        keep_node(s, n);
        return;
    }
    if (is_op(n, "attention")) {
        cut_attention(s, n);
        return;
    }
    int rows = rows_of(s, n);
    if (rows < 0) fail(s, n, "mixes them");
    else (rows ? cut_rows : cut_sum)(s, n);
}

/* ---- the pass ---- */

static void finish(slicer *s)
{
    hd_graph *g = s->g;
    for (size_t i = 0; i < g->n_outputs; i++) {
        hd_value v = g->outputs[i].value;
        if (s->piece[v]) hd_fail(&g->err, HD_EUNSUPPORTED, "tokens cannot be cut into slices: the output %s has a row for each", g->outputs[i].name);
        g->outputs[i].value = s->instead[v];
    }
    for (size_t i = 0; i < g->n_pairs; i++) {
        hd_value v = g->pairs[i].out;
        if (s->piece[v]) hd_fail(&g->err, HD_EUNSUPPORTED, "tokens cannot be cut into slices: the state %s has a row for each", g->values[v].path);
        g->pairs[i].out = s->instead[v];
    }
    for (size_t v = 0; v < s->n_values; v++)
        if (g->values[v].kind == HD_RESULT && (s->piece[v] || s->instead[v] != (hd_value)v))
            g->values[v].node = -1; /* nobody makes it any more */
}

static void run(slicer *s)
{
    hd_graph *g = s->g;
    size_t n = g->n_nodes;
    hd_node **nodes = hd_malloc((n + 1) * sizeof *nodes);
    if (!nodes) {
        hd_fail_memory(&g->err, n, "cutting tokens");
        return;
    }
    memcpy(nodes, g->nodes, n * sizeof *nodes);
    g->n_nodes = 0;
    for (size_t i = 0; i < n && !g->err.code; i++) cut_node(s, nodes[i]);
    hd_free(nodes);
    if (!g->err.code) finish(s);
}

static int measure(slicer *s)
{
    hd_graph *g = s->g;
    hd_value tokens = hd_graph_find(g, "tokens");
    if (s->n > HD_MAX_SLICES) return hd_fail(&g->err, HD_EINVAL, "%d slices of a sequence: there can be %d", s->n, HD_MAX_SLICES);
    if (tokens == HD_NONE || g->values[tokens].kind != HD_INPUT) return hd_fail(&g->err, HD_EUNSUPPORTED, "token slices need a language model");
    for (int i = 0; i < s->n; i++) {
        if (s->length[i] < 1) return hd_fail(&g->err, HD_EINVAL, "slice %d of a sequence has %lld tokens", i, (long long)s->length[i]);
        s->begin[i + 1] = s->begin[i] + s->length[i];
    }
    s->sequence = s->begin[s->n];
    s->rows = g->values[tokens].type.shape.dim[0];
    s->batch = s->rows / s->sequence;
    if (s->rows % s->sequence == 0 && g->values[tokens].type.shape.sym < 0) return 0;
    return hd_fail(&g->err, HD_EINVAL, "slices of %lld tokens in all don't make up sequences: a call has %lld tokens", (long long)s->sequence,
                   (long long)s->rows);
}

int hd_pass_slices(hd_graph *g, const int64_t *length, int n)
{
    slicer s = {.g = g, .length = length, .n = n, .n_values = g->n_values};
    if (g->err.code || n <= 1 || measure(&s)) return g->err.code;
    const char *scope = g->scope;
    hd_phase phase = g->phase;
    size_t room = g->n_values + 1; /* what is made here is never asked about: operands are values of before */
    s.piece = hd_calloc(room, sizeof *s.piece);
    s.prefix = hd_calloc(room, sizeof *s.prefix);
    s.instead = hd_calloc(room, sizeof *s.instead);
    g->scope = "";
    if (s.piece && s.prefix && s.instead) {
        for (size_t v = 0; v < s.n_values; v++) s.instead[v] = (hd_value)v;
        run(&s);
    } else {
        hd_fail_memory(&g->err, room, "cutting tokens");
    }
    hd_free(s.piece);
    hd_free(s.prefix);
    hd_free(s.instead);
    g->scope = scope;
    g->phase = phase;
    g->slice = 0;
    return g->err.code;
}

bool hd_path_match(const char *pattern, const char *path)
{
    const char *mark = strchr(path, '@');
    char plain[512];
    if (hd_glob_match(pattern, path)) return true;
    if (!mark || strlen(path) >= sizeof plain) return false;
    snprintf(plain, sizeof plain, "%.*s%s", (int)(mark - path), path, mark + 1 + strspn(mark + 1, "0123456789"));
    return hd_glob_match(pattern, plain);
}

/* ---- keys and values are kept once ---- */

/* The rows of the last prefix that v, the prefix of slice k or its first piece, is the beginning of. HD_NONE: v is that, or no prefix. */
static hd_value rows_of_last(slicer *s, hd_value v, int k)
{
    hd_graph *g = s->g;
    const char *path = g->values[v].path, *mark = strrchr(path, '@');
    if (!strncmp(path, "prefix.", 7)) path += 7;
    if (!mark || k == s->n - 1) return HD_NONE;
    const char *name = hd_arena_printf(&g->arena, "prefix.%.*s@", (int)(mark - path), path);
    hd_value last = name ? hd_graph_find(g, hd_arena_printf(&g->arena, "%s%d", name, s->n - 1)) : HD_NONE;
    return last == HD_NONE ? HD_NONE : take_rows(s, hd_arena_printf(&g->arena, "%s%d.to%d", name, s->n - 1, k), last, 0, s->begin[k + 1]);
}

/* Backward of slice k reads the leading rows of all keys and values instead of its own prefix of them, which then need not be kept: what one token
 * saves for backward is the same however many slices there are. */
static void read_last_prefix(slicer *s)
{
    enum { GRAD_K = 2, GRAD_V = 3 };
    hd_graph *g = s->g;
    size_t n = g->n_nodes;
    g->phase = HD_BACKWARD;
    for (size_t i = 0; i < n && !g->err.code; i++) {
        hd_node *x = g->nodes[i];
        if (x->phase != HD_BACKWARD || !is_op(x, "attention_grad")) continue;
        for (int k = GRAD_K; k <= GRAD_V; k++) {
            g->slice = x->slice;
            hd_value rows = rows_of_last(s, x->in[k], x->slice);
            if (rows != HD_NONE) x->in[k] = rows;
        }
    }
    hd_graph_sort(g);
}

/* ---- which slice each node of backward belongs to ---- */

/* Backward takes slices from the last to the first, so the lowest among what it reads; where it begins, its origin's. */
static int slice_of(const hd_graph *g, const hd_node *n)
{
    int lowest = -1, highest = n->phase == HD_FORWARD ? n->slice : 0;
    for (int k = 0; k < n->n_in; k++) {
        const hd_value_info *v = n->in[k] == HD_NONE ? NULL : &g->values[n->in[k]];
        if (!v || v->node < 0 || v->micro == HD_TIME_REPLICATE) continue;
        const hd_node *from = g->nodes[v->node];
        if (from->phase == HD_FORWARD && from->slice > highest) highest = from->slice;
        if (from->phase == HD_BACKWARD && (lowest < 0 || from->slice < lowest)) lowest = from->slice;
    }
    if (n->phase == HD_FORWARD) return highest;
    return lowest >= 0 ? lowest : n->origin && n->origin->phase == HD_FORWARD ? n->origin->slice : highest;
}

static void place_slices(hd_graph *g)
{
    for (size_t i = 0; i < g->n_nodes; i++) {
        hd_node *n = g->nodes[i];
        if (n->phase == HD_UPDATE || is_op(n, "micro_sum")) continue;
        if (n->n_out && g->values[n->out[0]].micro == HD_TIME_REPLICATE) continue;
        n->slice = slice_of(g, n);
    }
}

int hd_pass_slices_backward(hd_graph *g, const int64_t *length, int n)
{
    slicer s = {.g = g, .length = length, .n = n};
    if (g->err.code || n <= 1 || measure(&s)) return g->err.code;
    const char *scope = g->scope;
    hd_phase phase = g->phase;
    g->scope = "";
    place_slices(g);
    read_last_prefix(&s);
    g->scope = scope;
    g->phase = phase;
    g->slice = 0;
    return g->err.code ? g->err.code : hd_graph_dce(g);
}
