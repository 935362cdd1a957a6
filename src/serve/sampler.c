#include "serve/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/mem.h"
#include "serve/logits.h"

/* What is left of the vocabulary, in the order of ids. Filters shorten the list; none of them sorts it. */
typedef struct candidate {
    int32_t id;
    float logit;
    double weight; /* exp((logit - highest) / temperature) */
    double key;    /* a filter keeps those with the least */
} candidate;

enum { STRETCH = 1024 }; /* logits whose mass is kept together */

typedef struct seen_token { uint32_t answers, prompts; } seen_token;

struct hd_token_sampler {
    hd_sampling o;
    int64_t vocab;
    seen_token *seen;  /* [vocab], NULL when nothing depends on it */
    int32_t *distinct; /* [vocab] those seen, each once */
    int64_t n_distinct;
    float *logits;     /* [vocab] as changed by bias, penalties and the allowed set */
    float *highest;    /* [blocks of vocab] the highest of each block */
    float *order;      /* [blocks of vocab] scratch */
    double *mass;      /* [stretches of vocab] */
    candidate *left;   /* [vocab], touched as far as needed; NULL when only the temperature and min_p matter */
    candidate *crossing; /* [vocab], the same: those that a filter's border runs through */
};

/* ---- options ---- */

hd_sampling hd_sampling_default(void)
{
    return (hd_sampling){.top_p = 1, .typical_p = 1, .repetition_penalty = 1};
}

static int check_bias(const hd_sampling *o, int64_t vocab, hd_error *err)
{
    if (o->n_bias < 0 || (o->n_bias && !o->bias)) return hd_fail(err, HD_EINVAL, "the logit bias is missing");
    for (int i = 0; i < o->n_bias; i++) {
        if (o->bias[i].token < 0 || o->bias[i].token >= vocab)
            return hd_fail(err, HD_EINVAL, "token %d of the logit bias isn't in the vocabulary of %lld", o->bias[i].token, (long long)vocab);
        if (!(o->bias[i].bias < INFINITY)) return hd_fail(err, HD_EINVAL, "the logit bias of token %d isn't a finite number", o->bias[i].token);
    }
    return 0;
}

int hd_sampling_check(const hd_sampling *o, int64_t vocab, hd_error *err)
{
    if (vocab < 1 || vocab > INT32_MAX) return hd_fail(err, HD_EINVAL, "a vocabulary of %lld tokens can't be sampled from", (long long)vocab);
    if (!(o->temperature >= 0 && o->temperature <= 100)) return hd_fail(err, HD_EINVAL, "the temperature must be from 0 to 100, not %g", o->temperature);
    if (o->top_k < 0) return hd_fail(err, HD_EINVAL, "top-k must not be negative");
    if (!(o->top_p > 0 && o->top_p <= 1)) return hd_fail(err, HD_EINVAL, "top-p must be above 0 and at most 1, not %g", o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1)) return hd_fail(err, HD_EINVAL, "min-p must be from 0 to 1, not %g", o->min_p);
    if (!(o->typical_p > 0 && o->typical_p <= 1)) return hd_fail(err, HD_EINVAL, "typical-p must be above 0 and at most 1, not %g", o->typical_p);
    if (!(o->repetition_penalty > 0 && o->repetition_penalty <= 100))
        return hd_fail(err, HD_EINVAL, "the repetition penalty must be above 0 and at most 100, not %g", o->repetition_penalty);
    if (!(fabs(o->frequency_penalty) <= 100)) return hd_fail(err, HD_EINVAL, "the frequency penalty must be from -100 to 100, not %g", o->frequency_penalty);
    if (!(fabs(o->presence_penalty) <= 100)) return hd_fail(err, HD_EINVAL, "the presence penalty must be from -100 to 100, not %g", o->presence_penalty);
    return check_bias(o, vocab, err);
}

/* ---- life cycle ---- */

static bool penalises(const hd_sampling *o) { return o->repetition_penalty != 1 || o->frequency_penalty != 0 || o->presence_penalty != 0; }
static bool filters(const hd_sampling *o) { return o->temperature > 0 && (o->top_k || o->top_p < 1 || o->typical_p < 1); }

