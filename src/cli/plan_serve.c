/* plan_serve.c: heddle plan --mode generate: what `heddle generate` takes for a prompt and for each token behind it, and how many sequences a device holds.
 *
 * The program is the one that `heddle generate` runs, for one sequence. Several sequences at once: a token of each in one call, over the weights once and over
 * each one's own keys and values. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/term.h"
#include "cli/plan.h"

enum { CHUNK = 512 /* tokens of a prompt in one call, as hd_generator_options */ };

typedef struct serving {
    planned p;
    int64_t prompt, context, batch;
    int64_t cache, weights;      /* bytes: keys and values of one sequence at its longest; parameters */
    double prefill;              /* of one prompt */
    double first, last;          /* a token of each sequence, behind the prompt and at the context's end */
    int64_t most;                /* sequences that fit */
    int64_t peak;                /* of `batch` */
} serving;

static const hd_program *program_of(const serving *s) { return s->p.programs.stage[0]; }

static const hd_sim_rank *rank_of(const serving *s) { return &s->p.sim.rank[0]; }

/* Seconds of one forward call in which a token sees so many keys on average. */
static int time_call(serving *s, int64_t tokens, int64_t keys, double *seconds, hd_error *err)
{
    const hd_program *p = program_of(s);
    int64_t binding[HD_MAX_SYMBOLS];
    hd_trace t = {.by_call = true};
    for (int i = 0; i < HD_MAX_SYMBOLS; i++) binding[i] = -1;
    for (int i = 0; i < p->n_symbols; i++)
        if (!strcmp(p->symbols[i].name, "tokens")) binding[i] = tokens;
    hd_sim_result_free(&s->p.sim);
    int rc = hd_simulate((const hd_program *const *)s->p.programs.stage, 1, &s->p.cluster, &(hd_sim_options){.binding = binding, .keys = keys, .trace = &t}, &s->p.sim, err);
    *seconds = 0;
    for (int64_t i = 0; !rc && i < t.n_calls; i++)
        if (!strcmp(t.calls[i].segment, hd_segment_name(HD_SEGMENT_FORWARD))) *seconds += t.calls[i].end - t.calls[i].start;
    hd_trace_free(&t);
    return rc;
}

/* What reading the other sequences' keys and values adds to a call that reads one's. */
static double other_caches(const serving *s, int64_t context)
{
    const hd_device *d = &s->p.cluster.device;
    return (double)(s->batch - 1) * (double)s->cache * (double)context / (double)s->context / (d->bandwidth * d->efficiency.memory);
}

static int time_all(serving *s, hd_error *err)
{
    int64_t at_once = s->prompt < CHUNK ? s->prompt : CHUNK, batch = s->batch < at_once ? s->batch : at_once;
    int rc = 0;
    for (int64_t i = 0; i < s->prompt && !rc; i += at_once) {
        double seconds;
        int64_t n = s->prompt - i < at_once ? s->prompt - i : at_once;
        rc = time_call(s, n, i + (n + 1) / 2, &seconds, err);
        s->prefill += seconds;
    }
    if (!rc) rc = time_call(s, batch, s->prompt + 1 < s->context ? s->prompt + 1 : s->context, &s->first, err);
    if (!rc) rc = time_call(s, batch, s->context, &s->last, err);
    double rounds = ceil((double)s->batch / (double)batch); /* more sequences than a call takes tokens */
    s->first = s->first * rounds + other_caches(s, s->prompt);
    s->last = s->last * rounds + other_caches(s, s->context);
    return rc;
}

static void count_memory(serving *s)
{
    const hd_program *p = program_of(s);
    for (int b = 0; b < p->n_buffers; b++) {
        const hd_buffer *x = &p->buffers[b];
        if (x->view_of < 0 && x->class == HD_BUFFER_STATE && !strncmp(x->path, "kv.", 3)) s->cache += x->bytes;
        if (x->view_of < 0 && x->role == HD_ROLE_PARAMETER) s->weights += x->bytes;
    }
}

static int lower(serving *s, const plan_config *c, hd_error *err)
{
    hd_session_options o = {.plan = hd_plan_default()};
    hd_model_options m = {.mode = HD_LM_SERVE, .precision = s->p.precision, .sequence = s->prompt < CHUNK ? s->prompt : CHUNK, .context = s->context};
    hd_planning_target(&s->p.cluster, 1, (int)c->threads, &o.plan);
    o.plan.precision = s->p.precision;
    o.plan.pack = true;
    hd_graph *g = hd_model_graph(&s->p.model, &m, err);
    return g ? hd_programs_make(&s->p.programs, g, false, &o, err) : err->code;
}

