/* request.c: a request checked, copied and given all the memory that it will need but for what the sampler and the text take. */
#include <string.h>
#include "serve/engine_int.h"

hd_request hd_request_default(void)
{
    return (hd_request){.sampling = hd_sampling_default(), .n = 1, .length_penalty = 1, .max_tokens = 256, .logprobs = -1, .skip_special = true};
}

/* ---- checking ---- */

static int check_prompt(const hd_engine *e, const hd_request *r, hd_error *err)
{
    if (!r->prompt || r->n_prompt < 1) return hd_fail(err, HD_EINVAL, "the prompt is empty");
    int64_t most = e->r->max_context;
    if (r->n_prompt > most) return hd_fail(err, HD_EINVAL, "the prompt has %lld tokens, the context %lld", (long long)r->n_prompt, (long long)most);
    if (r->n_prompt == most && !r->embed && r->max_tokens > 0)
        return hd_fail(err, HD_EINVAL, "the prompt of %lld tokens leaves no place in the context for an answer", (long long)most);
    for (int64_t i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= e->r->vocab)
            return hd_fail(err, HD_EINVAL, "token %d is not in the vocabulary of %lld", r->prompt[i], (long long)e->r->vocab);
    return 0;
}

static int check_choices(const hd_engine *e, const hd_request *r, hd_error *err)
{
    if (r->n < 1) return hd_fail(err, HD_EINVAL, "n must be at least 1, not %d", r->n);
    if (r->best_of && r->best_of < r->n) return hd_fail(err, HD_EINVAL, "best_of (%d) must be at least n (%d)", r->best_of, r->n);
    if (r->beams < 0 || (r->beams && r->beams < r->n)) return hd_fail(err, HD_EINVAL, "%d beams can't give %d answers", r->beams, r->n);
    if (r->beams && r->best_of && r->best_of != r->beams) return hd_fail(err, HD_EINVAL, "beam search has no best_of of its own");
    if (r->beams && (r->constraint || r->n_stop)) return hd_fail(err, HD_EUNSUPPORTED, "beam search knows neither stop strings nor constraints");
    if (r->beams && e->reserve_blocks) return hd_fail(err, HD_EUNSUPPORTED, "beam search needs paged K/V memory");
    if (r->beams && r->beams > e->r->vocab / 2) return hd_fail(err, HD_EINVAL, "%d beams are too many for the vocabulary", r->beams);
    int most = r->beams ? r->beams : r->best_of ? r->best_of : r->n;
    if (most > e->max_sequences) return hd_fail(err, HD_EINVAL, "%d sequences are more than the %lld that run at once", most, (long long)e->max_sequences);
    if (r->embed && (r->n > 1 || most > 1)) return hd_fail(err, HD_EINVAL, "an embedding has one result");
    return 0;
}

static int check_output(const hd_engine *e, const hd_request *r, hd_error *err)
{
    if (r->max_tokens < 0 || r->min_tokens < 0) return hd_fail(err, HD_EINVAL, "max_tokens and min_tokens must not be negative");
    if (r->min_tokens > r->max_tokens)
        return hd_fail(err, HD_EINVAL, "min_tokens (%lld) is above max_tokens (%lld)", (long long)r->min_tokens, (long long)r->max_tokens);
    if (r->logprobs < -1 || r->logprobs > HD_MOST_LOGPROBS) return hd_fail(err, HD_EINVAL, "logprobs must be at most %d", HD_MOST_LOGPROBS);
    if (!(r->length_penalty >= -10 && r->length_penalty <= 10)) return hd_fail(err, HD_EINVAL, "the length penalty must be from -10 to 10");
    if (r->n_stop < 0 || r->n_stop_tokens < 0 || r->n_eos < 0) return hd_fail(err, HD_EINVAL, "negative counts");
    if (!e->t && (r->n_stop || r->constraint)) return hd_fail(err, HD_EINVAL, "stop strings and constraints need a tokenizer");
    for (int i = 0; i < r->n_stop; i++)
        if (!r->stop[i] || !r->stop[i][0]) return hd_fail(err, HD_EINVAL, "a stop string is empty");
    return hd_sampling_check(&r->sampling, e->r->vocab, err);
}

