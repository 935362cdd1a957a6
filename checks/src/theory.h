/* theory.h: what a rank of a parallel job has to compute, hold and send at most, from the model's sizes and the papers' rules alone. Used by equality.c.
 *
 * Pieces are the largest of a balanced cut. Elements are of 4 bytes; activations of products of 2 in bf16, but sums between ranks always of 4. */
#ifndef CHECK_THEORY_H
#define CHECK_THEORY_H

#include "ranks_run.h"

typedef struct theory { double flops, uneven /* FLOPs */, parameter_bytes, sent, scalars; } theory;

/* A parameter as a rank of tensor parallelism has it: the dimension that is cut is cut already. */
typedef struct theory_tensor { int64_t dim[4]; int rank, cut; bool rows /* meets each token by itself: its gradient is a sum over tokens */, keys /* of K or V heads */,
    wide /* read as it is, in f32 */; } theory_tensor;
enum { THEORY_TENSORS = 24 };

typedef struct theory_job {
    const run_job *j;
    const run_model *m;
    const hd_plan *plan;
    hd_parallel p;
    int64_t ranks, tokens;              /* that share parameters: dp x cp; of a rank's micro-batch */
    int64_t heads, keys, mlp, vocab, head_dim; /* of a rank */
    int64_t first, last;                /* chunks of this stage among all: first = stage, stage + pp, ... */
    double layers, again;               /* of this stage; of these whole layers made again in backward */
    bool ring;                          /* keys and values go round */
    bool begins, ends;                  /* has the embedding, the head */
    int chunks_in, chunks_out;          /* of this stage with a chunk before, behind */
    int64_t stage_ranks;                /* stages of different meshes: of this one; 0: all are of one mesh */
} theory_job;

static inline int64_t theory_piece(int64_t n, int64_t over) { return (n + over - 1) / over; }

/* First layer of each chunk, as the plan cuts. */
static inline int64_t theory_chunk_begin(const theory_job *t, const hd_plan *plan, int chunk)
{
    if (chunk == 0) return 0;
    return chunk > plan->n_cuts ? t->m->layers : atoll(plan->cuts[chunk - 1] + strlen("layers."));
}

static inline void theory_stage(theory_job *t, const hd_plan *plan, int stage)
{
    int chunks = (int)(t->p.pp * t->p.chunks);
    t->begins = stage == 0;
    t->ends = stage == (chunks - 1) % t->p.pp;
    for (int c = stage; c < chunks; c += (int)t->p.pp) {
        int64_t begin = theory_chunk_begin(t, plan, c), end = theory_chunk_begin(t, plan, c + 1);
        t->layers += (double)(end - begin);
        for (int64_t l = begin; l < end; l++)
            t->again += t->p.recompute == HD_RECOMPUTE_FULL || (t->p.recompute == HD_RECOMPUTE_EVERY && l % t->p.every == 0)
                        || (t->p.recompute == HD_RECOMPUTE_FIRST && l - begin < t->p.first[c]);
        t->chunks_in += c > 0;
        t->chunks_out += c < chunks - 1;
    }
}

static inline int64_t theory_tensor_parts(const theory_job *t, int64_t n)
{
    int64_t a = t->p.tp > t->m->kv_heads ? t->m->kv_heads : t->p.tp;
    return theory_piece(theory_piece(n, a), t->p.tp / a);
}

/* Of one sequence, the most that a rank has: a piece of each slice. */
static inline int64_t theory_tokens(const theory_job *t)
{
    int64_t n = t->plan->n_slices ? 0 : theory_piece(t->j->sequence, t->p.cp);
    for (int k = 0; k < t->plan->n_slices; k++) n += theory_piece(t->plan->slices[k], t->p.cp);
    return n;
}

static inline void theory_pieces(theory_job *t)
{
    const run_model *m = t->m;
    int64_t group = m->heads / m->kv_heads, tp = t->p.tp;
    t->head_dim = m->width / m->heads;
    t->keys = tp > m->kv_heads ? 1 : theory_piece(m->kv_heads, tp);
    t->heads = tp > m->kv_heads ? theory_piece(group, tp / m->kv_heads) : t->keys * group;
    t->mlp = theory_tensor_parts(t, m->mlp);
    t->vocab = theory_tensor_parts(t, m->vocab);
    t->ranks = t->p.dp * t->p.cp;
    t->tokens = theory_piece(t->j->batch, t->p.dp) * theory_tokens(t);
}

/* ---- parameters ---- */

