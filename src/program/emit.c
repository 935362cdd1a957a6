/* emit.c: buffers for values and instructions for items, in the order found. */
#include <stdlib.h>

#include "ops/ops.h"
#include "program/lower_int.h"

static int no_memory(hd_lowering *l)
{
    return hd_fail_memory(l->err, sizeof(hd_instr), "lowering a graph");
}

/* ---- buffers ---- */

static int new_buffer(hd_lowering *l, hd_buffer b)
{
    hd_program *p = l->p;
    if (hd_grow(&p->buffers, &l->cap_buffers, (size_t)p->n_buffers + 1, sizeof *p->buffers) || !b.path) return no_memory(l);
    b.copies = 1;
    p->buffers[p->n_buffers] = b;
    return p->n_buffers++;
}

static bool read_only_by_update(const hd_lowering *l, hd_value v)
{
    for (int r = 0; r < l->uses[v]; r++)
        if (l->items[l->readers[v][r]].node->phase != HD_UPDATE) return false;
    return true;
}

static hd_role leaf_role(const hd_lowering *l, hd_value v)
{
    switch (l->g->values[v].kind) {
    case HD_INPUT: return HD_ROLE_INPUT;
    case HD_PARAM: return HD_ROLE_PARAMETER;
    case HD_STATE: return read_only_by_update(l, v) ? HD_ROLE_OPTIMIZER : HD_ROLE_STATE;
    case HD_CONST: return HD_ROLE_CONSTANT;
    case HD_RESULT: break;
    }
    return HD_ROLE_SCRATCH;
}

static hd_buffer_class leaf_class(const hd_lowering *l, hd_value v)
{
    switch (l->g->values[v].kind) {
    case HD_INPUT: return HD_BUFFER_INPUT;
    case HD_PARAM: case HD_STATE: return l->pair_in[v] >= 0 ? HD_BUFFER_STATE : HD_BUFFER_CONSTANT;
    case HD_CONST: return HD_BUFFER_CONSTANT;
    case HD_RESULT: break;
    }
    return HD_BUFFER_SCRATCH;
}

static int copy_layout(hd_lowering *l, const hd_value_info *from, hd_buffer *to)
{
    if (!from->layout) return 0;
    to->whole = from->whole;
    to->layout = hd_arena_copy(&l->p->memory, from->layout, sizeof *from->layout);
    return to->layout ? 0 : no_memory(l);
}

/* The buffer of value v, made when first asked for; negative after an error. What is written straight into a sum's buffer has that buffer. */
static int value_buffer(hd_lowering *l, hd_value v)
{
    if (l->buffer_of[v] >= 0) return l->buffer_of[v];
    const hd_value_info *i = &l->g->values[v];
    hd_buffer b = {.path = hd_arena_strdup(&l->p->memory, i->path), .type = i->type, .class = leaf_class(l, v), .role = leaf_role(l, v),
                   .micro = i->micro, .view_of = -1, .bytes = hd_type_bytes(&i->type)};
    if (copy_layout(l, i, &b)) return l->err->code;
    if (l->group_of_made[v] >= 0) {
        hd_value root = l->groups[l->group_of_made[v]].root;
        int target = value_buffer(l, root);
        if (target < 0) return target;
        if (hd_type_equal(&i->type, &l->g->values[root].type)) return l->buffer_of[v] = target;
        b.view_of = target;
    }
    if (i->kind == HD_CONST) {
        if (hd_layout_axes(i->layout, i->type.shape.rank)) return hd_fail(l->err, HD_EUNSUPPORTED, "%s: a constant is whole on every rank", i->path);
        b.data = hd_arena_copy(&l->p->memory, i->data, (size_t)b.bytes);
        if (!b.data) return no_memory(l);
    }
    return l->buffer_of[v] = new_buffer(l, b);
}

/* ---- instructions ---- */

static int *int_array(hd_lowering *l, int n)
{
    return hd_arena_alloc(&l->p->memory, (size_t)(n ? n : 1) * sizeof(int));
}

static int add_draft(hd_lowering *l, int segment, hd_instr x)
{
    if (hd_grow(&l->drafts, &l->cap_drafts, l->n_drafts + 1, sizeof *l->drafts)) return no_memory(l);
    x.signal = -1;
    l->drafts[l->n_drafts++] = (hd_draft){x, segment, l->late};
    return 0;
}

