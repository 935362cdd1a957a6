/* random_gguf.c: a GGUF file of a real model's shape with random weights, for checks of speed; its tokenizer is byte-level BPE with made-up merges.
 *
 *   check_random_gguf OUT TYPE [key=value ...]
 * TYPE: F32, F16, BF16, Q8_0, Q4_0, ... or Q4_K_M (Q4_K, with Q6_K where llama.cpp's mixture has it). Keys: layers, width, heads, kv_heads, mlp, vocab, context;
 * without them TinyLlama 1.1B's (Zhang et al. 2024): 22 layers of 2048, 32 heads over 4, 5632, 32000 words, 2048 positions. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/mem.h"
#include "base/rng.h"
#include "data/tokenizer_gguf.h"
#include "models/gguf.h"
#include "models/lm.h"

typedef struct job {
    int64_t layers, width, heads, kv_heads, mlp, vocab, context;
    const char *out, *type;
    hd_lm_config config;
    hd_rng rng;
} job;

static bool set_key(job *j, char *text)
{
    const struct { const char *name; int64_t *at; } keys[] = {
        {"layers", &j->layers}, {"width", &j->width}, {"heads", &j->heads}, {"kv_heads", &j->kv_heads}, {"mlp", &j->mlp}, {"vocab", &j->vocab}, {"context", &j->context},
    };
    char *value = strchr(text, '=');
    if (!value) return false;
    *value++ = 0;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!strcmp(keys[i].name, text)) return (*keys[i].at = atoll(value)) > 0;
    return false;
}

/* ---- a tokenizer: letters, then pairs of what is there already, with and without a space before ---- */

typedef struct words { hd_str vocab, merges; int64_t n, most; } words;

/* GPT-2's names for bytes: printable ones stand for themselves, the others for code points from U+0100 on. */
static void add_bytes(words *w)
{
    for (int i = 0, next = 256; i < 256; i++) {
        bool printable = (i >= 33 && i <= 126) || (i >= 161 && i != 173);
        int code = printable ? i : next++;
        char name[8];
        if (code < 128) snprintf(name, sizeof name, "%s%c", code == '"' || code == '\\' ? "\\" : "", code);
        else snprintf(name, sizeof name, "%c%c", 0xc0 | code >> 6, 0x80 | (code & 63));
        hd_str_printf(&w->vocab, "%s\"%s\": %lld", i ? ", " : "", name, (long long)w->n++);
    }
}

/* `head` and a letter, merged: "Ġ" and "a", "th" and "e". */
static void add_word(words *w, const char *head, char letter)
{
    if (w->n >= w->most) return;
    hd_str_printf(&w->vocab, ", \"%s%c\": %lld", head, letter, (long long)w->n++);
    hd_str_printf(&w->merges, "%s\"%s %c\"", w->merges.len ? ", " : "", head, letter);
}

/* All runs of so many letters, behind `before`. */
static void add_runs(words *w, const char *before, int length)
{
    for (int64_t k = 0, count = (int64_t)pow(26, length); k < count && w->n < w->most; k++) {
        char head[16];
        int at = snprintf(head, sizeof head, "%s", before);
        int64_t x = k / 26;
        memset(head + at, 0, sizeof head - (size_t)at);
        for (int i = length - 2; i >= 0; i--, x /= 26) head[at + i] = (char)('a' + x % 26);
        add_word(w, head, (char)('a' + k % 26));
    }
}