static inline void theory_add(theory_tensor *list, int *n, int cut, bool rows, bool keys, int rank, int64_t a, int64_t b, int64_t c)
{
    list[(*n)++] = (theory_tensor){.dim = {a, b, c, 1}, .rank = rank, .cut = cut, .rows = rows, .keys = keys};
}

static inline int theory_layer(const theory_job *t, theory_tensor *list)
{
    const run_model *m = t->m;
    int64_t w = m->width, d = t->head_dim;
    bool gpt2 = m->arch == HD_ARCH_GPT2, biases = gpt2 || m->arch == HD_ARCH_QWEN2;
    int n = 0;
    for (int i = 0; i < (gpt2 ? 4 : 2); i++) theory_add(list, &n, -1, true, false, 1, w, 1, 1); /* norms */
    theory_add(list, &n, 1, false, false, 3, w, t->heads, d);
    theory_add(list, &n, 1, false, false, 3, w, t->heads, d);
    for (int i = 0; i < 2; i++) theory_add(list, &n, 1, false, true, 3, w, t->keys, d);
    if (biases) theory_add(list, &n, 0, false, false, 2, t->heads, d, 1);
    for (int i = 0; biases && i < 2; i++) theory_add(list, &n, 0, false, true, 2, t->keys, d, 1);
    for (int i = 0; i < (gpt2 ? 2 : 3); i++) theory_add(list, &n, 1, false, false, 2, w, t->mlp, 1);
    if (!gpt2) return n;
    theory_add(list, &n, 0, false, false, 1, t->mlp, 1, 1);
    for (int i = 0; i < 2; i++) theory_add(list, &n, -1, true, false, 1, w, 1, 1); /* biases of what ends a sublayer */
    return n;
}

static inline int theory_ends(const theory_job *t, theory_tensor *list)
{
    const run_model *m = t->m;
    int n = 0;
    if (t->begins) theory_add(list, &n, 0, false, false, 2, t->vocab, m->width, 1);
    if (t->begins && m->arch == HD_ARCH_GPT2) theory_add(list, &n, -1, true, false, 2, 64, m->width, 1);
    for (int i = 0; t->ends && i < (m->arch == HD_ARCH_GPT2 ? 2 : 1); i++) theory_add(list, &n, -1, true, false, 1, m->width, 1, 1);
    if (t->ends && !m->tied) theory_add(list, &n, 0, false, false, 2, t->vocab, m->width, 1);
    return n;
}

static inline double theory_count(const theory_tensor *x) { return (double)(x->dim[0] * x->dim[1] * x->dim[2] * x->dim[3]); }

/* ZeRO: over the data-parallel ranks on the largest dimension that is whole; where none is as large as those, on the largest of all. */
static inline double theory_spread(const theory_job *t, const theory_tensor *x)
{
    int best = -1;
    for (int pass = 0; pass < 2; pass++)
        for (int d = 0; d < x->rank; d++)
            if ((pass == 0) == (d != x->cut) && x->dim[d] > (best < 0 ? 1 : x->dim[best]) && (pass == 0 || best < 0 || x->dim[best] < t->ranks)) best = d;
    if (best < 0) return theory_count(x);
    return theory_count(x) / (double)x->dim[best] * (double)theory_piece(theory_piece(x->dim[best], t->p.dp), t->p.cp);
}

/* Bytes sent for one tensor's gradient and, with ZeRO, for the tensor itself. */
static inline double theory_gradient_sent(const theory_job *t, const theory_tensor *x)
{
    double bytes = 4 * theory_count(x), n = (double)t->ranks, share = (n - 1) / n, micro = (double)t->j->micro, gather = bytes, sent;
    if (t->j->precision == HD_BF16 && x->rank > 1 && !x->wide) gather /= 2; /* what products read is rounded first */
    if (t->p.zero <= 1) sent = 2 * bytes; /* all-reduce, or reduce-scatter of the gradient and all-gather of the new parameter */
    else if (t->p.zero == 2) sent = micro * bytes + bytes;
    else sent = micro * bytes + (t->p.keep ? 1 : 2 * micro) * gather;
    double tp = x->rows && t->p.sp ? (double)t->p.tp : 1;
    double owed = 2 * (tp - 1) / tp * bytes; /* addends of the tensor-parallel ranks */
    return share * sent + owed * (t->p.zero >= 2 ? micro : 1);
}

/* The embedding to the last stage and its gradient back: each byte once from stage to stage, then gathered from pieces of rows; before that the gradient is
 * scattered. */
