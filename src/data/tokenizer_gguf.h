/* tokenizer_gguf.h: tokenizers in the metadata of GGUF files: byte-level BPE ("gpt2"), SentencePiece's BPE ("llama") and its unigram models ("t5"). */
#ifndef HD_DATA_TOKENIZER_GGUF_H
#define HD_DATA_TOKENIZER_GGUF_H

#include "data/tokenizer.h"
#include "tensor/gguf.h"

/* NULL and err where there is none, or one of another kind. g need not outlive it. */
hd_tokenizer *hd_tokenizer_from_gguf(const hd_gguf *g, hd_error *err);
/* The same from a path; *out NULL where the file has none. */
int hd_tokenizer_open_gguf(hd_tokenizer **out, const char *path, hd_error *err);

/* Declares a byte-level BPE tokenizer, or a unigram one of a tokenizer.json, in a file to be, padded to `vocab` tokens; bos, eos: the model's, or -1.
 * HD_EUNSUPPORTED where the format cannot say what it does. */
int hd_tokenizer_to_gguf(const hd_tokenizer *t, int64_t vocab, int64_t bos, int64_t eos, hd_gguf_writer *w, hd_error *err);

#endif
