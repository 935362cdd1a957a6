/* sampler.h: training rows out of a corpus, in an order that follows from (seed, row number) alone.
 *
 * One epoch is every document of the sampler's side of the split once, shuffled and laid end to end (Megatron-LM's GPTDataset), cut into
 * windows of length + 1 tokens that overlap by one, and the windows shuffled again. Row i is the same whatever was read before it, so a run
 * resumes from its row number; asking for a row of another epoch costs one pass over the documents' sizes. */
#ifndef HD_DATA_SAMPLER_H
#define HD_DATA_SAMPLER_H

#include "data/corpus.h"

typedef enum hd_split_side { HD_SPLIT_ALL, HD_SPLIT_TRAIN, HD_SPLIT_VALID } hd_split_side;

typedef struct hd_sampler_spec {
    const hd_corpus *corpus; /* must outlive the sampler */
    hd_split_side side;
    double valid_fraction;   /* of documents, [0, 1): which ones follows from their tokens and split_seed; equal documents go to one side */
    uint64_t split_seed, seed;
    int32_t length;          /* tokens in a row */
    int32_t vocab_size;      /* larger ids in the corpus are an error */
    bool shuffle;            /* false: documents and windows in order, as for evaluation */
    bool keep_tail;          /* also the last, incomplete window, filled up with pad_id and targets of -1 */
    bool separate;           /* positions and segments start anew in each document, and nothing is predicted across documents */
    int32_t pad_id;
} hd_sampler_spec;

typedef struct hd_sampler hd_sampler;

/* NULL and err when the side holds no row. For one thread at a time. */
hd_sampler *hd_sampler_new(const hd_sampler_spec *spec, hd_error *err);
void hd_sampler_free(hd_sampler *s);

int64_t hd_sampler_documents(const hd_sampler *s); /* on this side */
int64_t hd_sampler_tokens(const hd_sampler *s);    /* in them */
int64_t hd_sampler_rows(const hd_sampler *s);      /* rows of an epoch */

/* Row `index` >= 0, of epoch index / rows: tokens, the targets (next tokens, -1 where nothing is to be predicted), positions and segments
 * (the last two may be NULL), each [length]. */
int hd_sampler_row(hd_sampler *s, int64_t index, int32_t *tokens, int32_t *targets, int32_t *positions, int32_t *segments, hd_error *err);

/* Bytes of text behind the mean token of this side (special tokens count as none): nats per token / ln 2 / this = bits per byte. 0 on failure. */
double hd_sampler_bytes_per_token(const hd_sampler *s, const hd_tokenizer *t, hd_error *err);

#endif