static int add_tokenizer(const job *j, hd_gguf_writer *w, hd_error *err)
{
    hd_str json;
    words all = {.most = j->vocab - 1};
    hd_str_init(&json);
    hd_str_init(&all.vocab);
    hd_str_init(&all.merges);
    add_bytes(&all);
    add_runs(&all, "Ġ", 1);
    for (int length = 2; length <= 4; length++) {
        add_runs(&all, "", length);
        add_runs(&all, "Ġ", length);
    }
    int64_t n = all.n;
    hd_str_printf(&all.vocab, ", \"<|endoftext|>\": %lld", (long long)n);
    hd_str_printf(&json,
                  "{\"version\": \"1.0\", \"added_tokens\": [{\"id\": %lld, \"content\": \"<|endoftext|>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
                  "\"normalized\": false, \"special\": true}], \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                  "\"trim_offsets\": true, \"use_regex\": true}, \"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\"}, \"model\": {\"type\": \"BPE\", "
                  "\"dropout\": null, \"unk_token\": null, \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, \"fuse_unk\": false, \"byte_fallback\": false, "
                  "\"vocab\": {%s}, \"merges\": [%s]}}",
                  (long long)n, all.vocab.data, all.merges.data);
    int rc = json.failed || all.vocab.failed || all.merges.failed ? hd_fail_memory(err, json.len, "a tokenizer") : 0;
    hd_tokenizer *t = rc ? NULL : hd_tokenizer_parse(json.data, json.len, "tokenizer", err);
    if (!rc) rc = t ? hd_tokenizer_to_gguf(t, j->vocab, n, n, w, err) : err->code;
    hd_tokenizer_free(t);
    hd_str_free(&json);
    hd_str_free(&all.vocab);
    hd_str_free(&all.merges);
    return rc;
}

/* ---- weights ---- */

/* llama.cpp's Q4_K_M: the value and down projections of an eighth of the layers at both ends, and of every third between, and the head in Q6_K. */
static const char *type_in_mixture(const job *j, const char *name)
{
    int layer;
    if (!strcmp(name, "output.weight")) return "Q6_K";
    bool better = strstr(name, "attn_v.") || strstr(name, "ffn_down.");
    if (!better || sscanf(name, "blk.%d.", &layer) != 1) return "Q4_K";
    int64_t eighth = j->layers / 8;
    return layer < eighth || layer >= 7 * j->layers / 8 || (layer - eighth) % 3 == 2 ? "Q6_K" : "Q4_K";
}

static const hd_quant *type_of(const job *j, const hd_lm_tensor *t)
{
    if (t->rank == 1) return hd_quant_by_name("F32");
    return hd_quant_by_name(strcmp(j->type, "Q4_K_M") ? j->type : type_in_mixture(j, t->gguf));
}

static void normal(job *j, float *x, int64_t n, double std)
{
    for (int64_t i = 0; i < n; i++) x[i] = (float)(std * (hd_rng_uniform(&j->rng) + hd_rng_uniform(&j->rng) + hd_rng_uniform(&j->rng) - 1.5) * 2);
}

/* Blocks of types that nothing here quantizes to: random bits, with scales of about the right size. */
static void random_blocks(job *j, const hd_quant *q, unsigned char *b, int64_t n)
{
    for (int64_t i = 0; i < n * q->bytes; i++) b[i] = (unsigned char)(hd_rng_uniform(&j->rng) * 256);
    uint16_t small = hd_f16_from_f32(strcmp(q->name, "Q6_K") ? 2e-5f : 1e-5f);
    for (int64_t i = 0; i < n; i++) {
        unsigned char *at = b + i * q->bytes;
        bool last = !strcmp(q->name, "Q6_K") || !strcmp(q->name, "Q3_K");
        memcpy(last ? at + q->bytes - 2 : !strcmp(q->name, "Q2_K") ? at + q->bytes - 4 : at, &small, 2);
        if (!strcmp(q->name, "Q4_K") || !strcmp(q->name, "Q5_K")) memcpy(at + 2, &small, 2);
        if (!strcmp(q->name, "Q2_K")) memcpy(at + q->bytes - 2, &small, 2);
    }
}

