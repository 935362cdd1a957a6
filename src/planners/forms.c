#include "planners/forms.h"

#include <string.h>

#include "base/mem.h"

enum { VALUES = 96, MOST_CHUNKS = HD_MAX_CUTS + 1, MOST_TOKENS = 1 << 15 /* of a rank's micro-batch, where there are several */, ALL_TOKENS = 1 << 17, MOST_MICRO = 4096, NETWORK_STAGES = 16, NETWORK_MICRO = 1024, MOST_SLICES = 16 };

typedef struct values { int64_t v[VALUES]; int n; } values;

typedef struct space {
    const hd_planner_job *job;
    const hd_parallel *pinned;
    bool language, gpu;
    int devices, node;       /* all that may be used; of one node */
    hd_form_list *out;
    bool failed;
} space;

/* ---- values of a dimension ---- */

static bool is_given(const space *s, hd_parallel_key k) { return s->pinned->given >> k & 1; }
static bool is_forbidden(const space *s, hd_parallel_key k) { return s->job->forbidden >> k & 1; }

static void add(values *v, int64_t x)
{
    if (v->n < VALUES) v->v[v->n++] = x;
}

static void add_divisors(values *v, int64_t of, int64_t most)
{
    for (int64_t d = 1; d <= of && d <= most; d++)
        if (of % d == 0) add(v, d);
}

/* What is pinned, else the default if it is forbidden; true: nothing else is to be tried. */
static bool is_settled(const space *s, hd_parallel_key k, int64_t given, int64_t usual, values *v)
{
    v->n = 0;
    if (is_given(s, k)) add(v, given);
    else if (is_forbidden(s, k)) add(v, usual);
    return v->n > 0;
}

static int64_t fixed_ranks(const hd_parallel *p) { return p->pp * p->tp * p->cp * p->dp; }

/* On CPUs ranks may be fewer, of more threads: what divides their number, or what is pinned does. */
static void list_ranks(const space *s, values *v)
{
    int64_t fixed = fixed_ranks(s->pinned);
    v->n = 0;
    if (s->gpu) add(v, s->devices);
    else if (s->devices > VALUES) add_divisors(v, s->devices, s->devices);
    for (int64_t n = 1; !s->gpu && s->devices <= VALUES && n <= s->devices; n++)
        if (s->devices % n == 0 || (fixed > 1 && n % fixed == 0)) add(v, n);
}

static void list_stages(const space *s, int ranks, values *v)
{
    int64_t layers = s->language ? s->job->network.layers : NETWORK_STAGES;
    if (!is_settled(s, HD_KEY_PP, s->pinned->pp, 1, v)) add_divisors(v, ranks, layers < MOST_CHUNKS ? layers : MOST_CHUNKS);
}

static bool tables_possible(const space *s) { return s->job->network.tables && (is_given(s, HD_KEY_TABLES) || !is_forbidden(s, HD_KEY_TABLES)); }

/* Beyond a node tensor parallelism is there only where nothing else can be: its collectives stand in every layer. */
static void list_tensor(const space *s, int ranks, values *v)
{
    const hd_planner_network *n = &s->job->network;
    values all = {.n = 0};
    if (is_settled(s, HD_KEY_TP, s->pinned->tp, 1, v)) return;
    v->n = 0;
    add_divisors(&all, ranks, s->language ? n->heads : tables_possible(s) ? ranks : 1);
    for (int i = 0; i < all.n; i++) {
        int64_t t = all.v[i];
        if (s->language && t > n->kv_heads && t % n->kv_heads) continue;
        if (s->language && s->devices > 16 && t > 2 * s->node) continue;
        add(v, t);
    }
}

static void list_context(const space *s, int ranks, values *v)
{
    if (is_settled(s, HD_KEY_CP, s->pinned->cp, 1, v)) return;
    add_divisors(v, ranks, s->language ? 16 : 1);
}

