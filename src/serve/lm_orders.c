#include "serve/lm_orders.h"

#include "train/ranks.h"

enum { HEAD = 5, PART = 4 }; /* numbers before the batch: kind, from, to, parts, numbers of the batch; and of each part: tokens, position, rows, blocks */

int hd_lm_orders_init(hd_lm_orders *o, const hd_rank *rank, const hd_runner *r, hd_error *err)
{
    int64_t table = (r->max_context + r->block - 1) / r->block;
    *o = (hd_lm_orders){.rank = rank, .block = r->block, .most_parts = r->max_parts, .room = r->max_parts * (PART + table) + r->max_tokens};
    o->words = hd_calloc((size_t)o->room, sizeof *o->words);
    o->parts = hd_calloc((size_t)o->most_parts, sizeof *o->parts);
    if (o->words && o->parts) return 0;
    hd_lm_orders_free(o);
    return hd_fail_memory(err, (size_t)o->room * sizeof *o->words, "batches for other processes");
}

void hd_lm_orders_free(hd_lm_orders *o)
{
    hd_free(o->words);
    hd_free(o->parts);
    *o = (hd_lm_orders){0};
}

static int32_t *put(int32_t *at, const int32_t *words, int64_t n)
{
    memcpy(at, words, (size_t)n * sizeof *words);
    return at + n;
}

static hd_batch read_batch(hd_lm_orders *o, int64_t n_parts)
{
    const int32_t *at = o->words;
    for (int64_t i = 0; i < n_parts; i++) {
        o->parts[i] = (hd_batch_part){.tokens = at + PART, .n = at[0], .position = at[1], .rows = at[2], .blocks = at + PART + at[0]};
        at += PART + at[0] + at[3];
    }
    return (hd_batch){o->parts, n_parts};
}

hd_batch hd_lm_orders_keep(hd_lm_orders *o, const hd_batch *b)
{
    int32_t *at = o->words;
    for (int64_t i = 0; i < b->n_parts; i++) {
        const hd_batch_part *p = &b->parts[i];
        int64_t held = (p->position + p->n + o->block - 1) / o->block;
        at = put(at, (int32_t[PART]){(int32_t)p->n, (int32_t)p->position, (int32_t)p->rows, (int32_t)held}, PART);
        at = put(at, p->tokens, p->n);
        at = put(at, p->blocks, held);
    }
    o->n_words = at - o->words;
    return read_batch(o, b->n_parts);
}

int hd_lm_orders_tell(hd_lm_orders *o, const hd_lm_order *order, hd_error *err)
{
    int64_t n = order->kind == HD_LM_ORDER_STEP ? o->n_words : 0;
    int32_t head[HEAD] = {(int32_t)order->kind, order->from, order->to, (int32_t)order->batch.n_parts, (int32_t)n};
    int rc = hd_ranks_tell(o->rank, 0, head, sizeof head, err);
    return rc || !n ? rc : hd_ranks_tell(o->rank, 0, o->words, n * (int64_t)sizeof *o->words, err);
}

int hd_lm_orders_hear(hd_lm_orders *o, hd_lm_order *order, hd_error *err)
{
    int32_t head[HEAD];
    int rc = hd_ranks_tell(o->rank, 0, head, sizeof head, err);
    if (rc) return rc;
    *order = (hd_lm_order){.kind = (hd_lm_order_kind)head[0], .from = head[1], .to = head[2]};
    if (head[3] > o->most_parts || head[4] > o->room) return hd_fail(err, HD_ECOMM, "the first process was started with other settings");
    if (head[4]) rc = hd_ranks_tell(o->rank, 0, o->words, head[4] * (int64_t)sizeof *o->words, err);
    if (!rc) order->batch = read_batch(o, head[3]);
    return rc;
}
