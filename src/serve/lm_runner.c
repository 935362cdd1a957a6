#include "serve/lm_runner.h"

#include <stdio.h>
#include "base/term.h"
#include "serve/lm_orders.h"
#include "serve/lm_rank.h"
#include "serve/lm_ranks.h"
#include "train/ranks.h"

struct lm_runner;

/* One thing that all ranks do: a step, or a block that moves. */
typedef struct lm_task {
    struct lm_runner *r;
    hd_lm_order order;
    int64_t tokens, rows;   /* of a step */
    hd_lm_orders kept;      /* its batch, where others are told or later steps begin before it ends */
    float *logits, *hidden; /* [max_rows][vocab], [max_rows][width]: copies, where others want them or the next step may begin. NULL: the executor's will do */
    hd_ticket sent[2]; bool sending; /* of them, to the first process */
    char *block;            /* [ranks][...] saved from or restored to */
    uint64_t number;        /* of its job */
} lm_task;

typedef struct lm_stage { hd_graph *graph; hd_program *program; hd_memory memory; } lm_stage;

typedef struct lm_runner {
    hd_runner base; /* first: a hd_runner * is a lm_runner * */
    hd_model_files files;
    hd_lm_runner_options o; /* completed */
    hd_backend backend;
    hd_parallel parallel;
    int n_stages; lm_stage *stages;
    hd_lm_ranks ranks;
    hd_lm_rank *rank;       /* [ranks.here] */
    int64_t *rank_bytes;    /* [ranks.n] of a block on each rank */
    lm_task *steps;         /* [base.depth] */
    lm_task move;           /* of a block; of all orders, in other processes */
    uint64_t begun, finished;  /* steps */
    const float *logits, *hidden; /* of the step that was finished last */
    hd_error broken;        /* why nothing goes on */
    char types[160];
} lm_runner;

hd_lm_runner_options hd_lm_runner_options_default(void)
{
    return (hd_lm_runner_options){.precision = HD_DTYPE_COUNT, .kv = HD_DTYPE_COUNT, .keep_blocks = true};
}

/* ---- choosing what was left open ---- */

static void complete_dtypes(lm_runner *r)
{
    hd_lm_runner_options *o = &r->o;
    bool blocks = hd_model_files_in_blocks(&r->files, r->backend.isa);
    if (o->precision == HD_DTYPE_COUNT) o->precision = blocks || r->files.config.dtype != HD_BF16 ? HD_F32 : HD_BF16;
    if (o->kv == HD_DTYPE_COUNT) o->kv = blocks && o->precision == HD_F32 ? HD_F16 : o->precision;
}

static int complete_sizes(lm_runner *r, hd_error *err)
{
    hd_lm_runner_options *o = &r->o;
    const hd_lm_config *c = &r->files.config;
    int64_t most = c->max_positions ? c->max_positions : 8192;
    if (!o->context) o->context = most < 8192 ? most : 8192;
    if (o->context > most && c->family == HD_FAMILY_GPT2)
        return hd_fail(err, HD_EINVAL, "a context of %lld tokens is more than the %lld positions of this model", (long long)o->context, (long long)most);
    if (!o->threads) o->threads = hd_core_count();
    if (!o->max_tokens) o->max_tokens = 512;
    if (!o->max_parts) o->max_parts = 64;
    if (o->max_tokens < o->max_parts) o->max_tokens = o->max_parts;
    if (!o->max_rows) o->max_rows = o->max_parts + 64;
    if (o->max_rows > o->max_tokens) o->max_rows = o->max_tokens;
    if (!o->block) o->block = 16;
    return 0;
}

/* Ranks that hold the same keys and values: of those that have no head to themselves. */
static int64_t copies(const lm_runner *r)
{
    int64_t heads = r->files.config.kv_heads;
    return r->parallel.tp <= heads ? 1 : r->parallel.tp / heads;
}

