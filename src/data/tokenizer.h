/* tokenizer.h: byte-level BPE, SentencePiece's BPE and unigram models as Hugging Face `tokenizers` does them: loading a tokenizer.json, encoding, decoding,
 * training (byte-level BPE), saving.
 *
 * A tokenizer is read-only once made: any number of threads may encode with it at once, each with its own hd_encoder (scratch memory and
 * a cache of words). Text is bytes: what isn't valid UTF-8 is taken as U+FFFD, as Python's bytes.decode(errors="replace") does.
 * A tokenizer.json with a component that Heddle hasn't got is refused with its name, never read as something else. */
#ifndef HD_DATA_TOKENIZER_H
#define HD_DATA_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"
#include "base/str.h"

typedef struct hd_tokenizer hd_tokenizer;
typedef struct hd_encoder hd_encoder;

/* A growing list of token ids. Zero-initialise. */
typedef struct hd_ids {
    int32_t *data;
    size_t len, cap;
} hd_ids;

void hd_ids_free(hd_ids *ids);
int hd_ids_append(hd_ids *ids, int32_t id, hd_error *err);

/* ---- life cycle ---- */

/* Reads a tokenizer.json. NULL and err on failure. */
hd_tokenizer *hd_tokenizer_load(const char *path, hd_error *err);
/* The same from n bytes of JSON; name stands in messages. */
hd_tokenizer *hd_tokenizer_parse(const char *json, size_t n, const char *name, hd_error *err);
void hd_tokenizer_free(hd_tokenizer *t);
/* Writes a tokenizer.json (atomically) that Heddle and `tokenizers` read back with identical behaviour. */
int hd_tokenizer_save(const hd_tokenizer *t, const char *path, hd_error *err);

/* An encoder of t, which must outlive it; for one thread at a time. NULL and err on failure. */
hd_encoder *hd_encoder_new(const hd_tokenizer *t, hd_error *err);
void hd_encoder_free(hd_encoder *e);

/* ---- encoding and decoding ---- */

/* Appends the ids of text[0..n) to out. add_special: with the tokens that the post-processor puts around a text (bos, eos). */
int hd_encoder_run(hd_encoder *e, const char *text, size_t n, bool add_special, hd_ids *out, hd_error *err);
/* The same with an encoder made for this one call. */
int hd_tokenizer_encode(const hd_tokenizer *t, const char *text, size_t n, bool add_special, hd_ids *out, hd_error *err);

/* Appends the text of n ids to out, always valid UTF-8. Ids that no token has are left out; so are special tokens when skip_special. */
int hd_tokenizer_decode(const hd_tokenizer *t, const int32_t *ids, size_t n, bool skip_special, hd_str *out, hd_error *err);

/* Decoding one id at a time: bytes of a character that isn't whole yet wait here. Zero-initialise. */
typedef struct hd_token_stream {
    unsigned char pending[4];
    int count;
} hd_token_stream;

/* Appends the text that id completes (perhaps none) to out. */
int hd_token_stream_push(const hd_tokenizer *t, hd_token_stream *s, int32_t id, bool skip_special, hd_str *out, hd_error *err);
/* Appends U+FFFD for what is pending, at the end of a text. */
int hd_token_stream_end(hd_token_stream *s, hd_str *out, hd_error *err);

/* ---- the vocabulary ---- */

/* One more than the largest id: the rows an embedding needs. */
int32_t hd_tokenizer_vocab_size(const hd_tokenizer *t);
/* The id of a token as it is written in the file ("Ġthe", "<|endoftext|>"), or -1. */
int32_t hd_tokenizer_id(const hd_tokenizer *t, const char *token);
/* The token as it is written in the file, or NULL. */
const char *hd_tokenizer_token(const hd_tokenizer *t, int32_t id);
/* The bytes that id stands for in a text; NULL when there is no such token. */
const char *hd_tokenizer_bytes(const hd_tokenizer *t, int32_t id, size_t *n);
bool hd_tokenizer_is_special(const hd_tokenizer *t, int32_t id);

/* ---- training ---- */

typedef enum hd_pretokenizer { HD_PRETOK_GPT2, HD_PRETOK_LLAMA3, HD_PRETOK_QWEN2, HD_PRETOK_COUNT } hd_pretokenizer;

/* "gpt2", "llama3", "qwen2". */
const char *hd_pretokenizer_name(hd_pretokenizer p);

typedef struct hd_bpe_spec {
    hd_pretokenizer pretokenizer;
    int32_t vocab_size;             /* specials and the 256 bytes included */
    int64_t min_frequency;          /* a pair seen less often is not merged; 0 and 1 take any */
    const char *const *specials;    /* special tokens, which get the first ids */
    int special_count;
    bool nfc;                       /* normalize to NFC (Qwen does) */
    bool quiet;                     /* no progress bar */
} hd_bpe_spec;

typedef struct hd_bpe_trainer hd_bpe_trainer;

hd_bpe_trainer *hd_bpe_trainer_new(const hd_bpe_spec *spec, hd_error *err);
/* Counts the words of one text. A text is cut into words by itself: feed whole documents or lines, as encoding will see them. */
int hd_bpe_trainer_feed(hd_bpe_trainer *b, const char *text, size_t n, hd_error *err);
/* Learns the merges and returns the tokenizer; the trainer can only be freed afterwards. */
hd_tokenizer *hd_bpe_trainer_finish(hd_bpe_trainer *b, hd_error *err);
void hd_bpe_trainer_free(hd_bpe_trainer *b);

/* Trains on text files, line by line (each with its line end), as `Tokenizer.train(files)` of `tokenizers`. */
hd_tokenizer *hd_bpe_train_files(const hd_bpe_spec *spec, const char *const *paths, int count, hd_error *err);

#endif