static bool allocate(hd_token_sampler *s)
{
    size_t n = (size_t)s->vocab;
    if (s->o.n_bias) {
        hd_logit_bias *bias = hd_malloc((size_t)s->o.n_bias * sizeof *bias);
        if (bias) memcpy(bias, s->o.bias, (size_t)s->o.n_bias * sizeof *bias);
        s->o.bias = bias;
        if (!bias) return false;
    }
    s->logits = hd_malloc(n * sizeof *s->logits);
    s->highest = hd_malloc((size_t)hd_logits_blocks(s->vocab) * sizeof *s->highest);
    s->order = hd_malloc((size_t)hd_logits_blocks(s->vocab) * sizeof *s->order);
    s->mass = hd_malloc((n / STRETCH + 1) * sizeof *s->mass);
    if (!s->logits || !s->highest || !s->order || !s->mass) return false;
    if (penalises(&s->o)) {
        s->seen = hd_calloc(n, sizeof *s->seen);
        s->distinct = hd_malloc(n * sizeof *s->distinct);
        if (!s->seen || !s->distinct) return false;
    }
    if (!filters(&s->o)) return true;
    s->left = hd_malloc(n * sizeof *s->left);
    s->crossing = hd_malloc(n * sizeof *s->crossing);
    return s->left && s->crossing;
}

hd_token_sampler *hd_token_sampler_new(const hd_sampling *o, int64_t vocab, hd_error *err)
{
    if (hd_sampling_check(o, vocab, err)) return NULL;
    hd_token_sampler *s = hd_calloc(1, sizeof *s);
    if (s) {
        s->o = *o;
        s->vocab = vocab;
        if (allocate(s)) return s;
    }
    hd_fail_memory(err, (size_t)vocab * 16, "a sampler");
    hd_token_sampler_free(s);
    return NULL;
}

hd_token_sampler *hd_token_sampler_fork(const hd_token_sampler *s, uint64_t seed, hd_error *err)
{
    hd_sampling o = s->o;
    o.seed = seed;
    hd_token_sampler *f = hd_token_sampler_new(&o, s->vocab, err);
    if (!f) return NULL;
    for (int64_t i = 0; i < s->n_distinct; i++) {
        int32_t token = f->distinct[i] = s->distinct[i];
        f->seen[token] = s->seen[token];
    }
    f->n_distinct = s->n_distinct;
    return f;
}

void hd_token_sampler_free(hd_token_sampler *s)
{
    if (!s) return;
    if (s->o.n_bias) hd_free((void *)(uintptr_t)s->o.bias);
    hd_free(s->logits);
    hd_free(s->highest);
    hd_free(s->order);
    hd_free(s->mass);
    hd_free(s->seen);
    hd_free(s->distinct);
    hd_free(s->left);
    hd_free(s->crossing);
    hd_free(s);
}

void hd_token_sampler_see(hd_token_sampler *s, int32_t token, bool answer)
{
    if (!s->seen || token < 0 || token >= s->vocab) return;
    seen_token *t = &s->seen[token];
    if (!t->answers && !t->prompts) s->distinct[s->n_distinct++] = token;
    if (answer) t->answers++;
    else t->prompts++;
}

void hd_token_sampler_unsee(hd_token_sampler *s, int32_t token)
{
    if (!s->seen || token < 0 || token >= s->vocab || !s->seen[token].answers) return;
    seen_token *t = &s->seen[token];
    if (--t->answers || t->prompts) return;
    int64_t i = s->n_distinct - 1; /* what is taken back was seen lately */
    while (s->distinct[i] != token) i--;
    s->distinct[i] = s->distinct[--s->n_distinct];
}

/* ---- bias, penalties, allowed ---- */

static void penalise(hd_token_sampler *s)
{
    float repetition = (float)s->o.repetition_penalty;
    for (int64_t i = 0; i < s->n_distinct; i++) {
        float *x = &s->logits[s->distinct[i]];
        uint32_t count = s->seen[s->distinct[i]].answers;
        if (repetition != 1) *x = *x > 0 ? *x / repetition : *x * repetition;
        if (count) *x -= (float)(count * s->o.frequency_penalty + s->o.presence_penalty);
    }
}

/* NaN marks what isn't allowed: a logit of -infinity may still be the only one. */
static void forbid(float *x, int64_t n, const uint64_t *allowed)
{
    for (int64_t i = 0; i < n; i += 64) {
        uint64_t word = allowed[i / 64];
        int64_t size = n - i < 64 ? n - i : 64;
        if (word == UINT64_MAX) continue;
        if (!word)
            for (int64_t j = 0; j < size; j++) x[i + j] = NAN;
        else
            for (int64_t j = 0; j < size; j++) x[i + j] = word >> j & 1 ? x[i + j] : NAN;
    }
}