/* Bytes of keys and values of one position in all layers, on all ranks. */
static int64_t position_bytes(const lm_runner *r)
{
    const hd_lm_config *c = &r->files.config;
    int64_t row = copies(r) * c->kv_heads * (c->head_dim * (int64_t)hd_dtype_size(r->o.kv) + (r->o.kv == HD_I8 ? (int64_t)sizeof(float) : 0));
    return 2 * c->layers * row;
}

/* As many blocks as the memory for them holds; where nobody said how much, no more than all sequences at their longest need. */
static int complete_blocks(lm_runner *r, hd_error *err)
{
    const hd_lm_runner_options *o = &r->o;
    hd_runner *b = &r->base;
    char need[24], have[24];
    int64_t each = position_bytes(r) * o->block, longest = (o->context + o->block - 1) / o->block, free_bytes = (int64_t)hd_memory_available();
    int64_t bytes = o->kv_bytes ? o->kv_bytes : (free_bytes - hd_model_files_bytes(&r->files, o->precision)) / 10 * 6;
    b->block_bytes = each;
    b->blocks = o->blocks ? o->blocks : bytes / each;
    if (!o->blocks && !o->kv_bytes && b->blocks > longest * o->max_parts) b->blocks = longest * o->max_parts;
    if (b->blocks >= longest) return 0;
    return hd_fail(err, HD_EMEMCAP, "one sequence of %lld tokens needs %s of keys and values, and %s are there for them: try a smaller --context or --kv-type i8",
                   (long long)o->context, hd_format_bytes(need, (double)(each * longest)), hd_format_bytes(have, bytes > 0 ? (double)bytes : 0.0));
}

static bool is_spread(const lm_runner *r) { return r->ranks.here < r->ranks.n; }
static int stage_of(const lm_runner *r, int rank) { return rank / (r->ranks.n / r->n_stages); }
static int leader(const lm_runner *r) { return (r->n_stages - 1) * (r->ranks.n / r->n_stages); } /* the rank that has the logits */

/* Processes take the fewest blocks that any of them has memory for. */
static int agree_on_blocks(lm_runner *r, hd_error *err)
{
    hd_rank rank;
    int64_t least = -r->base.blocks;
    int rc = is_spread(r) ? hd_ranks_max(hd_lm_ranks_rank(&r->ranks, 0, &rank), &least, 1, err) : 0;
    r->base.blocks = -least;
    return rc;
}

/* ---- programs ---- */

static int lower_stage(lm_runner *r, const hd_graph *g, const hd_plan *plan, int stage, hd_error *err)
{
    lm_stage *s = &r->stages[stage];
    if (!(s->graph = hd_model_stage(&r->files, g, stage, r->n_stages, err))) return err->code;
    int rc = hd_lower(s->graph, plan, &r->backend.target, &s->program, err);
    return rc ? rc : hd_program_memory(s->program, &s->memory, err);
}

static int lower(lm_runner *r, hd_error *err)
{
    const hd_lm_runner_options *o = &r->o;
    hd_lm_options lm = {.mode = HD_LM_SERVE, .compute = o->precision, .param = o->precision, .tokens = o->max_tokens, .context = o->context, .rows = o->max_rows,
                        .kv = o->kv, .block = o->block, .blocks = r->base.blocks, .sequences = o->max_parts};
    hd_plan plan = hd_plan_default();
    hd_graph *g = hd_lm_graph(&r->files.config, &lm, err);
    int rc = g ? hd_model_split_graph(&r->files, g, &r->backend, r->ranks.n > 1 ? &r->parallel : NULL, &plan, err) : err->code;
    plan.precision = o->precision;
    plan.threads = r->ranks.threads;
    plan.pack = true;
    for (int s = 0; s < r->n_stages && !rc; s++) rc = lower_stage(r, g, &plan, s, err);
    hd_graph_free(g);
    return rc;
}

static int64_t bytes_here(const lm_runner *r)
{
    int64_t sum = 0;
    for (int k = 0; k < r->ranks.here; k++) sum += r->stages[stage_of(r, r->ranks.first + k)].memory.total;
    return sum;
}

/* ---- life cycle ---- */

