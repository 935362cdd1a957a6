/* submit.c: a prepared call in the engine: its prompts as requests, their events copied to the loop and taken into choices, streamed or kept. */
#include <stdio.h>
#include <string.h>
#include "base/term.h"
#include "serve/server_int.h"

enum { WINDOW = 32 }; /* prompts of one call that are in the engine at once */

/* ---- on the engine's thread: an event is copied and sent to the loop ---- */

typedef struct piece { const void **at; size_t bytes; } piece;

static size_t rounded(size_t n) { return (n + 15) & ~(size_t)15; }

/* One allocation with all that the event points to. NULL: no memory. */
static hd_message *copy_event(hd_sub *s, const hd_engine_event *e)
{
    hd_engine_event copy = *e;
    size_t n = (size_t)e->n_tokens, prompt = (size_t)e->prompt_tokens, pair = sizeof(hd_token_logprob), total = rounded(sizeof(hd_message));
    const piece pieces[] = {
        {(const void **)&copy.tokens, n * sizeof *e->tokens}, {(const void **)&copy.text, e->text_bytes}, {(const void **)&copy.logprobs, n * pair},
        {(const void **)&copy.top, n * (size_t)e->top_n * pair}, {(const void **)&copy.prompt_logprobs, prompt * pair},
        {(const void **)&copy.prompt_top, prompt * (size_t)e->top_n * pair}, {(const void **)&copy.error, e->error ? strlen(e->error) + 1 : 0},
        {(const void **)&copy.hidden, (size_t)e->width * sizeof(float)},
    };
    size_t count = sizeof pieces / sizeof pieces[0];
    for (size_t i = 0; i < count; i++)
        if (*pieces[i].at) total += rounded(pieces[i].bytes);
    hd_message *m = hd_malloc(total);
    if (!m) return NULL;
    char *at = (char *)m + rounded(sizeof *m);
    for (size_t i = 0; i < count; i++) {
        if (!*pieces[i].at) continue;
        if (pieces[i].bytes) memcpy(at, *pieces[i].at, pieces[i].bytes);
        *pieces[i].at = at;
        at += rounded(pieces[i].bytes);
    }
    *m = (hd_message){.call = s->call, .sub = s, .owned = true, .event = copy};
    return m;
}

static void on_engine_event(void *arg, const hd_engine_event *e)
{
    hd_sub *s = arg;
    hd_message *m = copy_event(s, e);
    if (!m && e->last) { /* the sub's own message, which always is there */
        m = &s->last;
        *m = (hd_message){.call = s->call, .sub = s, .event = {.request = e->request, .finish = HD_FINISH_ERROR, .last = true, .error = "out of memory"}};
    } else if (!m) atomic_store(&s->lost, true);
    if (m) hd_server_post(s->call->server, m);
}

/* ---- submitting ---- */

static hd_request make_request(const hd_call *c, hd_sub *s)
{
    const hd_params *p = &c->params;
    const hd_served *model = c->server->model;
    const hd_prompt *prompt = &c->prompts[s->index];
    hd_request r = hd_request_default();
    r.prompt = prompt->ids, r.n_prompt = prompt->n;
    r.sampling = p->sampling;
    if (c->n_prompts > 1) r.sampling.seed = hd_hash_mix(p->sampling.seed, (uint64_t)s->index);
    r.n = (int)p->n;
    r.best_of = p->beams ? 0 : (int)p->best_of;
    r.beams = p->beams ? (int)(p->best_of > p->n ? p->best_of : p->n) : 0;
    r.length_penalty = p->length_penalty;
    r.max_tokens = p->max_tokens, r.min_tokens = p->min_tokens;
    r.stop = p->stop, r.n_stop = p->n_stop;
    r.stop_tokens = p->stop_tokens, r.n_stop_tokens = p->n_stop_tokens;
    r.eos = model->eos, r.n_eos = model->n_eos;
    r.ignore_eos = p->ignore_eos;
    r.logprobs = -1;
    if (p->want_logprobs) r.logprobs = p->top_logprobs > 0 ? (int)p->top_logprobs : 0;
    if (p->prompt_logprobs >= 0 && p->prompt_logprobs > r.logprobs) r.logprobs = (int)p->prompt_logprobs;
    r.prompt_logprobs = p->prompt_logprobs >= 0 || (p->echo && p->want_logprobs);
    r.embed = c->vectors != NULL;
    r.skip_special = p->skip_special;
    r.priority = (int)p->priority;
    r.salt = p->salt;
    r.deadline = c->began + c->server->options.request_seconds;
    r.constraint = c->constraint;
    r.event = on_engine_event, r.arg = s;
    return r;
}