static const float *prepare(hd_token_sampler *s, const float *logits, const uint64_t *allowed)
{
    if (!s->o.n_bias && !s->n_distinct && !allowed) return logits;
    memcpy(s->logits, logits, (size_t)s->vocab * sizeof *logits);
    for (int i = 0; i < s->o.n_bias; i++) s->logits[s->o.bias[i].token] += s->o.bias[i].bias;
    penalise(s);
    if (allowed) forbid(s->logits, s->vocab, allowed);
    return s->logits;
}

/* ---- the least keys that reach a mass, without sorting ---- */

enum { BUCKETS = 256, FEW = 48 };

typedef struct border { double key; int32_t id; } border; /* those before it and it are kept */

static int by_key(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* The first of c[n], in their order, at which the mass reaches target; the last one if it never does. */
static border walk(const candidate *c, int64_t n, bool count, double mass, double target)
{
    int64_t i = 0;
    while (i < n - 1 && (mass += count ? 1 : c[i].weight) < target) i++;
    return (border){c[i].key, c[i].id};
}

typedef struct key_range { double low, high; } key_range;

static key_range range_of(const candidate *c, int64_t n)
{
    key_range r = {c[0].key, c[0].key};
    for (int64_t i = 1; i < n; i++) {
        r.low = c[i].key < r.low ? c[i].key : r.low;
        r.high = c[i].key > r.high ? c[i].key : r.high;
    }
    return r;
}

static int bucket_of(double key, key_range r)
{
    int b = (int)((key - r.low) / (r.high - r.low) * BUCKETS);
    return b < BUCKETS ? b : BUCKETS - 1;
}

/* Keeps in c the bucket of keys in which the mass reaches target; *mass grows by what stands before it. Returns how many that bucket has. */
static int64_t narrow(candidate *c, int64_t n, key_range r, bool count, double *mass, double target)
{
    double weight[BUCKETS] = {0};
    int64_t many[BUCKETS] = {0};
    for (int64_t i = 0; i < n; i++) {
        int b = bucket_of(c[i].key, r);
        weight[b] += count ? 1 : c[i].weight;
        many[b]++;
    }
    int at = 0, last = BUCKETS - 1;
    while (!many[last]) last--;
    while (at < last && (!many[at] || *mass + weight[at] < target)) *mass += weight[at++];
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (bucket_of(c[i].key, r) == at) c[kept++] = c[i];
    return kept;
}

/* Finds the border of the smallest set of least keys (lower id among equals) whose weights, or whose number, reach target. */
static border find_border(hd_token_sampler *s, int64_t n, bool count, double target)
{
    candidate *c = s->crossing;
    memcpy(c, s->left, (size_t)n * sizeof *c);
    double mass = 0;
    while (n > FEW) {
        key_range r = range_of(c, n);
        if (!(r.high > r.low)) return walk(c, n, count, mass, target);
        n = narrow(c, n, r, count, &mass, target);
    }
    qsort(c, (size_t)n, sizeof *c, by_key);
    return walk(c, n, count, mass, target);
}

static int64_t keep(hd_token_sampler *s, int64_t n, border b)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (s->left[i].key < b.key || (s->left[i].key == b.key && s->left[i].id <= b.id)) s->left[kept++] = s->left[i];
    return kept;
}

/* ---- candidates ---- */

/* The kth highest of v[n], which is reordered (Hoare's selection). */
static float kth_highest(float *v, int64_t n, int64_t k)
{
    int64_t low = 0, high = n - 1, at = k - 1;
    while (low < high) {
        float pivot = v[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (v[i] > pivot) i++;
            while (v[j] < pivot) j--;
            if (i > j) break;
            float swap = v[i];
            v[i++] = v[j];
            v[j--] = swap;
        }
        if (at <= j) high = j;
        else if (at >= i) low = i;
        else break;
    }
    return v[at];
}

typedef struct row {
    const float *x;  /* [vocab] */
    float top;       /* the highest, finite */
    double scale;    /* 1 / temperature */
} row;