/* opcode without attributes: ZERO, COPY, VIEW. */
static int emit_plain(hd_lowering *l, int segment, hd_opcode opcode, const char *path, int out, int in)
{
    int *operands = int_array(l, 2);
    if (!operands) return no_memory(l);
    if (out < 0 || (opcode != HD_ZERO && in < 0)) return l->err->code;
    operands[0] = out;
    operands[1] = in;
    hd_instr x = {.opcode = opcode, .path = hd_arena_strdup(&l->p->memory, path), .n_in = opcode != HD_ZERO, .n_out = 1, .in = operands + 1,
                  .out = operands, .workspace = -1};
    return x.path ? add_draft(l, segment, x) : no_memory(l);
}

static void fill_tensors(const hd_lowering *l, const int *buffers, int n, hd_tensor *out)
{
    for (int i = 0; i < n; i++) {
        out[i] = (hd_tensor){0};
        if (buffers[i] < 0) continue;
        out[i] = hd_buffer_tensor(l->p, buffers[i], NULL);
        out[i].data = HD_TENSOR_PRESENT;
    }
}

static hd_kernel_args max_args(const hd_lowering *l, const hd_instr *x, hd_tensor *in, hd_tensor *out)
{
    fill_tensors(l, x->in, x->n_in, in);
    fill_tensors(l, x->out, x->n_out, out);
    return (hd_kernel_args){.in = in, .out = out, .n_in = x->n_in, .n_out = x->n_out, .code = x->op->code,
                            .accumulate = x->accumulate != HD_ACCUMULATE_NEVER, .attrs = x->attrs, .threads = l->p->threads};
}

static int emit_kernel(hd_lowering *l, int segment, hd_instr x)
{
    hd_tensor in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_kernel_args a = max_args(l, &x, in, out);
    _Alignas(16) char attrs[HD_MAX_ATTRS];
    if (x.n_splits) {
        hd_instr_attrs(l->p, &x, 0, attrs);
        a.attrs = attrs;
    }
    size_t bytes = l->target->workspace(l->target, x.op, &a, l->p->threads);
    x.workspace = -1;
    if (bytes > 0) {
        hd_type type = hd_type_of(HD_U8, 1, (int64_t[]){(int64_t)bytes});
        char *path = hd_arena_printf(&l->p->memory, "%s.workspace", x.path);
        x.workspace = new_buffer(l, (hd_buffer){.path = path, .type = type, .class = HD_BUFFER_SCRATCH, .role = HD_ROLE_WORKSPACE, .view_of = -1,
                                                .bytes = (int64_t)bytes});
        if (x.workspace < 0) return x.workspace;
    }
    return add_draft(l, segment, x);
}

/* target = add(target, addend) */
static int emit_add(hd_lowering *l, int segment, const hd_group *group, hd_value addend)
{
    const hd_value_info *root = &l->g->values[group->root];
    hd_ew_attrs attrs = {.dtype = root->type.dtype};
    int *operands = int_array(l, 3);
    hd_instr x = {.op = &hd_op_add, .attrs = hd_arena_copy(&l->p->memory, &attrs, sizeof attrs), .path = hd_arena_strdup(&l->p->memory, root->path),
                  .n_in = 2, .n_out = 1};
    if (!operands || !x.attrs || !x.path) return no_memory(l);
    operands[0] = operands[2] = value_buffer(l, group->root);
    operands[1] = value_buffer(l, addend);
    if (operands[0] < 0 || operands[1] < 0) return l->err->code;
    x.in = operands;
    x.out = operands + 2;
    return emit_kernel(l, segment, x);
}

/* ---- packed constants ---- */

static hd_tensor value_tensor(const hd_lowering *l, hd_value v)
{
    const hd_type *t = &l->g->values[v].type;
    hd_tensor x = {.data = HD_TENSOR_PRESENT, .dtype = t->dtype, .blocks = t->blocks, .rank = t->shape.rank};
    memcpy(x.dim, t->shape.dim, sizeof x.dim);
    return x;
}

/* *out: the buffer of product n's second operand in packed form, if that is a constant of the Store and the back end can take it so; else -1. */
static int packed_operand(hd_lowering *l, const hd_node *n, int *out)
{
    *out = -1;
    if (!l->plan->pack || !l->target->packed_bytes || n->op != &hd_op_contract) return 0;
    hd_value v = n->in[1];
    if (l->g->values[v].kind != HD_PARAM || l->pair_in[v] >= 0) return 0;
    hd_tensor in[2] = {value_tensor(l, n->in[0]), value_tensor(l, v)}, result = value_tensor(l, n->out[0]);
    hd_kernel_args a = {.in = in, .out = &result, .n_in = 2, .n_out = 1, .code = n->op->code, .attrs = n->attrs, .threads = l->p->threads};
    size_t bytes = l->target->packed_bytes(l->target, n->op, &a, 1);
    if (!bytes) return 0;
    /* One form per (parameter, equation): the panels depend on which labels are summed. */
    const hd_contract_attrs *attrs = n->attrs;
    char *path = hd_arena_printf(&l->p->memory, "%s.packed(%s)", l->g->values[v].path, attrs->spec);
    if (!path) return no_memory(l);
    *out = hd_program_find(l->p, path);
    if (*out >= 0) return 0;
    hd_buffer b = {.path = path, .type = l->g->values[v].type, .format = HD_PACKED, .class = HD_BUFFER_CONSTANT, .role = HD_ROLE_PARAMETER, .view_of = -1,
                   .bytes = (int64_t)bytes};
    if (copy_layout(l, &l->g->values[v], &b)) return l->err->code;
    *out = new_buffer(l, b);
    return *out < 0 ? l->err->code : 0;
}

