/* chat_template.c: finding a model's chat template, and rendering conversations with it. */
#include "data/chat_template.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include "base/file.h"
#include "base/json.h"
#include "data/jinja.h"
#include "data/tokenizer_int.h"
#include "tensor/gguf.h"

enum { MOST_TEXT = 8 << 20 };

/* What tokenizer_config.json calls the tokens that templates name, where GGUF has their ids, and what models call them where nothing else tells. */
static const struct { const char *name, *gguf, *usual[6]; } specials[] = {
    {"bos_token", "tokenizer.ggml.bos_token_id", {"<s>", "<|begin_of_text|>", "<bos>"}},
    {"eos_token", "tokenizer.ggml.eos_token_id", {"</s>", "<|im_end|>", "<|eot_id|>", "<eos>", "<|endoftext|>"}},
    {"unk_token", "tokenizer.ggml.unknown_token_id", {"<unk>"}},
    {"pad_token", "tokenizer.ggml.padding_token_id", {"<pad>"}},
};
enum { SPECIALS = sizeof specials / sizeof *specials };

struct hd_chat_template {
    hd_jinja *program;
    hd_arena arena;
    const char *special[SPECIALS]; /* NULL: the model has none, and the name is undefined */
    const char *stop;
};

/* ---- templates of our own ---- */

/* What a message says: a text, or the texts among its parts. */
#define CONTENT                                                                                                                                                \
    "{%- macro says(c) -%}{%- if c is string -%}{{ c }}{%- elif c is not none and c is defined -%}{%- for p in c if p.type == 'text' -%}{{ p.text }}{%- "      \
    "endfor -%}"                                                                                                                                               \
    "{%- endif -%}{%- endmacro -%}"
/* Models that know no system role get what it says before the first thing that a person says. */
#define SYSTEM_FIRST                                                                                                                                           \
    "{%- set ns = namespace(system='') -%}{%- for m in messages if m.role == 'system' -%}{%- set ns.system = ns.system ~ says(m.content)|trim ~ '\\n\\n' "     \
    "-%}{%- endfor -%}"

typedef struct builtin {
    const char *name;
    const char *markers[2]; /* tokens that tell it; NULL: none needed */
    bool chosen;            /* by its markers; else only by name */
    const char *text;
    const char *stop;       /* where no special token ends an answer */
} builtin;

static const builtin builtins[] = {
    {"chatml",
     {"<|im_start|>", "<|im_end|>"},
     true,
     CONTENT "{%- for m in messages -%}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ says(m.content) ~ '<|im_end|>\\n' }}{%- endfor -%}"
             "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}",
     NULL},
    {"llama3",
     {"<|start_header_id|>", "<|eot_id|>"},
     true,
     CONTENT
     "{{ '<|begin_of_text|>' }}{%- for m in messages -%}{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ says(m.content)|trim ~ '<|eot_id|>' }}"
     "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}",
     NULL},
    {"gemma",
     {"<start_of_turn>", "<end_of_turn>"},
     true,
     CONTENT SYSTEM_FIRST "{{ '<bos>' }}{%- for m in messages if m.role != 'system' -%}"
                          "{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\\n' ~ (ns.system if loop.first else '') ~ "
                          "says(m.content)|trim ~ '<end_of_turn>\\n' }}"
                          "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}",
     NULL},
    {"phi3",
     {"<|assistant|>", "<|end|>"},
     true,
     CONTENT "{%- for m in messages -%}{{ '<|' ~ m.role ~ '|>\\n' ~ says(m.content) ~ '<|end|>\\n' }}{%- endfor -%}"
             "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}",
     NULL},
    {"zephyr",
     {"<|assistant|>", NULL},
     true,
     CONTENT "{%- for m in messages -%}{{ '<|' ~ m.role ~ '|>\\n' ~ says(m.content) ~ eos_token ~ '\\n' }}{%- endfor -%}"
             "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}",
     NULL},
    {"mistral",
     {"[INST]", "[/INST]"},
     true,
     CONTENT SYSTEM_FIRST "{{ '<s>' }}{%- for m in messages if m.role != 'system' -%}{%- if m.role == 'assistant' -%}{{ ' ' ~ says(m.content)|trim ~ '</s>' }}"
                          "{%- else -%}{{ '[INST] ' ~ (ns.system if loop.first else '') ~ says(m.content) ~ '[/INST]' }}{%- endif -%}{%- endfor -%}",
     NULL},
    {"llama2",
     {"<s>", "</s>"},
     false,
     CONTENT "{%- set ns = namespace(system='') -%}{%- for m in messages if m.role == 'system' -%}"
             "{%- set ns.system = '<<SYS>>\\n' ~ says(m.content) ~ '\\n<</SYS>>\\n\\n' -%}{%- endfor -%}"
             "{%- for m in messages if m.role != 'system' -%}{%- if m.role == 'assistant' -%}{{ ' ' ~ says(m.content)|trim ~ ' </s>' }}"
             "{%- else -%}{{ '<s>[INST] ' ~ (ns.system if loop.first else '') ~ says(m.content)|trim ~ ' [/INST]' }}{%- endif -%}{%- endfor -%}",
     NULL},
    {"plain",
     {NULL, NULL},
     true,
     CONTENT "{%- for m in messages -%}{{ {'user': 'Question: ', 'assistant': 'Answer: '}.get(m.role, '') ~ says(m.content) ~ '\\n' }}{%- endfor -%}"
             "{%- if add_generation_prompt -%}{{ 'Answer:' }}{%- endif -%}",
     "\nQuestion:"},
};
enum { BUILTINS = sizeof builtins / sizeof *builtins };

