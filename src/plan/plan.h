/* plan.h: the Plan: every decision about how a Graph is run, as plain data and nothing else.
 *
 * A field that is left open holds its "open" value (0, or ""); hd_plan_complete fills it by one deterministic rule. A plan prints to JSON
 * and is read back; a key that this version does not know, or a plan made for another graph, is an error that says so. */
#ifndef HD_PLAN_PLAN_H
#define HD_PLAN_PLAN_H

#include "base/str.h"
#include "passes/partition.h"

#define HD_PLAN_VERSION 1
#define HD_PLAN_BUCKET ((int64_t)4 << 20) /* bytes: a transfer of an MPI transport is one message to each peer, and the wire is idle between the two halves of a large sum */

enum { HD_MAX_PINS = 512, HD_MESH_PINS = 256 /* of one mesh */, HD_MAX_CUTS = 256, HD_MAX_RECOMPUTE = 512, HD_MAX_MESHES = 16 };

typedef enum hd_schedule_kind {
    HD_SCHEDULE_GPIPE,       /* all forward, then all backward (Huang et al. 2019) */
    HD_SCHEDULE_1F1B,        /* Narayanan et al. 2021, section 2.2.1; its early backward is DAPPLE's (Fan et al. 2021) */
    HD_SCHEDULE_INTERLEAVED, /* 1F1B with several chunks on a stage (Narayanan et al. 2021, section 2.2.2) */
    HD_SCHEDULE_ZERO_BUBBLE, /* ZB-H1: backward cut into input and weight parts (Qi et al. 2023) */
    HD_SCHEDULE_KINDS
} hd_schedule_kind;

/* Plain data, copied by assignment. */
typedef struct hd_plan {
    int version;           /* HD_PLAN_VERSION */
    uint64_t fingerprint;  /* hd_graph_fingerprint of the graph it was made for; 0: open, fits any */
    int64_t rows;          /* of that graph's micro-batch: tokens of a language model, samples of another network; 0: not known */
    int64_t micro_batches; /* forward and backward calls in one step, >= 1 */
    hd_dtype precision;    /* HD_F32 or HD_BF16: of products and activations; the precision pass reads it */
    int threads;           /* of the rank's team; 0: open, one per core */
    char backend[16];      /* "cpu", "reference", "null"; "": open, cpu */
    bool overlap;          /* transfers run beside computing where the order allows it; the results are the same bits */
    int64_t bucket;        /* with overlap, gradients are reduced together once they have so many bytes; 0: each by itself (program/buckets.c) */
    bool sparse;           /* gradients of tables that only lookups read are exchanged as rows where that is fewer bytes */
    bool pack;             /* for serving: constant operands of products in the back end's panels, and sums whose bits don't depend on cuts */

    /* Many ranks. */
    hd_mesh mesh;          /* n = 0: one rank. The pipeline's axis "pp", if there is one, comes first: its size is the number of stages */
    /* Stages of different meshes; `mesh` is then empty. Ranks are numbered stage after stage. */
    hd_mesh meshes[HD_MAX_MESHES]; int n_meshes; /* without the pipeline's axis; one without axes is a single rank. 0: all stages are of `mesh` */
    uint8_t stages[HD_MAX_CUTS + 1]; int n_stages; /* the mesh of each stage */
    hd_pin pins[HD_MAX_PINS]; int n_pins;
    uint8_t pin_mesh[HD_MAX_PINS]; /* of each pin: over which of `meshes`; 0 without */
    hd_schedule_kind schedule;
    int chunks;            /* of each stage (virtual stages), >= 1 */
    char cuts[HD_MAX_CUTS][64]; int n_cuts; /* path (or its beginning) of the first node of chunks 1, 2, ...: stages * chunks - 1, or 0: open */
    bool keep_gathered; /* what is gathered of parameters over data axes (ZeRO-3) stays for the whole step; else each call gathers again, forward and backward */
    char ring[32];   /* axes, "cp": attention over tokens that are cut over one of them sends keys and values round; "": they are gathered */
    char zigzag[32]; /* axes: a rank's tokens are an early and a late part of each sequence that is cut over one of them; "": one part in a row */
    bool regather; /* what backward gathers to make something again is given up, and gathered once more for backward itself: less memory, half as many gathers more */
    bool half_wire; /* gradients, and activations in bf16, are summed over ranks in bf16 (hd_pass_narrow_sums) */
    bool scatter; /* what tensor-parallel ranks would all send whole to another stage goes in pieces (hd_pass_scatter) */
    int64_t slices[HD_MAX_SLICES]; int n_slices; /* tokens of each slice of a sequence (hd_pass_slices); 0: not cut */
    char recompute[HD_MAX_RECOMPUTE][64]; int n_recompute; /* patterns of forward values that backward computes again instead of keeping */
} hd_plan;

const char *hd_schedule_name(hd_schedule_kind k);                 /* "gpipe", "1f1b", "interleaved", "zero-bubble" */
int hd_schedule_parse(const char *name, hd_schedule_kind *out);   /* 0 or HD_EINVAL */
int hd_plan_stages(const hd_plan *p);                             /* size of axis "pp", 1 without it; or as many as are listed */
int hd_plan_ranks(const hd_plan *p);                              /* of all stages */
bool hd_plan_is_meshed(const hd_plan *p);                         /* for ranks of a job, if perhaps a single one */
int hd_plan_first_rank(const hd_plan *p, int stage);              /* of a stage; stage: up to their number, which gives hd_plan_ranks */
int hd_plan_stage_of(const hd_plan *p, int rank);
/* The mesh of a stage's graph: `mesh`, or the stage's own with the pipeline's axis, of size 1, before it. */
hd_mesh hd_plan_stage_mesh(const hd_plan *p, int stage);
/* The meshes of all stages as a graph is cut for them, in `memory`; n = 0 where they are of one mesh. 0 or HD_ENOMEM. */
int hd_plan_list_stages(const hd_plan *p, hd_arena *memory, hd_stages *out);

hd_plan hd_plan_default(void); /* one micro-batch, f32, everything else open */

/* Fills what is open; g (may be NULL) gives the fingerprint and the rows. */
void hd_plan_complete(hd_plan *p, const hd_graph *g);
/* HD_EINVAL unless every field makes sense and the fingerprint, if given, is that of g (may be NULL). */
int hd_plan_check(const hd_plan *p, const hd_graph *g, hd_error *err);

/* JSON text appended to out; 0 or HD_ENOMEM. */
int hd_plan_print(const hd_plan *p, hd_str *out);
/* Reads JSON text (name is used in messages), or a file. Keys that are missing keep their default. *out is valid only on success. */
int hd_plan_parse(const char *text, size_t n, const char *name, hd_plan *out, hd_error *err);
int hd_plan_load(const char *path, hd_plan *out, hd_error *err);
int hd_plan_save(const hd_plan *p, const char *path, hd_error *err);

#endif
