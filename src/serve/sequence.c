/* sequence.c: a sequence's blocks: taking, sharing, copying on write, finding, publishing, releasing. */
#include <assert.h>
#include <string.h>
#include "serve/engine_int.h"

int64_t hd_seq_needs(const hd_engine *e, const hd_seq *s, int64_t upto)
{
    int64_t n = 0;
    for (int64_t i = s->computed / e->r->block; i < hd_blocks_for(e, upto); i++) n += i >= s->n_table || !hd_kv_writable(&e->kv, s->table[i]);
    return n;
}

/* Makes block i of the table one that may be written to. There is a free one if needed. */
static void own_block(hd_engine *e, hd_seq *s, int64_t i)
{
    if (i < s->n_table && hd_kv_writable(&e->kv, s->table[i])) return;
    int32_t b = hd_kv_take(&e->kv);
    assert(b >= 0);
    if (i < s->n_table) {
        int32_t old = s->table[i];
        e->r->copy_block(e->r, old, b);
        hd_kv_fill(&e->kv, b, s->computed - i * e->r->block);
        hd_kv_release(&e->kv, old);
        e->stats.copies++;
    } else {
        s->n_table = i + 1;
    }
    s->table[i] = b;
}

bool hd_seq_reserve(hd_engine *e, hd_seq *s, int64_t upto)
{
    if (hd_seq_needs(e, s, upto) > hd_kv_available(&e->kv)) return false;
    for (int64_t i = s->computed / e->r->block; i < hd_blocks_for(e, upto); i++) own_block(e, s, i);
    return true;
}

bool hd_seq_claim(hd_engine *e, hd_seq *s)
{
    if (e->reserve_blocks - s->n_table > hd_kv_available(&e->kv)) return false;
    while (s->n_table < e->reserve_blocks) s->table[s->n_table++] = hd_kv_take(&e->kv);
    return true;
}

static uint64_t last_serial(const hd_engine *e, const hd_seq *s) { return s->known ? hd_kv_serial(&e->kv, s->table[s->known - 1]) : 0; }

bool hd_seq_may_find(const hd_engine *e, const hd_seq *s)
{
    int64_t block = e->r->block;
    if (!e->o.prefix_cache || e->reserve_blocks || s->computed / block != s->known) return false;
    if (s->w->r.prompt_logprobs && s->w->prompt_scored < s->w->r.n_prompt) return false; /* its logits are wanted */
    return (s->known + 1) * block < s->n_tokens; /* the last token is always computed: its logits are wanted */
}

void hd_seq_match(hd_engine *e, hd_seq *s)
{
    int64_t block = e->r->block;
    while (hd_seq_may_find(e, s)) {
        int32_t b = hd_kv_find(&e->kv, last_serial(e, s), s->w->r.salt, s->tokens + s->known * block);
        if (b < 0) return;
        if (s->known < s->n_table) hd_kv_release(&e->kv, s->table[s->known]); /* of which a part was computed, or nothing yet */
        else s->n_table++;
        s->table[s->known++] = b;
        s->computed = s->known * block;
    }
}

void hd_seq_computed(hd_engine *e, hd_seq *s, int64_t computed)
{
    int64_t block = e->r->block;
    for (int64_t i = s->computed / block; i < hd_blocks_for(e, computed); i++) {
        int64_t rows = computed - i * block;
        hd_kv_fill(&e->kv, s->table[i], rows < block ? rows : block);
    }
    s->computed = computed;
    if (!e->o.prefix_cache || e->reserve_blocks) return;
    for (; (s->known + 1) * block <= computed; s->known++)
        s->table[s->known] = hd_kv_publish(&e->kv, s->table[s->known], last_serial(e, s), s->w->r.salt, s->tokens + s->known * block);
}

void hd_seq_share(hd_engine *e, hd_seq *from, hd_seq *to, int64_t rows)
{
    int64_t blocks = hd_blocks_for(e, rows);
    assert(from->computed >= rows);
    for (int64_t i = 0; i < blocks; i++) {
        if (e->reserve_blocks) {
            e->r->copy_block(e->r, from->table[i], to->table[i]);
            hd_kv_fill(&e->kv, to->table[i], i + 1 < blocks ? e->r->block : rows - i * e->r->block);
        } else {
            hd_kv_retain(&e->kv, from->table[i]);
            to->table[to->n_table++] = from->table[i];
        }
    }
    to->computed = rows;
    to->known = from->known < rows / e->r->block ? from->known : rows / e->r->block;
}

void hd_seq_drop(hd_engine *e, hd_seq *s)
{
    if (!s->w->swapped)
        for (int64_t i = s->n_table; i-- > 0;) hd_kv_release(&e->kv, s->table[i]);
    s->n_table = s->computed = s->known = 0;
    s->proposed = 0;
    hd_draft_drop(e, s);
}

void hd_work_catch_up(hd_engine *e, hd_work *w)
{
    hd_seq *leader = NULL, *behind = NULL;
    for (int i = w->n_seq; i-- > 0;) {
        if (w->seq[i].state == HD_SEQ_LIVE) leader = &w->seq[i];
        if (w->seq[i].state == HD_SEQ_BEHIND) behind = &w->seq[i];
    }
    if (!behind) return;
    if (!leader) { /* the one that went ahead has ended */
        behind->state = HD_SEQ_LIVE;
        return;
    }
    int64_t shared = w->r.n_prompt / e->r->block * e->r->block;
    if (leader->computed < shared) return;
    for (int i = 0; i < w->n_seq; i++) {
        if (w->seq[i].state != HD_SEQ_BEHIND) continue;
        hd_seq_share(e, leader, &w->seq[i], shared);
        w->seq[i].state = HD_SEQ_LIVE;
    }
}

/* ---- checking ---- */

static void count_holds(const hd_work_list *l, int32_t *holds)
{
    for (const hd_work *w = l->first; w; w = w->next)
        for (int i = 0; i < w->n_seq && !w->swapped; i++)
            for (int64_t j = 0; j < w->seq[i].n_table; j++) holds[w->seq[i].table[j]]++;
}

int hd_engine_check(hd_engine *e, hd_error *err)
{
    memset(e->holds, 0, (size_t)e->kv.blocks * sizeof *e->holds);
    count_holds(&e->waiting, e->holds);
    count_holds(&e->running, e->holds);
    int rc = hd_kv_check(&e->kv, e->holds, err);
    int64_t slots = e->free_slots;
    for (const hd_work *w = e->waiting.first; w; w = w->next) {
        slots += w->slots;
        for (int i = 0; i < w->n_seq && !rc && !w->swapped; i++)
            if (w->seq[i].n_table) rc = hd_fail(err, HD_EINVAL, "request %llu waits and holds blocks", (unsigned long long)w->id);
    }
    if (!rc && slots != e->slots) rc = hd_fail(err, HD_EINVAL, "%lld of %lld slots of swap memory are accounted for", (long long)slots, (long long)e->slots);
    return rc;
}
