/* group.c: sums that their addends form by themselves, in one buffer.
 *
 * A tree of single-use f32 additions of equal type, and the micro_sum above it, is one sum of many addends. An addend whose op can accumulate and
 * which nothing else reads is computed straight into the sum's buffer; the others are added to it as soon as they exist. So tied embeddings
 * need one buffer for the gradient of both uses, and a step of many micro-batches one accumulator per parameter.
 *
 * Not where a model is served (plan->pack): a product that begins with what it is added to rounds otherwise, and only where a pipeline is cut is there such a sum. */
#include <stdlib.h>

#include "ops/ops.h"
#include "program/lower_int.h"

static const hd_node *producer(const hd_lowering *l, hd_value v)
{
    return l->item_of[v] >= 0 ? l->items[l->item_of[v]].node : NULL;
}

static bool is_plain_add(const hd_lowering *l, const hd_node *n)
{
    if (!n || n->op != &hd_op_add) return false;
    const hd_type *t = &l->g->values[n->out[0]].type;
    return t->dtype == HD_F32 && hd_type_equal(t, &l->g->values[n->in[0]].type) && hd_type_equal(t, &l->g->values[n->in[1]].type);
}

/* Whether only the sum reads v, so that v need not exist by itself. */
static bool is_private(const hd_lowering *l, hd_value v)
{
    return l->uses[v] == 1 && !l->kept[v];
}

/* ---- addends ---- */

static int add_addend(hd_lowering *l, hd_group *group, hd_value v)
{
    if (hd_grow(&group->addends, &group->cap_addends, group->n_addends + 1, sizeof *group->addends))
        return hd_fail_memory(l->err, sizeof(hd_addend), "lowering a graph");
    group->addends[group->n_addends++] = (hd_addend){.value = v, .made = v, .item = l->item_of[v]};
    return 0;
}

static int frequency(const hd_lowering *l, int item)
{
    return hd_lower_frequency(l, l->items[item].segment);
}

/* Splits v into addends: through private additions made as often as the sum, and through micro_sums when `through` says so. */
static int flatten(hd_lowering *l, hd_group *group, hd_value v, bool through)
{
    const hd_node *n = producer(l, v);
    bool open = is_private(l, v) || v == group->root;
    if (open && through && n && hd_is_micro_sum(n)) return flatten(l, group, n->in[0], false);
    bool often = n && (v == group->root || frequency(l, l->item_of[v]) == (group->micro && !through ? 1 : frequency(l, group->item)));
    if (open && often && is_plain_add(l, n)) {
        int rc = flatten(l, group, n->in[0], through);
        return rc ? rc : flatten(l, group, n->in[1], through);
    }
    return add_addend(l, group, v);
}

/* Looks through reshapes that nothing else reads to the value that a kernel writes. */
static void find_maker(const hd_lowering *l, hd_addend *a)
{
    hd_value v = a->value;
    for (const hd_node *n; (n = producer(l, v)) && n->op->is_view && is_private(l, v) && !(hd_is_micro_sum(n) && l->many); v = n->in[0])
        if (hd_type_bytes(&l->g->values[n->in[0]].type) != hd_type_bytes(&l->g->values[v].type)) break;
    a->made = v;
    a->item = l->item_of[v];
}

/* Whether the kernel that makes a may write it into the target, as the first or (accumulate) as any addend. */
static bool can_write(const hd_lowering *l, const hd_group *group, const hd_addend *a, bool accumulate)
{
    if (a->item < 0 || !is_private(l, a->value) || !is_private(l, a->made)) return false;
    const hd_item *item = &l->items[a->item];
    const hd_type *t = &l->g->values[a->made].type, *sum = &l->g->values[group->root].type;
    if (item->dissolved || item->node->op->is_view || is_plain_add(l, item->node) || t->dtype != sum->dtype || t->shape.sym != sum->shape.sym) return false;
    if (hd_lower_frequency(l, item->segment) != (group->micro ? 1 : frequency(l, group->item))) return false;
    if (accumulate && (!item->node->op->can_accumulate || item->node->n_out != 1)) return false;
    return l->group_of_made[a->made] < 0;
}

/* An addend occurs when its producer has run; leaves first. */
typedef struct placed_addend { int position; hd_addend addend; } placed_addend;

static int compare_placed(const void *x, const void *y)
{
    const placed_addend *a = x, *b = y;
    return a->position != b->position ? (a->position < b->position ? -1 : 1) : 0;
}

