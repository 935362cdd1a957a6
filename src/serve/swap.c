/* swap.c: blocks of preempted requests in host memory. A block that several sequences of a request share is saved once, and shared again. */
#include "serve/engine_int.h"

static int64_t used_blocks(const hd_engine *e, const hd_seq *s) { return hd_blocks_for(e, s->computed); }

/* Numbers the request's different blocks in e->mark; returns how many. */
static int64_t number_blocks(hd_engine *e, hd_work *w)
{
    int64_t n = 0;
    for (int i = 0; i < w->n_seq; i++)
        for (int64_t j = 0; j < used_blocks(e, &w->seq[i]); j++) {
            int32_t *mark = &e->mark[w->seq[i].table[j]];
            if (*mark < 0) *mark = (int32_t)n++;
        }
    return n;
}

static void clear_marks(hd_engine *e, hd_work *w)
{
    for (int i = 0; i < w->n_seq; i++)
        for (int64_t j = 0; j < used_blocks(e, &w->seq[i]); j++) e->mark[w->seq[i].table[j]] = -1;
}

bool hd_swap_out(hd_engine *e, hd_work *w)
{
    int64_t n = number_blocks(e, w);
    bool fits = n > 0 && n <= e->free_slots;
    clear_marks(e, w);
    if (!fits) return false;
    for (int i = 0; i < w->n_seq; i++)
        for (int64_t j = 0; j < used_blocks(e, &w->seq[i]); j++) {
            int32_t b = w->seq[i].table[j];
            if (e->mark[b] >= 0) continue;
            e->mark[b] = e->free_slot[--e->free_slots];
            e->r->save_block(e->r, b, e->swap + e->mark[b] * e->r->block_bytes);
        }
    for (int i = 0; i < w->n_seq; i++) {
        hd_seq *s = &w->seq[i];
        int64_t used = used_blocks(e, s);
        while (s->n_table > used) hd_kv_release(&e->kv, s->table[--s->n_table]);
        for (int64_t j = used; j-- > 0;) hd_kv_release(&e->kv, s->table[j]);
        hd_draft_drop(e, s);
        s->known = s->proposed = 0;
    }
    for (int i = 0; i < w->n_seq; i++)
        for (int64_t j = 0; j < w->seq[i].n_table; j++) w->seq[i].table[j] = e->mark[w->seq[i].table[j]];
    for (int64_t b = 0; b < e->kv.blocks; b++) e->mark[b] = -1;
    w->slots = n;
    w->swapped = true;
    e->stats.swaps_out++;
    return true;
}

bool hd_swap_in(hd_engine *e, hd_work *w)
{
    if (w->slots > hd_kv_available(&e->kv)) return false;
    for (int i = 0; i < w->n_seq; i++) {
        hd_seq *s = &w->seq[i];
        for (int64_t j = 0; j < s->n_table; j++) {
            int32_t slot = s->table[j], *mark = &e->mark[slot];
            int64_t rows = s->computed - j * e->r->block;
            if (*mark < 0) {
                *mark = hd_kv_take(&e->kv);
                e->r->restore_block(e->r, *mark, e->swap + slot * e->r->block_bytes);
                hd_kv_fill(&e->kv, *mark, rows < e->r->block ? rows : e->r->block);
                e->free_slot[e->free_slots++] = slot;
            } else {
                hd_kv_retain(&e->kv, *mark);
            }
            s->table[j] = *mark;
        }
    }
    for (int64_t i = 0; i < e->slots; i++) e->mark[i] = -1;
    w->slots = 0;
    w->swapped = false;
    e->stats.swaps_in++;
    return true;
}

void hd_swap_drop(hd_engine *e, hd_work *w)
{
    for (int i = 0; i < w->n_seq && w->swapped; i++)
        for (int64_t j = 0; j < w->seq[i].n_table; j++) {
            int32_t slot = w->seq[i].table[j];
            if (e->mark[slot] < 0) e->mark[slot] = 0, e->free_slot[e->free_slots++] = slot;
        }
    for (int64_t i = 0; i < e->slots; i++) e->mark[i] = -1;
    for (int i = 0; i < w->n_seq && w->swapped; i++) w->seq[i].n_table = w->seq[i].computed = w->seq[i].known = 0;
    w->slots = 0;
    w->swapped = false;
}
