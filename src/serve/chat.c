#include "serve/chat.h"

#include <string.h>

static const hd_chat_format formats[] = {
    {"ChatML", "<|im_start|>", "", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n", "<|im_end|>"},
    {"Llama 3", "<|start_header_id|>", "<|begin_of_text|>", "<|start_header_id|>user<|end_header_id|>\n\n",
     "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", "<|eot_id|>"},
    {"Gemma", "<start_of_turn>", "<bos>", "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>\n", "<end_of_turn>"},
    {"Instruct", "[INST]", "<s>", "[INST] ", " [/INST]", "</s>", "</s>"},
    {"plain", NULL, "", "Question: ", "\nAnswer:", "\n", "\nQuestion:"},
};

const hd_chat_format *hd_chat_format_of(const hd_tokenizer *t)
{
    const hd_chat_format *f = formats;
    while (f->marker && hd_tokenizer_id(t, f->marker) < 0) f++;
    return f;
}

int hd_chat_add_turn(const hd_chat_format *f, const hd_tokenizer *t, const char *text, hd_ids *ids, hd_error *err)
{
    hd_str turn;
    hd_str_init(&turn);
    hd_str_puts(&turn, ids->len ? f->end : f->begin);
    hd_str_puts(&turn, f->before);
    hd_str_puts(&turn, text);
    hd_str_puts(&turn, f->after);
    int rc = turn.failed ? hd_fail_memory(err, turn.len, "a turn") : hd_tokenizer_encode(t, turn.data, turn.len, false, ids, err);
    hd_str_free(&turn);
    return rc;
}
