/* answer.c: pieces of answers as JSON text. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "serve/server_int.h"

/* Bytes of the well-formed UTF-8 character at p (Unicode 15, table 3-7); 0: none is there. */
static size_t character(const unsigned char *p, size_t n)
{
    static const struct { unsigned char lo, hi, second_lo, second_hi, n; } forms[] = {
        {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3}, {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3},
        {0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
    };
    if (p[0] < 0x80) return 1;
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        if (p[0] < forms[i].lo || p[0] > forms[i].hi) continue;
        if (n < forms[i].n || p[1] < forms[i].second_lo || p[1] > forms[i].second_hi) return 0;
        for (size_t k = 2; k < forms[i].n; k++)
            if ((p[k] & 0xc0) != 0x80) return 0;
        return forms[i].n;
    }
    return 0;
}

static void put_ascii(hd_str *o, unsigned char c)
{
    static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
    const char *at = c ? strchr(from, c) : NULL;
    if (at) {
        hd_str_putc(o, '\\');
        hd_str_putc(o, to[at - from]);
    } else if (c < ' ' || c == 127) hd_str_printf(o, "\\u%04x", c);
    else hd_str_putc(o, (char)c);
}

void hd_out_string(hd_str *o, const char *p, size_t n)
{
    const unsigned char *u = (const unsigned char *)p;
    hd_str_putc(o, '"');
    for (size_t i = 0; i < n;) {
        size_t run = i;
        while (run < n && u[run] >= ' ' && u[run] < 127 && u[run] != '"' && u[run] != '\\') run++;
        if (run > i) {
            hd_str_add(o, p + i, run - i);
            i = run;
            continue;
        }
        size_t k = character(u + i, n - i);
        if (k == 1) put_ascii(o, u[i]);
        else if (k) hd_str_add(o, p + i, k);
        else hd_str_puts(o, "\xef\xbf\xbd");
        i += k ? k : 1;
    }
    hd_str_putc(o, '"');
}

void hd_out_text(hd_str *o, const char *text)
{
    if (text) hd_out_string(o, text, strlen(text));
    else hd_str_puts(o, "null");
}

void hd_out_number(hd_str *o, double x)
{
    if (isfinite(x)) hd_str_printf(o, "%.9g", x);
    else hd_str_puts(o, "null");
}

void hd_out_logprob(hd_str *o, double x)
{
    hd_out_number(o, x < -9999 ? -9999 : x);
}

void hd_out_usage(hd_str *o, const hd_call *c)
{
    int64_t prompt = 0, cached = 0, generated = 0;
    for (int i = 0; i < c->n_prompts; i++) {
        prompt += c->prompts[i].n;
        cached += c->subs[i].cached_tokens;
        generated += c->subs[i].generated_tokens;
    }
    if (c->params.drop_answer || c->vectors) generated = 0;
    hd_str_printf(o, "\"usage\": {\"prompt_tokens\": %lld, ", (long long)prompt);
    if (!c->vectors) hd_str_printf(o, "\"completion_tokens\": %lld, ", (long long)generated);
    hd_str_printf(o, "\"total_tokens\": %lld", (long long)(prompt + generated));
    if (!c->vectors) hd_str_printf(o, ", \"prompt_tokens_details\": {\"cached_tokens\": %lld}", (long long)cached);
    hd_str_putc(o, '}');
}

const char *hd_out_finish(hd_finish f)
{
    switch (f) {
    case HD_FINISH_NONE: return NULL;
    case HD_FINISH_EOS:
    case HD_FINISH_STOP: return "stop";
    default: return "length"; /* a deadline too: there was no time for more */
    }
}

int64_t hd_count_characters(const char *p, size_t n)
{
    int64_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((unsigned char)p[i] & 0xc0) != 0x80;
    return count;
}

/* One position as vLLM says it: {"id": {"logprob", "rank", "decoded_token"}, ...}; the token itself, then the likeliest. */
static void put_position(hd_call *c, hd_str *o, hd_token_logprob own, const hd_token_logprob *top, int n)
{
    const hd_tokenizer *t = c->server->model->tokenizer;
    int rank = 0;
    hd_str_putc(o, '{');
    for (int k = -1; k < n; k++) {
        hd_token_logprob p = k < 0 ? own : top[k];
        size_t bytes = 0;
        if (k >= 0 && p.token == own.token) continue;
        const char *text = t ? hd_tokenizer_bytes(t, p.token, &bytes) : NULL;
        for (rank = 0; k < 0 && rank < n && top[rank].token != own.token;) rank++;
        hd_str_printf(o, "%s\"%d\": {\"logprob\": ", k < 0 ? "" : ", ", p.token);
        hd_out_logprob(o, p.logprob);
        if (k >= 0 || rank < n) hd_str_printf(o, ", \"rank\": %d", (k < 0 ? rank : k) + 1);
        hd_str_puts(o, ", \"decoded_token\": ");
        hd_out_string(o, text ? text : "", text ? bytes : 0);
        hd_str_putc(o, '}');
    }
    hd_str_putc(o, '}');
}

void hd_out_prompt_logprobs(hd_call *c, hd_choice *h, hd_sub *s)
{
    int64_t n = c->prompts[s->index].n;
    int top = (int)(c->params.prompt_logprobs < s->top_n ? c->params.prompt_logprobs : s->top_n);
    if (!s->prompt_logprobs || c->params.prompt_logprobs < 0 || h->scored) return;
    h->scored = true;
    for (int64_t i = 0; i < n; i++) {
        if (i) hd_str_puts(&h->prompt_logprobs, ", ");
        if (!i) hd_str_puts(&h->prompt_logprobs, "null");
        else put_position(c, &h->prompt_logprobs, s->prompt_logprobs[i], s->prompt_top ? s->prompt_top + i * s->top_n : NULL, s->prompt_top ? top : 0);
    }
}
