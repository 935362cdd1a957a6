#include "serve/lm_runner.h"

#include <stdio.h>
#include "base/term.h"
#include "serve/lm_orders.h"
#include "serve/lm_ranks.h"
#include "serve/weight_cache.h"
#include "train/ranks.h"

/* One state of one rank that holds keys, values or their scales: [blocks * block, ...]. */
typedef struct block_state { char *data; int64_t bytes; /* of a block */ } block_state;

/* What each rank has of its own; of one rank, all there is. */
typedef struct lm_rank {
    hd_store *store;
    hd_weight_cache cache;  /* what the store borrows of it */
    hd_team *team;
    hd_exec *exec;
    hd_rank rank;
    bool prepared;          /* the segments before the repeated ones have run */
    hd_tensor tokens, positions, slots, sequences, tables, rows; /* inputs of exec */
} lm_rank;

typedef struct lm_runner {
    hd_runner base; /* first: a hd_runner * is a lm_runner * */
    hd_model_files files;
    hd_lm_runner_options o; /* completed */
    hd_backend backend;
    hd_graph *graph;
    hd_program *program;    /* of every rank */
    hd_parallel parallel;
    hd_lm_ranks ranks;
    lm_rank *rank;          /* [ranks.here] */
    hd_tensor logits, hidden; /* whole, of the first rank */
    block_state *states; int n_states; /* of all ranks of this process */
    int64_t *rank_bytes;    /* [ranks.n] of a block on each rank */
    hd_lm_orders orders;    /* ranks are processes: what the first tells the others */
    hd_error broken;        /* why they can't be told any more */
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

/* Processes take the fewest blocks that any of them has memory for. */
static int agree_on_blocks(lm_runner *r, hd_error *err)
{
    hd_rank rank;
    int64_t least = -r->base.blocks;
    int rc = is_spread(r) ? hd_ranks_max(hd_lm_ranks_rank(&r->ranks, 0, &rank), &least, 1, err) : 0;
    r->base.blocks = -least;
    return rc;
}

/* ---- life cycle ---- */

static int build(lm_runner *r, hd_plan *plan, hd_error *err)
{
    const hd_lm_runner_options *o = &r->o;
    hd_lm_options lm = {.mode = HD_LM_SERVE, .compute = o->precision, .param = o->precision, .tokens = o->max_tokens, .context = o->context, .rows = o->max_rows,
                        .kv = o->kv, .block = o->block, .blocks = r->base.blocks, .sequences = o->max_parts};
    r->graph = hd_lm_graph(&r->files.config, &lm, err);
    if (!r->graph) return err->code;
    return hd_model_finish_graph(&r->files, r->graph, &r->backend, r->ranks.n > 1 ? &r->parallel : NULL, plan, err);
}

static int lower(lm_runner *r, hd_error *err)
{
    hd_plan plan = hd_plan_default();
    int rc = build(r, &plan, err);
    plan.precision = r->o.precision;
    plan.threads = r->ranks.threads;
    plan.pack = true;
    if (!rc) rc = hd_lower(r->graph, &plan, &r->backend.target, &r->program, err);
    const char *advice = r->o.advice ? r->o.advice : "less --kv-bytes, fewer --max-sequences or a smaller --context";
    return rc ? rc : hd_model_check_memory(r->program, r->ranks.here, advice, err);
}

static int find_states(lm_runner *r, hd_error *err)
{
    size_t most = 0;
    for (int k = 0; k < r->ranks.here; k++) most += r->rank[k].store->n_tensors;
    r->states = hd_calloc(most + 1, sizeof *r->states);
    r->rank_bytes = hd_calloc((size_t)r->ranks.n, sizeof *r->rank_bytes);
    if (!r->states || !r->rank_bytes) return hd_fail_memory(err, most * sizeof *r->states, "the list of key and value blocks");
    for (int k = 0; k < r->ranks.here; k++)
        for (size_t i = 0; i < r->rank[k].store->n_tensors; i++) {
            const hd_store_tensor *t = r->rank[k].store->tensors[i];
            if (strncmp(t->path, "kv.", 3)) continue;
            r->states[r->n_states] = (block_state){t->data, t->bytes / r->base.blocks};
            r->rank_bytes[r->ranks.first + k] += r->states[r->n_states++].bytes;
        }
    int rc = is_spread(r) ? hd_ranks_sum(&r->rank[0].rank, r->rank_bytes, r->ranks.n, err) : 0;
    r->base.block_bytes = 0;
    for (int k = 0; k < r->ranks.n; k++) r->base.block_bytes += r->rank_bytes[k];
    return rc;
}

static int find_inputs(lm_rank *r, hd_error *err)
{
    const struct { const char *name; hd_tensor *to; } inputs[] = {
        {"tokens", &r->tokens}, {"positions", &r->positions}, {"slots", &r->slots}, {"sequences", &r->sequences}, {"tables", &r->tables}, {"rows", &r->rows},
    };
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++)
        if (hd_exec_input(r->exec, inputs[i].name, inputs[i].to, err)) return err->code;
    return 0;
}

