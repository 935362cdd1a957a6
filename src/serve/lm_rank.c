#include "serve/lm_rank.h"

#include <string.h>
#include "base/mem.h"

/* ---- life cycle ---- */

static int find_states(hd_lm_rank *r, int64_t blocks, hd_error *err)
{
    r->states = hd_calloc(r->store->n_tensors + 1, sizeof *r->states);
    if (!r->states) return hd_fail_memory(err, r->store->n_tensors * sizeof *r->states, "the list of key and value blocks");
    for (size_t i = 0; i < r->store->n_tensors; i++) {
        const hd_store_tensor *t = r->store->tensors[i];
        if (strncmp(t->path, "kv.", 3)) continue;
        r->states[r->n_states] = (hd_block_state){t->data, t->bytes / blocks};
        r->block_bytes += r->states[r->n_states++].bytes;
    }
    return 0;
}

static void find_inputs(hd_lm_rank *r)
{
    const struct { const char *name; hd_tensor *to; } inputs[] = {
        {"tokens", &r->tokens}, {"positions", &r->positions}, {"slots", &r->slots}, {"sequences", &r->sequences}, {"tables", &r->tables}, {"rows", &r->rows},
    };
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++)
        if (hd_exec_input(r->exec, inputs[i].name, inputs[i].to, &(hd_error){0})) *inputs[i].to = (hd_tensor){0};
}

int hd_lm_rank_open(hd_lm_rank *r, const hd_lm_rank_options *o, hd_error *err)
{
    *r = (hd_lm_rank){.program = o->program, .block = o->block};
    int rc = (r->team = hd_team_new(o->threads, true, err)) ? 0 : err->code;
    hd_packer packer = {o->program, o->backend, r->team, hd_program_place(o->program, o->number)};
    if (!rc) rc = hd_weight_cache_open(&r->cache, o->weight_cache, o->files, &packer, err);
    if (!rc && !(r->store = hd_model_store(o->files, o->graph, o->number, &r->cache.file, err))) rc = err->code;
    if (!rc) rc = hd_weight_cache_fill(&r->cache, r->store, err);
    if (o->where) r->where = *o->where;
    if (!rc && !(r->exec = hd_exec_new_rank(o->program, r->store, o->backend, r->team, NULL, o->where ? &r->where : NULL, err))) rc = err->code;
    if (rc) return rc;
    hd_model_drop_plain(r->store, o->program);
    find_inputs(r);
    return find_states(r, o->blocks, err);
}

void hd_lm_rank_close(hd_lm_rank *r)
{
    hd_exec_free(r->exec);
    hd_team_free(r->team);
    hd_store_free(r->store);
    hd_weight_cache_close(&r->cache);
    hd_free(r->states);
    *r = (hd_lm_rank){0};
}

/* ---- a step ---- */

/* Part i's tokens from place `at` of the call on, and its rows from `row` on. */
static void fill_part(hd_lm_rank *r, const hd_batch_part *p, int64_t i, int64_t at, int64_t row)
{
    int32_t *tables = r->tables.data, *tokens = r->tokens.data, *positions = r->positions.data, *slots = r->slots.data, *sequences = r->sequences.data;
    int32_t *rows = r->rows.data;
    int64_t held = (p->position + p->n + r->block - 1) / r->block;
    memcpy(tables + i * r->tables.dim[1], p->blocks, (size_t)held * sizeof *tables);
    if (tokens) memcpy(tokens + at, p->tokens, (size_t)p->n * sizeof *tokens);
    for (int64_t k = 0; k < p->n; k++) {
        int64_t position = p->position + k;
        if (positions) positions[at + k] = (int32_t)position;
        slots[at + k] = (int32_t)(p->blocks[position / r->block] * r->block + position % r->block);
        sequences[at + k] = (int32_t)i;
    }
    for (int64_t k = 0; rows && k < p->rows; k++) rows[row + k] = (int32_t)(at + p->n - p->rows + k);
}

static int call_all(hd_lm_rank *r, int64_t tokens, int64_t rows, hd_error *err)
{
    const hd_program *p = r->program;
    for (int segment = 0; segment < p->n_segments; segment++) {
        hd_call call = hd_program_call(p, segment);
        for (int s = 0; s < p->n_symbols; s++) call.binding[s] = strcmp(p->symbols[s].name, "rows") ? tokens : rows;
        if ((segment >= p->repeat_first || !r->prepared) && hd_exec_call(r->exec, &call, err)) return err->code;
    }
    r->prepared = true;
    return 0;
}

int hd_lm_rank_step(hd_lm_rank *r, const hd_batch *b, int64_t tokens, int64_t rows, hd_error *err)
{
    for (int64_t i = 0, at = 0, row = 0; i < b->n_parts; i++) {
        fill_part(r, &b->parts[i], i, at, row);
        at += b->parts[i].n;
        row += b->parts[i].rows;
    }
    return call_all(r, tokens, rows, err);
}

/* ---- blocks ---- */

void hd_lm_rank_copy(const hd_lm_rank *r, int32_t from, int32_t to)
{
    for (int i = 0; i < r->n_states; i++)
        memcpy(r->states[i].data + to * r->states[i].bytes, r->states[i].data + from * r->states[i].bytes, (size_t)r->states[i].bytes);
}

void hd_lm_rank_save(const hd_lm_rank *r, int32_t block, char *out)
{
    for (int i = 0; i < r->n_states; out += r->states[i++].bytes) memcpy(out, r->states[i].data + block * r->states[i].bytes, (size_t)r->states[i].bytes);
}

void hd_lm_rank_restore(const hd_lm_rank *r, int32_t block, const char *in)
{
    for (int i = 0; i < r->n_states; in += r->states[i++].bytes) memcpy(r->states[i].data + block * r->states[i].bytes, in, (size_t)r->states[i].bytes);
}
