/* model.h: a model by its path: a directory, a config.json, a GGUF file or a network file; and its forward Graph for whatever it is to do. Neither weights nor data are read. */
#ifndef HD_MODELS_MODEL_H
#define HD_MODELS_MODEL_H

#include "models/lm.h"
#include "models/network.h"

typedef struct hd_model {
    bool is_network;
    hd_lm_config config;  /* of a language model */
    hd_network *network;  /* NULL for a language model; owned */
} hd_model;

/* HD_EINVAL, HD_EFORMAT or HD_EUNSUPPORTED and one line where it is none. */
int hd_model_open(hd_model *m, const char *path, hd_error *err);
void hd_model_close(hd_model *m);

typedef struct hd_model_options {
    hd_lm_mode mode;     /* networks: TRAIN or EVAL. SERVE: one sequence, as the generator (serve/generator.h) runs it */
    hd_dtype precision;  /* of products and activations */
    int64_t batch;       /* sequences (samples) of a call */
    int64_t sequence;    /* tokens of each; SERVE: of a call at most */
    int64_t context;     /* SERVE: tokens of the sequence */
    hd_attention_form attention;
    bool half_stream;    /* as hd_lm_options */
} hd_model_options;

/* The forward graph. NULL and err on failure; the caller frees it. */
hd_graph *hd_model_graph(const hd_model *m, const hd_model_options *o, hd_error *err);

#endif
