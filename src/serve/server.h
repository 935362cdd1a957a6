/* server.h: the HTTP face of one served model: OpenAI's API, health, metrics and a chat page (docs/serving.md).
 *
 * One thread runs the event loop (libevent) and touches connections; the engine's thread hands it events through a queue and wakes it. Templates, schemas and
 * tokenization run on a small pool, so that a hostile one holds up nobody's stream. Every request has its own arena. */
#ifndef HD_SERVE_SERVER_H
#define HD_SERVE_SERVER_H

#include "data/chat_template.h"
#include "serve/engine.h"

typedef struct hd_server_options {
    const char *host; int port;           /* "127.0.0.1", 8080; port 0: any, see hd_server_port */
    const char *const *api_keys; int n_api_keys; /* none: everybody may. Compared in constant time; every path but /health and / asks for one */
    const char *tls_cert, *tls_key;       /* PEM files; both or none */
    const char *cors;                     /* the one origin that may (or "*"); NULL: none */
    int64_t max_body;                     /* bytes; 0: 8 MiB */
    int64_t max_connections;              /* 0: 4096; more get 503 and are closed */
    int64_t max_queued;                   /* requests waiting in the engine; more get 429 with Retry-After; 0: 256 */
    int64_t per_key;                      /* requests at once of one key (of everybody, without keys); more get 429; 0: no limit */
    double header_seconds, request_seconds; /* a head or body that takes longer is cut off: 10; an answer that takes longer ends: 600 */
    double ping_seconds;                  /* comment lines on silent streams: 15 */
    bool vllm_metrics;                    /* metrics under vLLM's names too */
    bool page;                            /* the chat page at / */
    int log;                              /* 0: none; 1: one JSON line for each request on standard error */
} hd_server_options;

hd_server_options hd_server_options_default(void);

/* What is served. All must outlive the server. */
typedef struct hd_served {
    const char *name;                     /* as in /v1/models and in requests */
    hd_engine *engine;
    const hd_tokenizer *tokenizer;
    const hd_chat_template *template;     /* NULL: chat is refused */
    const hd_vocabulary *vocabulary;      /* for constraints */
    const int32_t *eos; int n_eos;
    int64_t context, width;
    hd_sampling sampling;                 /* defaults, from generation_config.json */
} hd_served;

typedef struct hd_server hd_server;

/* Listens at once; until hd_server_serve, /health is 503 and everything else too. NULL on failure (the address is taken, a key file is bad). */
hd_server *hd_server_new(const hd_server_options *o, hd_error *err);
int hd_server_port(const hd_server *s);
void hd_server_serve(hd_server *s, const hd_served *model); /* from any thread */
void hd_server_fail(hd_server *s, const char *why);         /* from any thread: loading failed; hd_server_run returns */
/* The event loop, until drained or failed. */
int hd_server_run(hd_server *s, hd_error *err);
/* From any thread or a signal handler: no more connections are taken, what runs is finished, then hd_server_run returns 0. A second call cuts off what runs. */
void hd_server_drain(hd_server *s);
void hd_server_free(hd_server *s);

#endif
