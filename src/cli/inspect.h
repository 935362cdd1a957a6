/* inspect.h: within heddle inspect: what a path is, and its description as one JSON object, which is printed as it is (--json) or as text.
 *
 * The keys are documented in docs/inspect.md: keep them, add to them. Every describer returns 0 and a new object in *out, or an error. */
#ifndef HD_CLI_INSPECT_H
#define HD_CLI_INSPECT_H

#include <jansson.h>
#include "base/error.h"
#include "base/str.h"
#include "models/config.h"

typedef struct inspect_config {
    bool json, count;
    const char *mode, *precision, *parallel;
    int64_t batch, micro_batches, sequence, context, threads, rank;
} inspect_config;

/* ---- inspect_files.c ---- */

int hd_inspect_weights(const char *path, json_t **out, hd_error *err);
int hd_inspect_config(const char *path, json_t **out, hd_error *err);
json_t *hd_inspect_describe_config(const hd_lm_config *c, const char *path);
int hd_inspect_model(const char *dir, json_t **out, hd_error *err);
int hd_inspect_tokenizer(const char *path, json_t **out, hd_error *err);
int hd_inspect_corpus(const char *prefix, json_t **out, hd_error *err);
int hd_inspect_checkpoint(const char *dir, json_t **out, hd_error *err);

/* ---- inspect_gguf.c ---- */

int hd_inspect_gguf(const char *path, json_t **out, hd_error *err);

/* ---- inspect_program.c ---- */

/* A network file: what it declares, and its graph as text. */
int hd_inspect_trace(const char *path, json_t **out, hd_error *err);
int hd_inspect_network(const inspect_config *c, const char *path, json_t **out, hd_error *err);
/* The text of the Program or the Graph of a model, a config.json, a network file or a program text; *out: numbers and "text". */
int hd_inspect_program(const inspect_config *c, const char *path, json_t **out, hd_error *err);
int hd_inspect_graph(const inspect_config *c, const char *path, json_t **out, hd_error *err);

/* Whether a file begins as a program's text does. */
bool hd_inspect_is_program(const char *path);

#endif