static const builtin *builtin_of(const hd_tokenizer *t) {
    for (int i = 0; i < BUILTINS; i++) {
        bool fits = builtins[i].chosen;
        for (int k = 0; k < 2 && fits; k++) fits = !builtins[i].markers[k] || (t && hd_tokenizer_id(t, builtins[i].markers[k]) >= 0);
        if (fits) return &builtins[i];
    }
    return &builtins[BUILTINS - 1];
}

const char *hd_chat_template_builtin(const hd_tokenizer *t, const char **name) {
    const builtin *b = builtin_of(t);
    if (name) *name = b->name;
    return b->text;
}

const char *hd_chat_template_named(const char *name) {
    for (int i = 0; i < BUILTINS; i++)
        if (!strcmp(builtins[i].name, name)) return builtins[i].text;
    return NULL;
}

/* ---- special tokens ---- */

static int keep(hd_chat_template *c, int which, const char *text, hd_error *err) {
    if (!text || c->special[which]) return 0;
    c->special[which] = hd_arena_strdup(&c->arena, text);
    return c->special[which] ? 0 : hd_fail_memory(err, strlen(text), "a chat template");
}

/* Where neither file says: the token that the tokenizer itself puts before a text, or one with a usual name. */
static int guess_specials(hd_chat_template *c, const hd_tokenizer *t, hd_error *err) {
    int rc = 0;
    if (!t) return 0;
    if (t->before_count == 1) rc = keep(c, 0, hd_tokenizer_token(t, t->before[0]), err);
    for (int i = 0; i < SPECIALS && !rc; i++)
        for (int k = 0; k < 6 && specials[i].usual[k] && !c->special[i] && !rc; k++)
            if (hd_tokenizer_id(t, specials[i].usual[k]) >= 0) rc = keep(c, i, specials[i].usual[k], err);
    return rc;
}

/* "bos_token": a text, or an added token with "content". */
static int config_specials(hd_chat_template *c, const json_t *config, hd_error *err) {
    int rc = 0;
    for (int i = 0; i < SPECIALS && !rc; i++) {
        const json_t *v = json_object_get(config, specials[i].name);
        rc = keep(c, i, json_string_value(json_is_object(v) ? json_object_get(v, "content") : v), err);
    }
    return rc;
}

static int gguf_specials(hd_chat_template *c, const hd_gguf *g, const hd_tokenizer *t, hd_error *err) {
    int rc = 0;
    for (int i = 0; i < SPECIALS && !rc && t; i++) {
        int64_t id = -1;
        rc = hd_gguf_int(g, specials[i].gguf, 0, INT32_MAX, &id, err);
        if (!rc && id >= 0) rc = keep(c, i, hd_tokenizer_token(t, (int32_t)id), err);
    }
    return rc;
}

/* ---- what ends an answer ---- */

