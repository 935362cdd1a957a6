/* server_int.h: what the files of the HTTP server share: server, connection, call.
 *
 * A *connection* (conn.c) reads one request at a time and writes its answer. A *call* (call.c) is one request: it is made when a head has come, prepared on the
 * pool (JSON, templates, tokens, constraints), then submitted to the engine as one or more *subs* (one for each prompt), and ends with its answer. All of it
 * belongs to the loop's thread, but for what the pool touches between hd_pool_add and its message, and `cancelled`.
 *
 * A call whose client hung up loses its connection and lives until the pool and all its subs have let go of it. */
#ifndef HD_SERVE_SERVER_INT_H
#define HD_SERVE_SERVER_INT_H

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include "base/mem.h"
#include "base/str.h"
#include "serve/http.h"
#include "serve/server.h"

typedef struct hd_conn hd_conn;
typedef struct hd_call hd_call;
typedef struct hd_sub hd_sub;
typedef struct hd_api hd_api;
typedef struct hd_pool hd_pool;
typedef struct hd_guard hd_guard;

/* ---- messages to the loop: a sub's event (copied), or a call that the pool is done with ---- */

typedef struct hd_message {
    struct hd_message *next;
    hd_call *call;
    hd_sub *sub;              /* NULL: the pool is done */
    bool owned;               /* freed once handled */
    hd_engine_event event;    /* pointers into this allocation */
} hd_message;

/* ---- what is asked for ---- */

typedef struct hd_params {
    hd_sampling sampling;
    int64_t n, best_of, max_tokens, min_tokens, seed, priority;
    int64_t logprobs, top_logprobs, prompt_logprobs; /* -1: none */
    double length_penalty;
    bool stream, include_usage, echo, ignore_eos, beams, want_logprobs, skip_special, base64, has_seed, drop_answer /* max_tokens 0 */;
    const char **stop; int n_stop;
    const int32_t *stop_tokens; int n_stop_tokens;
    uint64_t salt;
} hd_params;

typedef struct hd_prompt { const int32_t *ids; int64_t n; const char *text; size_t text_bytes; } hd_prompt; /* text: where it is echoed */

/* One continuation as it grows; streamed, what is here was not sent yet. */
typedef struct hd_choice {
    hd_str text;
    hd_str tokens, logprobs, top, offsets; /* the insides of JSON arrays; chat: all in `tokens` */
    hd_str prompt_logprobs;
    int64_t offset;           /* characters so far */
    hd_finish finish;
    bool began, scored, echoed, done;
} hd_choice;

struct hd_sub {
    hd_call *call;
    int index;                /* of the prompt */
    uint64_t id;              /* of the engine; 0: not submitted */
    bool ended;
    atomic_bool lost;         /* an event found no memory */
    hd_message last;          /* so that the last event always arrives */
    int64_t prompt_tokens, cached_tokens, generated_tokens;
    const hd_token_logprob *prompt_logprobs, *prompt_top; int top_n; /* of the first event, for all choices; NULL: not asked for */
};

struct hd_call {
    hd_server *server;
    hd_conn *conn;            /* NULL: hung up */
    hd_call *prev, *next;
    const hd_api *api;        /* NULL: none yet */
    hd_arena arena;
    char id[48], key_name[16];
    const char *path, *peer;
    hd_str body;
    uint64_t salt;
    int key;                  /* which of the API keys; 0 without keys */
    bool head_only, counted;  /* HEAD; counted among its key's */
    int64_t held;             /* bytes of body, counted in the server's */
    double began, submitted, first_token, last_write;
    time_t created;

    /* out of the pool */
    bool in_pool;
    hd_call *waiting;         /* behind this one in the pool's queue */
    hd_message prepared;
    json_t *root;             /* the body, while it is in the pool */
    atomic_bool cancelled;
    int status;               /* 0: prepared; else the error to answer with */
    const char *error_type, *error_message, *error_param, *error_code;
    hd_params params;
    hd_prompt *prompts; int n_prompts;
    const hd_constraint *constraint;
    hd_str answer;            /* of calls that need no engine */

    /* in the engine */
    hd_sub *subs;             /* [n_prompts] */
    int n_submitted, n_live, n_ended;
    hd_choice *choices;       /* [n_prompts * n] */
    hd_str *vectors;          /* [n_prompts] embeddings as JSON */
    bool streaming;           /* the head is written */
    bool failed, ended;       /* ended: answered */
    int logged_status; const char *logged_error, *finish;
    int64_t sent_bytes;
};