/* Weights and executor of one rank, on its own thread. */
static int open_rank(void *arg, int i, hd_error *err)
{
    lm_runner *r = arg;
    lm_rank *own = &r->rank[i];
    int rank = r->ranks.first + i, rc = (own->team = hd_team_new(r->ranks.threads, true, err)) ? 0 : err->code;
    hd_packer packer = {r->program, &r->backend, own->team, hd_program_place(r->program, rank)};
    if (!rc) rc = hd_weight_cache_open(&own->cache, r->o.weight_cache, &r->files, &packer, err);
    if (!rc && !(own->store = hd_model_store(&r->files, r->graph, rank, &own->cache.file, err))) rc = err->code;
    if (!rc) rc = hd_weight_cache_fill(&own->cache, own->store, err);
    const hd_rank *where = hd_lm_ranks_rank(&r->ranks, i, &own->rank);
    if (!rc && !(own->exec = hd_exec_new_rank(r->program, own->store, &r->backend, own->team, NULL, where, err))) rc = err->code;
    if (!rc) hd_model_drop_plain(own->store, r->program);
    return rc ? rc : find_inputs(own, err);
}

static int open_ranks(lm_runner *r, hd_error *err)
{
    r->rank = hd_calloc((size_t)r->ranks.here, sizeof *r->rank);
    if (!r->rank) return hd_fail_memory(err, (size_t)r->ranks.here * sizeof *r->rank, "ranks");
    hd_model_leave_empty(&r->files, r->graph);
    int rc = hd_lm_ranks_run(&r->ranks, open_rank, r, err);
    if (!rc) rc = find_states(r, err);
    return rc || !is_spread(r) ? rc : hd_lm_orders_init(&r->orders, &r->rank[0].rank, &r->base, err);
}

/* The other processes, what this one does now. */
static int tell(lm_runner *r, hd_lm_order order)
{
    if (is_spread(r) && !r->broken.code) hd_lm_orders_tell(&r->orders, &order, &r->broken);
    return r->broken.code;
}

static void close_runner(hd_runner *base)
{
    lm_runner *r = (lm_runner *)base;
    if (r->orders.words && !r->ranks.first) tell(r, (hd_lm_order){.kind = HD_LM_ORDER_CLOSE});
    hd_lm_orders_free(&r->orders);
    for (int k = 0; k < r->ranks.here && r->rank; k++) hd_exec_free(r->rank[k].exec);
    for (int k = 0; k < r->ranks.here && r->rank; k++) {
        hd_team_free(r->rank[k].team);
        hd_store_free(r->rank[k].store);
        hd_weight_cache_close(&r->rank[k].cache);
    }
    hd_lm_ranks_end(&r->ranks);
    hd_program_free(r->program);
    hd_graph_free(r->graph);
    hd_model_files_close(&r->files);
    hd_free(r->states);
    hd_free(r->rank_bytes);
    hd_free(r->rank);
    hd_free(r);
}