static int open_rank(void *arg, int i, hd_error *err)
{
    lm_runner *r = arg;
    int number = r->ranks.first + i;
    const lm_stage *s = &r->stages[stage_of(r, number)];
    hd_rank where;
    hd_lm_rank_options o = {.files = &r->files, .graph = s->graph, .program = s->program, .backend = &r->backend, .weight_cache = r->o.weight_cache,
                            .threads = r->ranks.threads, .number = number, .where = hd_lm_ranks_rank(&r->ranks, i, &where), .block = r->o.block,
                            .blocks = r->base.blocks};
    return hd_lm_rank_open(&r->rank[i], &o, err);
}

static int count_block_bytes(lm_runner *r, hd_error *err)
{
    for (int k = 0; k < r->ranks.here; k++) r->rank_bytes[r->ranks.first + k] = r->rank[k].block_bytes;
    int rc = is_spread(r) ? hd_ranks_sum(&r->rank[0].where, r->rank_bytes, r->ranks.n, err) : 0;
    r->base.block_bytes = 0;
    for (int k = 0; k < r->ranks.n; k++) r->base.block_bytes += r->rank_bytes[k];
    return rc;
}

/* Logits are copied where they come from another process, go to one, or the rank that has them may be at the next step already. */
static bool copies_logits(const lm_runner *r) { return r->n_stages > 1 && (!r->ranks.first || r->ranks.first == leader(r)); }

static size_t row_bytes(const lm_runner *r, int64_t width) { return (size_t)(r->o.max_rows * width) * sizeof(float); }

static int open_task(lm_runner *r, lm_task *t, bool step, hd_error *err)
{
    t->r = r;
    int rc = is_spread(r) || r->base.depth > 1 ? hd_lm_orders_init(&t->kept, &r->rank[0].where, &r->base, err) : 0;
    if (rc || !step || !copies_logits(r)) return rc;
    t->logits = hd_map_memory(row_bytes(r, r->base.vocab));
    t->hidden = hd_map_memory(row_bytes(r, r->base.width));
    return t->logits && t->hidden ? 0 : hd_fail_memory(err, row_bytes(r, r->base.vocab), "logits");
}

static void close_task(const lm_runner *r, lm_task *t)
{
    hd_lm_orders_free(&t->kept);
    if (t->logits) hd_unmap_memory(t->logits, row_bytes(r, r->base.vocab));
    if (t->hidden) hd_unmap_memory(t->hidden, row_bytes(r, r->base.width));
}

static int open_ranks(lm_runner *r, hd_error *err)
{
    r->rank = hd_calloc((size_t)r->ranks.here, sizeof *r->rank);
    r->rank_bytes = hd_calloc((size_t)r->ranks.n, sizeof *r->rank_bytes);
    r->steps = hd_calloc((size_t)r->base.depth, sizeof *r->steps);
    if (!r->rank || !r->rank_bytes || !r->steps) return hd_fail_memory(err, (size_t)r->ranks.n * sizeof *r->rank, "ranks");
    int rc = hd_lm_ranks_run(&r->ranks, open_rank, r, err);
    if (!rc) rc = count_block_bytes(r, err);
    for (int64_t i = 0; i < r->base.depth && !rc; i++) rc = open_task(r, &r->steps[i], true, err);
    return rc ? rc : open_task(r, &r->move, false, err);
}

static int finish(hd_runner *base, hd_error *err);
static int do_move(lm_runner *r, hd_lm_order order, char *block);

static void close_runner(hd_runner *base)
{
    lm_runner *r = (lm_runner *)base;
    while (!r->ranks.first && r->finished < r->begun) finish(base, &(hd_error){0});
    if (is_spread(r) && r->move.kept.words && !r->ranks.first) do_move(r, (hd_lm_order){.kind = HD_LM_ORDER_CLOSE}, NULL);
    for (int k = 0; k < r->ranks.here && r->rank; k++) hd_lm_rank_close(&r->rank[k]);
    hd_lm_ranks_end(&r->ranks);
    for (int64_t i = 0; r->steps && i < r->base.depth; i++) close_task(r, &r->steps[i]); /* after an error something may have been sent from them until now */
    close_task(r, &r->move);
    for (int s = 0; s < r->n_stages && r->stages; s++) {
        hd_program_free(r->stages[s].program);
        hd_graph_free(r->stages[s].graph);
    }
    hd_model_files_close(&r->files);
    hd_free(r->stages);
    hd_free(r->steps);
    hd_free(r->rank_bytes);
    hd_free(r->rank);
    hd_free(r);
}