/* Of so many data-parallel ranks; cp wants one sequence a rank. Equal shares, where there are any. */
static void list_micro(const space *s, int64_t dp, int64_t cp, values *v)
{
    const hd_planner_job *j = s->job;
    int64_t samples = j->network.samples, tokens = j->network.sequence > 0 ? j->network.sequence : 1;
    v->n = 0;
    for (int equal = 1; equal >= 0 && !v->n; equal--)
        for (int64_t m = 1; m <= samples && m <= (s->language ? MOST_MICRO : NETWORK_MICRO); m++) {
            int64_t batch = samples / m, share = (batch + dp - 1) / dp;
            if (samples % m || batch < dp || (equal && batch % dp) || (cp > 1 && batch != dp)) continue;
            if (j->micro_batches ? m != j->micro_batches : s->language && share > 1 && share * tokens > (m == 1 ? ALL_TOKENS : MOST_TOKENS)) continue;
            add(v, m);
        }
}

/* ---- what hangs on the mesh ---- */

typedef struct held { uint8_t zero, hold; } held;

static int list_states(const space *s, const hd_form *f, held *list)
{
    values zero;
    int n = 0;
    if (!is_settled(s, HD_KEY_ZERO, s->pinned->zero, 0, &zero)) {
        zero.n = 0;
        for (int z = 0; z <= (f->dp * f->cp > 1 ? 3 : 0); z++) add(&zero, z);
    }
    for (int i = 0; i < zero.n; i++)
        for (int h = 0; h < (zero.v[i] == 3 ? HD_HOLDS : 1); h++) {
            values keep, brief;
            if (is_settled(s, HD_KEY_KEEP, s->pinned->keep, 0, &keep) && keep.v[0] != (h == HD_HOLD_STEP)) continue;
            if (is_settled(s, HD_KEY_REGATHER, s->pinned->regather, 0, &brief) && brief.v[0] != (h == HD_HOLD_BRIEFLY)) continue;
            list[n++] = (held){(uint8_t)zero.v[i], (uint8_t)h};
        }
    return n;
}

static void list_recompute(const space *s, values *v)
{
    static const hd_recompute all[] = {HD_RECOMPUTE_NONE, HD_RECOMPUTE_SELECTIVE, HD_RECOMPUTE_FIRST, HD_RECOMPUTE_FULL};
    if (is_settled(s, HD_KEY_RECOMPUTE, s->pinned->recompute, HD_RECOMPUTE_NONE, v)) return;
    for (int i = 0; i < (s->job->network.recomputes ? 4 : 1); i++) add(v, all[i]);
}

/* Schedules, each with its numbers of chunks: v = 16 schedule + chunks. */
static void list_schedules(const space *s, const hd_form *f, values *v)
{
    static const int chunks[] = {2, 3, 4, 5, 6, 8, 10, 12, 16};
    const hd_parallel *p = s->pinned;
    int64_t layers = s->language ? s->job->network.layers : NETWORK_STAGES;
    v->n = 0;
    if (f->pp == 1) {
        add(v, 64 * HD_SCHEDULE_GPIPE + 1);
        return;
    }
    for (int k = 0; k < HD_SCHEDULE_KINDS; k++) {
        bool wanted = is_given(s, HD_KEY_SCHEDULE) ? p->schedule == (hd_schedule_kind)k
                    : is_forbidden(s, HD_KEY_SCHEDULE) ? k == HD_SCHEDULE_1F1B : k != HD_SCHEDULE_GPIPE;
        if (!wanted) continue;
        if (k != HD_SCHEDULE_INTERLEAVED) {
            if (!is_given(s, HD_KEY_V) || p->chunks == 1) add(v, 64 * k + 1);
            continue;
        }
        if (f->micro_batches % f->pp || is_forbidden(s, HD_KEY_V)) continue;
        for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++)
            if ((is_given(s, HD_KEY_V) ? chunks[i] == p->chunks : true) && chunks[i] * f->pp <= layers && chunks[i] * f->pp <= MOST_CHUNKS) add(v, 64 * k + chunks[i]);
    }
}

/* Where there are micro-batches enough to fill the pipeline slices only make products smaller. */
static void list_slices(const space *s, const hd_form *f, values *v)
{
    if (is_settled(s, HD_KEY_SLICES, s->pinned->slices, 1, v)) return;
    add(v, 1);
    bool short_of_work = f->pp > 1 && s->language && f->micro_batches < 2 * f->pp && f->chunks == 1 && f->schedule != HD_SCHEDULE_ZERO_BUBBLE;
    for (int64_t n = 2; short_of_work && n <= MOST_SLICES && s->job->network.sequence / n >= 128 && s->job->network.sequence / n >= f->cp; n *= 2) add(v, n);
}

/* ---- going through them ---- */