/* ---- a step ---- */

static int check_batch(const lm_runner *r, const hd_batch *b, int64_t *tokens, int64_t *rows, hd_error *err)
{
    *tokens = *rows = 0;
    for (int64_t i = 0; i < b->n_parts; i++) {
        const hd_batch_part *p = &b->parts[i];
        if (p->n < 1 || p->rows < 0 || p->rows > p->n || p->position < 0 || p->position + p->n > r->base.max_context)
            return hd_fail(err, HD_EINVAL, "%lld tokens from position %lld on don't fit a context of %lld", (long long)p->n, (long long)p->position,
                           (long long)r->base.max_context);
        *tokens += p->n;
        *rows += p->rows;
    }
    if (b->n_parts <= r->base.max_parts && *tokens <= r->base.max_tokens && *rows <= r->base.max_rows) return 0;
    return hd_fail(err, HD_EINVAL, "a step of %lld tokens of %lld sequences with %lld rows of logits is more than was prepared for", (long long)*tokens,
                   (long long)b->n_parts, (long long)*rows);
}

/* Part i's tokens from place `at` of the call on, and its rows from `row` on. */
static void fill_part(lm_rank *r, int64_t block, const hd_batch_part *p, int64_t i, int64_t at, int64_t row)
{
    int32_t *tables = r->tables.data, *tokens = r->tokens.data, *positions = r->positions.data, *slots = r->slots.data, *sequences = r->sequences.data;
    int64_t held = (p->position + p->n + block - 1) / block;
    memcpy(tables + i * r->tables.dim[1], p->blocks, (size_t)held * sizeof *tables);
    memcpy(tokens + at, p->tokens, (size_t)p->n * sizeof *tokens);
    for (int64_t k = 0; k < p->n; k++) {
        int64_t position = p->position + k;
        positions[at + k] = (int32_t)position;
        slots[at + k] = (int32_t)(p->blocks[position / block] * block + position % block);
        sequences[at + k] = (int32_t)i;
    }
    for (int64_t k = 0; k < p->rows; k++) ((int32_t *)r->rows.data)[row + k] = (int32_t)(at + p->n - p->rows + k);
}

static int call_all(lm_rank *r, const hd_program *p, int64_t tokens, int64_t rows, hd_error *err)
{
    for (int segment = 0; segment < p->n_segments; segment++) {
        hd_call call = hd_program_call(p, segment);
        for (int s = 0; s < p->n_symbols; s++) call.binding[s] = strcmp(p->symbols[s].name, "rows") ? tokens : rows;
        if ((segment >= p->repeat_first || !r->prepared) && hd_exec_call(r->exec, &call, err)) return err->code;
    }
    r->prepared = true;
    return 0;
}

typedef struct step_job { lm_runner *r; const hd_batch *b; int64_t tokens, rows; } step_job;

/* The step as one rank does it. */
static int step_rank(void *arg, int i, hd_error *err)
{
    const step_job *j = arg;
    lm_rank *r = &j->r->rank[i];
    for (int64_t p = 0, at = 0, row = 0; p < j->b->n_parts; p++) {
        fill_part(r, j->r->base.block, &j->b->parts[p], p, at, row);
        at += j->b->parts[p].n;
        row += j->b->parts[p].rows;
    }
    return call_all(r, j->r->program, j->tokens, j->rows, err);
}

/* In this process. */
static int step_here(lm_runner *r, const hd_batch *b, hd_error *err)
{
    step_job job = {.r = r, .b = b};
    int rc = check_batch(r, b, &job.tokens, &job.rows, err);
    return rc || !job.tokens ? rc : hd_lm_ranks_run(&r->ranks, step_rank, &job, err);
}