/* ---- one entry of the route table ---- */

struct hd_api {
    const char *path;
    hd_http_method method;
    bool open;                /* needs no key */
    bool while_loading;       /* answers before a model is there, and while draining */
    const char *prefix;       /* begins ids: "chatcmpl-" */
    int (*prepare)(hd_call *c, const json_t *root, hd_error *err); /* on the pool; a nonzero return has filled status and error_* */
    void (*now)(hd_call *c);  /* answers at once on the loop; then prepare is NULL */
    void (*take)(hd_call *c, hd_sub *s, hd_choice *choice, const hd_engine_event *e); /* an event into the choice */
    void (*chunk)(hd_call *c, int index, hd_choice *choice, hd_str *out);  /* what a stream sends of it: one JSON object */
    void (*whole)(hd_call *c, hd_str *out);                                /* the whole answer */
};

const hd_api *hd_api_find(hd_http_text path, hd_http_method m, bool *path_known, const char **allow);
extern const hd_api hd_api_chat, hd_api_completions, hd_api_embeddings;

/* ---- the server ---- */

typedef struct hd_counts {
    uint64_t requests, hang_ups, refused_full, refused_key, connections, too_many, cut_off, stream_bytes;
    uint64_t by_status[6]; /* [status / 100] */
} hd_counts;

struct hd_server {
    hd_server_options options;
    hd_arena arena;
    struct event_base *base;
    struct evconnlistener *listener;
    struct event *wake_event, *tick, *again;
    int wake_fd, port;
    hd_guard *guard;          /* keys and TLS */
    hd_pool *pool;
    pthread_mutex_t lock;     /* of the queue and `why` */
    hd_message *first, **end;
    char *why;
    _Atomic(const hd_served *) incoming;
    atomic_int drains, failed;
    hd_served model_copy;
    const hd_served *model;   /* NULL: loading */
    int64_t longest_token;    /* bytes */
    bool draining, cutting;
    hd_conn *conns; int64_t n_conns;
    hd_call *calls; int64_t n_calls;
    int64_t *running_of_key;  /* [keys, at least 1] */
    int64_t held;             /* bytes of bodies */
    time_t started;
    hd_counts counts;
};

/* ---- server.c ---- */

void hd_server_post(hd_server *s, hd_message *m); /* from any thread */
void hd_server_wake(hd_server *s);                  /* from any thread and signal handlers: it looks around */
bool hd_server_is_ready(const hd_server *s);      /* a model is there, and it isn't draining */

/* ---- conn.c ---- */

typedef enum hd_conn_state { HD_CONN_HEAD, HD_CONN_BODY, HD_CONN_BUSY, HD_CONN_CLOSING, HD_CONN_LINGER } hd_conn_state;

struct hd_conn {
    hd_server *server;
    struct bufferevent *bev;
    struct event *timer;
    hd_conn *prev, *next;
    hd_conn_state state;
    hd_http_body body;
    hd_call *call;
    bool keep_alive, served /* at least one request */, deaf /* what still comes is thrown away */, advancing, late /* the deadline of a head runs */;
    bool http10;
    bool tls, chunked_out;
    const char *cors; /* the origin to allow, or NULL */
    char peer[64];
};

void hd_conn_accept(hd_server *s, int fd, const char *peer);
void hd_conn_turn_away(hd_server *s, int fd);    /* 503 for one connection too many */
void hd_conn_free(hd_conn *c);                   /* its call loses it */
void hd_conn_end_idle(hd_server *s);             /* draining: those that read no answer are closed */
/* An answer in one piece. type NULL: no body. extra: further header lines, each with CRLF; NULL: none. */
void hd_conn_answer(hd_conn *c, int status, const char *type, const char *extra, const char *body, size_t n, bool head_only);
bool hd_conn_stream_begin(hd_conn *c, const char *type);
void hd_conn_stream_write(hd_conn *c, const char *p, size_t n);
void hd_conn_stream_end(hd_conn *c);
void hd_conn_next(hd_conn *c);                   /* its call has ended: on to the next request, or close */

/* ---- call.c ---- */