static bool is_full(const hd_server *s)
{
    hd_engine_stats st;
    hd_engine_stats_read(s->model->engine, &st);
    return st.waiting >= s->options.max_queued;
}

/* Submits the next prompts, as many as the window takes. HD_EMEMCAP: the engine is full and nothing of this call runs. */
static int submit_more(hd_call *c, hd_error *err)
{
    while (c->n_submitted < c->n_prompts && c->n_live < WINDOW && !c->failed) {
        hd_sub *s = &c->subs[c->n_submitted];
        hd_request r = make_request(c, s);
        hd_error local = {0};
        int rc = is_full(c->server) ? hd_fail(&local, HD_EMEMCAP, "too many requests are waiting") : hd_engine_submit(c->server->model->engine, &r, &s->id,
            &local);
        if (rc == HD_EMEMCAP && c->n_live) return 0; /* later, when one of this call has ended */
        if (rc) return hd_fail(err, rc, "%s", local.message);
        c->n_submitted++;
        c->n_live++;
    }
    return 0;
}

static void refuse_submission(hd_call *c, int rc, const char *why)
{
    if (rc == HD_EMEMCAP) c->server->counts.refused_full++;
    if (rc == HD_EMEMCAP) hd_call_refuse(c, 429, "rate_limit_error", NULL, "queue_full", "%s", why);
    else if (rc == HD_EINVAL) hd_call_refuse(c, 400, "invalid_request_error", NULL, NULL, "%s", why);
    else if (rc == HD_EINTR) hd_call_refuse(c, 503, "server_error", NULL, "draining", "%s", why);
    else hd_call_refuse(c, 500, "server_error", NULL, NULL, "%s", why);
}

static bool make_room(hd_call *c)
{
    size_t n = (size_t)c->n_prompts, choices = n * (size_t)c->params.n;
    c->subs = hd_arena_alloc(&c->arena, n * sizeof *c->subs);
    if (c->api == &hd_api_embeddings) c->vectors = hd_arena_alloc(&c->arena, n * sizeof *c->vectors);
    c->choices = hd_arena_alloc(&c->arena, choices * sizeof *c->choices);
    if (!c->subs || !c->choices || (c->api == &hd_api_embeddings && !c->vectors)) return false;
    for (int i = 0; i < c->n_prompts; i++) c->subs[i] = (hd_sub){.call = c, .index = i};
    for (size_t i = 0; c->vectors && i < n; i++) hd_str_init(&c->vectors[i]);
    for (size_t i = 0; i < choices; i++) {
        hd_choice *h = &c->choices[i];
        hd_str *const all[] = {&h->text, &h->tokens, &h->logprobs, &h->top, &h->offsets, &h->prompt_logprobs};
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) hd_str_init(all[k]);
    }
    return true;
}

void hd_call_submit(hd_call *c)
{
    hd_error err = {0};
    c->submitted = hd_time();
    if (c->server->draining) {
        refuse_submission(c, HD_EINTR, "the server is going down and takes no more requests");
        return;
    }
    if (!make_room(c)) {
        hd_call_refuse(c, 503, "server_error", NULL, NULL, "out of memory");
        return;
    }
    int rc = submit_more(c, &err);
    if (rc) {
        c->failed = true;
        refuse_submission(c, rc, err.message);
        return;
    }
    if (c->params.stream && c->conn) c->streaming = hd_conn_stream_begin(c->conn, "text/event-stream; charset=utf-8");
    c->last_write = hd_time();
}

void hd_call_cancel(hd_call *c)
{
    if (!c->subs || !c->server->model) return;
    for (int i = 0; i < c->n_submitted; i++)
        if (!c->subs[i].ended) hd_engine_cancel(c->server->model->engine, c->subs[i].id);
}

/* ---- events ---- */

static void send_json(hd_call *c, hd_str *o)
{
    hd_str line;
    if (o->failed || !c->conn) return;
    hd_str_init(&line);
    hd_str_puts(&line, "data: ");
    hd_str_add(&line, o->data, o->len);
    hd_str_puts(&line, "\n\n");
    if (!line.failed) hd_conn_stream_write(c->conn, line.data, line.len);
    c->sent_bytes += (int64_t)line.len;
    c->last_write = hd_time();
    hd_str_free(&line);
}

static void clear_choice(hd_choice *h)
{
    hd_str *const all[] = {&h->text, &h->tokens, &h->logprobs, &h->top, &h->offsets, &h->prompt_logprobs};
    for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) hd_str_clear(all[k]);
}

