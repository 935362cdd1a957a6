/* network.h: network files: any network as JSON, naming ops, parameters, inputs and loss (docs/network-files.md).
 *
 * A file is read once and can be built into any number of graphs, for training or evaluation, at any batch extent. Ops and their
 * parameters come from the op table alone: an op that is added there can be named in files at once.
 *
 * Inputs of the graph besides those that the file declares, each only when something uses it:
 *   inv_divisor f32 scalar, per step   with a loss: 1 / number of samples of the whole step
 *   key i64[2] {seed, step}, per step  "$key"
 *   samples i64[batch]                 "$samples": number of each sample in the data, for the random counters
 *   positions i32[batch]               "$positions": position of each row within its sample; 0 when a sample is one row
 * Outputs: "loss" f32 scalar, this call's share of the step's mean loss, and those that the file names. */
#ifndef HD_MODELS_NETWORK_H
#define HD_MODELS_NETWORK_H

#include <jansson.h>

#include "graph/graph.h"

typedef struct hd_network hd_network;

/* Reads a file (or text of n bytes; name is used in messages) and checks its outline. NULL and err on failure. */
hd_network *hd_network_load(const char *path, hd_error *err);
hd_network *hd_network_parse(const char *text, size_t n, const char *name, hd_error *err);
void hd_network_free(hd_network *n);

/* A section that says nothing about the graph: "data", "train", ... as it was written; NULL if there is none. Stays owned by n. */
const json_t *hd_network_section(const hd_network *n, const char *key);
/* The name of the file that it came from, for messages. */
const char *hd_network_name(const hd_network *n);

typedef struct hd_network_options {
    int64_t batch; /* samples of one call: what "$batch" stands for */
    bool train;    /* nodes of mode "train" instead of those of mode "eval"; states become their next values */
} hd_network_options;

/* Builds and verifies the graph, without gradients and update (train/step.h adds them). NULL and err on failure: one line that names
 * file, item and key. The caller frees it with hd_graph_free. */
hd_graph *hd_network_graph(const hd_network *n, const hd_network_options *o, hd_error *err);

#endif
