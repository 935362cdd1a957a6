/* network_int.h: what the files of the network loader share. */
#ifndef HD_MODELS_NETWORK_INT_H
#define HD_MODELS_NETWORK_INT_H

#include "models/network.h"

#define HD_NETWORK_VERSION 1

struct hd_network {
    json_t *root;
    char name[200];
};

/* One level of names: the file itself, or one use of a template. Lives on the stack while it is built. */
typedef struct net_scope {
    const char *path;    /* "" or "stage1.block2" */
    const json_t *args;  /* template: argument -> JSON, with everything of the caller's replaced; NULL for the file */
    const json_t *bound; /* template: argument -> value index, for those that name a value of the caller */
    int depth;
} net_scope;

typedef struct net_builder {
    const hd_network *net;
    const hd_network_options *o;
    hd_graph *g;
    hd_error *err;
    json_t *names; /* full path -> value index */
    json_t *given; /* what "$" names without a definition: batch */
    int n_items;   /* built so far, against templates that multiply */
} net_builder;

/* Where an error is: "mlp.json: node \"block.conv1\"". */
typedef struct net_where { char text[400]; } net_where;
net_where net_where_of(const net_builder *b, const net_scope *s, const char *kind, const char *name);

/* ---- network_names.c: names, definitions, extents ---- */

/* HD_EFORMAT unless every key of object j is in the NULL-terminated list (or is "note"). */
int net_check_keys(const json_t *j, const char *const *keys, const net_where *w, hd_error *err);
/* The member, HD_EFORMAT in err when it's missing or not of the JSON type. */
const json_t *net_need(const json_t *j, const char *key, json_type type, const net_where *w, hd_error *err);
/* Reads the "name" of an item; only letters, digits, '_' and '-', not one that Heddle uses itself. NULL on failure. */
const char *net_item_name(net_builder *b, const net_scope *s, const json_t *item, const char *kind);
/* Makes a value known under the scope's path and name. */
int net_bind(net_builder *b, const net_scope *s, const char *name, hd_value v, const net_where *w);
/* Replaces "$name" by what it stands for. NULL and an error when it stands for nothing. */
const json_t *net_resolve(net_builder *b, const net_scope *s, const json_t *j, const net_where *w);
/* An integer in [lo, hi]: a number, "$name", or a product of them as "$batch*7". */
int net_integer(net_builder *b, const net_scope *s, const json_t *j, const char *key, int64_t lo, int64_t hi, int64_t *out, const net_where *w);
int net_number(net_builder *b, const net_scope *s, const json_t *j, const char *key, double *out, const net_where *w);
/* A list of extents; for shapes each in [1, 2^40] with at most 2^40 elements in all. */
int net_shape(net_builder *b, const net_scope *s, const json_t *j, const char *key, hd_type *out, const net_where *w);
/* What an entry of "in" means: a value's name, "$argument", "$key"..., a number (a constant), null (absent: HD_NONE). 0 or an error. */
int net_value(net_builder *b, const net_scope *s, const json_t *j, hd_value *out, const net_where *w);
/* 0 unless the elements of v are too many to count. */
int net_check_size(const net_builder *b, hd_value v, const net_where *w);

/* ---- network_node.c: one node of an op ---- */

int net_node(net_builder *b, const net_scope *s, const json_t *item);

#endif