/* ---- what ranks do ---- */

/* Rows of logits and final hidden states, and the tag that they are sent with. */
typedef struct output { const char *name; float *to; int64_t width; int tag; } output;

static void outputs_of(const lm_task *t, output out[2])
{
    out[0] = (output){"logits", t->logits, t->r->base.vocab, 1};
    out[1] = (output){"hidden", t->hidden, t->r->base.width, 2};
}

static int64_t output_bytes(const lm_task *t, const output *o) { return t->rows * o->width * (int64_t)sizeof(float); }

static int copy_outputs(const lm_task *t, int i, hd_error *err)
{
    output all[2];
    outputs_of(t, all);
    for (int k = 0; k < 2; k++) {
        hd_tensor x;
        if (hd_exec_output(t->r->rank[i].exec, all[k].name, &x, err)) return err->code;
        memcpy(all[k].to, x.data, (size_t)output_bytes(t, &all[k]));
    }
    return 0;
}

static int wait_sent(lm_task *t, hd_error *err)
{
    const hd_rank *where = &t->r->rank[0].where;
    int rc = 0;
    for (int k = 0; k < 2 && t->sending && !rc; k++) rc = hd_comm_wait(where->comm, t->sent[k], err);
    t->sending = false;
    return rc;
}

/* To the first process, which takes them when it needs them: without waiting for it, since it may be waiting here. */
static int send_outputs(lm_task *t, hd_error *err)
{
    output all[2];
    outputs_of(t, all);
    int rc = 0;
    for (int k = 0; k < 2 && !rc; k++) rc = hd_ranks_send(&t->r->rank[0].where, 0, all[k].tag, all[k].to, output_bytes(t, &all[k]), &t->sent[k], err);
    t->sending = !rc;
    return rc;
}

/* What another process sends. */
static int receive_outputs(void *arg, int i, hd_error *err)
{
    lm_task *t = arg;
    output all[2];
    int rc = 0;
    outputs_of(t, all);
    for (int k = 0; k < 2 && !rc && t->rows; k++) rc = hd_ranks_receive(&t->r->rank[i].where, leader(t->r), all[k].tag, all[k].to, output_bytes(t, &all[k]), err);
    return rc;
}

static int do_step(lm_task *t, int i, hd_error *err)
{
    lm_runner *r = t->r;
    int rc = hd_lm_rank_step(&r->rank[i], &t->order.batch, t->tokens, t->rows, err);
    if (rc || r->n_stages == 1 || r->ranks.first + i != leader(r) || !t->rows) return rc;
    if (!r->ranks.first) return copy_outputs(t, i, err);
    lm_task *kept = &r->steps[r->begun++ % (uint64_t)r->base.depth];
    if ((rc = wait_sent(kept, err))) return rc;
    kept->rows = t->rows;
    rc = copy_outputs(kept, i, err);
    return rc ? rc : send_outputs(kept, err);
}

/* What the first process has of others' parts of a block behind its own, from or to them, in their order. */
static int exchange_parts(lm_runner *r, char *block, bool saving, hd_error *err)
{
    int rc = 0;
    for (int k = r->ranks.here; k < r->ranks.n && !rc; k++) {
        block += r->rank_bytes[k - 1];
        rc = hd_ranks_give(&r->rank[0].where, saving ? k : 0, saving ? 0 : k, block, r->rank_bytes[k], err);
    }
    return rc;
}

/* Another process's part of a block, to or from the first. */
static int pass_part(lm_runner *r, char *part, bool saving, hd_error *err)
{
    int me = r->ranks.first;
    return hd_ranks_give(&r->rank[0].where, saving ? me : 0, saving ? 0 : me, part, r->rank_bytes[me], err);
}