/* The special token that `tail` begins with; NULL: none. */
static const char *token_at(const hd_tokenizer *t, const char *tail) {
    const hd_added_token *best = NULL;
    for (size_t i = 0; i < t->added_count; i++) {
        const hd_added_token *a = &t->added[i];
        if (a->special && a->content_size && !strncmp(tail, a->content, a->content_size) && (!best || a->content_size > best->content_size)) best = a;
    }
    return best ? best->content : NULL;
}

/* Looks at what the template writes behind an answer. A template that refuses this little conversation has no stop. */
static void find_stop(hd_chat_template *c, const hd_tokenizer *t) {
    static const char answer[] = "Zq7answer";
    hd_error err = {0};
    hd_str out;
    hd_str_init(&out);
    json_t *messages = json_pack("[{s:s, s:s}, {s:s, s:s}]", "role", "user", "content", "Question?", "role", "assistant", "content", answer);
    if (messages && t && !hd_chat_template_render(c, messages, NULL, NULL, false, &out, &err)) {
        const char *tail = strstr(out.data, answer);
        if (tail) tail += sizeof answer - 1;
        while (tail && (*tail == ' ' || *tail == '\n')) tail++;
        c->stop = tail ? token_at(t, tail) : NULL;
        if (c->stop) c->stop = hd_arena_strdup(&c->arena, c->stop);
    }
    json_decref(messages);
    hd_str_free(&out);
}

/* ---- life cycle ---- */

static hd_chat_template *make(const char *text, size_t n, const char *name, hd_chat_template *c, const hd_tokenizer *t, hd_error *err) {
    if (c) c->program = hd_jinja_parse(text, n, name, err);
    if (!c || !c->program || guess_specials(c, t, err)) {
        hd_chat_template_free(c);
        return NULL;
    }
    find_stop(c, t);
    return c;
}

static hd_chat_template *empty(hd_error *err) {
    hd_chat_template *c = hd_calloc(1, sizeof *c);
    if (!c) hd_fail_memory(err, sizeof *c, "a chat template");
    return c;
}

hd_chat_template *hd_chat_template_parse(const char *text, size_t n, const char *name, const hd_tokenizer *t, hd_error *err) {
    return make(text, n, name, empty(err), t, err);
}

void hd_chat_template_free(hd_chat_template *c) {
    if (!c) return;
    hd_jinja_free(c->program);
    hd_arena_free(&c->arena);
    hd_free(c);
}

static hd_chat_template *make_builtin(hd_chat_template *c, const hd_tokenizer *t, hd_error *err) {
    char name[64];
    const builtin *b = builtin_of(t);
    snprintf(name, sizeof name, "the %s template", b->name);
    c = make(b->text, strlen(b->text), name, c, t, err);
    if (c && !c->stop) c->stop = b->stop;
    return c;
}

static hd_chat_template *open_gguf(hd_chat_template *c, const char *path, const hd_tokenizer *t, hd_error *err) {
    hd_gguf g;
    const char *text = NULL;
    char name[512];
    if (hd_gguf_open(&g, path, err)) {
        hd_chat_template_free(c);
        return NULL;
    }
    snprintf(name, sizeof name, "%.400s: tokenizer.chat_template", path);
    if (gguf_specials(c, &g, t, err) || hd_gguf_string(&g, "tokenizer.chat_template", &text, err)) {
        hd_chat_template_free(c);
        c = NULL;
    } else {
        c = text && *text ? make(text, strlen(text), name, c, t, err) : make_builtin(c, t, err);
    }
    hd_gguf_close(&g);
    return c;
}

/* A string, or a list of {name, template}: the one called "default", else the first. */
static const json_t *config_template(const json_t *config) {
    const json_t *v = json_object_get(config, "chat_template"), *item, *found = NULL;
    size_t i;
    if (json_is_string(v)) return v;
    json_array_foreach(v, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (!found || (name && !strcmp(name, "default"))) found = json_object_get(item, "template");
    }
    return json_is_string(found) ? found : NULL;
}

/* "dir/name", read into out where there is such a file. */
static int read_optional(const char *dir, const char *name, hd_str *out, char *path, size_t size, hd_error *err) {
    int rc = hd_path_join(path, size, dir, name, err);
    return rc || !hd_file_exists(path) ? rc : hd_file_read(out, path, MOST_TEXT, err);
}