hd_call *hd_call_new(hd_server *s, hd_conn *conn);
/* The head has come: is it to be let in? Answers and ends the call where not (false). */
bool hd_call_head(hd_call *c, const hd_http_head *h);
void hd_call_body(hd_call *c);                   /* the body is whole */
void hd_call_hang_up(hd_call *c);
void hd_call_message(hd_message *m);
void hd_call_ping(hd_call *c, double now);
void hd_call_cut(hd_call *c);                    /* ends it without an answer */
/* An error in OpenAI's shape; ends the call. */
void hd_call_refuse(hd_call *c, int status, const char *type, const char *param, const char *code, const char *fmt, ...) HD_PRINTF(6, 7);
void hd_call_answer(hd_call *c, int status, const char *type, const char *body, size_t n); /* ends the call */
void hd_call_end(hd_call *c);                    /* answered: counts, logs, lets go of the connection */
void hd_call_log(const hd_call *c);              /* call_log.c */

/* ---- engine side of a call (submit.c) ---- */

void hd_call_submit(hd_call *c);
void hd_call_event(hd_call *c, hd_sub *s, const hd_engine_event *e);
void hd_call_cancel(hd_call *c);                 /* whatever runs of it */

/* ---- fields of a request (api_fields.c); on the pool ---- */

enum { HD_FOR_CHAT = 1, HD_FOR_TEXT = 2, HD_FOR_EMBED = 4, HD_FOR_BOTH = 3 };
/* Fills what the endpoint takes: ranges, types, names that nobody knows. */
int hd_fields_read(hd_call *c, const json_t *root, int endpoint, hd_error *err);
/* What the pool answers an error with; returns HD_EINVAL. */
int hd_call_wrong(hd_call *c, int status, const char *param, const char *code, const char *fmt, ...) HD_PRINTF(5, 6);
int hd_call_no_memory(hd_call *c);
bool hd_fields_have_constraint(const json_t *root);
int hd_fields_constraint(hd_call *c, const json_t *root); /* api_format.c: response_format and guided_*: compiled, or refused */
/* Encodes text as the next prompt. */
int hd_prompt_add_text(hd_call *c, hd_encoder *e, const char *text, size_t n, bool special, bool keep_text);
int hd_prompt_add_ids(hd_call *c, const json_t *ids, const char *param);
int hd_prompts_read(hd_call *c, const json_t *v, const char *param, int most, bool special, bool keep_text); /* string, strings, ids, lists of ids */
int hd_prompts_check(hd_call *c, const char *param); /* lengths against the context; sets max_tokens */
int hd_chat_render(hd_call *c, const json_t *root, hd_str *out); /* messages and tools through the template */

/* ---- pieces of answers (answer.c) ---- */

void hd_out_string(hd_str *o, const char *p, size_t n); /* quoted; what isn't UTF-8 becomes U+FFFD */
void hd_out_text(hd_str *o, const char *text);
void hd_out_number(hd_str *o, double x);                /* NaN and infinities: null */
void hd_out_logprob(hd_str *o, double x);               /* -inf: -9999, as OpenAI says it */
void hd_out_usage(hd_str *o, const hd_call *c);         /* "usage": {...} */
void hd_out_prompt_logprobs(hd_call *c, hd_choice *h, hd_sub *s); /* once for each choice */
const char *hd_out_finish(hd_finish f);
int64_t hd_count_characters(const char *p, size_t n);

/* ---- guard.c: API keys and TLS ---- */

hd_guard *hd_guard_new(const hd_server_options *o, hd_error *err);
void hd_guard_free(hd_guard *g);
/* The key's number from "Bearer ..."; -1: none of them. Always compares with all, in time that depends on nothing. salt: of the key. */
int hd_guard_key(const hd_guard *g, hd_http_text authorization, uint64_t *salt);
void *hd_guard_tls(const hd_guard *g, hd_error *err); /* a new SSL for one connection; NULL without TLS */
uint64_t hd_guard_salt(uint64_t salt, const char *more);
uint64_t hd_guard_random(void);

/* ---- pool.c ---- */

hd_pool *hd_pool_new(hd_server *s, int threads /* at most 8 */, hd_error *err);
void hd_pool_free(hd_pool *p); /* what waits is left */
void hd_pool_add(hd_pool *p, hd_call *c);

/* ---- metrics.c ---- */

void hd_metrics_write(hd_server *s, hd_str *out);

#endif