static int do_save(lm_task *t, int i, hd_error *err)
{
    lm_runner *r = t->r;
    char *part = t->block;
    for (int k = 0; k < i; k++) part += r->rank_bytes[k];
    hd_lm_rank_save(&r->rank[i], t->order.from, part);
    if (!is_spread(r)) return 0;
    return r->ranks.first ? pass_part(r, part, true, err) : exchange_parts(r, part, true, err);
}

static int do_restore(lm_task *t, int i, hd_error *err)
{
    lm_runner *r = t->r;
    char *part = t->block;
    for (int k = 0; k < i; k++) part += r->rank_bytes[k];
    int rc = is_spread(r) && r->ranks.first ? pass_part(r, part, false, err) : 0;
    if (!rc) hd_lm_rank_restore(&r->rank[i], t->order.from, part);
    return rc || !is_spread(r) || r->ranks.first ? rc : exchange_parts(r, part, false, err);
}

static int do_copy(lm_task *t, int i, hd_error *err)
{
    (void)err;
    hd_lm_rank_copy(&t->r->rank[i], t->order.from, t->order.to);
    return 0;
}

static int do_nothing(lm_task *t, int i, hd_error *err) { return (void)t, (void)i, (void)err, 0; }

static int do_task(void *arg, int i, hd_error *err)
{
    static int (*const ways[])(lm_task *t, int i, hd_error *err) = {
        [HD_LM_ORDER_STEP] = do_step, [HD_LM_ORDER_COPY] = do_copy, [HD_LM_ORDER_SAVE] = do_save, [HD_LM_ORDER_RESTORE] = do_restore,
        [HD_LM_ORDER_CLOSE] = do_nothing,
    };
    lm_task *t = arg;
    int rc = is_spread(t->r) && !t->r->ranks.first ? hd_lm_orders_tell(&t->kept, &t->order, err) : 0;
    return rc ? rc : ways[t->order.kind](t, i, err);
}

/* ---- a step ---- */

static int check_batch(const hd_runner *r, const hd_batch *b, int64_t *tokens, int64_t *rows, hd_error *err)
{
    *tokens = *rows = 0;
    for (int64_t i = 0; i < b->n_parts; i++) {
        const hd_batch_part *p = &b->parts[i];
        if (p->n < 1 || p->rows < 0 || p->rows > p->n || p->position < 0 || p->position + p->n > r->max_context)
            return hd_fail(err, HD_EINVAL, "%lld tokens from position %lld on don't fit a context of %lld", (long long)p->n, (long long)p->position,
                           (long long)r->max_context);
        *tokens += p->n;
        *rows += p->rows;
    }
    if (b->n_parts <= r->max_parts && *tokens <= r->max_tokens && *rows <= r->max_rows) return 0;
    return hd_fail(err, HD_EINVAL, "a step of %lld tokens of %lld sequences with %lld rows of logits is more than was prepared for", (long long)*tokens,
                   (long long)b->n_parts, (long long)*rows);
}

static int broken(const lm_runner *r, hd_error *err) { return r->broken.code ? hd_fail(err, r->broken.code, "%s", r->broken.message) : 0; }

static int begin(hd_runner *base, const hd_batch *b, hd_error *err)
{
    lm_runner *r = (lm_runner *)base;
    lm_task *t = &r->steps[r->begun % (uint64_t)base->depth];
    int rc = broken(r, err);
    if (!rc) rc = check_batch(base, b, &t->tokens, &t->rows, err);
    if (rc) return rc;
    t->order = (hd_lm_order){.kind = HD_LM_ORDER_STEP, .batch = t->kept.words ? hd_lm_orders_keep(&t->kept, b) : *b};
    if (t->tokens) t->number = hd_lm_ranks_post(&r->ranks, do_task, t);
    r->begun++;
    return 0;
}