static int step(hd_runner *base, const hd_batch *b, hd_error *err)
{
    lm_runner *r = (lm_runner *)base;
    int64_t tokens, rows;
    int rc = check_batch(r, b, &tokens, &rows, err);
    if (rc || !tokens) return rc;
    if (tell(r, (hd_lm_order){.kind = HD_LM_ORDER_STEP, .batch = *b})) return hd_fail(err, r->broken.code, "%s", r->broken.message);
    rc = step_here(r, b, err);
    if (!rc) rc = hd_exec_output(r->rank[0].exec, "logits", &r->logits, err);
    return rc ? rc : hd_exec_output(r->rank[0].exec, "hidden", &r->hidden, err);
}

static const float *logits_row(hd_runner *base, int64_t row)
{
    const lm_runner *r = (lm_runner *)base;
    return (const float *)r->logits.data + row * base->vocab;
}

static const float *hidden_row(hd_runner *base, int64_t row)
{
    const lm_runner *r = (lm_runner *)base;
    return (const float *)r->hidden.data + row * base->width;
}

/* ---- blocks ---- */

static void copy_here(const lm_runner *r, int32_t from, int32_t to)
{
    for (int i = 0; i < r->n_states; i++)
        memcpy(r->states[i].data + to * r->states[i].bytes, r->states[i].data + from * r->states[i].bytes, (size_t)r->states[i].bytes);
}

static void save_here(const lm_runner *r, int32_t block, char *to)
{
    for (int i = 0; i < r->n_states; to += r->states[i++].bytes) memcpy(to, r->states[i].data + block * r->states[i].bytes, (size_t)r->states[i].bytes);
}

static void restore_here(const lm_runner *r, int32_t block, const char *from)
{
    for (int i = 0; i < r->n_states; from += r->states[i++].bytes) memcpy(r->states[i].data + block * r->states[i].bytes, from, (size_t)r->states[i].bytes);
}

static void copy_block(hd_runner *base, int32_t from, int32_t to)
{
    lm_runner *r = (lm_runner *)base;
    if (!tell(r, (hd_lm_order){.kind = HD_LM_ORDER_COPY, .from = from, .to = to})) copy_here(r, from, to);
}

/* What the first process has of others' parts of a block behind its own, from or to them, in their order. */
static void exchange_parts(lm_runner *r, char *block, bool saving)
{
    const hd_rank *first = &r->rank[0].rank;
    for (int k = r->ranks.here; k < r->ranks.n; k++) {
        block += r->rank_bytes[k - 1];
        if (!r->broken.code) hd_ranks_give(first, saving ? k : 0, saving ? 0 : k, block, r->rank_bytes[k], &r->broken);
    }
}

static void save_block(hd_runner *base, int32_t block, void *out)
{
    lm_runner *r = (lm_runner *)base;
    if (tell(r, (hd_lm_order){.kind = HD_LM_ORDER_SAVE, .from = block})) return;
    save_here(r, block, out);
    if (is_spread(r)) exchange_parts(r, out, true);
}

static void restore_block(hd_runner *base, int32_t block, const void *in)
{
    lm_runner *r = (lm_runner *)base;
    if (tell(r, (hd_lm_order){.kind = HD_LM_ORDER_RESTORE, .from = block})) return;
    restore_here(r, block, in);
    if (is_spread(r)) exchange_parts(r, (char *)in, false); /* only read */
}

/* ---- the other processes ---- */

/* part: room for this process's part of a block. */
static int follow(lm_runner *r, const hd_lm_order *o, char *part, hd_error *err)
{
    int me = r->ranks.first;
    switch (o->kind) {
    case HD_LM_ORDER_STEP: return step_here(r, &o->batch, err);
    case HD_LM_ORDER_COPY: return copy_here(r, o->from, o->to), 0;
    case HD_LM_ORDER_SAVE: save_here(r, o->from, part); return hd_ranks_give(&r->rank[0].rank, me, 0, part, r->rank_bytes[me], err);
    case HD_LM_ORDER_RESTORE: {
        int rc = hd_ranks_give(&r->rank[0].rank, 0, me, part, r->rank_bytes[me], err);
        return rc ? rc : (restore_here(r, o->from, part), 0);
    }
    default: return 0;
    }
}

