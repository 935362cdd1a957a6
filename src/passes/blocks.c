/* blocks.c: parameters that stay in the block types of a GGUF file: their value's type says so, and nothing else in the graph changes. */
#include "graph/op.h"
#include "passes/passes.h"

/* Elements that a product sums of operand 1, if they are its last dimensions and the others are kept; 0 otherwise. */
static int64_t summed_last(const hd_node *n, const hd_shape *w)
{
    const char *spec = ((const hd_contract_attrs *)n->attrs)->spec, *labels = strchr(spec, ',') + 1, *result = strstr(spec, "->");
    int64_t k = 1;
    bool summing = false;
    for (int i = 0; i < w->rank; i++) {
        bool kept = strchr(result, labels[i]) != NULL;
        if ((kept && summing) || (kept && memchr(spec, labels[i], (size_t)(labels - 1 - spec)))) return 0;
        summing |= !kept;
        if (!kept) k *= w->dim[i];
    }
    return summing ? k : 0;
}

/* Elements of a row of v as this node reads it, one after another; 0: it can't read blocks. */
static int64_t row_elements(const hd_graph *g, const hd_node *n, int operand, hd_value v)
{
    const hd_shape *s = &g->values[v].type.shape;
    if (!strcmp(n->op->name, "contract")) return operand == 1 ? summed_last(n, s) : 0;
    if (strcmp(n->op->name, "gather") || operand != 0 || s->rank < 1 || s->dim[0] == 0) return 0;
    return hd_shape_count(s) / s->dim[0];
}

static bool all_read_blocks(const hd_graph *g, hd_value v, const hd_quant *type)
{
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++) {
            if (g->nodes[i]->in[k] != v) continue;
            int64_t row = row_elements(g, g->nodes[i], k, v);
            if (!row || row % type->block) return false;
        }
    return true;
}

int hd_pass_blocks(hd_graph *g, const hd_quant *(*type_of)(void *arg, const hd_value_info *param), void *arg)
{
    for (size_t v = 0; v < g->n_values; v++) {
        if (g->values[v].kind != HD_PARAM) continue;
        const hd_quant *type = type_of(arg, &g->values[v]);
        if (type && all_read_blocks(g, (hd_value)v, type)) g->values[v].type.blocks = type;
    }
    return g->err.code;
}
