/* precision.c: f32 products over narrower operands, with f32 master parameters (Micikevicius et al. 2018).
 *
 * Only operands of contractions are narrowed: there the arithmetic is. Results, sums, norms and losses stay f32. A parameter's cast is a value of
 * the step, made once for all micro-batches; its gradient comes back in f32. */
#include "graph/op.h"
#include "passes/passes.h"

static bool is_f32_product(const hd_graph *g, const hd_node *n)
{
    return !strcmp(n->op->name, "contract") && hd_type_in(g, n->in[0])->dtype == HD_F32 && hd_type_in(g, n->in[1])->dtype == HD_F32;
}

int hd_pass_precision(hd_graph *g, hd_dtype dtype)
{
    if (g->err.code || dtype == HD_F32) return g->err.code;
    size_t n_nodes = g->n_nodes;
    for (size_t i = 0; i < n_nodes && !g->err.code; i++) {
        hd_node *n = g->nodes[i];
        if (!is_f32_product(g, n)) continue;
        for (int k = 0; k < 2; k++) {
            const char *scope = g->scope;
            g->scope = g->values[n->in[k]].path;
            hd_value narrow = hd_cast(g, hd_dtype_name(dtype), n->in[k], dtype);
            g->scope = scope;
            if (narrow != HD_NONE) n->in[k] = narrow;
        }
    }
    if (hd_graph_sort(g)) return g->err.code;
    return hd_graph_cse(g);
}