int hd_lm_runner_follow(hd_runner *base, hd_error *err)
{
    lm_runner *r = (lm_runner *)base;
    hd_lm_order order = {0};
    char *part = hd_malloc((size_t)r->rank_bytes[r->ranks.first] + 1);
    int rc = part ? 0 : hd_fail_memory(err, (size_t)r->base.block_bytes, "a block of keys and values");
    while (!rc && order.kind != HD_LM_ORDER_CLOSE) {
        rc = hd_lm_orders_hear(&r->orders, &order, err);
        if (!rc) rc = follow(r, &order, part, err);
    }
    if (rc) hd_lm_ranks_abort(&r->ranks, err->message);
    hd_free(part);
    return rc;
}

/* ---- opening ---- */

static void count_packed(const lm_runner *r, hd_lm_runner_info *info)
{
    for (int b = 0; b < r->program->n_buffers; b++) info->packed += hd_buffer_is_packed(r->program, b) ? r->ranks.here : 0;
    for (int k = 0; k < r->ranks.here; k++) {
        const hd_weight_cache *c = &r->rank[k].cache;
        info->mapped_bytes += (int64_t)c->file.size;
        if (c->file.data && !c->made) info->mapped += (int)c->list.n, info->packed -= (int)c->list.n;
    }
}

static void describe(lm_runner *r, hd_lm_runner_info *info)
{
    hd_memory m = {0};
    hd_error ignored = {0};
    hd_program_memory(r->program, &m, &ignored);
    *info = (hd_lm_runner_info){.config = &r->files.config, .tokenizer = r->files.tokenizer, .kv_bytes = r->base.blocks * r->base.block_bytes,
                                .arena_bytes = r->program->arena_bytes * r->ranks.n, .weights = hd_model_files_types(&r->files, r->types, sizeof r->types),
                                .precision = r->o.precision, .kv = r->o.kv, .threads = r->ranks.threads, .ranks = r->ranks.n, .program = r->program};
    info->weight_bytes = m.role[HD_ROLE_PARAMETER] * r->ranks.n;
    info->kv_rank_bytes = m.role[HD_ROLE_STATE];
    count_packed(r, info);
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
    int rc = hd_lm_parallel_parse(o->parallel, &r->parallel, err);
    if (!rc) rc = hd_backend_open(&r->backend, o->backend ? o->backend : "cpu", err);
    if (!rc) complete_dtypes(r);
    if (!rc) rc = complete_sizes(r, err);
    if (!rc) rc = hd_lm_ranks_start(&r->ranks, (int)r->parallel.tp, r->o.threads, o->mpi, err);
    if (!rc) rc = complete_blocks(r, err);
    if (!rc) rc = agree_on_blocks(r, err);
    r->base = (hd_runner){.vocab = r->files.config.vocab, .width = r->files.config.width, .max_tokens = r->o.max_tokens, .max_parts = r->o.max_parts,
                          .max_rows = r->o.max_rows, .max_context = r->o.context, .block = r->o.block, .blocks = r->base.blocks, .block_bytes = r->base.block_bytes,
                          .step = step, .logits = logits_row, .hidden = hidden_row, .copy_block = copy_block, .save_block = save_block,
                          .restore_block = restore_block, .close = close_runner};
    if (!rc) rc = lower(r, err);
    if (!rc) rc = open_ranks(r, err);
    if (rc) {
        hd_lm_ranks_abort(&r->ranks, err->message);
        close_runner(&r->base);
        return rc;
    }
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
