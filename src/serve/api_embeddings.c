/* api_embeddings.c: /v1/embeddings: the final hidden state of each input's last token, of length 1. */
#include <math.h>
#include "serve/server_int.h"

enum { INPUTS_MOST = 2048 };

static int prepare(hd_call *c, const json_t *root, hd_error *err)
{
    const json_t *special = json_object_get(root, "add_special_tokens");
    int rc = hd_fields_read(c, root, HD_FOR_EMBED, err);
    if (rc) return rc;
    if (special && !json_is_boolean(special) && !json_is_null(special))
        return hd_call_wrong(c, 400, "add_special_tokens", "invalid_type", "'add_special_tokens' must be a boolean");
    rc = hd_prompts_read(c, json_object_get(root, "input"), "input", INPUTS_MOST, !json_is_false(special), false);
    return rc ? rc : hd_prompts_check(c, "input");
}

static void put_base64(hd_str *o, const unsigned char *p, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    hd_str_putc(o, '"');
    for (size_t i = 0; i < n; i += 3) {
        unsigned v = (unsigned)p[i] << 16 | (i + 1 < n ? (unsigned)p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0);
        hd_str_putc(o, digits[v >> 18]);
        hd_str_putc(o, digits[v >> 12 & 63]);
        hd_str_putc(o, i + 1 < n ? digits[v >> 6 & 63] : '=');
        hd_str_putc(o, i + 2 < n ? digits[v & 63] : '=');
    }
    hd_str_putc(o, '"');
}

static void put_vector(hd_call *c, hd_str *o, const float *x, int64_t n)
{
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += (double)x[i] * x[i];
    double scale = square > 0 ? 1 / sqrt(square) : 0;
    hd_str_clear(o);
    if (!c->params.base64) {
        for (int64_t i = 0; i < n; i++) {
            hd_str_puts(o, i ? ", " : "[");
            hd_out_number(o, (float)(x[i] * scale));
        }
        hd_str_putc(o, ']');
        return;
    }
    float *unit = hd_calloc((size_t)n + 1, sizeof *unit);
    if (!unit) {
        o->failed = true;
        return;
    }
    for (int64_t i = 0; i < n; i++) unit[i] = (float)(x[i] * scale);
    put_base64(o, (const unsigned char *)unit, (size_t)n * sizeof *unit); /* little endian, as every machine that Heddle runs on */
    hd_free(unit);
}

static void take(hd_call *c, hd_sub *s, hd_choice *h, const hd_engine_event *e)
{
    (void)h;
    if (e->hidden) put_vector(c, &c->vectors[s->index], e->hidden, e->width);
}

static void whole(hd_call *c, hd_str *o)
{
    hd_str_puts(o, "{\"object\": \"list\", \"data\": [");
    for (int i = 0; i < c->n_prompts; i++) {
        hd_str_printf(o, "%s{\"object\": \"embedding\", \"index\": %d, \"embedding\": ", i ? ", " : "", i);
        hd_str_add(o, c->vectors[i].data, c->vectors[i].len);
        hd_str_putc(o, '}');
        if (c->vectors[i].failed) o->failed = true;
    }
    hd_str_puts(o, "], \"model\": ");
    hd_out_text(o, c->server->model->name);
    hd_str_puts(o, ", ");
    hd_out_usage(o, c);
    hd_str_putc(o, '}');
}

const hd_api hd_api_embeddings = {.path = "/v1/embeddings", .method = HD_HTTP_POST, .prefix = "embd-", .prepare = prepare, .take = take, .whole = whole};