/* The most blocks that it holds at once: the prompt's full blocks are shared, all else may come to differ. */
static int check_room(const hd_engine *e, const hd_work *w, hd_error *err)
{
    int64_t shared = w->n_seq > 1 ? w->r.n_prompt / e->r->block : 0;
    int64_t most = e->reserve_blocks ? w->n_seq * e->reserve_blocks : shared + w->n_seq * (hd_blocks_for(e, w->capacity) - shared);
    if (most <= e->kv.blocks) return 0;
    return hd_fail(err, HD_EINVAL, "it could take %lld K/V blocks of %lld tokens, there are %lld: ask for fewer tokens or answers", (long long)most,
                   (long long)e->r->block, (long long)e->kv.blocks);
}

/* ---- copying ---- */

static int copy_arrays(hd_work *w, hd_error *err)
{
    hd_request *r = &w->r;
    hd_arena *a = &w->arena;
    char **stop = hd_arena_alloc(a, (size_t)r->n_stop * sizeof *stop);
    r->prompt = hd_arena_copy(a, r->prompt, (size_t)r->n_prompt * sizeof *r->prompt);
    r->stop_tokens = hd_arena_copy(a, r->stop_tokens, (size_t)r->n_stop_tokens * sizeof *r->stop_tokens);
    r->eos = hd_arena_copy(a, r->eos, (size_t)r->n_eos * sizeof *r->eos);
    r->sampling.bias = hd_arena_copy(a, r->sampling.bias, (size_t)r->sampling.n_bias * sizeof *r->sampling.bias);
    bool ok = stop && r->prompt && r->stop_tokens && r->eos && r->sampling.bias;
    for (int i = 0; i < r->n_stop && ok; i++) ok = (stop[i] = hd_arena_strdup(a, r->stop[i])) != NULL;
    r->stop = (const char *const *)stop;
    return ok ? 0 : hd_fail_memory(err, (size_t)r->n_prompt * sizeof *r->prompt, "a request");
}

static int make_seq(hd_engine *e, hd_work *w, hd_seq *s, hd_error *err)
{
    hd_arena *a = &w->arena;
    size_t limit = (size_t)w->limit, k = (size_t)w->top_n;
    int64_t blocks = hd_blocks_for(e, w->capacity), draft_block = e->o.draft ? e->o.draft->block : 1;
    if (blocks < e->reserve_blocks) blocks = e->reserve_blocks;
    *s = (hd_seq){.w = w, .n_tokens = w->r.n_prompt, .row = -1};
    s->tokens = hd_arena_alloc(a, (size_t)w->capacity * sizeof *s->tokens);
    s->table = hd_arena_alloc(a, (size_t)blocks * sizeof *s->table);
    s->draft_table = hd_arena_alloc(a, e->o.draft ? (size_t)((w->capacity + draft_block - 1) / draft_block) * sizeof *s->draft_table : 0);
    s->logprobs = w->r.logprobs >= 0 ? hd_arena_alloc(a, limit * sizeof *s->logprobs) : NULL;
    s->top = k ? hd_arena_alloc(a, limit * k * sizeof *s->top) : NULL;
    hd_outlet_init(&s->outlet, w->r.stop, w->r.n_stop);
    if (!s->tokens || !s->table || !s->draft_table || (w->r.logprobs >= 0 && !s->logprobs) || (k && !s->top))
        return hd_fail_memory(err, (size_t)w->capacity * sizeof *s->tokens, "a sequence");
    memcpy(s->tokens, w->r.prompt, (size_t)w->r.n_prompt * sizeof *s->tokens);
    return 0;
}

