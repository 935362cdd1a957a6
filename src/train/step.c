#include "train/step.h"

#include <stdio.h>

typedef struct step_builder {
    hd_graph *g;
    const hd_step_options *o;
    hd_value *param, *grad; /* [n] trainable parameters and their gradients, HD_NONE where the loss doesn't depend on one */
    int n;
    hd_value lr, step, scale, ok; /* f32 scalars */
} step_builder;

static int collect(step_builder *b)
{
    hd_graph *g = b->g;
    b->param = hd_arena_alloc(&g->arena, g->n_values * sizeof *b->param);
    b->grad = hd_arena_alloc(&g->arena, g->n_values * sizeof *b->grad);
    if (!b->param || !b->grad) return hd_fail_memory(&g->err, g->n_values, "the training step");
    for (size_t v = 0; v < g->n_values; v++)
        if (g->values[v].kind == HD_PARAM && g->values[v].trainable) b->param[b->n++] = (hd_value)v;
    hd_value loss = hd_graph_find_output(g, "loss");
    if (loss == HD_NONE) hd_graph_fail(g, HD_EINVAL, "a graph to train needs an output \"loss\"");
    else if (b->n == 0) hd_graph_fail(g, HD_EINVAL, "there is no parameter to train");
    else hd_graph_backward(g, loss, b->param, b->n, b->grad);
    return g->err.code;
}

static hd_value ew(step_builder *b, const char *name, hd_ew op, hd_value x, double imm)
{
    return hd_elementwise(b->g, name, op, x, HD_NONE, HD_NONE, imm);
}

/* The square root of the sum of all squares, each element of each parameter counted once. */
static hd_value global_norm(step_builder *b)
{
    hd_value sum = HD_NONE;
    for (int i = 0; i < b->n; i++)
        if (b->grad[i] != HD_NONE) sum = hd_add(b->g, sum, hd_graph_node(b->g, "sum_squares", NULL, NULL, &b->grad[i], 1));
    return ew(b, "grad_norm", HD_EW_SQRT, sum, 0);
}

static void build_guards(step_builder *b)
{
    hd_graph *g = b->g;
    hd_value loss = hd_graph_find_output(g, "loss");
    hd_value total = g->values[loss].micro == HD_TIME_REPLICATE ? loss : hd_graph_node(g, "micro_sum", "loss_of_step", NULL, &loss, 1);
    b->ok = ew(b, "loss_finite", HD_EW_ISFINITE, total, 0);
    b->scale = hd_graph_scalar(g, 1, HD_F32);
    if (b->o->clip > 0) {
        hd_value norm = global_norm(b);
        hd_value margin = ew(b, NULL, HD_EW_OFFSET, norm, 1e-6);
        b->scale = ew(b, "clip_scale", HD_EW_MINI, ew(b, NULL, HD_EW_SCALE, ew(b, NULL, HD_EW_RECIP, margin, 0), b->o->clip), 1);
        b->ok = hd_mul(g, b->ok, ew(b, "norm_finite", HD_EW_ISFINITE, norm, 0));
        hd_graph_output(g, "grad_norm", norm);
    }
    for (size_t i = 0; i < g->n_outputs; i++)
        if (g->outputs[i].value == loss) g->outputs[i].value = total;
    hd_graph_output(g, "ok", b->ok);
}

static hd_value state_like(step_builder *b, const char *prefix, hd_value param)
{
    hd_graph *g = b->g;
    char name[300];
    snprintf(name, sizeof name, "%s.%s", prefix, g->values[param].path);
    const char *scope = g->scope;
    g->scope = "";
    hd_type t = g->values[param].type;
    t.dtype = HD_F32;
    hd_value v = hd_graph_state(g, name, t, (hd_init){HD_INIT_CONSTANT, 0});
    g->scope = scope;
    return v;
}

static void update_adamw(step_builder *b, hd_value p, hd_value grad, const hd_optimizer_attrs *at)
{
    hd_graph *g = b->g;
    hd_value m = state_like(b, "exp_avg", p), v = state_like(b, "exp_avg_sq", p);
    hd_value in[] = {p, m, v, grad, b->lr, b->step, b->scale, b->ok};
    hd_value out = hd_graph_node(g, "adamw", g->err.code ? NULL : g->values[p].path, at, in, 8);
    hd_graph_pair(g, p, out);
    hd_graph_pair(g, m, hd_graph_result(g, out, 1));
    hd_graph_pair(g, v, hd_graph_result(g, out, 2));
}

static void update_sgd(step_builder *b, hd_value p, hd_value grad, const hd_optimizer_attrs *at)
{
    hd_graph *g = b->g;
    hd_value m = at->momentum != 0 ? state_like(b, "momentum", p) : HD_NONE;
    hd_value in[] = {p, m, grad, b->lr, b->scale, b->ok};
    hd_value out = hd_graph_node(g, "sgd", g->err.code ? NULL : g->values[p].path, at, in, 6);
    hd_graph_pair(g, p, out);
    if (m != HD_NONE) hd_graph_pair(g, m, hd_graph_result(g, out, 1));
}

static void update_parameters(step_builder *b)
{
    hd_graph *g = b->g;
    const hd_step_options *o = b->o;
    for (int i = 0; i < b->n && !g->err.code; i++) {
        if (b->grad[i] == HD_NONE) continue;
        hd_optimizer_attrs at = {.beta1 = o->beta1, .beta2 = o->beta2, .eps = o->eps, .momentum = o->momentum, .nesterov = o->nesterov};
        at.weight_decay = g->values[b->param[i]].decay ? o->weight_decay : 0;
        g->scope = "";
        hd_value grad = hd_cast(g, NULL, b->grad[i], HD_F32);
        g->scope = "update";
        (o->optimizer == HD_ADAMW ? update_adamw : update_sgd)(b, b->param[i], grad, &at);
    }
}

int hd_step_append(hd_graph *g, const hd_step_options *o)
{
    step_builder b = {.g = g, .o = o};
    if (g->err.code || collect(&b)) return g->err.code;
    const char *scope = g->scope;
    g->scope = "";
    g->phase = HD_UPDATE;
    b.lr = hd_graph_input(g, "lr", hd_type_scalar(HD_F32), HD_TIME_REPLICATE);
    b.step = hd_graph_input(g, "step", hd_type_scalar(HD_F32), HD_TIME_REPLICATE);
    build_guards(&b);
    update_parameters(&b);
    g->phase = HD_FORWARD;
    g->scope = scope;
    if (hd_graph_cse(g)) return g->err.code;
    return hd_graph_dce(g);
}

int hd_step_append_gradients(hd_graph *g)
{
    step_builder b = {.g = g};
    if (g->err.code || collect(&b)) return g->err.code;
    for (int i = 0; i < b.n; i++) {
        char name[300];
        snprintf(name, sizeof name, "grad.%s", g->values[b.param[i]].path);
        if (b.grad[i] != HD_NONE) hd_graph_output(g, name, b.grad[i]);
    }
    if (hd_graph_cse(g)) return g->err.code;
    return hd_graph_dce(g);
}
