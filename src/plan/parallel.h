/* parallel.h: the by-hand form of a plan of many ranks, "dp=2,tp=2,pp=2,sp,zero=1": Megatron's rules written out as mesh, pins and cuts.
 *
 *   overlap=0   transfers don't run beside computing (to compare, or to save the memory of gradients that wait)
 *   bucket=N    gradients are reduced together once there are N bytes (default 4 MiB; 0: each by itself)
 *   sparse=0    gradients of embedding tables are always reduced whole over dp; else their rows are exchanged where that is fewer bytes
 *   dp=N        data parallel: sequences (samples) over N ranks
 *   tp=N        tensor parallel (Shoeybi et al. 2019): q, k, v, up, gate by columns; o, down by rows; embedding and head over the vocabulary
 *   tables      rows or columns of tables that lookups read over the tp ranks (rows: each has some words, and gives zeros for others; columns: each has some
 *               features of all). For a network from a file, whose other parameters all ranks have and whose samples are then over dp and tp: a
 *               lookup's features go to the samples' ranks, the hybrid of Naumov et al. 2019 (DLRM, section 4). For a language model rows is the default
 *   pp=N        pipeline of N stages; schedule=gpipe|1f1b|interleaved|zero-bubble, v=N chunks a stage, layers=5:7:... layers of each chunk (else by
 *               what they compute, the head counted)
 *   cp=N        context parallel: the tokens of one sequence over N ranks; attention=ring: keys and values go round (Liu et al. 2023); gather: for the time
 *               of one layer each rank has all keys and values, or, where that sends less, all tokens of some heads (Jacobs et al. 2023). Without the key
 *               a ring, unless more than two ranks can have equal numbers of key/value heads: exchanging tokens for heads then sends least.
 *               order=zigzag: a rank's tokens are an early and a late part of the sequence, so that a causal mask leaves all ranks as much to do; plain:
 *               one part in a row
 *   sp          sequence parallel (Korthikanti et al. 2022): norms, dropout and the residual stream over tokens by the tp ranks
 *   zero=0..3   over dp and cp: 1 optimizer states, 2 also gradients, 3 also parameters (Rajbhandari et al. 2020)
 *   keep        with zero=3: what is gathered of parameters stays for the whole step; else each call gathers it again
 *   regather    with zero=3: what backward gathers to make a layer again is gathered once more for its gradients, as DeepSpeed's hooks do: less memory
 *   scatter     between stages each tp rank sends a piece of what all of them have, gathered on arrival (Narayanan et al. 2021, section 4.1); with sp it is so anyway
 *   half_wire   gradients over dp and cp, and activations in bf16 over tp, are sent for summing in bf16: half the bytes, each addend rounded
 *   recompute   none; full: all of a layer from its input; selective: norms, biases, rotations and activations, whose inputs are kept anyway or
 *               are cheaper to keep (attention's scores never are kept); every:K: layers 0, K, 2K, ... whole
 *   auto        what isn't given is searched for; without it everything else has its default (who reads a --parallel may take it for given: planners/planner.h)
 *   slices=N    each sequence in N slices of tokens, one after the other through the pipeline (TeraPipe, Li et al. 2021); slices=512:256:256 of these
 *               lengths. With cp each slice's tokens are over its ranks, and attention=gather, order=plain
 *
 * Stages of different meshes stand one behind the other, parted by "|": "dp=2|tp=2|dp=3" is a stage on 2 data-parallel ranks, one on 2 tensor-parallel
 * ones, one on 3: 7 ranks, numbered stage after stage. dp, tp, cp, sp and zero are those of the part that they stand in; there pp=N says that N stages
 * in a row are of this mesh ("pp=2,dp=2|tp=4" is three stages). The other keys are the job's, and stand in any part. Without layers=..., a stage gets work in
 * proportion to its ranks. Parts that are all alike are one mesh with pp. Tokens are dealt (order=zigzag) only where all have the same dp and cp, rings are in all
 * parts with cp or in none; tables is for one mesh alone. In a shell: --parallel "dp=2|tp=2". */
#ifndef HD_PLAN_PARALLEL_H
#define HD_PLAN_PARALLEL_H

#include "plan/plan.h"

typedef enum hd_recompute { HD_RECOMPUTE_NONE, HD_RECOMPUTE_FULL, HD_RECOMPUTE_SELECTIVE, HD_RECOMPUTE_EVERY, HD_RECOMPUTE_FIRST } hd_recompute;

