/* lower_int.h: what the steps of lowering share: order.c, group.c, emit.c, async.c, buckets.c, share.c, lower.c. */
#ifndef HD_PROGRAM_LOWER_INT_H
#define HD_PROGRAM_LOWER_INT_H

#include "program/program.h"

/* Something to put in order: a live node of the graph, or the copy of a new value into its state. */
typedef struct hd_item {
    const hd_node *node; /* NULL: a copy */
    int pair;            /* copy: index into hd_graph.pairs; else -1 */
    int segment;         /* number, see hd_lower_segment */
    bool dissolved;      /* its result is a sum that its addends form by themselves: emits nothing */
} hd_item;

/* One addend of a sum. */
typedef struct hd_addend {
    hd_value value; /* what the sum reads */
    hd_value made;  /* value behind the views between: what the producer writes */
    int item;       /* producer of `made`, or -1 */
    bool direct;    /* its producer writes (or adds) straight into the target */
} hd_addend;

/* A sum that is formed in place: the target is the buffer of `root`. */
typedef struct hd_group {
    hd_value root;
    int item;          /* of root's node */
    bool micro;        /* carried over the micro-batches */
    bool zeroed;       /* the target is cleared in prepare */
    hd_addend *addends; size_t n_addends, cap_addends; /* in order of execution */
} hd_group;

/* An instruction while lists still grow; operands are values, kept in the program's arena. */
typedef struct hd_draft {
    hd_instr instr;
    int segment; /* number, see hd_lower_segment */
    bool late;   /* of the update: a node's phase, or a state's copy */
} hd_draft;

typedef struct hd_lowering {
    const hd_graph *g;
    const hd_plan *plan;
    const hd_target *target;
    hd_program *p;
    hd_arena scratch;     /* what is not in the program */
    hd_error *err;
    int stage, stages, chunks, slices; /* chunks: of this stage, times slices: slice s of chunk c is chunk c * slices + s */
    bool many;                 /* the loop is called several times, or has several parts: the update waits for its end */
    int update;                /* number of that segment */

    /* order.c */
    bool has_backward, has_update;
    bool *weight;         /* [n_items] belongs to the weight segment; NULL: the schedule has none */
    hd_item *items; size_t n_items, cap_items;
    int *order;           /* [n_items] items in order of execution */
    int *position;        /* [n_items] */
    int *item_of;         /* [n_values] producing item or -1 (also: dead) */
    int *uses;            /* [n_values] operands of live nodes that read it */
    int **readers;        /* [n_values][uses] items */
    int *available;       /* [n_values] first segment in which it can be read */
    bool *kept;           /* [n_values] an output, or the new value of a state */
    int *pair_in;         /* [n_values] the pair in which it is the old value, or -1 */
    int *pair_direct;     /* [n_values] the pair whose state its producer writes in place, or -1 */

    /* group.c */
    hd_group *groups; size_t n_groups, cap_groups;
    int *group_of_root;   /* [n_values] group whose root it is, or -1 */
    int *group_of_made;   /* [n_values] group into which it is written directly, or -1 */

    /* emit.c */
    int *buffer_of;       /* [n_values] or -1 */
    hd_draft *drafts; size_t n_drafts, cap_drafts;
    bool late;            /* of the item that is being emitted */
    int n_tokens;         /* async.c */
    int64_t bucket_bytes; /* buckets.c: with which a bucket is full; the most of all segments; 0: there are none */
    size_t cap_buffers;
} hd_lowering;

/* Segments are numbered in the order in which one micro-batch goes through them: prepare, forward of chunk 0, 1, ..., backward of the last chunk, ..., 0,
 * weight likewise, update. With one chunk the numbers are those of hd_segment_kind. */
static inline int hd_lower_segment(const hd_lowering *l, hd_segment_kind kind, int chunk)
{
    if (kind == HD_SEGMENT_PREPARE) return 0;
    if (kind == HD_SEGMENT_UPDATE) return l->update;
    return 1 + ((int)kind - HD_SEGMENT_FORWARD) * l->chunks + (kind == HD_SEGMENT_FORWARD ? chunk : l->chunks - 1 - chunk);
}

static inline hd_segment_kind hd_lower_kind(const hd_lowering *l, int segment)
{
    if (segment == 0) return HD_SEGMENT_PREPARE;
    return segment == l->update ? HD_SEGMENT_UPDATE : (hd_segment_kind)(HD_SEGMENT_FORWARD + (segment - 1) / l->chunks);
}

static inline int hd_lower_chunk(const hd_lowering *l, int segment)
{
    hd_segment_kind kind = hd_lower_kind(l, segment);
    if (kind == HD_SEGMENT_PREPARE || kind == HD_SEGMENT_UPDATE) return 0;
    int at = (segment - 1) % l->chunks;
    return kind == HD_SEGMENT_FORWARD ? at : l->chunks - 1 - at;
}

/* Frequency: what is done once before the micro-batches, in each, once after. Memory is handed on only within one of them. */
static inline int hd_lower_frequency(const hd_lowering *l, int segment)
{
    return segment == 0 ? 0 : segment == l->update ? 2 : 1;
}

static inline int hd_draft_frequency(const hd_lowering *l, const hd_draft *d)
{
    return d->instr.last ? 2 : hd_lower_frequency(l, d->segment);
}

bool hd_is_micro_sum(const hd_node *n);

int hd_lower_order(hd_lowering *l);  /* items, segments, dependences, order */
int hd_lower_groups(hd_lowering *l); /* sums formed in place */
int hd_lower_emit(hd_lowering *l);   /* buffers and instructions */
int hd_lower_async(hd_lowering *l);  /* transfers beside computing: streams, tokens, places in the order */
int hd_lower_buckets(hd_lowering *l, const int *storage); /* gradients' reductions put together; storage[b]: the buffer whose memory b certainly is */
bool hd_lower_runs_beside(const hd_lowering *l, const hd_instr *x); /* a collective of several ranks of one stage */
int hd_lower_share(hd_lowering *l);  /* view_of: views, states, in place; classes and roles */

#endif