/* What is pinned beside sizes that are searched for may need some of them: zero=3 more than one rank of dp. */
static bool keeps_to_pins(const space *s, const hd_form *f)
{
    const uint32_t bound = 1u << HD_KEY_SP | 1u << HD_KEY_ZERO | 1u << HD_KEY_KEEP | 1u << HD_KEY_REGATHER | 1u << HD_KEY_SCATTER | 1u << HD_KEY_V | 1u << HD_KEY_SCHEDULE
                           | 1u << HD_KEY_LAYERS | 1u << HD_KEY_RECOMPUTE | 1u << HD_KEY_ATTENTION | 1u << HD_KEY_ORDER | 1u << HD_KEY_TABLES;
    hd_parallel p;
    if (!(s->pinned->given & bound)) return true;
    if (is_given(s, HD_KEY_SCHEDULE) && f->pp == 1) return false;
    if (is_given(s, HD_KEY_V) && f->chunks != s->pinned->chunks) return false;
    if (is_given(s, HD_KEY_TABLES) && f->tables != s->pinned->tables) return false;
    hd_form_write(s->job, f, NULL, NULL, &p);
    if (!is_given(s, HD_KEY_RECOMPUTE)) p.n_first = 0, p.recompute = HD_RECOMPUTE_NONE;
    else if (p.recompute == HD_RECOMPUTE_FIRST) p.n_first = s->pinned->n_first;
    return !hd_parallel_check(&p, NULL);
}

static void emit(space *s, const hd_form *f)
{
    if (!keeps_to_pins(s, f)) return;
    if (hd_grow(&s->out->list, &s->out->room, s->out->n + 1, sizeof *f)) s->failed = true;
    else s->out->list[s->out->n++] = *f;
}

static void emit_slices(space *s, hd_form f)
{
    values slices;
    list_slices(s, &f, &slices);
    for (int i = 0; i < slices.n; i++) f.slices = (int)slices.v[i], emit(s, &f);
}

static void emit_schedules(space *s, hd_form f)
{
    values schedules;
    list_schedules(s, &f, &schedules);
    for (int i = 0; i < schedules.n; i++) {
        f.schedule = (uint8_t)(schedules.v[i] / 64);
        f.chunks = (int)(schedules.v[i] % 64);
        emit_slices(s, f);
    }
}

static void emit_states(space *s, hd_form f)
{
    held states[16];
    values recompute;
    int n = list_states(s, &f, states);
    list_recompute(s, &recompute);
    for (int i = 0; i < n; i++)
        for (int r = 0; r < recompute.n; r++) {
            f.zero = states[i].zero, f.hold = states[i].hold, f.recompute = (uint8_t)recompute.v[r];
            emit_schedules(s, f);
        }
}

static void emit_sequence(space *s, hd_form f)
{
    values sp, scatter;
    if (f.tp == 1) {
        if (!(is_given(s, HD_KEY_SP) && s->pinned->sp) && !(is_given(s, HD_KEY_SCATTER) && s->pinned->scatter)) emit_states(s, f);
        return;
    }
    if (!s->language) {
        for (int t = HD_TABLES_ROWS; t <= HD_TABLES_COLUMNS; t++) {
            f.tables = (uint8_t)t;
            if (!is_given(s, HD_KEY_TABLES) || s->pinned->tables == (hd_tables)t) emit_states(s, f);
        }
        return;
    }
    if (!is_settled(s, HD_KEY_SP, s->pinned->sp, 0, &sp)) add(&sp, 0), add(&sp, 1);
    for (int i = 0; i < sp.n; i++) {
        f.sp = (uint8_t)sp.v[i];
        if (!is_settled(s, HD_KEY_SCATTER, s->pinned->scatter, 0, &scatter)) add(&scatter, f.pp > 1 && !f.sp && s->gpu);
        f.scatter = (uint8_t)scatter.v[0];
        emit_states(s, f);
    }
}

static void emit_micro(space *s, hd_form f)
{
    values micro;
    values dp;
    if (is_settled(s, HD_KEY_DP, s->pinned->dp, 1, &dp) && f.dp != dp.v[0]) return;
    list_micro(s, f.dp, f.cp, &micro);
    for (int i = 0; i < micro.n; i++) f.micro_batches = micro.v[i], emit_sequence(s, f);
}

