/* store.h: the Store: the state of one model instance (parameters, optimizer, statistics, caches) as tensors by path.
 *
 * Invariants: paths are unique; a tensor's memory stays where it is until the store is freed; programs for training, evaluation and
 * generation bind to the same store by path and see each other's changes. */
#ifndef HD_EXEC_STORE_H
#define HD_EXEC_STORE_H

#include "graph/graph.h"

typedef struct hd_store_tensor {
    const char *path;
    hd_type type;            /* of this rank's piece */
    hd_shape whole;          /* of all ranks' pieces together; meaningless where layout is NULL */
    const hd_layout *layout; /* over the store's mesh; NULL: whole */
    hd_format format;
    hd_kind kind;   /* HD_PARAM or HD_STATE */
    int64_t bytes;
    bool lent;      /* the memory is somebody else's, and read only: a mapped file */
    bool hollow;    /* nothing reads it: it has no memory, and what loads weights passes it over */
    bool guest;     /* another stage of the pipeline holds it too, and saves it */
    void *data;     /* 64-byte aligned unless lent; NULL: hollow */
} hd_store_tensor;

struct hd_whole;

typedef struct hd_store {
    hd_arena memory;               /* names, layouts */
    hd_mesh mesh;                  /* of the graph it was made for, and which rank of it this store is */
    int rank;
    hd_store_tensor **tensors;     /* in order of arrival */
    size_t n_tensors, cap_tensors;
    int *index; size_t index_size; /* open-addressed hash of paths: position + 1, 0: free */
    struct hd_store_block *blocks; /* element memory */
    struct hd_whole *all; size_t n_all; /* tensors of all stages, whole (exec/pieces.h); NULL: this store has them all */
} hd_store;

/* ---- life cycle ---- */

/* Parameters and states of g (may be NULL: an empty store), filled as hd_store_add_graph does. NULL on failure. */
hd_store *hd_store_new(const hd_graph *g, uint64_t seed, hd_error *err);
/* As one rank of a partitioned graph: it holds its pieces, filled with the numbers that the whole would have there. */
hd_store *hd_store_new_rank(const hd_graph *g, uint64_t seed, int rank, hd_error *err);
void hd_store_free(hd_store *s);

/* Adds the parameters and states of g that s has not got, filled from their data, else by their init with the key (seed, path): the same
 * numbers whatever the order, the number of threads and the other tensors. HD_EINVAL when one is there with another type. */
int hd_store_add_graph(hd_store *s, const hd_graph *g, uint64_t seed, hd_error *err);

/* Adds one zeroed tensor of `bytes` (0: what type says); *out (may be NULL) gets it. HD_EINVAL when the path is taken. */
int hd_store_add(hd_store *s, const char *path, const hd_type *type, hd_format format, hd_kind kind, int64_t bytes, hd_store_tensor **out,
                 hd_error *err);

/* Adds a plain parameter whose elements are at data, which must outlive the store and is only read. HD_EINVAL when the path is taken. */
int hd_store_lend(hd_store *s, const char *path, const hd_type *type, const void *data, hd_error *err);

/* The same of a packed constant of `bytes`. */
int hd_store_lend_packed(hd_store *s, const char *path, const hd_type *type, int64_t bytes, const void *data, hd_error *err);
/* Adds parameter v of g without memory: one that no program over s reads. hd_store_add_graph then passes it over. */
int hd_store_add_hollow(hd_store *s, const hd_graph *g, const hd_value_info *v, hd_error *err);

/* Forgets a tensor and gives the whole pages of its memory back to the system. No executor may be bound to it. */
void hd_store_drop(hd_store *s, const char *path);

/* ---- use ---- */

hd_store_tensor *hd_store_find(const hd_store *s, const char *path); /* NULL if there is none */
/* As found, but an error names what is missing, hollow or of another type. */
hd_store_tensor *hd_store_bind(const hd_store *s, const char *path, const hd_type *type, hd_format format, hd_error *err);
hd_tensor hd_store_tensor_view(const hd_store_tensor *t);            /* as a kernel sees it, plain */
int64_t hd_store_bytes(const hd_store *s);                           /* of all tensors but those lent */

#endif
