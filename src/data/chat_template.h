/* chat_template.h: how a conversation is written for a model: the Jinja template that its tokenizer_config.json or GGUF file carries (data/jinja.h). */
#ifndef HD_DATA_CHAT_TEMPLATE_H
#define HD_DATA_CHAT_TEMPLATE_H

#include <jansson.h>
#include "base/error.h"
#include "base/str.h"
#include "data/tokenizer.h"

typedef struct hd_chat_template hd_chat_template;

/* The template of a model directory (tokenizer_config.json, chat_template.jinja) or GGUF file ("tokenizer.chat_template"), with the tokenizer's own special
 * tokens as bos_token, eos_token, ...; where a model has none, one that its special tokens tell (ChatML, Llama 2 and 3, Gemma, ...: hd_chat_template_builtin).
 * A construct that isn't known is an error here, not when it is used. NULL on failure. */
hd_chat_template *hd_chat_template_open(const char *model, const hd_tokenizer *t, hd_error *err);
/* From text, for tests and --chat-template FILE. */
hd_chat_template *hd_chat_template_parse(const char *text, size_t n, const char *name, const hd_tokenizer *t, hd_error *err);
/* Appends the text of the template that a model directory has, if it has one. */
int hd_chat_template_find(const char *dir, hd_str *out, hd_error *err);
/* The Jinja text for a tokenizer whose model has none, and (name may be NULL) what it is called: "plain" where no token tells another. */
const char *hd_chat_template_builtin(const hd_tokenizer *t, const char **name);
/* One by name: chatml, llama2, llama3, gemma, mistral, phi3, zephyr, plain. NULL: no such. */
const char *hd_chat_template_named(const char *name);
void hd_chat_template_free(hd_chat_template *c);

/* Writes messages (a JSON array of {"role", "content", ...}) as the model wants them; tools: a JSON array or NULL; extra: further variables (an object) or
 * NULL. add_generation_prompt: up to where the answer begins. HD_EINVAL: the template itself refused (raise_exception), or a limit was passed. The text holds
 * the template's own special tokens: encode it with hd_encoder_run(..., add_special = false). Read-only: any thread. */
int hd_chat_template_render(const hd_chat_template *c, const json_t *messages, const json_t *tools, const json_t *extra, bool add_generation_prompt,
                            hd_str *out, hd_error *err);
/* Text that ends an answer besides the model's eos tokens ("<|im_end|>"); NULL: nothing does. */
const char *hd_chat_template_stop(const hd_chat_template *c);

#endif