static int find_rows(lm_runner *r, const lm_task *t, hd_error *err)
{
    hd_tensor logits, hidden;
    r->logits = t->logits, r->hidden = t->hidden;
    if (t->logits) return 0;
    if (hd_exec_output(r->rank[0].exec, "logits", &logits, err) || hd_exec_output(r->rank[0].exec, "hidden", &hidden, err)) return err->code;
    r->logits = logits.data, r->hidden = hidden.data;
    return 0;
}

static int finish(hd_runner *base, hd_error *err)
{
    lm_runner *r = (lm_runner *)base;
    lm_task *t = &r->steps[r->finished++ % (uint64_t)base->depth];
    if (!t->tokens) return 0;
    int rc = hd_lm_ranks_wait(&r->ranks, t->number, err);
    if (!rc && is_spread(r) && r->n_stages > 1) rc = hd_lm_ranks_run(&r->ranks, receive_outputs, t, err);
    return rc ? rc : find_rows(r, t, err);
}

static const float *logits_row(hd_runner *base, int64_t row) { return ((lm_runner *)base)->logits + row * base->vocab; }

static const float *hidden_row(hd_runner *base, int64_t row) { return ((lm_runner *)base)->hidden + row * base->width; }

static void each_thread(hd_runner *base, void (*fn)(void *arg, int tid), void *arg) { hd_team_run(((lm_runner *)base)->rank[0].team, fn, arg); }

/* ---- blocks ---- */

/* Behind the steps that are under way. */
static int do_move(lm_runner *r, hd_lm_order order, char *block)
{
    r->move.order = order;
    r->move.block = block;
    return r->broken.code ? r->broken.code : hd_lm_ranks_run(&r->ranks, do_task, &r->move, &r->broken);
}

static void copy_block(hd_runner *base, int32_t from, int32_t to)
{
    do_move((lm_runner *)base, (hd_lm_order){.kind = HD_LM_ORDER_COPY, .from = from, .to = to}, NULL);
}

static void save_block(hd_runner *base, int32_t block, void *out)
{
    do_move((lm_runner *)base, (hd_lm_order){.kind = HD_LM_ORDER_SAVE, .from = block}, out);
}

static void restore_block(hd_runner *base, int32_t block, const void *in)
{
    do_move((lm_runner *)base, (hd_lm_order){.kind = HD_LM_ORDER_RESTORE, .from = block}, (char *)in); /* only read */
}

/* ---- the other processes ---- */

int hd_lm_runner_follow(hd_runner *base, hd_error *err)
{
    lm_runner *r = (lm_runner *)base;
    lm_task *t = &r->move;
    t->block = hd_malloc((size_t)r->rank_bytes[r->ranks.first] + 1);
    int rc = t->block ? 0 : hd_fail_memory(err, (size_t)r->base.block_bytes, "a block of keys and values");
    while (!rc && t->order.kind != HD_LM_ORDER_CLOSE) {
        rc = hd_lm_orders_hear(&t->kept, &t->order, err);
        if (!rc) rc = check_batch(base, &t->order.batch, &t->tokens, &t->rows, err);
        if (!rc) rc = do_task(t, 0, err);
    }
    for (int64_t i = 0; i < base->depth && !rc; i++) rc = wait_sent(&r->steps[i], err);
    if (rc) hd_lm_ranks_abort(&r->ranks, err->message);
    hd_free(t->block);
    return rc;
}

/* ---- opening ---- */

static void count_packed(const lm_runner *r, hd_lm_runner_info *info)
{
    for (int k = 0; k < r->ranks.here; k++) {
        const hd_lm_rank *own = &r->rank[k];
        const hd_weight_cache *c = &own->cache;
        int n = 0;
        for (int b = 0; b < own->program->n_buffers; b++) n += hd_buffer_is_packed(own->program, b);
        *(c->file.data && !c->made ? &info->mapped : &info->packed) += n;
        info->mapped_bytes += (int64_t)c->file.size;
    }
}

