/* size.h: how large a model and how many tokens a budget is best spent on, by published laws, and what clusters give for money. Plain functions.
 *
 * N: parameters (Kaplan: without embeddings); D: tokens; C: FLOPs of training. All laws count C = 6 N D. */
#ifndef HD_CLUSTER_SIZE_H
#define HD_CLUSTER_SIZE_H

#include "cluster/cluster.h"

typedef enum hd_size_law {
    HD_SIZE_KAPLAN,      /* Kaplan et al. 2020, table 6: N = 1.3e9 C^0.73 with C in PF-days (8.64e19 FLOPs) */
    HD_SIZE_CHINCHILLA,  /* Hoffmann et al. 2022, approach 1: N and D grow alike, 20 tokens a parameter: C = 120 N^2 */
    HD_SIZE_CHINCHILLA_LOSS, /* approach 3: the minimum of L = 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28 */
    HD_SIZE_LAWS
} hd_size_law;

typedef struct hd_size {
    double flops, parameters, tokens;
    double loss; /* nats a token by approach 3's formula, whatever the law: to compare with */
} hd_size;

const char *hd_size_law_name(hd_size_law law); /* "kaplan", "chinchilla", "chinchilla-loss" */
int hd_size_law_parse(const char *name, hd_size_law *out); /* 0 or HD_EINVAL */

double hd_size_flops(double parameters, double tokens);
double hd_size_loss(double parameters, double tokens);
void hd_size_for_flops(hd_size_law law, double flops, hd_size *out);
void hd_size_for_tokens(hd_size_law law, double tokens, hd_size *out); /* the size that so many tokens are best for */

/* Layers and width that make about so many parameters (12 layers width^2), 128 times as wide as deep as GPT-3's are, width a multiple of 128. */
void hd_size_shape(double parameters, int64_t *layers, int64_t *width);

/* Bytes of model states on a rank (Rajbhandari et al. 2020, section 5): 2 for the parameter in 16 bits, `gradient` for its gradient (2 there; 4 where micro-batches are
 * added up in f32), 12 for Adam with f32 masters; from stage 1, 2, 3 on optimizer, gradients, parameters divided by the ranks. */
double hd_size_states(double parameters, double gradient, int zero, double ranks);

/* What a budget buys on a cluster whose devices reach `utilisation` of their 16-bit peak. */
typedef struct hd_rental {
    double rate;        /* FLOP/s of all devices */
    double price;       /* USD an hour of all nodes; 0: unknown */
    double flops_per_usd; /* 0: unknown */
    double seconds, usd;  /* of the whole training; usd 0: unknown */
    hd_size size;
} hd_rental;

/* FLOPs given, or, where flops is 0, USD: then HD_EINVAL for a cluster without a price. */
int hd_size_rent(const hd_cluster *c, hd_size_law law, double utilisation, double flops, double usd, hd_rental *out, hd_error *err);

#endif