static double exponent_of(const row *r, float logit) { return ((double)logit - (double)r->top) * r->scale; }

static void weigh(const row *r, candidate *c, int64_t n)
{
    for (int64_t i = 0; i < n; i += 8) {
        double y[8] = {0};
        for (int64_t j = 0; j < 8 && i + j < n; j++) y[j] = exponent_of(r, c[i + j].logit);
        hd_logits_exp(y);
        for (int64_t j = 0; j < 8 && i + j < n; j++) c[i + j].weight = y[j];
    }
}

/* Those at or above a bound, weighed; blocks below it are passed over. */
static int64_t collect(hd_token_sampler *s, const row *r, double least)
{
    int64_t n = 0;
    for (int64_t b = 0; b < hd_logits_blocks(s->vocab); b++) {
        if (!(s->highest[b] >= least)) continue;
        int64_t end = (b + 1) * HD_LOGITS_BLOCK < s->vocab ? (b + 1) * HD_LOGITS_BLOCK : s->vocab;
        for (int64_t i = b * HD_LOGITS_BLOCK; i < end; i++)
            if (r->x[i] >= least && r->x[i] > -INFINITY) s->left[n++] = (candidate){.id = (int32_t)i, .logit = r->x[i]};
    }
    weigh(r, s->left, n);
    return n;
}

static void key_by_likelihood(candidate *c, int64_t n)
{
    for (int64_t i = 0; i < n; i++) c[i].key = -(double)c[i].logit;
}

/* At least k candidates, the k highest among them: the kth highest of the blocks' highest is no higher than the kth of all (section 3.2 of Wang et al.). */
static int64_t top_k(hd_token_sampler *s, const row *r)
{
    int64_t blocks = hd_logits_blocks(s->vocab), k = s->o.top_k;
    memcpy(s->order, s->highest, (size_t)blocks * sizeof *s->order);
    int64_t n = collect(s, r, k <= blocks ? kth_highest(s->order, blocks, k) : -INFINITY);
    if (n <= k) return n;
    key_by_likelihood(s->left, n);
    return keep(s, n, find_border(s, n, true, (double)k));
}

static double entropy_of(hd_logits_mass m) { return log(m.sum) - m.tilt / m.sum; }

/* Everything that the filters by mass may keep. What stands below the bound has at most 1 - p together; and of typical tokens, those with more information
 * than twice the entropy less that of the likeliest are further from the entropy than the likeliest is. */
static int64_t likely(hd_token_sampler *s, const row *r, hd_logits_mass *m)
{
    bool by_type = s->o.typical_p < 1;
    double above[HD_LOGITS_LEVELS];
    *m = hd_logits_levels(r->x, s->vocab, r->top, r->scale, above);
    for (int i = 0; !by_type && i < HD_LOGITS_LEVELS; i++) /* the first level that surely reaches p */
        if (above[i] > (s->o.top_p + 1e-9) * m->sum) return collect(s, r, r->top - (i + 1 + 1e-6) / r->scale);
    double bound = log((1 - (by_type ? s->o.typical_p : s->o.top_p)) * m->sum / (double)s->vocab);
    double far = 2 * (log(m->sum) - entropy_of(*m));
    if (by_type && far < bound) bound = far;
    return collect(s, r, r->top + (bound - 1e-6) / r->scale);
}

static hd_logits_mass mass_of(const row *r, const candidate *c, int64_t n)
{
    hd_logits_mass m = {0};
    for (int64_t i = 0; i < n; i++) {
        m.sum += c[i].weight;
        m.tilt += c[i].weight * exponent_of(r, c[i].logit);
    }
    return m;
}

/* ---- the filters by mass: m is that of the n left, or of all that they were collected from ---- */

static int64_t typical(hd_token_sampler *s, const row *r, int64_t n, hd_logits_mass m)
{
    double most_typical = log(m.sum) - entropy_of(m);
    for (int64_t i = 0; i < n; i++) s->left[i].key = fabs(exponent_of(r, s->left[i].logit) - most_typical);
    return keep(s, n, find_border(s, n, false, s->o.typical_p * m.sum));
}

static int64_t top_p(hd_token_sampler *s, int64_t n, double sum)
{
    key_by_likelihood(s->left, n);
    return keep(s, n, find_border(s, n, false, s->o.top_p * sum));
}

