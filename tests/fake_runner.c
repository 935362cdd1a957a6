#include "fake_runner.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/mem.h"
#include "base/rng.h"

enum { WIDTH = 4 };

typedef struct fake_row { uint64_t hash; int32_t token, position; } fake_row;

typedef struct fake_runner {
    hd_runner r;
    fake_options o;
    fake_row *rows;    /* [blocks][block] */
    float *logits;     /* [depth][max_rows][vocab] */
    float *hidden;     /* [depth][max_rows][WIDTH] */
    int32_t *prefix;   /* [max_context] */
    int64_t *writer;   /* [blocks]: the last step that wrote to it */
    int64_t begun, finished; /* steps */
    fake_counts counts;
} fake_runner;

fake_options fake_options_default(void)
{
    return (fake_options){.vocab = 97, .max_tokens = 64, .max_parts = 40, .max_rows = 72, .max_context = 160, .block = 4, .blocks = 2000, .seed = 7, .depth = 1};
}

static uint64_t start(const fake_options *o) { return hd_hash_mix(o->seed, 0x51ed); }
static uint64_t extend(uint64_t h, int32_t token) { return hd_hash_mix(h, (uint64_t)(uint32_t)token + 1); }

static float noise(uint64_t h, int64_t i)
{
    uint64_t x = (h ^ (uint64_t)i * 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    x ^= x >> 31;
    x *= 0x94d049bb133111ebu;
    return (float)((x >> 40) & 0xffffff) * (1.0f / 16777216.0f);
}

static void logits_of(const fake_options *o, uint64_t hash, const int32_t *tokens, int64_t n, float *logits)
{
    uint64_t local = start(o);
    for (int64_t i = n > o->order ? n - o->order : 0; i < n; i++) local = extend(local, tokens[i]);
    for (int64_t i = 0; i < o->vocab; i++) logits[i] = o->order ? 6 * noise(local, i) + 0.02f * noise(hash, i) : 6 * noise(hash, i);
    if (n < o->n_script) logits[o->script[n]] += 20;
}

void fake_logits(const fake_options *o, const int32_t *tokens, int64_t n, float *logits)
{
    uint64_t h = start(o);
    for (int64_t i = 0; i < n; i++) h = extend(h, tokens[i]);
    logits_of(o, h, tokens, n, logits);
}

int32_t fake_likeliest(const fake_options *o, const float *logits)
{
    int32_t best = 0;
    for (int32_t i = 1; i < o->vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* ---- a step ---- */

static fake_row *row_at(fake_runner *f, const hd_batch_part *p, int64_t position)
{
    int32_t b = p->blocks[position / f->o.block];
    if (b < 0 || b >= f->o.blocks) abort();
    return &f->rows[b * f->o.block + position % f->o.block];
}

/* Reads the rows before, all of them; a row that isn't this sequence's spoils the hash. */
static uint64_t read_before(fake_runner *f, const hd_batch_part *p)
{
    uint64_t h = start(&f->o);
    for (int64_t i = 0; i < p->position; i++) {
        const fake_row *row = row_at(f, p, i);
        f->prefix[i] = row->token;
        h = extend(h, row->token);
        if (row->hash != h || row->position != i) {
            f->counts.broken++;
            h = hd_hash_mix(h, (uint64_t)f->counts.broken);
        }
    }
    return h;
}

static void write_row(fake_runner *f, const hd_batch_part *p, int64_t i, uint64_t h)
{
    int64_t position = p->position + i;
    *row_at(f, p, position) = (fake_row){h, p->tokens[i], (int32_t)position};
    f->prefix[position] = p->tokens[i];
}

static int64_t run_part(fake_runner *f, const hd_batch_part *p, int64_t row)
{
    uint64_t h = read_before(f, p);
    for (int64_t i = 0; i < p->n; i++) {
        h = extend(h, p->tokens[i]);
        write_row(f, p, i, h);
        if (i < p->n - p->rows) continue;
        logits_of(&f->o, h, f->prefix, p->position + i + 1, f->logits + row * f->o.vocab);
        for (int k = 0; k < WIDTH; k++) f->hidden[row * WIDTH + k] = noise(h, k);
        row++;
    }
    return row;
}

/* What an engine must not do. */
static int check_batch(fake_runner *f, const hd_batch *b, hd_error *err)
{
    int64_t tokens = 0, rows = 0;
    bool ok = b->n_parts > 0 && b->n_parts <= f->o.max_parts;
    for (int64_t i = 0; i < b->n_parts && ok; i++) {
        const hd_batch_part *p = &b->parts[i];
        ok = p->n > 0 && p->position >= 0 && p->position + p->n <= f->o.max_context && p->rows >= 0 && p->rows <= p->n;
        for (int64_t k = 0; k < p->n && ok; k++) ok = p->tokens[k] >= 0 && p->tokens[k] < f->o.vocab;
        tokens += p->n;
        rows += p->rows;
    }
    ok = ok && tokens <= f->o.max_tokens && rows <= f->o.max_rows;
    f->counts.tokens += tokens;
    f->counts.rows += rows;
    if (ok) return 0;
    f->counts.broken++;
    return hd_fail(err, HD_EINVAL, "a batch that no runner takes: %lld parts, %lld tokens, %lld rows",
                   (long long)b->n_parts, (long long)tokens, (long long)rows);
}

/* Each block that is written to belongs to one part of the step. */
static void check_writers(fake_runner *f, const hd_batch *b)
{
    for (int64_t i = 0; i < b->n_parts; i++) {
        const hd_batch_part *p = &b->parts[i];
        for (int64_t j = p->position / f->o.block; j <= (p->position + p->n - 1) / f->o.block; j++) {
            int64_t *writer = &f->writer[p->blocks[j]];
            if (*writer == f->counts.steps) f->counts.broken++;
            *writer = f->counts.steps;
        }
    }
}

static void take_time(const fake_runner *f, const hd_batch *b)
{
    int64_t us = f->o.slow_us;
    for (int64_t i = 0; i < b->n_parts; i++) us += f->o.token_us * b->parts[i].n;
    if (f->o.clock) *f->o.clock += (double)us * 1e-6;
    else if (us) nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000}, NULL);
}

/* The slot of a step's results. */
static int64_t slot_of(const fake_runner *f, int64_t step) { return step % f->r.depth * f->o.max_rows; }

static int begin(hd_runner *r, const hd_batch *b, hd_error *err)
{
    fake_runner *f = (fake_runner *)r;
    f->counts.steps++;
    if (check_batch(f, b, err)) return HD_EINVAL;
    if (f->begun - f->finished >= r->depth) f->counts.broken++;
    f->begun++;
    if (f->begun - f->finished > f->counts.most_steps) f->counts.most_steps = f->begun - f->finished;
    if (b->n_parts > f->counts.most_parts) f->counts.most_parts = b->n_parts;
    take_time(f, b);
    check_writers(f, b);
    int64_t row = slot_of(f, f->begun);
    for (int64_t i = 0; i < b->n_parts; i++) row = run_part(f, &b->parts[i], row);
    return 0;
}

static int finish(hd_runner *r, hd_error *err)
{
    fake_runner *f = (fake_runner *)r;
    f->finished++;
    return f->o.fail_at == f->finished ? hd_fail(err, HD_ENUMERIC, "the fake model fails, as asked for") : 0;
}

static const float *logits(hd_runner *r, int64_t row)
{
    const fake_runner *f = (fake_runner *)r;
    return f->logits + (slot_of(f, f->finished) + row) * r->vocab;
}

static const float *hidden(hd_runner *r, int64_t row)
{
    const fake_runner *f = (fake_runner *)r;
    return f->hidden + (slot_of(f, f->finished) + row) * WIDTH;
}

static void copy_block(hd_runner *r, int32_t from, int32_t to)
{
    fake_runner *f = (fake_runner *)r;
    f->counts.copies++;
    memcpy(f->rows + to * f->o.block, f->rows + from * f->o.block, (size_t)r->block_bytes);
}

static void save_block(hd_runner *r, int32_t block, void *out)
{
    fake_runner *f = (fake_runner *)r;
    f->counts.saves++;
    memcpy(out, f->rows + block * f->o.block, (size_t)r->block_bytes);
}

static void restore_block(hd_runner *r, int32_t block, const void *in)
{
    fake_runner *f = (fake_runner *)r;
    f->counts.restores++;
    memcpy(f->rows + block * f->o.block, in, (size_t)r->block_bytes);
}

static void close_runner(hd_runner *r)
{
    fake_runner *f = (fake_runner *)r;
    hd_free(f->rows);
    hd_free(f->logits);
    hd_free(f->hidden);
    hd_free(f->prefix);
    hd_free(f->writer);
    hd_free(f);
}

hd_runner *fake_runner_new(const fake_options *o)
{
    fake_runner *f = hd_calloc(1, sizeof *f);
    if (!f) return NULL;
    f->o = *o;
    f->r = (hd_runner){.vocab = o->vocab, .width = WIDTH, .max_tokens = o->max_tokens, .max_parts = o->max_parts, .max_rows = o->max_rows,
                       .max_context = o->max_context, .block = o->block, .blocks = o->blocks, .block_bytes = o->block * (int64_t)sizeof *f->rows,
                       .depth = o->depth ? o->depth : 1, .threads = 1, .begin = begin, .finish = finish, .logits = logits, .hidden = hidden, .copy_block = copy_block, .save_block = save_block, .restore_block = restore_block,
                       .close = close_runner};
    f->rows = hd_calloc((size_t)(o->blocks * o->block), sizeof *f->rows);
    f->logits = hd_calloc((size_t)(f->r.depth * o->max_rows * o->vocab), sizeof *f->logits);
    f->hidden = hd_calloc((size_t)(f->r.depth * o->max_rows * WIDTH), sizeof *f->hidden);
    f->prefix = hd_calloc((size_t)o->max_context, sizeof *f->prefix);
    f->writer = hd_calloc((size_t)o->blocks, sizeof *f->writer);
    if (f->rows && f->logits && f->hidden && f->prefix && f->writer) return &f->r;
    close_runner(&f->r);
    return NULL;
}

fake_counts fake_runner_counts(const hd_runner *r) { return ((const fake_runner *)r)->counts; }
