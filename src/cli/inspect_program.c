/* inspect_program.c: what a model becomes: its Graph and its Program, as text and in numbers. */
#include <stdio.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "cli/inspect.h"
#include "models/model.h"
#include "models/network.h"
#include "train/session.h"

static hd_dtype precision_of(const inspect_config *c)
{
    return strcmp(c->precision, "bf16") ? HD_F32 : HD_BF16;
}

/* ---- forward graphs ---- */

static hd_graph *network_graph(const inspect_config *c, const char *path, hd_error *err)
{
    if (!strcmp(c->mode, "generate")) {
        hd_fail(err, HD_EINVAL, "%s is a network file: --mode generate is for language models", path);
        return NULL;
    }
    hd_network *n = hd_network_load(path, err);
    hd_graph *g = n ? hd_network_graph(n, &(hd_network_options){.batch = c->batch, .train = !strcmp(c->mode, "train")}, err) : NULL;
    hd_network_free(n);
    return g;
}

/* What the person said, else a preset, or fewer where the model knows fewer positions. */
static int64_t positions_of(const hd_model *m, int64_t said, int64_t preset)
{
    int64_t most = m->is_network ? preset : m->config.max_positions;
    return said ? said : most && most < preset ? most : preset;
}

/* Of a model directory, a config.json or a network file. */
static hd_graph *forward_graph(const inspect_config *c, const char *path, int64_t *sequence, hd_error *err)
{
    hd_model m;
    if (hd_model_open(&m, path, err)) return NULL;
    *sequence = positions_of(&m, c->sequence, 64);
    hd_model_options o = {.mode = HD_LM_TRAIN, .precision = precision_of(c), .batch = c->batch, .sequence = *sequence, .context = positions_of(&m, c->context, 256)};
    if (!strcmp(c->mode, "eval")) o.mode = HD_LM_EVAL;
    if (!strcmp(c->mode, "generate")) o.mode = HD_LM_SERVE;
    hd_graph *g = hd_model_graph(&m, &o, err);
    hd_model_close(&m);
    return g;
}

/* Canonical graph and program, as `heddle train` and `heddle generate` make them. Frees nothing on success: hd_session_free does. */
static int make_session(const inspect_config *c, const char *path, hd_session *s, hd_error *err)
{
    bool train = !strcmp(c->mode, "train");
    hd_session_options o = {.plan = hd_plan_default()};
    o.step = (hd_step_options){.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1};
    o.plan.micro_batches = train ? c->micro_batches : 1;
    o.plan.precision = precision_of(c);
    o.plan.threads = (int)c->threads;
    o.plan.pack = !strcmp(c->mode, "generate");
    o.rank.rank = (int)c->rank;
    int rc = c->parallel ? hd_parallel_parse(c->parallel, &o.parallel, err) : 0;
    if (!rc && c->parallel && o.plan.pack) rc = hd_fail(err, HD_EUNSUPPORTED, "--parallel: generating runs on one rank");
    if (!rc && c->rank >= hd_session_ranks(&o)) rc = hd_fail(err, HD_EINVAL, "--rank %lld: there are %d ranks, from 0", (long long)c->rank, hd_session_ranks(&o));
    hd_graph *g = rc ? NULL : forward_graph(c, path, &o.sequence, err);
    return g ? hd_session_init(s, train ? g : NULL, train ? NULL : g, &o, err) : err->code;
}

/* ---- descriptions ---- */

static int finish(json_t *j, hd_str *text, json_t **out, hd_error *err)
{
    bool ok = j && !text->failed && !json_object_set_new(j, "text", json_stringn(text->data, text->len));
    hd_str_free(text);
    if (ok) return *out = j, 0;
    json_decref(j);
    return hd_fail_memory(err, 0, "a description");
}

static json_t *describe_shape(const hd_type *t)
{
    json_t *shape = json_array();
    for (int i = 0; i < t->shape.rank; i++) json_array_append_new(shape, json_integer((json_int_t)t->shape.dim[i]));
    return shape;
}

static json_t *list_values(const hd_graph *g, hd_kind kind, json_int_t *elements)
{
    json_t *out = json_array();
    for (size_t i = 0; i < g->n_values; i++) {
        const hd_value_info *v = &g->values[i];
        if (v->kind != kind) continue;
        *elements += (json_int_t)hd_shape_count(&v->type.shape);
        json_array_append_new(out, json_pack("{s:s, s:s, s:o}", "name", v->path, "dtype", hd_dtype_name(v->type.dtype),
                                             "shape", describe_shape(&v->type)));
    }
    return out;
}

static json_t *describe_graph(const hd_graph *g, const char *kind, const char *path)
{
    char fingerprint[24];
    json_int_t parameters = 0, ignored = 0;
    json_t *list = list_values(g, HD_PARAM, &parameters);
    snprintf(fingerprint, sizeof fingerprint, "%016llx", (unsigned long long)hd_graph_fingerprint(g));
    return json_pack("{s:s, s:s, s:I, s:I, s:s, s:o, s:o}", "kind", kind, "path", path, "nodes", (json_int_t)g->n_nodes,
                     "parameters", parameters, "fingerprint", fingerprint, "inputs", list_values(g, HD_INPUT, &ignored), "tensors", list);
}