/* ---- items ---- */

static const hd_group *direct_group(const hd_lowering *l, const hd_node *n, hd_accumulate *how)
{
    *how = HD_ACCUMULATE_NEVER;
    for (int k = 0; k < n->n_out; k++) {
        if (l->group_of_made[n->out[k]] < 0) continue;
        const hd_group *group = &l->groups[l->group_of_made[n->out[k]]];
        size_t i = 0, first = 0;
        while (!group->addends[first].direct) first++;
        while (group->addends[i].made != n->out[k] || !group->addends[i].direct) i++;
        if (i != first || group->zeroed) *how = HD_ACCUMULATE_ALWAYS;
        else if (group->micro) *how = HD_ACCUMULATE_LATER;
        return group;
    }
    return NULL;
}

static int fill_operands(hd_lowering *l, const hd_node *n, int *in, int *out)
{
    int packed, rc = packed_operand(l, n, &packed);
    if (rc) return rc;
    for (int k = 0; k < n->n_in; k++) {
        if (k == 1 && packed >= 0) in[k] = packed;
        else in[k] = n->in[k] == HD_NONE ? -1 : value_buffer(l, n->in[k]);
        if (n->in[k] != HD_NONE && in[k] < 0) return l->err->code;
    }
    for (int k = 0; k < n->n_out; k++) {
        hd_value v = n->out[k];
        out[k] = l->uses[v] || l->kept[v] ? value_buffer(l, v) : -1;
        if ((l->uses[v] || l->kept[v]) && out[k] < 0) return l->err->code;
    }
    return 0;
}

static int emit_node(hd_lowering *l, const hd_item *item)
{
    const hd_node *n = item->node;
    hd_arena *memory = &l->p->memory;
    int *in = int_array(l, n->n_in), *out = int_array(l, n->n_out);
    hd_instr x = {.opcode = n->op->is_view ? HD_VIEW : n->op->is_comm ? HD_COMM : HD_KERNEL, .op = n->op, .path = hd_arena_strdup(memory, n->path), .n_in = n->n_in,
                  .n_out = n->n_out, .in = in, .out = out, .workspace = -1};
    if (n->op->attrs_size) x.attrs = hd_arena_copy(memory, n->attrs, n->op->attrs_size);
    if (n->n_splits) x.splits = hd_arena_copy(memory, n->splits, (size_t)n->n_splits * sizeof *n->splits);
    x.n_splits = n->n_splits;
    if (!in || !out || !x.path || (n->op->attrs_size && !x.attrs) || (n->n_splits && !x.splits)) return no_memory(l);
    int rc = fill_operands(l, n, in, out);
    if (rc) return rc;
    if (n->op->is_view) return add_draft(l, item->segment, x);
    const hd_group *group = direct_group(l, n, &x.accumulate);
    int target = group ? l->buffer_of[group->root] : -1;
    bool renamed = group && target != out[0] && n->n_out == 1; /* through a reshape: the contents change their name before and after */
    if (renamed && x.accumulate) rc = emit_plain(l, item->segment, HD_VIEW, n->path, out[0], target);
    if (!rc) rc = n->op->is_comm ? add_draft(l, item->segment, x) : emit_kernel(l, item->segment, x);
    if (!rc && renamed) rc = emit_plain(l, item->segment, HD_VIEW, n->path, target, out[0]);
    return rc;
}

static int emit_copy(hd_lowering *l, const hd_item *item)
{
    const hd_state_pair *pair = &l->g->pairs[item->pair];
    int state = value_buffer(l, pair->in);
    return emit_plain(l, item->segment, HD_COPY, l->g->values[pair->in].path, state, value_buffer(l, pair->out));
}

/* ---- addends that are added by an instruction of their own ---- */

typedef struct attached { int item; const hd_group *group; hd_value value; size_t number; } attached;
typedef struct attachments { attached *list; size_t n, cap; } attachments;

