/* heddle.h: the public interface of libheddle, and the only stable one.
 *
 * Every fallible function returns 0 or a negative HD_E* code and, where it takes an hd_error, leaves one sentence for the
 * person there. No function exits, aborts on bad input, or keeps global state: any number of models live side by side. */
#ifndef HEDDLE_H
#define HEDDLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default) /* the library hides everything that is not declared here */

#define HEDDLE_VERSION "0.1.0"

/* ---- errors ------------------------------------------------------------------------------------------------------ */

enum {
    HD_OK = 0,
    HD_ENOMEM = -1,  /* memory could not be had */
    HD_EINVAL = -2,  /* an argument, flag or value that makes no sense */
    HD_EIO = -3,     /* reading or writing failed (disk full, no such file, ...) */
    HD_EFORMAT = -4, /* a file is not what it should be: corrupt, truncated, of another kind */
    HD_EUNSUPPORTED = -5, /* valid, but this build or version cannot do it */
    HD_ENUMERIC = -6,     /* a value became NaN or infinite */
    HD_EINTR = -7,        /* stopped by the person */
    HD_EMEMCAP = -8,      /* would need more memory than there is or was allowed */
    HD_ECOMM = -9,        /* another rank failed, or cannot be reached */
    HD_ENOPLAN = -10,     /* no plan keeps to all that was asked, or none fits */
};

/* Where a function leaves its message. Zero-initialise; the first error wins, later ones do not overwrite it. */
typedef struct hd_error {
    int code;          /* 0 while nothing went wrong */
    char message[480]; /* one line, no trailing newline or full stop */
} hd_error;

/* ---- element types ----------------------------------------------------------------------------------------------- */

typedef enum hd_dtype {
    HD_F64, HD_F32, HD_BF16, HD_F16, HD_I64, HD_I32, HD_I8, HD_U8,
    HD_DTYPE_COUNT
} hd_dtype;

#define HD_MAX_RANK 8

/* ---- networks: training and running what a network file describes (docs/network-files.md) -------------------------- */

typedef struct hd_net hd_net;

/* Opens a network file. settings is NULL or a JSON object of settings of `heddle train` ("{\"batch\": 64, \"learning_rate\": 0.01}"), which win over
 * those in the file. Predicts the memory it needs and fails with HD_EMEMCAP when there is not enough. NULL and err on failure. */
hd_net *hd_net_open(const char *network, const char *settings, hd_error *err);
void hd_net_close(hd_net *net); /* NULL is fine */

/* Copies one batch of an input, row-major in the input's dtype, for the steps and runs that follow. HD_EINVAL when `bytes` is not its size. */
int hd_net_input(hd_net *net, const char *name, const void *data, size_t bytes, hd_error *err);
/* Fills all inputs with the next batch of training samples of the file's own data. */
int hd_net_next_batch(hd_net *net, hd_error *err);

/* One update on the inputs, at the learning rate that the schedule has for this step. *loss (may be NULL): the batch's mean loss before it. */
int hd_net_step(hd_net *net, double *loss, hd_error *err);
/* The network as it is for use (no dropout, running statistics) on the inputs; then hd_net_output copies a named output of it, in f32. */
int hd_net_run(hd_net *net, hd_error *err);
int hd_net_output(hd_net *net, const char *name, float *out, size_t count, hd_error *err);
/* Mean loss and the file's metric (accuracy, area under the curve) over its held-out data; either may be NULL. Uses the inputs up. */
int hd_net_evaluate(hd_net *net, double *loss, double *metric, hd_error *err);

/* Writes DIR/model.safetensors and DIR/network.json; hd_net_load reads such a directory's weights back. */
int hd_net_save(hd_net *net, const char *dir, hd_error *err);
int hd_net_load(hd_net *net, const char *dir, hd_error *err);

/* ---- text from language models -------------------------------------------------------------------------------------- */

typedef struct hd_text_model hd_text_model;

typedef struct hd_text_options {
    int64_t max_tokens;                 /* most tokens to generate */
    double temperature;                 /* 0: always the likeliest */
    int64_t top_k;                      /* 0: all */
    double top_p, min_p;                /* 1 and 0: all */
    double repetition_penalty;          /* 1: none */
    uint64_t seed;
    const char *const *stop;            /* [n_stop] strings that end the text */
    int n_stop;
} hd_text_options;

hd_text_options hd_text_defaults(void); /* 256 tokens, greedy */

/* Loads a Hugging Face directory with config.json, weights and tokenizer.json; precision HD_F32 or HD_BF16; threads 0: one per core. */
hd_text_model *hd_text_open(const char *dir, hd_dtype precision, int threads, hd_error *err);
void hd_text_close(hd_text_model *m);
/* Goes on from prompt; piece is called with the text as it comes (whole characters, not NUL-terminated) and stops it by returning non-zero. */
int hd_text_generate(hd_text_model *m, const char *prompt, const hd_text_options *o, int (*piece)(void *arg, const char *text, size_t n), void *arg,
                     hd_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