static int predict(serving *s, const plan_config *c, const char *model, hd_error *err)
{
    *s = (serving){.p = {.config = c, .path = model, .precision = strcmp(c->precision, "bf16") ? HD_F32 : HD_BF16}, .prompt = c->sequence, .batch = c->batch};
    s->context = c->context ? c->context : 2 * c->sequence;
    if (c->parallel || c->plan) return hd_fail(err, HD_EUNSUPPORTED, "--mode generate: generating runs on one rank; leave --parallel and --plan out");
    if (s->context < s->prompt) return hd_fail(err, HD_EINVAL, "--context %lld is shorter than the prompt (--sequence %lld)", (long long)s->context, (long long)s->prompt);
    int rc = hd_cluster_find(c->cluster, &s->p.cluster, err);
    if (!rc) rc = hd_model_open(&s->p.model, model, err);
    if (!rc) rc = lower(s, c, err);
    if (rc) return rc;
    count_memory(s);
    rc = time_all(s, err);
    if (rc) return rc;
    const hd_sim_rank *r = rank_of(s);
    s->most = s->cache > 0 && r->capacity > r->peak - s->cache ? (r->capacity - (r->peak - s->cache)) / s->cache : 0;
    s->peak = r->peak + (s->batch - 1) * s->cache;
    return 0;
}

static int print_json(const serving *s, hd_error *err)
{
    json_t *j = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f}", "kind", "inference", "model", s->p.path, "cluster", s->p.cluster.name,
                          "precision", hd_dtype_name(s->p.precision), "prompt", (json_int_t)s->prompt, "context", (json_int_t)s->context, "batch", (json_int_t)s->batch,
                          "kv_bytes", (json_int_t)s->cache, "parameter_bytes", (json_int_t)s->weights, "peak", (json_int_t)s->peak, "capacity",
                          (json_int_t)rank_of(s)->capacity, "largest_batch", (json_int_t)s->most, "prefill_seconds", s->prefill, "decode_seconds", (s->first + s->last) / 2,
                          "decode_seconds_at_prompt", s->first, "decode_seconds_at_context", s->last);
    bool failed = !j || json_dumpf(j, stdout, JSON_INDENT(2));
    if (!failed) putchar('\n');
    json_decref(j);
    return failed ? hd_fail_memory(err, 0, "a prediction") : 0;
}

static void print_text(const serving *s)
{
    char cache[24], weights[24], peak[24], have[24];
    double token = (s->first + s->last) / 2;
    printf("model           %s: %s of parameters in %s\n", s->p.path, hd_format_bytes(weights, (double)s->weights), hd_dtype_name(s->p.precision));
    printf("cluster         %s: one %s\n", s->p.cluster.name, s->p.cluster.device.name);
    printf("prefill         %.6g s for a prompt of %lld tokens: %.6g tokens a second\n", s->prefill, (long long)s->prompt, (double)s->prompt / s->prefill);
    printf("decode          %.6g s a token (%.6g behind the prompt, %.6g at %lld tokens); %lld sequence%s at once: %.6g tokens a second\n", token, s->first, s->last,
           (long long)s->context, (long long)s->batch, s->batch == 1 ? "" : "s", (double)s->batch / token);
    printf("keys and values %s for a sequence of %lld tokens; the largest batch has %lld sequence%s\n", hd_format_bytes(cache, (double)s->cache), (long long)s->context,
           (long long)s->most, s->most == 1 ? "" : "s");
    printf("memory          %s of %s\n", hd_format_bytes(peak, (double)s->peak), hd_format_bytes(have, (double)rank_of(s)->capacity));
}

static int check_memory(const serving *s, hd_error *err)
{
    char need[24], have[24], over[24], each[24];
    int64_t capacity = rank_of(s)->capacity;
    bool weights = s->weights > s->cache * s->batch;
    if (s->peak <= capacity) return 0;
    return hd_fail(err, HD_EMEMCAP, "rank 0 needs %s of memory and has %s: %s too much, most of it %s (%s). What would help: %s", hd_format_bytes(need, (double)s->peak),
                   hd_format_bytes(have, (double)capacity), hd_format_bytes(over, (double)(s->peak - capacity)), weights ? "parameters" : "keys and values",
                   hd_format_bytes(each, weights ? (double)s->weights : (double)(s->cache * s->batch)),
                   weights ? "--precision bf16, or a larger device" : s->most ? "a smaller --batch" : "a shorter --context");
}

int hd_plan_serve(const plan_config *c, const char *model, hd_error *err)
{
    serving s;
    int rc = predict(&s, c, model, err);
    if (!rc && c->json) rc = print_json(&s, err);
    else if (!rc) print_text(&s);
    if (!rc) rc = check_memory(&s, err);
    hd_plan_free(&s.p);
    return rc;
}
