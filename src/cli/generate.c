/* generate.c: heddle generate: text from a model, or chat in the terminal. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/term.h"
#include "cli/cli.h"
#include "data/chat_template.h"
#include "data/unicode.h"
#include "serve/generator.h"
#include "tensor/gguf.h"

typedef struct config {
    const char *prompt, *precision, *weight_cache;
    bool chat, ignore_eos, quiet, special;
    int64_t max_tokens, top_k, seed, context, threads;
    double temperature, top_p, min_p, repetition_penalty;
    hd_setting_list stop;
} config;

#define AT(field) offsetof(config, field)
static const hd_setting settings[] = {
    {"prompt", HD_SET_STRING, AT(prompt), NULL, 0, 0, "TEXT", "the text to go on from; without it, standard input, or a chat on a terminal"},
    {"chat", HD_SET_BOOL, AT(chat), NULL, 0, 0, NULL, "chat: each line of input is a turn"},
    {"max_tokens", HD_SET_INT, AT(max_tokens), "256", 0, 1e9, "N", "most tokens to generate"},
    {"temperature", HD_SET_NUMBER, AT(temperature), "0.8", 0, 100, "X", "0: always the likeliest token; above: the higher the more varied"},
    {"top_k", HD_SET_INT, AT(top_k), "0", 0, 1e9, "K", "draw from the K likeliest tokens; 0: from all"},
    {"top_p", HD_SET_NUMBER, AT(top_p), "1", 0, 1, "P", "draw from the likeliest tokens that together have probability P"},
    {"min_p", HD_SET_NUMBER, AT(min_p), "0", 0, 1, "P", "draw from tokens at least P times as likely as the likeliest"},
    {"repetition_penalty", HD_SET_NUMBER, AT(repetition_penalty), "1", 0.01, 100, "X", "above 1: tokens that have occurred become less likely"},
    {"seed", HD_SET_INT, AT(seed), "0", 0, 9e15, "N", "of the random numbers: the same seed gives the same text"},
    {"stop", HD_SET_LIST, AT(stop), NULL, 0, 0, "TEXT", "end before this text; may be given more than once"},
    {"ignore_eos", HD_SET_BOOL, AT(ignore_eos), NULL, 0, 0, NULL, "go on after the model's end-of-text token"},
    {"context", HD_SET_INT, AT(context), "0", 0, 1e7, "N", "most tokens of prompt and text together; 0: what the model takes, at most 4096"},
    {"precision", HD_SET_STRING, AT(precision), "bf16", 0, 0, "f32|bf16", "of weights, cache and arithmetic; weights in the block types of a GGUF file stay so, and are multiplied with f32 rounded to int8 by blocks"},
    {"weight_cache", HD_SET_STRING, AT(weight_cache), NULL, 0, 0, "DIR",
     "keep weights there as this machine's kernels take them: later starts map them, and processes share them"},
    {"threads", HD_SET_INT, AT(threads), "0", 0, 256, "N", "0: one per core"},
    {"special", HD_SET_BOOL, AT(special), "true", 0, 0, NULL, "begin with the special tokens that the tokenizer adds (bos)"},
    {"quiet", HD_SET_BOOL, AT(quiet), NULL, 0, 0, NULL, "no speeds on standard error"},
    {0},
};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
    (void)sig;
    interrupted = 1;
}

static int show(void *arg, const char *text, size_t n)
{
    (void)arg;
    fwrite(text, 1, n, stdout);
    fflush(stdout);
    return interrupted || ferror(stdout);
}

static hd_generate_request make_request(const config *c, hd_ids *drawn)
{
    return (hd_generate_request){
        .sampling = {.temperature = c->temperature, .top_k = c->top_k, .top_p = c->top_p, .min_p = c->min_p, .typical_p = 1, .repetition_penalty = c->repetition_penalty,
                     .seed = (uint64_t)c->seed},
        .max_tokens = c->max_tokens, .stop = c->stop.item, .n_stop = c->stop.n, .ignore_eos = c->ignore_eos, .text = show, .drawn = drawn,
    };
}

static void show_speed(const config *c, const hd_generate_result *r)
{
    if (c->quiet) return;
    hd_log("prompt %lld tokens at %.0f tokens/s, text %lld tokens at %.1f tokens/s", (long long)r->prompt_tokens,
           (double)r->prompt_tokens / r->prompt_seconds, (long long)r->new_tokens, (double)r->new_tokens / fmax(r->new_seconds, 1e-9));
}

static int generate_once(hd_generator *g, const config *c, const char *text, size_t n, hd_error *err)
{
    hd_ids ids = {0};
    hd_generate_result result;
    hd_generate_request r = make_request(c, NULL);
    int rc = hd_tokenizer_encode(g->info.tokenizer, text, n, c->special, &ids, err);
    if (!rc && ids.len == 0 && g->info.config->bos >= 0) rc = hd_ids_append(&ids, (int32_t)g->info.config->bos, err);
    if (!rc) rc = hd_generate(g, ids.data, (int64_t)ids.len, &r, &result, err);
    if (!rc) putchar('\n');
    if (!rc) show_speed(c, &result);
    hd_ids_free(&ids);
    return rc;
}

static int read_input(hd_str *text, hd_error *err)
{
    char buffer[4096];
    size_t n;
    while ((n = fread(buffer, 1, sizeof buffer, stdin)) > 0) hd_str_add(text, buffer, n);
    if (text->failed) return hd_fail_memory(err, text->len, "the prompt");
    if (text->len && text->data[text->len - 1] == '\n') text->data[--text->len] = 0;
    return 0;
}

/* A conversation in the terminal. */
typedef struct talk {
    hd_generator *g;
    const config *c;
    hd_chat_template *template;
    json_t *messages;
    hd_ids fed; /* what the cache holds, as far as its length goes */
    hd_str answer;
} talk;

