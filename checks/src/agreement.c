/* agreement.c: how often a quantized model's likeliest tokens are those of llama.cpp; see checks/families.
 *
 *   check_agreement MODEL.gguf REFERENCE.tsv [f32]
 * f32: with all weights dequantized and nothing rounded to eight bits.
 * REFERENCE: a line for each text, "prompt ids <tab> token gap token gap ...": what llama.cpp drew greedily (keys and values in f32), and how far each was ahead of
 * the next (tests/make_gguf_fixtures.py). Each text is fed whole. Prints: positions, how many have the same likeliest token, positions with a gap of at least 0.2,
 * how many of those have, seconds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/mem.h"
#include "base/term.h"
#include "serve/lm_runner.h"

enum { MOST = 512, BLOCK = 16 };

typedef struct text { int32_t tokens[MOST]; float gap[MOST]; int64_t prompt, n; } text;

static bool read_text(FILE *f, text *t)
{
    static char line[1 << 16];
    if (!fgets(line, sizeof line, f)) return false;
    char *at = line, *end, *tab = strchr(line, '\t');
    *t = (text){0};
    while (tab && at < tab && t->n < MOST) t->tokens[t->n++] = (int32_t)strtol(at, &at, 10);
    t->prompt = t->n;
    for (; tab && t->n < MOST; t->n++, at = end) {
        long token = strtol(at, &end, 10);
        if (end == at) break;
        t->tokens[t->n] = (int32_t)token;
        t->gap[t->n] = strtof(end, &end);
    }
    return t->n > t->prompt;
}

static int32_t likeliest(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return (int32_t)best;
}

static int run(const char *model, FILE *reference, bool exact, hd_error *err)
{
    hd_runner *r;
    hd_lm_runner_options o = hd_lm_runner_options_default();
    if (exact) o.keep_blocks = false, o.precision = HD_F32;
    o.kv = HD_F32, o.context = MOST, o.max_parts = 1, o.max_tokens = MOST, o.max_rows = MOST, o.block = BLOCK;
    int rc = hd_lm_runner_open(&r, model, &o, NULL, err);
    if (rc) return rc;
    int32_t blocks[MOST / BLOCK];
    for (int i = 0; i < MOST / BLOCK; i++) blocks[i] = i;
    int64_t all = 0, same = 0, sure = 0, sure_same = 0;
    double begin = hd_time();
    static text t;
    while (!rc && read_text(reference, &t)) {
        int64_t rows = t.n - t.prompt;
        rc = hd_runner_step(r, &(hd_batch){&(hd_batch_part){t.tokens, t.n - 1, 0, blocks, rows}, 1}, err);
        for (int64_t i = 0; i < rows && !rc; i++) {
            bool equal = likeliest(r->logits(r, i), r->vocab) == t.tokens[t.prompt + i], clear = t.gap[t.prompt + i] >= 0.2f;
            all++, same += equal, sure += clear, sure_same += clear && equal;
        }
    }
    printf("%lld %lld %lld %lld %.1f\n", (long long)all, (long long)same, (long long)sure, (long long)sure_same, hd_time() - begin);
    r->close(r);
    return rc;
}

int main(int argc, char **argv)
{
    hd_error err = {0};
    bool exact = argc == 4 && !strcmp(argv[3], "f32");
    FILE *f = argc == 3 || exact ? fopen(argv[2], "re") : NULL;
    if (!f) return fprintf(stderr, "usage: check_agreement MODEL.gguf REFERENCE.tsv [f32]\n"), 2;
    int rc = run(argv[1], f, exact, &err);
    fclose(f);
    if (rc) fprintf(stderr, "check_agreement: %s\n", err.message);
    return rc ? 1 : 0;
}