static int last_loop_item(const hd_lowering *l)
{
    int found = -1;
    for (size_t i = 0; i < l->n_items; i++)
        if (hd_lower_frequency(l, l->items[l->order[i]].segment) == 1) found = l->order[i];
    return found;
}

/* Behind which item the addend is added: its producer when that runs as often as the sum is formed and behind the first addend. */
static int attach_point(const hd_lowering *l, const hd_group *group, hd_value v)
{
    int item = l->item_of[v], first = -1;
    for (size_t i = group->n_addends; i-- > 0;)
        if (group->addends[i].direct) first = group->addends[i].item;
    int frequency = group->micro ? 1 : hd_lower_frequency(l, l->items[group->item].segment);
    bool often = item >= 0 && hd_lower_frequency(l, l->items[item].segment) == frequency;
    if (often && (group->zeroed || l->position[item] > l->position[first])) return item;
    return first >= 0 ? first : last_loop_item(l);
}

static int compare_attached(const void *x, const void *y)
{
    const attached *a = x, *b = y;
    if (a->item != b->item) return a->item - b->item;
    return (a->number > b->number) - (a->number < b->number);
}

static int collect_attached(hd_lowering *l, attachments *all)
{
    for (size_t i = 0; i < l->n_groups; i++) {
        const hd_group *group = &l->groups[i];
        for (size_t k = 0; k < group->n_addends; k++) {
            if (group->addends[k].direct) continue;
            if (hd_grow(&all->list, &all->cap, all->n + 1, sizeof *all->list)) return no_memory(l);
            hd_value v = group->addends[k].value;
            all->list[all->n] = (attached){attach_point(l, group, v), group, v, all->n};
            all->n++;
        }
    }
    if (all->n) qsort(all->list, all->n, sizeof *all->list, compare_attached);
    return 0;
}

static int emit_attached(hd_lowering *l, const attachments *all, int item)
{
    size_t low = 0, high = all->n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (all->list[middle].item < item) low = middle + 1;
        else high = middle;
    }
    for (; low < all->n && all->list[low].item == item; low++) {
        int rc = emit_add(l, l->items[item].segment, all->list[low].group, all->list[low].value);
        if (rc) return rc;
    }
    return 0;
}

/* ---- all of it ---- */

static int emit_zeros(hd_lowering *l)
{
    for (size_t i = 0; i < l->n_groups; i++) {
        hd_value root = l->groups[i].root;
        if (!l->groups[i].zeroed) continue;
        int rc = emit_plain(l, HD_SEGMENT_PREPARE, HD_ZERO, l->g->values[root].path, value_buffer(l, root), -1);
        if (rc) return rc;
    }
    return 0;
}

/* Leaves first, in the graph's order; inputs even when nothing reads them, since the caller may fill them. Parameters that may be wanted only in
 * packed form wait until an instruction asks for them. */
static int make_leaves(hd_lowering *l)
{
    const hd_graph *g = l->g;
    for (size_t v = 0; v < g->n_values; v++) {
        hd_kind kind = g->values[v].kind;
        if (kind == HD_PARAM && l->plan->pack && l->pair_in[v] < 0) continue;
        bool wanted = kind == HD_INPUT || (kind != HD_RESULT && (l->uses[v] || l->kept[v] || l->pair_in[v] >= 0));
        if (wanted && value_buffer(l, (hd_value)v) < 0) return l->err->code;
    }
    return 0;
}

static int emit_items(hd_lowering *l, const attachments *all)
{
    int rc = 0;
    for (size_t i = 0; i < l->n_items && !rc; i++) {
        int item = l->order[i];
        const hd_item *x = &l->items[item];
        l->late = !x->node || x->node->phase == HD_UPDATE;
        if (!x->node) rc = emit_copy(l, x);
        else if (!x->dissolved) rc = emit_node(l, x);
        if (!rc) rc = emit_attached(l, all, item);
    }
    return rc;
}

int hd_lower_emit(hd_lowering *l)
{
    size_t n = l->g->n_values + 1;
    attachments all = {0};
    l->buffer_of = hd_arena_alloc(&l->scratch, n * sizeof(int));
    if (!l->buffer_of) return no_memory(l);
    for (size_t i = 0; i < n; i++) l->buffer_of[i] = -1;
    int rc = collect_attached(l, &all);
    if (!rc) rc = make_leaves(l);
    if (!rc) rc = emit_zeros(l);
    if (!rc) rc = emit_items(l, &all);
    for (size_t i = 0; i < l->g->n_outputs && !rc; i++)
        if (value_buffer(l, l->g->outputs[i].value) < 0) rc = l->err->code;
    hd_free(all.list);
    return rc;
}