static int64_t min_p(hd_token_sampler *s, int64_t n)
{
    double most = 0;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) most = s->left[i].weight > most ? s->left[i].weight : most;
    for (int64_t i = 0; i < n; i++)
        if (s->left[i].weight >= most * s->o.min_p) s->left[kept++] = s->left[i];
    return kept;
}

static int64_t filter(hd_token_sampler *s, const row *r)
{
    hd_logits_mass m;
    int64_t n;
    if (s->o.top_k) m = mass_of(r, s->left, n = top_k(s, r));
    else n = likely(s, r, &m);
    if (s->o.typical_p < 1) m = mass_of(r, s->left, n = typical(s, r, n, m));
    if (s->o.top_p < 1) n = top_p(s, n, m.sum);
    return s->o.min_p > 0 ? min_p(s, n) : n;
}

/* ---- the draw: the place of u times the mass, in the order of ids ---- */

static int32_t draw_left(const candidate *c, int64_t n, double u)
{
    int32_t last = c[0].id;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += c[i].weight;
    u *= sum;
    for (int64_t i = 0; i < n; i++) {
        if (c[i].weight > 0) last = c[i].id;
        if ((u -= c[i].weight) < 0) break;
    }
    return last;
}

/* Among those of a stretch from `from` on. */
static int32_t draw_within(const hd_token_sampler *s, const row *r, double least, int64_t from, double u)
{
    int32_t last = (int32_t)from;
    int64_t end = from + STRETCH < s->vocab ? from + STRETCH : s->vocab;
    for (int64_t i = from; i < end; i += 8) {
        double weight[8];
        for (int64_t j = 0; j < 8; j++) weight[j] = i + j < end && r->x[i + j] >= least ? exponent_of(r, r->x[i + j]) : -INFINITY;
        hd_logits_exp(weight);
        for (int64_t j = 0; j < 8; j++) {
            if (weight[j] > 0) last = (int32_t)(i + j);
            if ((u -= weight[j]) < 0) return last;
        }
    }
    return last;
}

static int32_t draw_all(hd_token_sampler *s, const row *r, double u)
{
    double least = s->o.min_p > 0 ? r->top + log(s->o.min_p) / r->scale : -INFINITY, sum = 0;
    int64_t n = 0, at = 0, last = 0;
    for (int64_t i = 0; i < s->vocab; i += STRETCH, n++) {
        int64_t size = s->vocab - i < STRETCH ? s->vocab - i : STRETCH;
        sum += s->mass[n] = hd_logits_sum(r->x + i, size, r->top, r->scale, least).sum;
    }
    u *= sum;
    for (; at < n; at++) {
        if (s->mass[at] > 0) last = at;
        if (u < s->mass[at]) break;
        u -= s->mass[at];
    }
    return draw_within(s, r, least, last * STRETCH, u);
}

/* Some logits are +infinity: those are equally likely. */
static int32_t draw_infinite(const hd_token_sampler *s, const float *x, double u)
{
    int64_t n = 0;
    for (int64_t i = 0; i < s->vocab; i++) n += x[i] == INFINITY;
    int64_t skip = (int64_t)(u * (double)n), i = 0;
    for (;; i++)
        if (x[i] == INFINITY && skip-- == 0) return (int32_t)i;
}

/* Uniform in [0, 1) with 53 bits: a function of the seed and the position alone. */
static double uniform_at(uint64_t seed, int64_t position)
{
    hd_philox b = hd_philox_block(seed, (uint64_t)position, hd_hash_string("sampler"));
    return (double)(((uint64_t)b.word[1] << 32 | b.word[0]) >> 11) * 0x1p-53;
}

int32_t hd_token_sampler_draw(hd_token_sampler *s, const float *logits, const uint64_t *allowed, int64_t position)
{
    const float *x = prepare(s, logits, allowed);
    if (s->o.temperature == 0) return (int32_t)hd_logits_argmax(x, s->vocab);
    row r = {x, hd_logits_max(x, s->vocab, s->highest), fmin(1 / s->o.temperature, 1e30)};
    double u = uniform_at(s->o.seed, position);
    if (r.top == INFINITY) return draw_infinite(s, x, u);
    if (r.top == -INFINITY) return (int32_t)hd_logits_argmax(x, s->vocab);
    return filters(&s->o) ? draw_left(s->left, filter(s, &r), u) : draw_all(s, &r, u);
}
