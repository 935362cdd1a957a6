#include "serve/lm_runner.h"

#include <stdio.h>
#include "base/term.h"

/* One state that holds keys, values or their scales: [blocks * block, ...]. */
typedef struct block_state { char *data; int64_t bytes; /* of a block */ } block_state;

typedef struct lm_runner {
    hd_runner base; /* first: a hd_runner * is a lm_runner * */
    hd_model_files files;
    hd_lm_runner_options o; /* completed */
    hd_backend backend;
    hd_graph *graph;
    hd_program *program;
    hd_store *store;
    hd_team *team;
    hd_exec *exec;
    bool prepared;          /* the segments before the repeated ones have run */
    hd_tensor tokens, positions, slots, sequences, tables, rows; /* inputs of exec */
    hd_tensor logits, hidden;
    block_state *states; int n_states;
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

/* Bytes of keys and values of one position in all layers. */
static int64_t position_bytes(const lm_runner *r)
{
    const hd_lm_config *c = &r->files.config;
    int64_t row = c->kv_heads * (c->head_dim * (int64_t)hd_dtype_size(r->o.kv) + (r->o.kv == HD_I8 ? (int64_t)sizeof(float) : 0));
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

/* ---- life cycle ---- */

static int build(lm_runner *r, hd_error *err)
{
    const hd_lm_runner_options *o = &r->o;
    hd_lm_options lm = {.mode = HD_LM_SERVE, .compute = o->precision, .param = o->precision, .tokens = o->max_tokens, .context = o->context, .rows = o->max_rows,
                        .kv = o->kv, .block = o->block, .blocks = r->base.blocks, .sequences = o->max_parts};
    r->graph = hd_lm_graph(&r->files.config, &lm, err);
    return r->graph ? hd_model_finish_graph(&r->files, r->graph, &r->backend, err) : err->code;
}

static int lower(lm_runner *r, hd_error *err)
{
    hd_plan plan = hd_plan_default();
    plan.precision = r->o.precision;
    plan.threads = r->o.threads;
    plan.pack = true;
    int rc = hd_lower(r->graph, &plan, &r->backend.target, &r->program, err);
    if (!rc) rc = hd_model_check_memory(r->program, r->o.advice ? r->o.advice : "less --kv-bytes, fewer --max-sequences or a smaller --context", err);
    if (!rc && !(r->team = hd_team_new(plan.threads, true, err))) rc = err->code;
    return rc;
}

static int find_states(lm_runner *r, hd_error *err)
{
    r->states = hd_calloc(r->store->n_tensors + 1, sizeof *r->states);
    if (!r->states) return hd_fail_memory(err, r->store->n_tensors * sizeof *r->states, "the list of key and value blocks");
    for (size_t i = 0; i < r->store->n_tensors; i++) {
        const hd_store_tensor *t = r->store->tensors[i];
        if (!strncmp(t->path, "kv.", 3)) r->states[r->n_states++] = (block_state){t->data, t->bytes / r->base.blocks};
    }
    return 0;
}

static int find_inputs(lm_runner *r, hd_error *err)
{
    const struct { const char *name; hd_tensor *to; } inputs[] = {
        {"tokens", &r->tokens}, {"positions", &r->positions}, {"slots", &r->slots}, {"sequences", &r->sequences}, {"tables", &r->tables}, {"rows", &r->rows},
    };
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++)
        if (hd_exec_input(r->exec, inputs[i].name, inputs[i].to, err)) return err->code;
    return 0;
}

static void close_runner(hd_runner *base)
{
    lm_runner *r = (lm_runner *)base;
    hd_exec_free(r->exec);
    hd_team_free(r->team);
    hd_program_free(r->program);
    hd_store_free(r->store);
    hd_graph_free(r->graph);
    hd_model_files_close(&r->files);
    hd_free(r->states);
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
static void fill_part(lm_runner *r, const hd_batch_part *p, int64_t i, int64_t at, int64_t row)
{
    int32_t *tables = r->tables.data, *tokens = r->tokens.data, *positions = r->positions.data, *slots = r->slots.data, *sequences = r->sequences.data;
    int64_t block = r->base.block, held = (p->position + p->n + block - 1) / block;
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

static int call_all(lm_runner *r, int64_t tokens, int64_t rows, hd_error *err)
{
    for (int segment = 0; segment < r->program->n_segments; segment++) {
        hd_call call = hd_program_call(r->program, segment);
        for (int s = 0; s < r->program->n_symbols; s++) call.binding[s] = strcmp(r->program->symbols[s].name, "rows") ? tokens : rows;
        if ((segment >= r->program->repeat_first || !r->prepared) && hd_exec_call(r->exec, &call, err)) return err->code;
    }
    r->prepared = true;
    return 0;
}

static int step(hd_runner *base, const hd_batch *b, hd_error *err)
{
    lm_runner *r = (lm_runner *)base;
    int64_t tokens, rows, at = 0, row = 0;
    int rc = check_batch(r, b, &tokens, &rows, err);
    if (rc || !tokens) return rc;
    for (int64_t i = 0; i < b->n_parts; i++) {
        fill_part(r, &b->parts[i], i, at, row);
        at += b->parts[i].n;
        row += b->parts[i].rows;
    }
    rc = call_all(r, tokens, rows, err);
    if (!rc) rc = hd_exec_output(r->exec, "logits", &r->logits, err);
    return rc ? rc : hd_exec_output(r->exec, "hidden", &r->hidden, err);
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

static void copy_block(hd_runner *base, int32_t from, int32_t to)
{
    const lm_runner *r = (lm_runner *)base;
    for (int i = 0; i < r->n_states; i++)
        memcpy(r->states[i].data + to * r->states[i].bytes, r->states[i].data + from * r->states[i].bytes, (size_t)r->states[i].bytes);
}

static void save_block(hd_runner *base, int32_t block, void *out)
{
    const lm_runner *r = (lm_runner *)base;
    char *to = out;
    for (int i = 0; i < r->n_states; to += r->states[i++].bytes) memcpy(to, r->states[i].data + block * r->states[i].bytes, (size_t)r->states[i].bytes);
}

static void restore_block(hd_runner *base, int32_t block, const void *in)
{
    const lm_runner *r = (lm_runner *)base;
    const char *from = in;
    for (int i = 0; i < r->n_states; from += r->states[i++].bytes) memcpy(r->states[i].data + block * r->states[i].bytes, from, (size_t)r->states[i].bytes);
}

/* ---- opening ---- */

static void describe(lm_runner *r, hd_lm_runner_info *info)
{
    hd_memory m = {0};
    hd_error ignored = {0};
    hd_program_memory(r->program, &m, &ignored);
    *info = (hd_lm_runner_info){.config = &r->files.config, .tokenizer = r->files.tokenizer, .kv_bytes = r->base.blocks * r->base.block_bytes,
                                .arena_bytes = r->program->arena_bytes, .weights = hd_model_files_types(&r->files, r->types, sizeof r->types),
                                .precision = r->o.precision, .kv = r->o.kv, .threads = r->o.threads, .program = r->program};
    info->weight_bytes = m.role[HD_ROLE_PARAMETER];
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
    int rc = hd_backend_open(&r->backend, o->backend ? o->backend : "cpu", err);
    if (!rc) complete_dtypes(r);
    if (!rc) rc = complete_sizes(r, err);
    if (!rc) rc = complete_blocks(r, err);
    r->base = (hd_runner){.vocab = r->files.config.vocab, .width = r->files.config.width, .max_tokens = r->o.max_tokens, .max_parts = r->o.max_parts,
                          .max_rows = r->o.max_rows, .max_context = r->o.context, .block = r->o.block, .blocks = r->base.blocks, .block_bytes = r->base.block_bytes,
                          .step = step, .logits = logits_row, .hidden = hidden_row, .copy_block = copy_block, .save_block = save_block,
                          .restore_block = restore_block, .close = close_runner};
    if (!rc) rc = build(r, err);
    if (!rc) rc = lower(r, err);
    if (!rc && !(r->store = hd_model_store(&r->files, r->graph, err))) rc = err->code;
    if (!rc && !(r->exec = hd_exec_new(r->program, r->store, &r->backend, r->team, err))) rc = err->code;
    if (!rc) hd_model_drop_plain(r->store, r->program);
    if (!rc) rc = find_inputs(r, err);
    if (!rc) rc = find_states(r, err);
    if (rc) {
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