typedef enum hd_tables { HD_TABLES_OPEN, HD_TABLES_ROWS, HD_TABLES_COLUMNS } hd_tables;
/* The keys of the text; bits of hd_parallel.given. */
typedef enum hd_parallel_key {
    HD_KEY_OVERLAP, HD_KEY_BUCKET, HD_KEY_SPARSE, HD_KEY_DP, HD_KEY_TP, HD_KEY_PP, HD_KEY_CP, HD_KEY_SP, HD_KEY_KEEP, HD_KEY_SCATTER, HD_KEY_HALF_WIRE,
    HD_KEY_REGATHER, HD_KEY_ZERO, HD_KEY_V, /* so far numbers */
    HD_KEY_SCHEDULE, HD_KEY_RECOMPUTE, HD_KEY_LAYERS, HD_KEY_SLICES, HD_KEY_ATTENTION, HD_KEY_ORDER, HD_KEY_TABLES, HD_KEY_AUTO, HD_PARALLEL_KEYS
} hd_parallel_key;
const char *hd_parallel_key_name(hd_parallel_key k); /* "dp" */

/* Stages in a row that are of one mesh. */
typedef struct hd_parallel_part { int64_t pp, dp, tp, cp, sp, zero; } hd_parallel_part;

/* Plain data. */
typedef struct hd_parallel {
    int64_t overlap;            /* 0 or 1 */
    int64_t bucket;             /* bytes, >= 0 */
    int64_t sparse;             /* 0 or 1 */
    hd_tables tables;
    int64_t dp, tp, pp, cp;     /* >= 1 */
    bool has_attention, gather; /* with cp: attention=ring or, gather, gather; not given: as suits the heads */
    bool has_order, plain;      /* likewise order=zigzag or, plain, plain; not given: zigzag */
    int64_t sp, keep, scatter, half_wire, regather, zero, chunks; /* 0 or 1 each; 0..3; >= 1 */
    int64_t slices;             /* >= 1 */
    int64_t lengths[HD_MAX_SLICES]; int n_lengths; /* of each slice, in tokens; none: equal */
    bool has_schedule;          /* false: 1f1b, or interleaved where there are several chunks a stage */
    hd_schedule_kind schedule;
    hd_recompute recompute;
    int64_t every;              /* HD_RECOMPUTE_EVERY: >= 1 */
    int64_t first[HD_MAX_CUTS + 1]; int n_first; /* HD_RECOMPUTE_FIRST: layers of each chunk, in the model's order */
    int64_t layers[HD_MAX_CUTS + 1]; int n_layers; /* of each chunk, in the model's order; none: balanced */
    hd_parallel_part part[HD_MAX_MESHES]; int n_parts; /* 0: all stages are of one mesh; else pp is their number, and dp, tp, cp, sp, zero
                                                                  * say nothing */
    uint32_t given;             /* bit hd_parallel_key: stands in the text (of any part) */
    bool open;                  /* auto: what isn't given is left to a planner */
    bool whole_sums;            /* tp: no sum over heads or hidden features is cut, so that numbers are one rank's to the bit. What Megatron's rules would sum
                                 * over the ranks they gather before the product instead. Set by who serves a model; not in the text */
    /* Set by planners only; borrowed. */
    const hd_pin *pins; int n_pins;      /* layouts in place of those that the form stands for, over the form's mesh; 0: the form's */
    const hd_pin *also; int n_also;      /* layouts beside those, which win over them */
    const char (*cuts)[64]; int n_cuts;  /* where chunks 1, 2, ... begin, as in hd_plan; 0: `layers`, or balanced */
} hd_parallel;

hd_parallel hd_parallel_default(void); /* one rank */

/* HD_EINVAL and one line where the form contradicts itself whatever the network. */
int hd_parallel_check(const hd_parallel *p, hd_error *err);
/* Reads such a text ("" is one rank). HD_EINVAL and one line for an unknown or repeated key or a bad number; *out is valid only on success. */
int hd_parallel_parse(const char *text, hd_parallel *out, hd_error *err);
/* The text of a form, of what is not as by default; appended to out. 0 or HD_ENOMEM. Pins, cuts and auto are not in it. */
int hd_parallel_print(const hd_parallel *p, hd_str *out);
int64_t hd_parallel_ranks(const hd_parallel *p);
/* The form as a part sees it: with its dp, tp, cp, sp and zero, and no parts. Part 0 of none is p itself. */
hd_parallel hd_parallel_of_part(const hd_parallel *p, int part);
int hd_parallel_part_of_stage(const hd_parallel *p, int stage);

/* Fills plan's mesh, pins, schedule, chunks, cuts and recompute for g: an unpartitioned training graph with its update, or one for evaluation. `sequence` is
 * the number of tokens in a sequence (0: all of the call's; networks from files have none). plan->micro_batches is read. HD_EINVAL and one line that
 * says what would work where g cannot be split so. */
int hd_parallel_expand(const hd_parallel *p, const hd_graph *g, int64_t sequence, hd_plan *plan, hd_error *err);

/* Fills plan's slices for sequences of so many tokens. HD_EINVAL and one line where they don't add up. */
int hd_parallel_slices(const hd_parallel *p, int64_t sequence, hd_plan *plan, hd_error *err);

#endif