/* "dir/name" as JSON; *out stays NULL where there is no such file. */
static int read_json(const char *dir, const char *name, json_t **out, hd_error *err) {
    char path[4096];
    hd_str text;
    hd_str_init(&text);
    int rc = read_optional(dir, name, &text, path, sizeof path, err);
    if (!rc && text.len && !(*out = hd_json_parse(text.data, text.len, path, err))) rc = HD_EFORMAT;
    hd_str_free(&text);
    return rc;
}

/* The directory's own template, chat_template.jinja before tokenizer_config.json, into text (empty: it has none), and where it stood. */
static int own_template(const char *dir, const json_t *config, hd_str *text, char *where, size_t size, hd_error *err) {
    int rc = read_optional(dir, "chat_template.jinja", text, where, size, err);
    const json_t *own = config_template(config);
    if (rc || text->len || !own) return rc;
    hd_str_add(text, json_string_value(own), json_string_length(own));
    snprintf(where, size, "%.4000s/tokenizer_config.json: chat_template", dir);
    return text->failed ? hd_fail_memory(err, json_string_length(own), "a chat template") : 0;
}

int hd_chat_template_find(const char *dir, hd_str *out, hd_error *err) {
    char where[4096];
    json_t *config = NULL;
    int rc = read_json(dir, "tokenizer_config.json", &config, err);
    if (!rc) rc = own_template(dir, config, out, where, sizeof where, err);
    json_decref(config);
    return rc;
}

static hd_chat_template *open_dir(hd_chat_template *c, const char *dir, const hd_tokenizer *t, hd_error *err) {
    char where[4096];
    json_t *config = NULL, *map = NULL;
    hd_str text;
    hd_str_init(&text);
    int rc = read_json(dir, "tokenizer_config.json", &config, err);
    if (!rc) rc = read_json(dir, "special_tokens_map.json", &map, err);
    if (!rc) rc = own_template(dir, config, &text, where, sizeof where, err);
    if (!rc) rc = config_specials(c, config, err);
    if (!rc) rc = config_specials(c, map, err);
    if (rc) {
        hd_chat_template_free(c);
        c = NULL;
    } else {
        c = text.len ? make(text.data, text.len, where, c, t, err) : make_builtin(c, t, err);
    }
    hd_str_free(&text);
    json_decref(config);
    json_decref(map);
    return c;
}

hd_chat_template *hd_chat_template_open(const char *model, const hd_tokenizer *t, hd_error *err) {
    hd_error local = {0};
    hd_chat_template *c = empty(err = err ? err : &local);
    if (!c) return NULL;
    return hd_gguf_is(model) ? open_gguf(c, model, t, err) : open_dir(c, model, t, err);
}

/* ---- rendering ---- */

/* What every template finds defined, as transformers' apply_chat_template has it; extra goes before it. */
static json_t *variables_of(const hd_chat_template *c, const json_t *messages, const json_t *tools, const json_t *extra, bool prompt) {
    json_t *v = json_object();
    bool bad = !v || json_object_set_new(v, "messages", json_incref((json_t *)messages));
    bad = bad || json_object_set_new(v, "tools", tools ? json_incref((json_t *)tools) : json_null());
    bad = bad || json_object_set_new(v, "documents", json_null()) || json_object_set_new(v, "add_generation_prompt", json_boolean(prompt));
    for (int i = 0; i < SPECIALS && !bad; i++)
        if (c->special[i]) bad = json_object_set_new(v, specials[i].name, json_string(c->special[i])) != 0;
    if (!bad && extra) bad = json_object_update(v, (json_t *)extra) != 0;
    if (!bad) return v;
    json_decref(v);
    return NULL;
}

int hd_chat_template_render(const hd_chat_template *c, const json_t *messages, const json_t *tools, const json_t *extra, bool add_generation_prompt,
                            hd_str *out, hd_error *err) {
    json_t *v = variables_of(c, messages, tools, extra, add_generation_prompt);
    if (!v) return hd_fail_memory(err, 0, "a conversation");
    int rc = hd_jinja_render(c->program, v, NULL, (int64_t)time(NULL), out, err);
    json_decref(v);
    if (!rc && out->failed) rc = hd_fail_memory(err, out->len, "a conversation");
    return rc == HD_EMEMCAP ? (err ? err->code = HD_EINVAL : HD_EINVAL) : rc;
}

const char *hd_chat_template_stop(const hd_chat_template *c) { return c->stop; }
