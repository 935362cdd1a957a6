/* op.h: what an op is. All that the system knows of one op stands in src/ops/<op>.c as one `const hd_op`; src/ops/ops.def names them all. */
#ifndef HD_GRAPH_OP_H
#define HD_GRAPH_OP_H

#include "base/rng.h"
#include "graph/graph.h"

/* An op applied to operands of known types: what most facets are asked about. */
typedef struct hd_sig {
    const hd_op *op;
    const hd_type *in;  /* [n_in], .absent for optional operands not given */
    const hd_type *out; /* [n_out]; not yet there in infer */
    int n_in, n_out;
    const void *attrs;
} hd_sig;

/* ---- parameters, described so that they can be printed, read back, compared, and named in network files ---- */

typedef enum hd_attr_type {
    HD_ATTR_INT32, HD_ATTR_INT64, HD_ATTR_UINT32, HD_ATTR_DOUBLE, HD_ATTR_BOOL,
    HD_ATTR_STRING, /* char[64] */
    HD_ATTR_DTYPE,
    HD_ATTR_INT32_2, /* int32_t[2] */
    HD_ATTR_DIMS,    /* hd_dims_attrs-like { int32_t rank; int64_t dim[8]; } at the offset */
    HD_ATTR_CHAIN,   /* hd_fused_attrs */
} hd_attr_type;

typedef struct hd_attr {
    const char *name; /* NULL ends the list */
    hd_attr_type type;
    size_t offset;
    double preset;    /* value when a network file leaves it out; NAN: must be given (DTYPE: absent means that of operand 0) */
} hd_attr;

/* ---- loops: how the op's iteration space lies over its operands and results; the one rule that shards every op ---- */

#define HD_MAX_LOOPS 12
typedef struct hd_dim_map {
    int8_t n;       /* 0: this dimension cannot be split (a window, or something read whole) */
    int8_t loop[4]; /* the ordered product of loops that it runs over, outermost first; extents multiply to the dimension */
} hd_dim_map;

typedef struct hd_loops {
    int n;
    int64_t extent[HD_MAX_LOOPS];
    uint32_t reduced; /* bit i: loop i is summed over: splitting it gives Partial(sum) results (max where the op says so). Others are parallel. */
    uint32_t whole;   /* bit i: loop i cannot be split (a window, or keys that every query sees): it only stands in a product with others */
    hd_dim_map in[HD_MAX_OPERANDS][HD_MAX_RANK];
    hd_dim_map out[HD_MAX_RESULTS][HD_MAX_RANK];
} hd_loops;

typedef struct hd_cost {
    double flops; /* floating-point operations, a multiply-add counts as 2 */
    double bytes; /* least memory traffic: every operand read once, every result written once */
} hd_cost;

/* ---- a random small valid instance, for tests and benchmarks that walk the table ---- */

typedef enum hd_fill {
    HD_FILL_NORMAL,   /* standard normal */
    HD_FILL_POSITIVE, /* in [0.5, 1.5) */
    HD_FILL_INDEX,    /* integers in [0, limit) */
    HD_FILL_UNIQUE,   /* distinct integers in [0, limit), count <= limit */
    HD_FILL_RAMP,     /* 0, 1, 2, ... */
    HD_FILL_SEGMENTS, /* non-decreasing small integers from 0: runs of random length */
    HD_FILL_DISTINCT, /* normal values no two of which are closer than 0.01: away from ties */
    HD_FILL_CONSTANT, /* limit */
} hd_fill;

typedef struct hd_sample {
    hd_type in[HD_MAX_OPERANDS]; /* dtype of float operands: HD_F64; the test stores them in the dtype it tests */
    int n_in;
    struct { hd_fill how; double limit; } fill[HD_MAX_OPERANDS];
    _Alignas(16) char attrs[1024];
} hd_sample;

/* ---- the op ---- */