static inline void theory_tied_meshes(const theory_job *t, theory *out)
{
    double whole = 4.0 * (double)(t->m->vocab * t->m->width), piece = 4.0 * (double)(t->vocab * t->m->width), n = (double)t->ranks, share = (n - 1) / n;
    double calls = t->p.zero == 3 ? 2 * (double)t->j->micro : 1, sums = t->p.zero >= 2 ? (double)t->j->micro : 1;
    out->sent += 4.0 * (double)theory_piece(t->m->vocab, t->stage_ranks) * (double)t->m->width + share * piece * (t->ends ? calls + sums : 1);
    if (t->p.tp > 1 && t->ranks > 1) out->sent += whole / (double)t->stage_ranks; /* from cuts of the width to cuts of rows, or back */
}

static inline void theory_parameters(const theory_job *t, theory *out)
{
    theory_tensor list[THEORY_TENSORS];
    int n = theory_layer(t, list);
    double elements = 0;
    for (int k = 0; k < 2; k++) {
        double times = k ? 1 : t->layers;
        for (int i = 0; i < n; i++) {
            elements += times * (t->p.zero == 3 ? theory_spread(t, &list[i]) : theory_count(&list[i]));
            out->sent += times * theory_gradient_sent(t, &list[i]);
            out->scalars += times * 8;
        }
        n = theory_ends(t, list);
    }
    out->parameter_bytes = 4 * elements;
    bool split = t->m->tied && !(t->begins && t->ends) && (t->begins || t->ends);
    if (split && t->stage_ranks) theory_tied_meshes(t, out);
    else if (split) { /* the embedding to the last stage, its gradient back */
        double embedding = 4.0 * (double)(t->vocab * t->m->width), n_ranks = (double)t->ranks;
        out->sent += t->p.zero == 3 ? embedding / n_ranks : embedding;
        if (t->ends) out->sent += (t->p.zero == 3 ? 3 * (double)t->j->micro : t->p.zero == 2 ? (double)t->j->micro : 2) * embedding * (n_ranks - 1) / n_ranks;
    }
}

/* ---- work ---- */

/* Pairs of a query and a key of one rank's micro-batch. Of whole sequences all are counted; where the tokens of one are split, those that a causal mask
 * leaves: an equal share of them when they are dealt, what the last rank has when they are not, as in slices. */
static inline double theory_pairs(const theory_job *t)
{
    double s = (double)t->j->sequence, pairs = 0, end = 0;
    if (t->p.cp == 1 || strstr(t->j->model, "-materialised")) return (double)t->tokens * s;
    for (int k = 0; k < (t->plan->n_slices ? t->plan->n_slices : 1); k++) {
        int64_t length = t->plan->n_slices ? t->plan->slices[k] : t->j->sequence;
        double last = (double)theory_piece(length, t->p.cp);
        end += (double)length;
        pairs += last * (end - last) + last * (last + 1) / 2;
    }
    if (!t->plan->zigzag[0]) return pairs;
    return s * (s + 1) / 2 / (double)t->p.cp;
}

static inline void theory_work(const theory_job *t, theory *out)
{
    const run_model *m = t->m;
    int64_t d = t->head_dim;
    double matrices = (double)(m->width * (d * 2 * (t->heads + t->keys) + (m->arch == HD_ARCH_GPT2 ? 2 : 3) * t->mlp));
    bool written = strstr(m->name, "-materialised"); /* scores of all pairs, once */
    double pair = 4 * (double)(t->heads * d), tokens = (double)t->tokens, attention = pair * (written ? tokens * (double)t->j->sequence : theory_pairs(t));
    double layer = 6 * matrices * tokens + (written ? 3 : 3.5) * attention, again = 2 * matrices * tokens + attention; /* fused: backward makes the scores again */
    double head = t->ends ? 6.0 * (double)(t->vocab * m->width) * tokens : 0;
    out->flops = (double)t->j->micro * (t->layers * layer + t->again * again + head);
    bool uneven = t->p.cp > 1 && t->j->sequence % (2 * t->p.cp); /* one token more than others have, which sees half of the sequence */
    if (uneven) out->uneven = (double)t->j->micro * (3.5 * t->layers + t->again) * pair * (double)(t->j->sequence + 1) / 2;
}

/* ---- activations ---- */

/* Per micro-batch. Tensor parallel: Shoeybi et al. 2019, section 3; sequence parallel: Korthikanti et al. 2022, section 4.2.2, whose backward gathers twice
 * more what the products' weights need. */
