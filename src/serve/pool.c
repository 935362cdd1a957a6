/* pool.c: a few threads that prepare calls: JSON, templates, tokens; and one that compiles constraints. Whatever a request makes expensive is spent here,
 * never on
 * the loop; and what is the easiest to make expensive, a constraint, holds up only other constraints. */
#include <string.h>
#include "base/json.h"
#include "serve/server_int.h"

typedef struct lane {
    hd_server *server;
    pthread_mutex_t lock;
    pthread_cond_t more;
    hd_call *first, **end;   /* linked by their `waiting` */
    bool stop;
    int n;
    pthread_t thread[8];
    bool (*run)(hd_call *c); /* false: the call has gone on to another lane */
} lane;

struct hd_pool { lane prepare, compile; };

/* ---- one job ---- */

static int parse_body(hd_call *c)
{
    json_error_t e;
    c->root = json_loadb(c->body.data, c->body.len, JSON_ALLOW_NUL, &e);
    hd_str_free(&c->body);
    if (!c->root) return hd_call_wrong(c, 400, NULL, NULL, "the body is not valid JSON: line %d, column %d: %s", e.line, e.column, e.text);
    return json_is_object(c->root) ? 0 : hd_call_wrong(c, 400, NULL, NULL, "the body must be a JSON object");
}

static void add(lane *l, hd_call *c)
{
    c->waiting = NULL;
    pthread_mutex_lock(&l->lock);
    *l->end = c;
    l->end = &c->waiting;
    pthread_cond_signal(&l->more);
    pthread_mutex_unlock(&l->lock);
}

static bool prepare(hd_call *c)
{
    hd_error err = {0};
    int rc = atomic_load(&c->cancelled) ? HD_EINTR : parse_body(c);
    if (!rc) rc = c->api->prepare(c, c->root, &err);
    if (rc && !c->status) hd_call_wrong(c, rc == HD_ENOMEM || rc == HD_EMEMCAP ? 503 : 500, NULL, NULL, "%s", err.message);
    if (rc || !c->n_prompts || !hd_fields_have_constraint(c->root)) return true;
    add(&c->server->pool->compile, c);
    return false;
}

static bool compile(hd_call *c)
{
    if (!atomic_load(&c->cancelled)) hd_fields_constraint(c, c->root);
    return true;
}

/* ---- threads ---- */

static hd_call *take(lane *l)
{
    pthread_mutex_lock(&l->lock);
    while (!l->first && !l->stop) pthread_cond_wait(&l->more, &l->lock);
    hd_call *c = l->stop ? NULL : l->first;
    if (c) {
        l->first = c->waiting;
        if (!l->first) l->end = &l->first;
    }
    pthread_mutex_unlock(&l->lock);
    return c;
}

static void *work(void *arg)
{
    lane *l = arg;
    for (hd_call *c; (c = take(l));) {
        if (!l->run(c)) continue;
        json_decref(c->root);
        c->root = NULL;
        c->prepared = (hd_message){.call = c};
        hd_server_post(l->server, &c->prepared);
    }
    return NULL;
}

static int start(lane *l, hd_server *s, int threads, bool (*run)(hd_call *c), hd_error *err)
{
    l->server = s;
    l->run = run;
    for (; l->n < threads; l->n++)
        if (pthread_create(&l->thread[l->n], NULL, work, l)) break;
    return l->n ? 0 : hd_fail(err, HD_ENOMEM, "no thread could be started");
}

static void stop(lane *l)
{
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->more);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->n; i++) pthread_join(l->thread[i], NULL);
    pthread_cond_destroy(&l->more);
    pthread_mutex_destroy(&l->lock);
}

static void init(lane *l)
{
    l->end = &l->first;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->more, NULL);
}

hd_pool *hd_pool_new(hd_server *s, int threads, hd_error *err)
{
    hd_pool *p = hd_calloc(1, sizeof *p);
    if (!p) return hd_fail_memory(err, sizeof *p, "threads"), NULL;
    init(&p->prepare);
    init(&p->compile);
    int rc = start(&p->compile, s, 1, compile, err);
    if (!rc) rc = start(&p->prepare, s, threads, prepare, err);
    if (!rc) return p;
    hd_pool_free(p);
    return NULL;
}

void hd_pool_free(hd_pool *p)
{
    if (!p) return;
    stop(&p->prepare);
    stop(&p->compile);
    hd_free(p);
}

void hd_pool_add(hd_pool *p, hd_call *c)
{
    c->in_pool = true;
    add(&p->prepare, c);
}
