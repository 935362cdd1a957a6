/* call_log.c: one line of JSON for each request, on standard error. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/term.h"
#include "serve/server_int.h"

static void put_text(hd_str *o, const char *name, const char *value)
{
    if (!value || !*value) return;
    hd_str_printf(o, ", \"%s\": ", name);
    hd_out_text(o, value);
}

static void put_tokens(hd_str *o, const hd_call *c)
{
    int64_t prompt = 0, cached = 0, generated = 0;
    if (!c->subs) return;
    for (int i = 0; i < c->n_prompts; i++) {
        prompt += c->prompts[i].n;
        cached += c->subs[i].cached_tokens;
        generated += c->subs[i].generated_tokens;
    }
    hd_str_printf(o, ", \"prompt_tokens\": %lld, \"cached_tokens\": %lld, \"completion_tokens\": %lld, \"stream\": %s", (long long)prompt, (long long)cached,
                  (long long)generated, c->params.stream ? "true" : "false");
}

void hd_call_log(const hd_call *c)
{
    hd_str o;
    struct timespec now;
    struct tm utc;
    char stamp[40];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t n = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(stamp + n, sizeof stamp - n, ".%03dZ", (int)(now.tv_nsec / 1000000));
    hd_str_init(&o);
    hd_str_printf(&o, "{\"time\": \"%s\", \"status\": %d", stamp, c->logged_status);
    put_text(&o, "id", c->id);
    put_text(&o, "peer", c->peer);
    put_text(&o, "method", c->api ? (c->head_only ? "HEAD" : c->api->method == HD_HTTP_POST ? "POST" : "GET") : NULL);
    put_text(&o, "path", c->path);
    put_text(&o, "key", c->key_name);
    put_tokens(&o, c);
    if (c->submitted > 0) hd_str_printf(&o, ", \"prepare_seconds\": %.4f", c->submitted - c->began);
    if (c->first_token > 0) hd_str_printf(&o, ", \"first_token_seconds\": %.4f", c->first_token - c->began);
    hd_str_printf(&o, ", \"seconds\": %.4f", hd_time() - c->began);
    put_text(&o, "finish", c->finish);
    put_text(&o, "error", c->logged_error);
    hd_str_puts(&o, "}\n");
    if (!o.failed) {
        ssize_t written = write(STDERR_FILENO, o.data, o.len); /* in one piece: lines of threads don't mix */
        (void)written;
    }
    hd_str_free(&o);
}
