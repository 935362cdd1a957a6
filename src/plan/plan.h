/* plan.h: the Plan: every decision about how a Graph is run, as plain data and nothing else.
 *
 * A field that is left open holds its "open" value (0, or ""); hd_plan_complete fills it by one deterministic rule. A plan prints to JSON
 * and is read back; a key that this version does not know, or a plan made for another graph, is an error that says so. */
#ifndef HD_PLAN_PLAN_H
#define HD_PLAN_PLAN_H

#include "base/str.h"
#include "graph/graph.h"

#define HD_PLAN_VERSION 1

typedef struct hd_plan {
    int version;           /* HD_PLAN_VERSION */
    uint64_t fingerprint;  /* hd_graph_fingerprint of the graph it was made for; 0: open, fits any */
    int64_t micro_batches; /* forward and backward calls in one step, >= 1 */
    hd_dtype precision;    /* HD_F32 or HD_BF16: of products and activations; the precision pass reads it */
    int threads;           /* of the rank's team; 0: open, one per core */
    char backend[16];      /* "cpu", "reference", "null"; "": open, cpu */
    bool pack;             /* keep constant operands of products in the back end's panels: for serving */
} hd_plan;

hd_plan hd_plan_default(void); /* one micro-batch, f32, everything else open */

/* Fills what is open; g (may be NULL) gives the fingerprint. */
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