struct hd_op {
    const char *name;
    const char *summary;     /* one line: "(x[..., D], gamma[D]) -> y" and what it does */
    int min_in, max_in;      /* operands */
    int code;                /* tells the members of a family apart; passed to kernels */
    size_t attrs_size;       /* bytes of the parameter struct, 0 if none */
    const hd_attr *attrs;    /* NULL if none */
    uint32_t linear[4];      /* jointly linear operand sets, as masks, 0 ends (add: {3}; matmul: {1, 2}) */
    bool can_accumulate;     /* its kernels honour hd_kernel_args.accumulate */
    bool is_view;            /* result 0 is operand 0's memory; there is no kernel to run */
    bool reduce_max;         /* the reduced loops combine by max, not by sum */
    bool no_gradient;        /* grad is NULL on purpose: gradients stop here */
    bool is_backward;        /* made by another op's grad; has no sample: tested through it */
    bool is_comm;            /* moves data between ranks (src/ops/collective.c): the executor hands it to src/comm; no reference, no sample */
    bool sends_nothing;      /* is_comm, but each rank does it by itself */
    bool has_effect;         /* is kept though nothing reads a result of it (send) */

    /* Checks operand types and parameters and fills out[]; may complete *attrs' dtype fields. Returns the number of results or a negative code. */
    int (*infer)(const hd_sig *s, hd_type *out, hd_error *err);
    /* Fills the loops. Never fails for what infer accepted. */
    void (*loops)(const hd_sig *s, hd_loops *l);
    /* Rewrites attrs (a copy) for the shard [begin, end) of loop l. NULL: parameters don't depend on extents. */
    void (*localise)(const hd_sig *s, const hd_loops *loops, int loop, int64_t begin, int64_t end, void *attrs);
    void (*cost)(const hd_sig *s, hd_cost *c);
    /* Builds the gradient of operand i from dy[] (HD_NONE: zero); HD_NONE: no gradient. dx has the operand's shape; f32 for f32 and parameters. */
    hd_value (*grad)(hd_graph *g, const hd_node *n, const hd_value *dy, int operand);
    /* Operands (mask) whose memory result i may take when they die here. NULL: none. */
    uint32_t (*may_alias)(const hd_sig *s, int result);
    /* The definition: f64 arithmetic, rounded once on store; any float dtype. Called by every thread; works on tid 0 only. NULL for views. */
    void (*reference)(const hd_kernel_args *a);
    /* A random instance with at most a few hundred elements, odd sizes preferred. NULL only with is_backward. */
    void (*sample)(hd_rng *r, hd_sample *s);
};

/* The table. */
extern const hd_op *const hd_ops[];
extern const int hd_op_count;
const hd_op *hd_op_find(const char *name); /* NULL if there is none */

/* ---- shared facets (graph/op.c) ---- */

/* One loop per dimension of result 0, operands aligned at the last dimension, extent-1 dimensions mapped to nothing: elementwise ops. */
void hd_loops_elementwise(const hd_sig *s, hd_loops *l);
/* As above for the leading dimensions only: the last `whole` dimensions of each are not splittable. */
void hd_loops_rows(const hd_sig *s, hd_loops *l, int whole);
/* Rewrites attrs (a copy of those of the whole op) for rank's piece of the loops that are split. whole: types of the whole operands and results. */
void hd_op_localise(const hd_sig *whole, const hd_loop_split *splits, int n_splits, const hd_mesh *mesh, int rank, void *attrs);

/* Helpers for writing loops by hand. */
int hd_loop_new(hd_loops *l, int64_t extent, bool reduced);
void hd_loop_in(hd_loops *l, int operand, int dim, int loop);  /* appends loop to that dimension's product */
void hd_loop_out(hd_loops *l, int result, int dim, int loop);

void hd_cost_default(const hd_sig *s, hd_cost *c); /* one flop per element of result 0; bytes of all operands and results */
double hd_cost_bytes(const hd_sig *s);
uint32_t hd_alias_same_type(const hd_sig *s, int result); /* operands of the same dtype and shape as the result */
bool hd_sig_has(const hd_sig *s, int operand);            /* given and not absent */

/* Parameters as text "spec=td,hed->the dtype=f32" and back; comparing; presets. */
void hd_attrs_print(const hd_op *op, const void *attrs, hd_str *out);
int hd_attrs_parse(const hd_op *op, const char *text, void *attrs, hd_error *err);
void hd_attrs_preset(const hd_op *op, void *attrs); /* zero, then the presets */

/* Says which operand of which op is wrong: "layer_norm: gamma must be f32[768], is f32[512]". Returns HD_EINVAL. */
int hd_op_fail(const hd_sig *s, hd_error *err, const char *fmt, ...) HD_PRINTF(3, 4);

#endif
