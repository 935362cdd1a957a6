/* speculate.c: guesses at what comes next, by looking up the last tokens earlier in the sequence (Saxena 2023, prompt lookup decoding) or by a draft model
 * (Leviathan et al. 2023). A guess is right when the sampler, with that position's random number, draws the same token (draw.c): output doesn't change, only
 * its speed. */
#include <string.h>
#include "serve/engine_int.h"

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- looking up ---- */

enum { LONGEST = 3, SHORTEST = 2 };

/* Copies what followed the last earlier occurrence of the last tokens behind the sequence. */
static int64_t look_up(hd_seq *s, int64_t most)
{
    for (int64_t m = LONGEST; m >= SHORTEST; m--) {
        const int32_t *tail = s->tokens + s->n_tokens - m;
        for (int64_t i = s->n_tokens - m - 1; i >= 0; i--) {
            if (s->tokens[i] != tail[0] || memcmp(s->tokens + i, tail, (size_t)m * sizeof *tail)) continue;
            for (int64_t k = 0; k < most; k++) s->tokens[s->n_tokens + k] = s->tokens[i + m + k]; /* may run into what it writes: a repetition goes on */
            return most;
        }
    }
    return 0;
}

/* ---- the draft model ---- */

void hd_draft_drop(hd_engine *e, hd_seq *s)
{
    for (int64_t i = s->n_draft_table; i-- > 0;) hd_kv_release(&e->draft_kv, s->draft_table[i]);
    s->n_draft_table = s->draft_computed = 0;
}

void hd_draft_keep(hd_seq *s, int64_t tokens) { s->draft_computed = least(s->draft_computed, tokens); }

/* At most so many proposals: the token drawn after the last right one must have a place too. */
static int64_t wish(const hd_seq *s, int64_t most)
{
    most = least(most, s->w->capacity - s->n_tokens - 1);
    return most > 0 ? most : 0;
}

static bool draft_reserve(hd_engine *e, hd_seq *s, int64_t tokens)
{
    const hd_runner *d = e->o.draft;
    int64_t blocks = (tokens + d->block - 1) / d->block;
    if (tokens > d->max_context || blocks - s->n_draft_table > hd_kv_available(&e->draft_kv)) return false;
    while (s->n_draft_table < blocks) s->draft_table[s->n_draft_table++] = hd_kv_take(&e->draft_kv);
    return true;
}

static int32_t likeliest(const float *logits, int64_t vocab)
{
    int32_t best = 0;
    for (int64_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = (int32_t)i;
    return best;
}

static int64_t draft_tokens(const hd_engine *e, const hd_seq *s) { return wish(s, e->o.draft_tokens); }

/* As many of the sequences' tokens as fit a step of the draft; 0: all have their proposals. */
static int64_t fill_draft(hd_engine *e, int64_t n_seqs)
{
    const hd_runner *d = e->o.draft;
    int64_t n = 0, tokens = 0;
    for (int64_t i = 0; i < n_seqs && n < least(d->max_parts, d->max_rows) && tokens < d->max_tokens; i++) {
        hd_seq *s = e->draft_seqs[i];
        if (s->proposed >= draft_tokens(e, s)) continue;
        int64_t todo = s->n_tokens + s->proposed - s->draft_computed, take = least(todo, d->max_tokens - tokens);
        e->draft_parts[n] = (hd_batch_part){s->tokens + s->draft_computed, take, s->draft_computed, s->draft_table, take == todo};
        e->draft_fed[n++] = s;
        tokens += take;
    }
    return n;
}

static void run_draft(hd_engine *e, int64_t n_seqs)
{
    hd_runner *d = e->o.draft;
    for (int64_t n; (n = fill_draft(e, n_seqs));) {
        hd_batch b = {e->draft_parts, n};
        hd_error err = {0};
        if (hd_runner_step(d, &b, &err)) { /* without proposals all goes on */
            for (int64_t i = 0; i < n_seqs; i++) e->draft_seqs[i]->proposed = 0, hd_draft_drop(e, e->draft_seqs[i]);
            return;
        }
        for (int64_t i = 0, row = 0; i < n; i++) {
            hd_seq *s = e->draft_fed[i];
            s->draft_computed += e->draft_parts[i].n;
            if (e->draft_parts[i].rows) s->tokens[s->n_tokens + s->proposed++] = likeliest(d->logits(d, row++), d->vocab);
        }
    }
}

void hd_propose(hd_engine *e)
{
    int64_t n = 0;
    if (!e->o.ngram && !e->o.draft) return;
    for (hd_work *w = e->running.first; w; w = w->next)
        for (int i = 0; i < w->n_seq; i++) {
            hd_seq *s = &w->seq[i];
            if (w->under_way) continue;
            s->proposed = 0;
            if (!w->goes || w->beams || !hd_seq_decodes(s)) continue;
            int64_t most = wish(s, e->o.ngram);
            if (most) s->proposed = look_up(s, most);
            if (s->proposed || !e->o.draft || n >= e->max_sequences || !draft_tokens(e, s)) continue;
            if (draft_reserve(e, s, s->n_tokens + draft_tokens(e, s))) e->draft_seqs[n++] = s;
            else hd_draft_drop(e, s);
        }
    if (n) run_draft(e, n);
}
