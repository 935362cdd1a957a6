/* pool.c: a few threads that prepare calls: JSON, templates, tokens, constraints. Whatever a request makes expensive is spent here, never on the loop. */
#include <string.h>
#include "base/json.h"
#include "serve/server_int.h"

struct hd_pool {
    hd_server *server;
    pthread_mutex_t lock;
    pthread_cond_t more;
    hd_call *first, **end;   /* linked by their `waiting` */
    bool stop;
    int n;
    pthread_t thread[16];
};

/* ---- one job ---- */

static int parse_body(hd_call *c, json_t **root, hd_error *err)
{
    json_error_t e;
    (void)err;
    *root = json_loadb(c->body.data, c->body.len, JSON_ALLOW_NUL, &e);
    if (!*root)
        return hd_call_wrong(c, 400, NULL, NULL, "the body is not valid JSON: line %d, column %d: %s", e.line, e.column, e.text);
    if (!json_is_object(*root)) return hd_call_wrong(c, 400, NULL, NULL, "the body must be a JSON object");
    return 0;
}

void hd_pool_run(hd_call *c)
{
    hd_error err = {0};
    json_t *root = NULL;
    int rc = atomic_load(&c->cancelled) ? HD_EINTR : parse_body(c, &root, &err);
    if (!rc) rc = c->api->prepare(c, root, &err);
    if (rc && !c->status) hd_call_wrong(c, rc == HD_ENOMEM || rc == HD_EMEMCAP ? 503 : 500, NULL, NULL, "%s", err.message);
    json_decref(root);
    hd_str_free(&c->body);
}

/* ---- threads ---- */

static hd_call *take(hd_pool *p)
{
    pthread_mutex_lock(&p->lock);
    while (!p->first && !p->stop) pthread_cond_wait(&p->more, &p->lock);
    hd_call *c = p->stop ? NULL : p->first;
    if (c) {
        p->first = c->waiting;
        if (!p->first) p->end = &p->first;
    }
    pthread_mutex_unlock(&p->lock);
    return c;
}

static void *work(void *pool)
{
    hd_pool *p = pool;
    for (hd_call *c; (c = take(p));) {
        hd_pool_run(c);
        c->prepared = (hd_message){.call = c};
        hd_server_post(p->server, &c->prepared);
    }
    return NULL;
}

hd_pool *hd_pool_new(hd_server *s, int threads, hd_error *err)
{
    hd_pool *p = hd_calloc(1, sizeof *p);
    if (!p) return hd_fail_memory(err, sizeof *p, "threads"), NULL;
    p->server = s;
    p->end = &p->first;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->more, NULL);
    for (; p->n < threads && p->n < 16; p->n++)
        if (pthread_create(&p->thread[p->n], NULL, work, p)) break;
    if (p->n) return p;
    hd_fail(err, HD_ENOMEM, "no thread could be started");
    hd_pool_free(p);
    return NULL;
}

void hd_pool_free(hd_pool *p)
{
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->more);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n; i++) pthread_join(p->thread[i], NULL);
    pthread_cond_destroy(&p->more);
    pthread_mutex_destroy(&p->lock);
    hd_free(p);
}

void hd_pool_add(hd_pool *p, hd_call *c)
{
    c->in_pool = true;
    c->waiting = NULL;
    pthread_mutex_lock(&p->lock);
    *p->end = c;
    p->end = &c->waiting;
    pthread_cond_signal(&p->more);
    pthread_mutex_unlock(&p->lock);
}