static int write_tensor(job *j, hd_gguf_writer *w, const hd_lm_tensor *t, hd_error *err)
{
    const hd_quant *q = type_of(j, t);
    int64_t n = t->dim[0] * (t->rank == 2 ? t->dim[1] : 1), piece = n < 1 << 20 ? n : 1 << 20, row = t->rank == 2 ? t->dim[1] : n;
    piece = piece / row ? piece / row * row : row;
    float *x = hd_realloc_array(NULL, (size_t)piece, sizeof *x);
    unsigned char *blocks = hd_calloc((size_t)(piece / q->block), (size_t)q->bytes);
    int rc = x && blocks ? 0 : hd_fail_memory(err, (size_t)piece * 8, t->gguf);
    bool first = true;
    for (int64_t at = 0; at < n && !rc; at += piece) {
        int64_t now = n - at < piece ? n - at : piece;
        if (t->rank == 1)
            for (int64_t i = 0; i < now; i++) x[i] = 1;
        else if (first && q->quantize) normal(j, x, now, 0.02);
        if (q->quantize || q->plain) rc = hd_gguf_write(w, x, now, err);
        else {
            if (first) random_blocks(j, q, blocks, now / q->block); /* the pieces of a tensor are alike: speed is all that matters */
            rc = hd_gguf_write_blocks(w, blocks, (size_t)(now / q->block * q->bytes), err);
        }
        first = false;
    }
    hd_free(x);
    hd_free(blocks);
    return rc;
}

static int declare(job *j, hd_gguf_writer *w, const hd_lm_tensor *list, size_t n, hd_error *err)
{
    int rc = add_tokenizer(j, w, err);
    for (size_t i = 0; i < n && !rc; i++) rc = hd_gguf_add(w, list[i].gguf, type_of(j, &list[i]), list[i].rank, list[i].dim, err);
    return rc;
}

static int run(job *j, hd_error *err)
{
    hd_lm_config *c = &j->config;
    hd_lm_config_preset(c, HD_ARCH_LLAMA);
    c->layers = j->layers, c->width = j->width, c->heads = j->heads, c->kv_heads = j->kv_heads, c->mlp_width = j->mlp, c->vocab = j->vocab, c->max_positions = j->context;
    c->tie_embeddings = false;
    if (strcmp(j->type, "Q4_K_M") && !hd_quant_by_name(j->type)) return hd_fail(err, HD_EINVAL, "there is no type %s", j->type);
    hd_lm_tensor *list = NULL;
    size_t n = 0;
    int rc = hd_lm_config_check(c, "model", err);
    if (!rc) rc = hd_lm_tensors(c, &list, &n, err);
    hd_gguf_writer *w = rc ? NULL : hd_gguf_writer_new(err);
    if (!rc && !w) rc = err->code;
    if (!rc) rc = hd_lm_gguf_metadata(w, c, hd_quant_by_name(strcmp(j->type, "Q4_K_M") ? j->type : "Q4_K"), err);
    if (!rc) rc = declare(j, w, list, n, err);
    if (!rc) rc = hd_gguf_begin(w, j->out, err);
    if (rc) {
        hd_gguf_writer_free(w);
        hd_free(list);
        return rc;
    }
    for (size_t i = 0; i < n && !rc; i++) rc = write_tensor(j, w, &list[i], err);
    hd_free(list);
    return hd_gguf_end(w, rc, err);
}

int main(int argc, char **argv)
{
    hd_error err = {0};
    job j = {.layers = 22, .width = 2048, .heads = 32, .kv_heads = 4, .mlp = 5632, .vocab = 32000, .context = 2048, .rng = hd_rng_new(1)};
    bool good = argc >= 3;
    for (int i = 3; i < argc && good; i++) good = set_key(&j, argv[i]);
    if (!good) return fprintf(stderr, "usage: check_random_gguf OUT TYPE [layers=N width=N heads=N kv_heads=N mlp=N vocab=N context=N]\n"), 2;
    j.out = argv[1], j.type = argv[2];
    int rc = run(&j, &err);
    if (rc) fprintf(stderr, "check_random_gguf: %s\n", err.message);
    return rc ? 1 : 0;
}