static int make_parts(hd_engine *e, hd_work *w, hd_error *err)
{
    const hd_request *r = &w->r;
    size_t n = (size_t)r->n_prompt, k = (size_t)w->top_n;
    int rc = copy_arrays(w, err);
    if (!rc && !(w->seq = hd_arena_alloc(&w->arena, (size_t)w->n_seq * sizeof *w->seq))) rc = hd_fail_memory(err, sizeof *w->seq, "a request");
    for (int i = 0; i < w->n_seq && !rc; i++) rc = make_seq(e, w, &w->seq[i], err);
    if (!rc && r->prompt_logprobs) {
        w->prompt_logprobs = hd_arena_alloc(&w->arena, n * sizeof *w->prompt_logprobs);
        w->prompt_top = k ? hd_arena_alloc(&w->arena, n * k * sizeof *w->prompt_top) : NULL;
        if (!w->prompt_logprobs || (k && !w->prompt_top)) rc = hd_fail_memory(err, n * k * sizeof *w->prompt_top, "logprobs of the prompt");
    }
    if (!rc && r->beams) rc = hd_beams_new(w, e->r->vocab, err);
    if (!rc) w->seq[0].state = HD_SEQ_LIVE;
    return rc;
}

static void set_sizes(const hd_engine *e, hd_work *w)
{
    hd_request *r = &w->r;
    int64_t room = e->r->max_context - r->n_prompt;
    w->limit = r->embed ? 0 : r->max_tokens < room ? r->max_tokens : room;
    w->capacity = r->n_prompt + w->limit;
    w->n_seq = r->beams ? r->beams : r->best_of ? r->best_of : r->n;
    w->ranked = r->beams || w->n_seq > r->n;
    w->open = r->n;
    w->top_n = r->logprobs < 0 ? 0 : r->logprobs < e->r->vocab ? r->logprobs : (int)e->r->vocab;
}

hd_work *hd_work_new(hd_engine *e, const hd_request *r, hd_error *err)
{
    hd_error own = {0};
    if (!r->event) return hd_fail(err, HD_EINVAL, "a request without a callback"), NULL;
    int rc = check_prompt(e, r, &own);
    if (!rc) rc = check_choices(e, r, &own);
    if (!rc) rc = check_output(e, r, &own);
    hd_work *w = rc ? NULL : hd_calloc(1, sizeof *w);
    if (!rc && !w) rc = hd_fail_memory(&own, sizeof *w, "a request");
    if (!rc) {
        w->r = *r;
        w->r.constraint = NULL;
        set_sizes(e, w);
        rc = check_room(e, w, &own);
    }
    if (!rc) rc = make_parts(e, w, &own);
    if (!rc) {
        if (r->constraint) w->r.constraint = hd_constraint_retain(r->constraint);
        return w;
    }
    hd_work_free(w);
    hd_fail(err, rc, "%s", own.message);
    return NULL;
}

void hd_work_free(hd_work *w)
{
    if (!w) return;
    for (int i = 0; w->seq && i < w->n_seq; i++) {
        hd_seq *s = &w->seq[i];
        hd_token_sampler_free(s->sampler);
        if (s->constraint) hd_constraint_end(s->constraint);
        if (s->outlet.held.data) hd_outlet_free(&s->outlet);
    }
    if (w->r.constraint) hd_constraint_release(w->r.constraint);
    hd_arena_free(&w->arena);
    hd_free(w);
}

int hd_work_begin(hd_engine *e, hd_work *w, hd_error *err)
{
    if (w->r.beams || w->r.embed) return 0;
    for (int i = 0; i < w->n_seq; i++) {
        hd_seq *s = &w->seq[i];
        if (s->sampler) continue;
        hd_sampling o = w->r.sampling;
        if (i) o.seed = hd_hash_mix(o.seed, (uint64_t)i);
        s->sampler = hd_token_sampler_new(&o, e->r->vocab, err);
        if (!s->sampler) return err->code;
        for (int64_t j = 0; j < w->r.n_prompt; j++) hd_token_sampler_see(s->sampler, w->r.prompt[j], false);
        if (w->r.constraint && !(s->constraint = hd_constraint_begin(w->r.constraint, err))) return err->code;
    }
    return 0;
}