static void stream_choice(hd_call *c, int index, hd_choice *h)
{
    hd_str o;
    bool empty = !h->text.len && !h->tokens.len && !h->prompt_logprobs.len && h->finish == HD_FINISH_NONE;
    if (h->done || (empty && h->began)) return;
    hd_str_init(&o);
    c->api->chunk(c, index, h, &o);
    send_json(c, &o);
    hd_str_free(&o);
    clear_choice(h);
    h->began = true;
    h->done = h->finish != HD_FINISH_NONE;
}

static void write_stream_end(hd_call *c)
{
    hd_str o;
    hd_str_init(&o);
    if (c->params.include_usage) {
        hd_str_printf(&o, "{\"id\": \"%s\", \"object\": \"%s\", \"created\": %lld, \"model\": ", c->id,
                      c->api == &hd_api_chat ? "chat.completion.chunk" : "text_completion", (long long)c->created);
        hd_out_text(&o, c->server->model->name);
        hd_str_puts(&o, ", \"choices\": [], ");
        hd_out_usage(&o, c);
        hd_str_putc(&o, '}');
        send_json(c, &o);
    }
    hd_str_free(&o);
    if (!c->conn) return;
    hd_conn_stream_write(c->conn, "data: [DONE]\n\n", 14);
    hd_conn_stream_end(c->conn);
}

static void finish(hd_call *c)
{
    hd_str o;
    if (c->streaming) {
        c->logged_status = 200;
        write_stream_end(c);
        hd_call_end(c);
        return;
    }
    hd_str_init(&o);
    c->api->whole(c, &o);
    hd_str_putc(&o, '\n');
    if (o.failed) hd_call_refuse(c, 503, "server_error", NULL, NULL, "out of memory");
    else hd_call_answer(c, 200, "application/json", o.data, o.len);
    hd_str_free(&o);
}

/* An error of one prompt is the whole call's; the rest of it is cancelled. */
static void fail(hd_call *c, const hd_engine_event *e)
{
    int status = e->finish == HD_FINISH_DEADLINE ? 504 : e->finish == HD_FINISH_CANCELLED ? 503 : 500;
    c->failed = true;
    hd_call_refuse(c, status, "server_error", NULL, status == 504 ? "timeout" : NULL, "%s",
                   e->error ? e->error : status == 504 ? "the answer took too long" : status == 503 ? "the server is going down" : "the model failed");
}

static void count_tokens(hd_sub *s, const hd_engine_event *e)
{
    if (e->prompt_tokens) s->prompt_tokens = e->prompt_tokens;
    if (e->cached_tokens) s->cached_tokens = e->cached_tokens;
    if (e->generated_tokens) s->generated_tokens = e->generated_tokens;
}

/* They come once for a request, but belong to all its choices. */
static void keep_prompt_logprobs(hd_call *c, hd_sub *s, const hd_engine_event *e)
{
    size_t n = (size_t)c->prompts[s->index].n, pair = sizeof *e->prompt_logprobs;
    if (!e->prompt_logprobs || s->prompt_logprobs) return;
    s->top_n = e->top_n;
    s->prompt_logprobs = hd_arena_copy(&c->arena, e->prompt_logprobs, n * pair);
    if (e->prompt_top) s->prompt_top = hd_arena_copy(&c->arena, e->prompt_top, n * (size_t)e->top_n * pair);
}

static bool is_failure(const hd_call *c, const hd_sub *s, const hd_engine_event *e)
{
    if (atomic_load(&s->lost)) return true;
    bool nothing_yet = !s->generated_tokens && !c->streaming;
    return e->finish == HD_FINISH_ERROR || e->finish == HD_FINISH_CANCELLED || (e->finish == HD_FINISH_DEADLINE && nothing_yet);
}

void hd_call_event(hd_call *c, hd_sub *s, const hd_engine_event *e)
{
    hd_error err = {0};
    count_tokens(s, e);
    keep_prompt_logprobs(c, s, e);
    if (is_failure(c, s, e)) {
        fail(c, e);
        return;
    }
    if (!(c->first_token > 0) && (e->n_tokens || e->text_bytes || e->hidden)) c->first_token = hd_time();
    int index = s->index * (int)c->params.n + e->choice;
    if (e->choice >= 0 && e->choice < c->params.n) {
        hd_choice *h = &c->choices[index];
        c->api->take(c, s, h, e);
        if (e->finish != HD_FINISH_NONE) {
            h->finish = e->finish;
            c->finish = hd_out_finish(e->finish);
        }
        if (c->streaming) stream_choice(c, index, h);
    }
    int rc = e->last ? submit_more(c, &err) : 0;
    if (rc) refuse_submission(c, rc, err.message);
    else if (c->n_ended == c->n_prompts) finish(c);
}
