/* text.c: the public interface to text generation (heddle/heddle.h), over the generator. */
#include <string.h>
#include "base/mem.h"
#include "serve/generator.h"

struct hd_text_model { hd_generator generator; };

hd_text_options hd_text_defaults(void)
{
    return (hd_text_options){.max_tokens = 256, .top_p = 1, .repetition_penalty = 1};
}

hd_text_model *hd_text_open(const char *dir, hd_dtype precision, int threads, hd_error *err)
{
    hd_text_model *m = hd_calloc(1, sizeof *m);
    if (!m) return hd_fail_memory(err, sizeof *m, "a model"), NULL;
    hd_generator_options o = {.precision = precision, .threads = threads};
    int rc = precision == HD_F32 || precision == HD_BF16 ? 0 : hd_fail(err, HD_EINVAL, "the precision must be f32 or bf16");
    if (!rc) rc = hd_generator_open(&m->generator, dir, &o, err);
    if (!rc && !m->generator.info.tokenizer) rc = hd_fail(err, HD_EINVAL, "%s has no tokenizer.json", dir);
    if (!rc) return m;
    hd_text_close(m);
    return NULL;
}

void hd_text_close(hd_text_model *m)
{
    if (!m) return;
    hd_generator_close(&m->generator);
    hd_free(m);
}

int hd_text_generate(hd_text_model *m, const char *prompt, const hd_text_options *o, int (*piece)(void *arg, const char *text, size_t n), void *arg,
                     hd_error *err)
{
    hd_generator *g = &m->generator;
    hd_ids ids = {0};
    hd_generate_result result;
    hd_generate_request r = {.max_tokens = o->max_tokens, .stop = o->stop, .n_stop = o->n_stop, .text = piece, .arg = arg};
    r.sampling = (hd_sampling){.temperature = o->temperature, .top_k = o->top_k, .top_p = o->top_p, .min_p = o->min_p,
                               .typical_p = 1, .repetition_penalty = o->repetition_penalty, .seed = o->seed};
    hd_generator_reset(g);
    int rc = hd_tokenizer_encode(g->info.tokenizer, prompt, strlen(prompt), true, &ids, err);
    if (!rc && !ids.len && g->info.config->bos >= 0) rc = hd_ids_append(&ids, (int32_t)g->info.config->bos, err);
    if (!rc) rc = hd_generate(g, ids.data, (int64_t)ids.len, &r, &result, err);
    hd_ids_free(&ids);
    return rc;
}