static void describe(lm_runner *r, hd_lm_runner_info *info)
{
    int ranks = r->ranks.n / r->n_stages;
    *info = (hd_lm_runner_info){.config = &r->files.config, .tokenizer = r->files.tokenizer, .kv_bytes = r->base.blocks * r->base.block_bytes,
                                .weights = hd_model_files_types(&r->files, r->types, sizeof r->types), .precision = r->o.precision, .kv = r->o.kv,
                                .threads = r->ranks.threads, .ranks = r->ranks.n, .program = r->stages[0].program};
    for (int s = 0; s < r->n_stages; s++) {
        const lm_stage *at = &r->stages[s];
        info->arena_bytes += at->program->arena_bytes * ranks;
        info->weight_bytes += at->memory.role[HD_ROLE_PARAMETER] * ranks;
        if (at->memory.role[HD_ROLE_STATE] > info->kv_rank_bytes) info->kv_rank_bytes = at->memory.role[HD_ROLE_STATE];
    }
    count_packed(r, info);
}

static int open_all(lm_runner *r, hd_error *err)
{
    const hd_lm_runner_options *o = &r->o;
    const char *advice = o->advice ? o->advice : "less --kv-bytes, fewer --max-sequences or a smaller --context";
    int rc = hd_lm_parallel_parse(o->parallel, &r->parallel, err);
    r->n_stages = rc ? 0 : (int)r->parallel.pp;
    if (!rc && !(r->stages = hd_calloc((size_t)r->n_stages, sizeof *r->stages))) rc = hd_fail_memory(err, sizeof *r->stages, "a pipeline");
    if (!rc) rc = hd_backend_open(&r->backend, o->backend ? o->backend : "cpu", err);
    if (!rc) complete_dtypes(r);
    if (!rc) rc = complete_sizes(r, err);
    if (!rc) rc = hd_lm_ranks_start(&r->ranks, (int)(r->parallel.tp * r->parallel.pp), r->o.threads, r->n_stages > 1, o->mpi, err);
    if (!rc) rc = complete_blocks(r, err);
    if (!rc) rc = agree_on_blocks(r, err);
    r->base = (hd_runner){.vocab = r->files.config.vocab, .width = r->files.config.width, .max_tokens = r->o.max_tokens, .max_parts = r->o.max_parts,
                          .max_rows = r->o.max_rows, .max_context = r->o.context, .block = r->o.block, .blocks = r->base.blocks, .block_bytes = r->base.block_bytes,
                          .depth = r->n_stages, .threads = 1, .begin = begin, .finish = finish, .logits = logits_row, .hidden = hidden_row, .copy_block = copy_block,
                          .save_block = save_block, .restore_block = restore_block, .close = close_runner};
    if (!rc) rc = lower(r, err);
    if (!rc) rc = hd_model_check_memory(bytes_here(r), advice, err);
    return rc ? rc : open_ranks(r, err);
}

int hd_lm_runner_open_files(hd_runner **out, hd_model_files *files, const hd_lm_runner_options *o, hd_lm_runner_info *info, hd_error *err)
{
    lm_runner *r = hd_calloc(1, sizeof *r);
    if (!r) {
        hd_model_files_close(files);
        return hd_fail_memory(err, sizeof *r, "a model");
    }
    r->files = *files;
    r->o = *o;
    r->files.keep_blocks = o->keep_blocks;
    int rc = open_all(r, err);
    if (rc) {
        hd_lm_ranks_abort(&r->ranks, err->message);
        close_runner(&r->base);
        return rc;
    }
    if (r->ranks.n == 1) r->base.threads = r->ranks.threads, r->base.each = each_thread;
    if (info) describe(r, info);
    *out = &r->base;
    return 0;
}

int hd_lm_runner_open(hd_runner **out, const char *model, const hd_lm_runner_options *o, hd_lm_runner_info *info, hd_error *err)
{
    hd_model_files files;
    int rc = hd_model_files_open(&files, model, err);
    return rc ? rc : hd_lm_runner_open_files(out, &files, o, info, err);
}

int hd_lm_runner_open_random(hd_runner **out, const hd_lm_config *c, uint64_t seed, const hd_lm_runner_options *o, hd_lm_runner_info *info, hd_error *err)
{
    hd_model_files files = {.config = *c, .seed = seed};
    return hd_lm_runner_open_files(out, &files, o, info, err);
}