int hd_inspect_graph(const inspect_config *c, const char *path, json_t **out, hd_error *err)
{
    hd_session s;
    hd_str text;
    int rc = make_session(c, path, &s, err);
    if (rc) return rc;
    hd_str_init(&text);
    const hd_graph *g = s.graph[HD_TRAIN_PROGRAM] ? s.graph[HD_TRAIN_PROGRAM] : s.graph[HD_EVAL_PROGRAM];
    hd_graph_dump(g, &text);
    rc = finish(describe_graph(g, "graph", path), &text, out, err);
    hd_session_free(&s);
    return rc;
}

int hd_inspect_network(const inspect_config *c, const char *path, json_t **out, hd_error *err)
{
    hd_str text;
    inspect_config eval = *c;
    eval.mode = strcmp(c->mode, "generate") ? c->mode : "eval";
    hd_graph *g = network_graph(&eval, path, err);
    if (!g) return err->code;
    hd_str_init(&text);
    hd_graph_dump(g, &text);
    int rc = finish(describe_graph(g, "network", path), &text, out, err);
    hd_graph_free(g);
    return rc;
}

static json_t *describe_segments(const hd_program *p)
{
    json_t *out = json_array();
    for (int i = 0; i < p->n_segments; i++)
        json_array_append_new(out, json_pack("{s:s, s:i}", "name", hd_segment_name(p->segments[i].kind),
                                             "instructions", p->segments[i].n_instrs));
    return out;
}

static json_t *describe_memory(const hd_memory *m)
{
    json_t *out = json_object();
    for (int r = 0; r < HD_ROLE_COUNT; r++)
        if (m->role[r]) json_object_set_new(out, hd_role_name((hd_role)r), json_integer((json_int_t)m->role[r]));
    json_object_set_new(out, "store", json_integer((json_int_t)m->store));
    json_object_set_new(out, "arena", json_integer((json_int_t)m->arena));
    json_object_set_new(out, "total", json_integer((json_int_t)m->total));
    return out;
}

enum { MOST_COUNTS = 64 };

static json_t *describe_counts(const hd_comm_count *c, int n)
{
    json_t *out = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(out, json_pack("{s:s, s:s, s:I, s:I, s:I}", "op", c[i].op, "axes", c[i].axes, "transfers", (json_int_t)c[i].transfers,
                                             "elements", (json_int_t)c[i].elements, "bytes", (json_int_t)c[i].bytes));
    return out;
}

static void print_counts(const hd_comm_count *c, int n, hd_str *out)
{
    hd_str_printf(out, "%-16s %-16s %10s %16s %16s\n", "op", "axes", "transfers", "elements", "bytes");
    for (int i = 0; i < n; i++)
        hd_str_printf(out, "%-16s %-16s %10lld %16lld %16lld\n", c[i].op, c[i].axes, (long long)c[i].transfers, (long long)c[i].elements,
                      (long long)c[i].bytes);
}

static int describe_program(const inspect_config *c, const hd_program *p, const char *path, json_t **out, hd_error *err)
{
    hd_comm_count counts[MOST_COUNTS];
    int n_counts = hd_program_count(p, counts, MOST_COUNTS);
    hd_memory m;
    hd_str text;
    int rc = hd_program_verify(p, err);
    if (!rc) rc = hd_program_memory(p, &m, err);
    if (rc) return rc;
    hd_str_init(&text);
    if (c->count) print_counts(counts, n_counts, &text);
    else hd_program_dump(p, &text);
    json_t *j = json_pack("{s:s, s:s, s:i, s:i, s:i, s:I, s:I, s:o, s:o, s:o}", "kind", "program", "path", path, "threads", p->threads,
                          "buffers", p->n_buffers, "calls", p->n_calls, "arena_bytes", (json_int_t)p->arena_bytes,
                          "arena_bound", (json_int_t)p->arena_bound, "segments", describe_segments(p), "memory", describe_memory(&m), "transfers", describe_counts(counts, n_counts));
    return finish(j, &text, out, err);
}

bool hd_inspect_is_program(const char *path)
{
    char start[9] = "";
    FILE *f = fopen(path, "r");
    bool yes = f && fread(start, 1, 8, f) == 8 && !strcmp(start, "program ");
    if (f) fclose(f);
    return yes;
}

int hd_inspect_program(const inspect_config *c, const char *path, json_t **out, hd_error *err)
{
    hd_program *p = NULL;
    hd_session s = {0};
    if (!hd_file_exists(path)) return hd_fail(err, HD_EINVAL, "%s: there is no such file or directory", path);
    bool text = !hd_is_dir(path) && hd_inspect_is_program(path);
    int rc = text ? hd_program_load(path, &p, err) : make_session(c, path, &s, err);
    if (!rc && !text) p = s.program[HD_TRAIN_PROGRAM] ? s.program[HD_TRAIN_PROGRAM] : s.program[HD_EVAL_PROGRAM];
    if (!rc) rc = describe_program(c, p, path, out, err);
    if (text) hd_program_free(p);
    else hd_session_free(&s);
    return rc;
}