static inline double theory_tensor_sent(const theory_job *t, double narrow)
{
    double n = (double)t->p.tp, share = (n - 1) / n, stream = (double)(t->tokens * t->m->width), sums = 4 * stream, gathered = narrow * stream;
    double rows = t->ends ? 3 * 2 * share * 4 * (double)t->tokens : 0, begins = t->begins, ends = t->ends;
    if (!t->p.sp) return rows + share * 2 * sums * (4 * t->layers + 2 * t->again + begins + ends);
    double scatters = 4 * t->layers + 2 * t->again + begins + ends, gathers = 6 * t->layers + begins + 2 * ends;
    return rows + share * (scatters * sums + gathers * gathered);
}

/* More ranks than key/value heads. The n ranks that share a head each make its keys and values, which their own query heads read: what is whole on all
 * and read by parallel work is the place of the operator f of Shoeybi et al. 2019, section 3 (identity forward, all-reduce backward). So dK and dV, f32
 * and [tokens, keys, head_dim] each, are all-reduced over the n in each micro-batch, and what lies before them is computed by all n alike: their
 * products count in full in theory_work. (To sum the gradients of the weights instead, once a step, would take other bytes: 2 * width * keys * head_dim.) */
static inline double theory_shared_keys_sent(const theory_job *t)
{
    double n = t->p.tp > t->m->kv_heads ? (double)(t->p.tp / t->m->kv_heads) : 1;
    return t->layers * 2 * (n - 1) / n * 4 * 2 * (double)(t->tokens * t->keys * t->head_dim);
}

/* Keys and values of all ranks' tokens, again in backward, and the sums of their gradients (Liu et al. 2023: a ring sends as much); positions and segments. */
static inline double theory_context_sent(const theory_job *t, double narrow)
{
    double others = (double)((t->p.cp - 1) * t->tokens), elements = others * 2 * (double)(t->keys * t->head_dim);
    double again = !t->ring ? 0 : t->again * elements * narrow; /* a ring goes round a third time where its layer is made again */
    return t->layers * elements * (2 * narrow + 4) + again + 4 * 2 * others;
}

/* Between stages of different meshes each row is sent by one rank, and gathered where ranks hold the same rows (Zhuang et al. 2022, section 3). */
static inline void theory_crossings(const theory_job *t, theory *out)
{
    int64_t held = theory_piece(t->tokens, t->p.sp ? t->p.tp : 1), alike = t->p.sp ? 1 : t->p.tp;
    double row = 4 * (double)t->m->width, sent = row * (double)theory_piece(t->tokens, t->p.tp);
    double gathered = row * (double)held * (double)(alike - 1) / (double)alike;
    out->sent += (double)(t->j->micro * (t->chunks_in + t->chunks_out)) * (sent + gathered);
}

static inline void theory_activations(const theory_job *t, theory *out)
{
    double narrow = t->j->precision == HD_BF16 ? 2 : 4, micro = (double)t->j->micro;
    out->sent += micro * (theory_tensor_sent(t, narrow) + theory_context_sent(t, narrow) + theory_shared_keys_sent(t));
    if (t->stage_ranks) {
        theory_crossings(t, out);
        return;
    }
    if (t->p.cp > 1 && t->plan->n_slices) out->sent = INFINITY; /* slices of tokens in pieces are in no paper: what they send is reported, not judged */
    double boundary = 4 * (double)(theory_piece(t->tokens, t->p.sp ? t->p.tp : 1) * t->m->width);
    out->sent += micro * boundary * (t->chunks_in + t->chunks_out);
}

/* ---- the whole ---- */

static inline theory theory_of_rank(const run_job *j, const hd_plan *plan, int rank)
{
    theory out = {0};
    hd_error err = {0};
    theory_job t = {.j = j, .m = run_find_model(j->model), .plan = plan};
    if (hd_parallel_parse(j->parallel, &t.p, &err) || !t.m) return out;
    t.ring = plan->ring[0] != 0;
    int stage = hd_plan_stage_of(plan, rank);
    if (t.p.n_parts) t.stage_ranks = hd_plan_first_rank(plan, stage + 1) - hd_plan_first_rank(plan, stage);
    t.p = hd_parallel_of_part(&t.p, hd_parallel_part_of_stage(&t.p, stage));
    theory_pieces(&t);
    theory_stage(&t, plan, stage);
    theory_parameters(&t, &out);
    theory_work(&t, &out);
    theory_activations(&t, &out);
    out.scalars += 512; /* loss, norms, and what the ranks tell each other at the start */
    return out;
}

#endif