static int hear(void *arg, const char *text, size_t n)
{
    hd_str_add(&((talk *)arg)->answer, text, n);
    return show(NULL, text, n);
}

static int add_message(talk *t, const char *role, const char *text, size_t n, hd_error *err)
{
    json_t *m = json_pack("{s:s, s:s%}", "role", role, "content", text, n);
    return m && !json_array_append_new(t->messages, m) ? 0 : hd_fail(err, HD_EINVAL, "a turn cannot be kept");
}

/* The whole conversation as ids, and of these how many the cache has: it keeps what begins the same, and the last one is fed in any case. */
static int encode_talk(talk *t, hd_ids *ids, size_t *known, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    int rc = hd_chat_template_render(t->template, t->messages, NULL, NULL, true, &text, err);
    if (!rc) rc = hd_tokenizer_encode(t->g->info.tokenizer, text.data, text.len, false, ids, err);
    if (!rc && !ids->len) rc = hd_fail(err, HD_EINVAL, "the chat template wrote nothing");
    hd_str_free(&text);
    *known = 0;
    while (!rc && *known + 1 < ids->len && *known < (size_t)t->g->length && *known < t->fed.len && t->fed.data[*known] == ids->data[*known]) ++*known;
    return rc;
}

static int answer_turn(talk *t, const char *line, size_t n, hd_error *err)
{
    hd_ids ids = {0};
    size_t known;
    hd_generate_result result;
    hd_generate_request r = make_request(t->c, &ids);
    const char *stop = hd_chat_template_stop(t->template);
    if (!r.n_stop && stop) r.stop = &stop, r.n_stop = 1;
    r.text = hear;
    r.arg = t;
    interrupted = 0;
    hd_str_clear(&t->answer);
    int rc = add_message(t, "user", line, n, err);
    if (!rc) rc = encode_talk(t, &ids, &known, err);
    if (!rc) hd_generator_rewind(t->g, (int64_t)known);
    size_t have = ids.len;
    if (!rc) rc = hd_generate(t->g, ids.data + known, (int64_t)(have - known), &r, &result, err);
    hd_ids_free(&t->fed);
    t->fed = ids;
    if (!rc) putchar('\n');
    if (!rc) show_speed(t->c, &result);
    return rc ? rc : add_message(t, "assistant", t->answer.data, t->answer.len, err);
}

static int chat(hd_generator *g, const config *c, const char *model, hd_error *err)
{
    talk t = {.g = g, .c = c, .template = hd_chat_template_open(model, g->info.tokenizer, err), .messages = json_array()};
    char *line = NULL;
    size_t cap = 0;
    int rc = t.template ? 0 : err->code;
    bool terminal = isatty(0) && isatty(1);
    hd_str_init(&t.answer);
    hd_str said;
    hd_str_init(&said);
    if (terminal && !rc) hd_log("an empty line or end of input leaves, Ctrl-C stops an answer");
    while (!rc) {
        if (terminal) printf("> "), fflush(stdout);
        ssize_t n = getline(&line, &cap, stdin);
        if (n <= 0 || line[0] == '\n') break;
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        hd_str_clear(&said);
        hd_utf8_replace(&said, (const unsigned char *)line, (size_t)n);
        rc = said.failed ? hd_fail_memory(err, (size_t)n, "a turn") : answer_turn(&t, said.data, said.len, err);
    }
    free(line);
    hd_ids_free(&t.fed);
    hd_str_free(&t.answer);
    hd_str_free(&said);
    json_decref(t.messages);
    hd_chat_template_free(t.template);
    return rc;
}

static int run(const void *config_, const char *const *words, int n_words, hd_error *err)
{
    const config *c = config_;
    if (n_words != 1) return hd_fail(err, HD_EINVAL, "name one model: a directory (with config.json, weights and tokenizer.json) or a GGUF file");
    hd_generator g;
    hd_generator_options o = {.precision = strcmp(c->precision, "bf16") ? HD_F32 : HD_BF16, .threads = (int)c->threads, .context = c->context,
                              .weight_cache = c->weight_cache};
    int rc = hd_generator_open(&g, words[0], &o, err);
    if (rc) return rc;
    if (!g.info.tokenizer) rc = hd_fail(err, HD_EINVAL, "%s has no %s", words[0], hd_gguf_is(words[0]) ? "tokenizer" : "tokenizer.json");
    signal(SIGINT, on_interrupt);
    hd_str text;
    hd_str_init(&text);
    bool talk = c->chat || (!c->prompt && isatty(0));
    if (!rc && talk) {
        rc = chat(&g, c, words[0], err);
    } else if (!rc) {
        if (c->prompt) hd_str_puts(&text, c->prompt);
        else rc = read_input(&text, err);
        if (!rc) rc = generate_once(&g, c, text.data, text.len, err);
    }
    hd_str_free(&text);
    hd_generator_close(&g);
    return rc;
}

const hd_command hd_cmd_generate = {
    .name = "generate",
    .usage = "[flags] MODEL",
    .summary = "text from a model, or chat in the terminal",
    .details = "MODEL is a Hugging Face model directory: config.json, model.safetensors (or shards and an index) and tokenizer.json; or a GGUF file.",
    .settings = settings,
    .config_size = sizeof(config),
    .max_words = 1,
    .run = run,
};