static int sort_addends(hd_lowering *l, hd_group *group)
{
    placed_addend *sorted = hd_malloc(group->n_addends * sizeof *sorted);
    if (!sorted) return hd_fail_memory(l->err, group->n_addends * sizeof *sorted, "lowering a graph");
    for (size_t i = 0; i < group->n_addends; i++) {
        find_maker(l, &group->addends[i]);
        int item = group->addends[i].item;
        sorted[i] = (placed_addend){item >= 0 ? l->position[item] : -1, group->addends[i]};
    }
    qsort(sorted, group->n_addends, sizeof *sorted, compare_placed);
    for (size_t i = 0; i < group->n_addends; i++) group->addends[i] = sorted[i].addend;
    hd_free(sorted);
    return 0;
}

/* ---- groups ---- */

/* Chooses who writes directly. False: forming this sum in place gains nothing. */
static bool choose_direct(hd_lowering *l, hd_group *group)
{
    size_t first = 0, gained = 0;
    while (first < group->n_addends && !can_write(l, group, &group->addends[first], group->micro)) first++;
    for (size_t i = 0; i < group->n_addends; i++) {
        hd_addend *a = &group->addends[i];
        a->direct = i >= first && can_write(l, group, a, group->micro || i > first);
        gained += a->direct && i > first;
    }
    group->zeroed = group->micro && !(group->n_addends && group->addends[0].direct);
    return group->micro || (gained && first < group->n_addends);
}

/* Every node of the tree down to the addends emits nothing itself. */
static void dissolve(hd_lowering *l, const hd_group *group, hd_value v)
{
    const hd_node *n = producer(l, v);
    for (size_t i = 0; i < group->n_addends; i++)
        if (group->addends[i].value == v && v != group->root) return;
    if (!n) return;
    l->items[l->item_of[v]].dissolved = true;
    for (int k = 0; k < n->n_in; k++) dissolve(l, group, n->in[k]);
}

static int keep_group(hd_lowering *l, hd_group *group)
{
    if (hd_grow(&l->groups, &l->cap_groups, l->n_groups + 1, sizeof *l->groups)) return hd_fail_memory(l->err, sizeof *group, "lowering a graph");
    dissolve(l, group, group->root);
    for (size_t i = 0; i < group->n_addends; i++)
        if (group->addends[i].direct) l->group_of_made[group->addends[i].made] = (int)l->n_groups;
    l->group_of_root[group->root] = (int)l->n_groups;
    l->groups[l->n_groups++] = *group;
    return 0;
}

static int try_group(hd_lowering *l, hd_value root, bool micro)
{
    hd_group group = {.root = root, .item = l->item_of[root], .micro = micro};
    int rc = flatten(l, &group, root, micro);
    if (!rc) rc = sort_addends(l, &group);
    bool keep = !rc && choose_direct(l, &group);
    if (keep) rc = keep_group(l, &group);
    if (rc || !keep) hd_free(group.addends);
    return rc;
}

/* Whether every leaf of the tree of private additions at v is a private micro_sum: then all of it is one accumulator. */
static bool is_sum_of_micro_sums(const hd_lowering *l, hd_value v, bool root)
{
    const hd_node *n = producer(l, v);
    if (!n || (!root && !is_private(l, v))) return false;
    if (hd_is_micro_sum(n)) return !root;
    return is_plain_add(l, n) && is_sum_of_micro_sums(l, n->in[0], false) && is_sum_of_micro_sums(l, n->in[1], false);
}

int hd_lower_groups(hd_lowering *l)
{
    size_t n = l->g->n_values + 1;
    l->group_of_root = hd_arena_alloc(&l->scratch, n * sizeof(int));
    l->group_of_made = hd_arena_alloc(&l->scratch, n * sizeof(int));
    if (!l->group_of_root || !l->group_of_made) return hd_fail_memory(l->err, n * sizeof(int), "lowering a graph");
    for (size_t i = 0; i < n; i++) l->group_of_root[i] = l->group_of_made[i] = -1;
    bool many = l->many;
    for (size_t i = l->n_items; i-- > 0;) {
        const hd_item *item = &l->items[i];
        if (!item->node || item->dissolved || !item->node->n_out) continue;
        hd_value v = item->node->out[0];
        bool micro = many && (hd_is_micro_sum(item->node) || (l->pair_direct[v] < 0 && is_sum_of_micro_sums(l, v, true)));
        int rc = 0;
        if (micro) rc = try_group(l, v, true);
        else if (!l->plan->pack && is_plain_add(l, item->node) && l->pair_direct[v] < 0) rc = try_group(l, v, false);
        if (rc) return rc;
    }
    return 0;
}