/* For a network tables are over dp and tp. */
static void emit_meshes(space *s, int ranks)
{
    values pp, tp, cp;
    list_stages(s, ranks, &pp);
    for (int i = 0; i < pp.n; i++) {
        if (ranks % pp.v[i]) continue;
        list_tensor(s, ranks / (int)pp.v[i], &tp);
        for (int k = 0; k < tp.n; k++) {
            int rest = ranks / (int)pp.v[i] / (int)tp.v[k];
            if (rest * pp.v[i] * tp.v[k] != ranks) continue;
            list_context(s, rest, &cp);
            for (int c = 0; c < cp.n; c++)
                if (rest % cp.v[c] == 0)
                    emit_micro(s, (hd_form){.pp = (int)pp.v[i], .tp = (int)tp.v[k], .cp = (int)cp.v[c], .dp = rest / (int)cp.v[c], .chunks = 1, .slices = 1});
        }
    }
}

static int check_pins(const space *s, hd_error *err)
{
    const hd_parallel *p = s->pinned;
    int64_t fixed = fixed_ranks(p);
    if (p->n_parts) return hd_fail(err, HD_EUNSUPPORTED, "stages of different meshes (|) are given whole: leave auto out, or take one mesh");
    if (fixed > s->devices)
        return hd_fail(err, HD_ENOPLAN, "--parallel pins %lld ranks, and there are %d devices: pin less, or take more devices", (long long)fixed, s->devices);
    if (s->devices % fixed && s->gpu)
        return hd_fail(err, HD_ENOPLAN, "--parallel pins sizes whose product, %lld, is no divisor of the %d devices", (long long)fixed, s->devices);
    return 0;
}

int hd_forms_list(const hd_planner_job *job, hd_form_list *out, hd_error *err)
{
    const hd_cluster *c = job->cluster;
    hd_parallel pinned = job->pinned.dp ? job->pinned : hd_parallel_default();
    space s = {.job = job, .pinned = &pinned, .language = job->network.layers > 0, .gpu = !c->device.cores, .devices = hd_planner_ranks(job),
               .node = hd_cluster_group(c, c->node_level), .out = out};
    values ranks;
    *out = (hd_form_list){0};
    int rc = check_pins(&s, err);
    if (rc) return rc;
    list_ranks(&s, &ranks);
    for (int i = ranks.n - 1; i >= 0; i--) emit_meshes(&s, (int)ranks.v[i]);
    if (!s.failed) return 0;
    hd_free(out->list);
    *out = (hd_form_list){0};
    return hd_fail_memory(err, sizeof(hd_form), "the forms that a plan may take");
}

/* ---- out of them ---- */

int64_t hd_form_share(const hd_planner_job *job, const hd_form *f)
{
    int64_t batch = job->network.samples / f->micro_batches;
    return (batch + f->dp - 1) / f->dp;
}

void hd_form_write(const hd_planner_job *job, const hd_form *f, const int *layers, const int *again, hd_parallel *out)
{
    int chunks = f->pp * f->chunks;
    *out = job->pinned.dp ? job->pinned : hd_parallel_default();
    out->open = false;
    out->also = job->pins;
    out->n_also = job->n_pins;
    out->pp = f->pp, out->dp = f->dp, out->cp = f->cp, out->tp = f->tp;
    out->sp = f->sp, out->zero = f->zero, out->keep = f->hold == HD_HOLD_STEP, out->regather = f->hold == HD_HOLD_BRIEFLY;
    out->scatter = f->scatter, out->tables = (hd_tables)f->tables;
    out->chunks = f->chunks, out->slices = f->slices;
    out->recompute = (hd_recompute)f->recompute;
    out->has_schedule = f->pp > 1;
    out->schedule = f->pp > 1 ? (hd_schedule_kind)f->schedule : 0;
    if (f->slices == 1 || out->n_lengths != f->slices) out->n_lengths = 0;
    bool given = job->pinned.given >> HD_KEY_LAYERS & 1;
    if (layers && f->pp > 1 && !given) {
        out->n_layers = chunks;
        for (int i = 0; i < chunks; i++) out->layers[i] = layers[i];
    }
    out->n_first = f->recompute == HD_RECOMPUTE_FIRST ? chunks : 0;
    for (int i = 0; again && i < out->n_first; i++) out->first[i] = again[i];
}
