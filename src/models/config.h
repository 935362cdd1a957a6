/* config.h: what a Hugging Face config.json says about a decoder-only language model, as one struct for every family.
 *
 * Invariants of a struct that hd_lm_config_parse, _load or _check accepted: every extent is at least 1 and small enough that no product
 * of them overflows 64 bits; kv_heads divides heads; what is rotated of a head is even, and no more than it has; token ids are below vocab or -1. */
#ifndef HD_MODELS_CONFIG_H
#define HD_MODELS_CONFIG_H

#include "base/error.h"
#include "kernels/attrs.h"

typedef enum hd_family { HD_FAMILY_GPT2, HD_FAMILY_LLAMA, HD_FAMILY_GEMMA, HD_FAMILY_COUNT } hd_family;

/* What config.json calls the model. Llama, Mistral, Qwen 2, Qwen 3 and Phi-3 are one family that differs in defaults, biases, windows and query/key norms;
 * Gemma 2 and 3 another. */
typedef enum hd_architecture {
    HD_ARCH_GPT2, HD_ARCH_LLAMA, HD_ARCH_MISTRAL, HD_ARCH_QWEN2, HD_ARCH_QWEN3, HD_ARCH_PHI3, HD_ARCH_GEMMA2, HD_ARCH_GEMMA3, HD_ARCH_COUNT
} hd_architecture;

/* How rotary frequencies are stretched beyond the length a model was trained on. */
typedef enum hd_rope_kind { HD_ROPE_PLAIN, HD_ROPE_LINEAR, HD_ROPE_LLAMA3, HD_ROPE_YARN, HD_ROPE_LONG, HD_ROPE_FACTORS, HD_ROPE_COUNT } hd_rope_kind;
#define HD_MAX_ROPE_FACTORS 256

typedef struct hd_rope_config {
    hd_rope_kind kind;
    double theta;                 /* base of the frequencies */
    double factor;                /* all kinds but plain: at least 1 */
    double low_freq, high_freq;   /* llama3: low_freq_factor, high_freq_factor */
    double beta_fast, beta_slow;  /* yarn */
    double attention_factor;      /* yarn, long; 0: 0.1 ln(factor) + 1, sqrt(1 + ln(factor) / ln(original_positions)) */
    int64_t original_positions;   /* llama3, yarn, long: length that the model was trained on; 0: max_positions */
    float pair_factor[HD_MAX_ROPE_FACTORS]; /* factors (GGUF files only), long: what each pair's frequency is divided by, [rotary_dim / 2]; */
    float long_factor[HD_MAX_ROPE_FACTORS]; /* long: the same where sequences may be longer than original_positions */
} hd_rope_config;

#define HD_MAX_EOS 8
typedef struct hd_lm_config {
    hd_architecture arch;
    hd_family family;
    int64_t vocab, width, layers, heads, kv_heads, head_dim, mlp_width, max_positions;
    double norm_eps, init_std;
    int64_t rotary_dim;           /* the first features of a head, which are rotated; 0: all. hd_lm_rotary_dim */
    char activation[32];          /* by its Hugging Face name: "gelu_new" */
    hd_ew activation_op;          /* what it computes */
    bool tie_embeddings;          /* the head is the token embedding */
    bool qkv_bias, o_bias, mlp_bias;
    bool qk_norm;                 /* RMS norms of each head's query and key before they are rotated */
    hd_rope_config rope;          /* Llama and Gemma families */
    double local_theta;           /* Gemma 3: base of the layers with the window, which are not stretched */
    double query_scalar;          /* Gemma: scores are divided by its root; 0: head_dim */
    double attn_softcap, final_softcap; /* Gemma 2: scores and logits become cap * tanh(x / cap); 0: as they are */
    int64_t window;               /* keys that a query sees, itself included; 0: all before it */
    int64_t window_from;          /* first layer with the window */
    int64_t window_period;        /* every so many layers one sees everything; 0: none does */
    double embd_dropout, resid_dropout; /* GPT-2, Phi-3 */
    double attn_dropout;          /* kept for writing back; attention weights are never dropped (see hd_lm_config_note) */
    bool scale_attention, scale_by_layer; /* GPT-2: divide scores by sqrt(head_dim); and by the layer's number from 1 */
    int64_t bos;                  /* -1: none */
    int64_t eos[HD_MAX_EOS];
    int n_eos;
    hd_dtype dtype;               /* of the stored weights: f32, bf16 or f16 */
} hd_lm_config;

/* The defaults of transformers for an architecture; extents are 0 and must be filled in. */
void hd_lm_config_preset(hd_lm_config *c, hd_architecture arch);

/* Reads the text of a config.json of n bytes; name stands in messages. Sets *c only on success; HD_EFORMAT or HD_EUNSUPPORTED otherwise. */
int hd_lm_config_parse(hd_lm_config *c, const char *text, size_t n, const char *name, hd_error *err);

/* Reads dir/config.json, and token ids from dir/generation_config.json where there is one. */
int hd_lm_config_load(hd_lm_config *c, const char *dir, hd_error *err);

/* Checks the invariants of a struct filled in by hand and completes kv_heads, head_dim and mlp_width where they are 0. */
int hd_lm_config_check(hd_lm_config *c, const char *name, hd_error *err);

/* Writes dir/config.json and dir/generation_config.json so that transformers loads them. */
int hd_lm_config_save(const hd_lm_config *c, const char *dir, hd_error *err);

/* Number of parameters, tied ones counted once. */
int64_t hd_lm_config_parameters(const hd_lm_config *c);

/* A sentence for the person about something config.json asks for and Heddle leaves out; NULL if there is nothing. */
const char *hd_lm_config_note(const hd_lm_config *c);

/* The Hugging Face name of an architecture ("LlamaForCausalLM") and its model_type ("llama"). */
const char *hd_architecture_name(hd_architecture a);
const char *hd_architecture_type(hd_architecture a);
/* By either name; 0 or HD_EINVAL. */
int hd_architecture_parse(const char *name, hd_architecture *out);

static inline int64_t hd_lm_rotary_dim(const hd_lm_config *c) { return c->rotary_dim ? c->rotary_dim : c->head_dim; }

/* The window of one layer, 0 for none. */
int64_t hd_lm_config_window(const hd_lm_config *c, int64_t layer);

#endif
