/* parallel.c: reading the by-hand form, and all of its expansion but pins and cuts. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/parallel_int.h"

/* ---- reading ---- */

typedef struct number_key { const char *name; size_t offset; int64_t lo, hi; } number_key;
#define AT(field) offsetof(hd_parallel, field)
enum { NUMBER_KEYS = HD_KEY_V + 1 };
static const number_key number_keys[NUMBER_KEYS] = {
    [HD_KEY_OVERLAP] = {"overlap", AT(overlap), 0, 1}, [HD_KEY_BUCKET] = {"bucket", AT(bucket), 0, (int64_t)1 << 40}, [HD_KEY_SPARSE] = {"sparse", AT(sparse), 0, 1},
    [HD_KEY_DP] = {"dp", AT(dp), 1, HD_MAX_RANKS}, [HD_KEY_TP] = {"tp", AT(tp), 1, HD_MAX_RANKS}, [HD_KEY_PP] = {"pp", AT(pp), 1, HD_MAX_CUTS + 1},
    [HD_KEY_CP] = {"cp", AT(cp), 1, HD_MAX_RANKS}, [HD_KEY_SP] = {"sp", AT(sp), 0, 1}, [HD_KEY_KEEP] = {"keep", AT(keep), 0, 1},
    [HD_KEY_SCATTER] = {"scatter", AT(scatter), 0, 1}, [HD_KEY_HALF_WIRE] = {"half_wire", AT(half_wire), 0, 1}, [HD_KEY_REGATHER] = {"regather", AT(regather), 0, 1},
    [HD_KEY_ZERO] = {"zero", AT(zero), 0, 3}, [HD_KEY_V] = {"v", AT(chunks), 1, 64},
};
static const char *const other_keys[] = {"schedule", "recompute", "layers", "slices", "attention", "order", "tables", "auto"};
static const char *const recompute_names[] = {"none", "full", "selective"};

const char *hd_parallel_key_name(hd_parallel_key k) { return (int)k < NUMBER_KEYS ? number_keys[k].name : other_keys[(int)k - NUMBER_KEYS]; }

/* Those that each part has for itself. */
static const char *const part_keys[] = {"dp", "tp", "pp", "cp", "sp", "zero"};

typedef struct parallel_reader { hd_parallel *out; uint32_t seen; hd_error *err; } parallel_reader;

static int find_key(const char *key)
{
    for (int i = 0; i < HD_PARALLEL_KEYS; i++)
        if (!strcmp(key, hd_parallel_key_name((hd_parallel_key)i))) return i;
    return -1;
}

/* A whole number at *at; moves *at behind it. */
static bool take_number(const char **at, int64_t lo, int64_t hi, int64_t *out)
{
    char *end;
    if (**at < '0' || **at > '9') return false;
    *out = strtoll(*at, &end, 10);
    *at = end;
    return *out >= lo && *out <= hi;
}

static int read_number(parallel_reader *r, const number_key *k, const char *value)
{
    int64_t *out = (int64_t *)((char *)r->out + k->offset);
    const char *at = value;
    if (take_number(&at, k->lo, k->hi, out) && !*at) return 0;
    return hd_fail(r->err, HD_EINVAL, "--parallel: %s must be a number from %" PRId64 " to %" PRId64 ", not \"%s\"", k->name, k->lo, k->hi, value);
}

/* Numbers parted by ":", at least one: how many there are, or -1. */
static int read_list(const char *value, int64_t lo, int64_t hi, int64_t *list, int most)
{
    int n = 0;
    for (const char *at = value; n < most; at++) {
        if (!take_number(&at, lo, hi, &list[n])) return -1;
        n++;
        if (!*at) return n;
        if (*at != ':') return -1;
    }
    return -1;
}

static int read_recompute(parallel_reader *r, const char *value)
{
    hd_parallel *p = r->out;
    const char *at = value + 6;
    for (int i = 0; i < 3; i++)
        if (!strcmp(value, recompute_names[i])) return r->out->recompute = (hd_recompute)i, 0;
    p->recompute = HD_RECOMPUTE_EVERY;
    if (!strncmp(value, "every:", 6) && take_number(&at, 1, 1000000, &p->every) && !*at) return 0;
    p->recompute = HD_RECOMPUTE_FIRST;
    p->n_first = read_list(value, 0, 1000000, p->first, HD_MAX_CUTS + 1);
    if (p->n_first > 0) return 0;
    return hd_fail(r->err, HD_EINVAL, "--parallel: recompute must be none, full, selective, every:K or layers of each chunk such as 3:2:0, not \"%s\"", value);
}

static int read_layers(parallel_reader *r, const char *value)
{
    hd_parallel *p = r->out;
    p->n_layers = read_list(value, 1, 1000000, p->layers, HD_MAX_CUTS + 1);
    if (p->n_layers > 0) return 0;
    return hd_fail(r->err, HD_EINVAL, "--parallel: layers must be numbers of layers such as 5:7, at most %d, not \"%s\"", HD_MAX_CUTS + 1, value);
}

/* One number: how many; several: the tokens of each. */
static int read_slices(parallel_reader *r, const char *value)
{
    hd_parallel *p = r->out;
    int n = read_list(value, 1, 1 << 30, p->lengths, HD_MAX_SLICES);
    p->n_lengths = n > 1 ? n : 0;
    p->slices = n > 1 ? n : p->lengths[0];
    if (n > 0 && p->slices <= HD_MAX_SLICES) return 0;
    return hd_fail(r->err, HD_EINVAL, "--parallel: slices must be their number or their tokens such as 512:256:256, at most %d, not \"%s\"", HD_MAX_SLICES, value);
}

/* *second: whether it is the second of two words. */
static int read_either(parallel_reader *r, const char *key, const char *value, const char *const words[2], bool *given, bool *second)
{
    *given = true;
    for (int i = 0; i < 2; i++)
        if (!strcmp(value, words[i])) return *second = i, 0;
    return hd_fail(r->err, HD_EINVAL, "--parallel: %s must be %s or %s, not \"%s\"", key, words[0], words[1], value);
}

static int read_tables(parallel_reader *r, const char *value)
{
    r->out->tables = !strcmp(value, "rows") ? HD_TABLES_ROWS : HD_TABLES_COLUMNS;
    if (r->out->tables == HD_TABLES_ROWS || !strcmp(value, "columns")) return 0;
    return hd_fail(r->err, HD_EINVAL, "--parallel: tables must be rows or columns, not \"%s\"", value);
}

static int read_item(parallel_reader *r, char *item)
{
    char *value = strchr(item, '=');
    if (value) *value++ = 0;
    int key = find_key(item);
    if (key < 0)
        return hd_fail(r->err, HD_EINVAL,
                       "--parallel: there is no \"%s\"; there are dp, tp, pp, cp, sp, zero, keep, scatter, half_wire, regather, v, schedule, layers, recompute, slices, attention, order, tables, "
                       "bucket, sparse, overlap and auto", item);
    if (r->seen >> key & 1) return hd_fail(r->err, HD_EINVAL, "--parallel: %s is given twice", item);
    r->seen |= 1u << key;
    r->out->given |= 1u << key;
    if (key == HD_KEY_AUTO) return value ? hd_fail(r->err, HD_EINVAL, "--parallel: auto takes no value") : (r->out->open = true, 0);
    if (!value && (!strcmp(item, "sp") || !strcmp(item, "keep") || !strcmp(item, "scatter") || !strcmp(item, "half_wire") || !strcmp(item, "regather"))) value = "1";
    if (!value || !*value) return hd_fail(r->err, HD_EINVAL, "--parallel: %s needs a value: %s=...", item, item);
    if (key < NUMBER_KEYS) return read_number(r, &number_keys[key], value);
    if (key == HD_KEY_RECOMPUTE) return read_recompute(r, value);
    if (key == HD_KEY_LAYERS) return read_layers(r, value);
    if (key == HD_KEY_SLICES) return read_slices(r, value);
    if (key == HD_KEY_ATTENTION) return read_either(r, item, value, (const char *const[]){"ring", "gather"}, &r->out->has_attention, &r->out->gather);
    if (key == HD_KEY_ORDER) return read_either(r, item, value, (const char *const[]){"zigzag", "plain"}, &r->out->has_order, &r->out->plain);
    if (key == HD_KEY_TABLES) return read_tables(r, value);
    r->out->has_schedule = true;
    if (!hd_schedule_parse(value, &r->out->schedule)) return 0;
    return hd_fail(r->err, HD_EINVAL, "--parallel: schedule must be gpipe, 1f1b, interleaved or zero-bubble, not \"%s\"", value);
}

/* ---- parts ---- */

int hd_parallel_part_of_stage(const hd_parallel *p, int stage)
{
    int part = 0;
    for (int64_t end = p->part[0].pp; part + 1 < p->n_parts && stage >= end; end += p->part[part].pp) part++;
    return part;
}

hd_parallel hd_parallel_of_part(const hd_parallel *p, int part)
{
    hd_parallel one = *p;
    if (!p->n_parts) return one;
    const hd_parallel_part *x = &p->part[part];
    one.dp = x->dp, one.tp = x->tp, one.cp = x->cp, one.sp = x->sp, one.zero = x->zero;
    one.n_parts = 0;
    return one;
}

static hd_parallel_part part_of(const hd_parallel *p)
{
    return (hd_parallel_part){p->pp, p->dp, p->tp, p->cp, p->sp, p->zero};
}

static bool same_part(const hd_parallel_part *a, const hd_parallel_part *b)
{
    return a->dp == b->dp && a->tp == b->tp && a->cp == b->cp && a->sp == b->sp && a->zero == b->zero;
}

static int64_t part_ranks(const hd_parallel_part *x)
{
    const int64_t sizes[] = {x->pp, x->dp, x->cp, x->tp};
    int64_t n = 1;
    for (int i = 0; i < 4; i++) n = n > HD_MAX_RANKS ? n : n * sizes[i];
    return n;
}

int64_t hd_parallel_ranks(const hd_parallel *p)
{
    int64_t n = 0;
    if (!p->n_parts) return part_ranks(&(hd_parallel_part){p->pp, p->dp, p->tp, p->cp, p->sp, p->zero});
    for (int i = 0; i < p->n_parts; i++) n += part_ranks(&p->part[i]);
    return n;
}

/* Parts that are all alike are the stages of one mesh. */
static void join_parts(hd_parallel *p)
{
    bool alike = true;
    int64_t stages = 0;
    for (int i = 0; i < p->n_parts; i++) {
        alike &= same_part(&p->part[0], &p->part[i]);
        stages += p->part[i].pp;
    }
    if (p->n_parts) p->pp = stages;
    if (alike) p->n_parts = 0;
}

/* ---- what contradicts itself whatever the network ---- */

static int check_part(const hd_parallel *p, hd_error *err)
{
    if (p->sp && p->tp == 1) return hd_fail(err, HD_EINVAL, "--parallel: sp splits over the tensor-parallel ranks: give tp=2 or more with it");
    if (p->zero && p->dp * p->cp == 1) return hd_fail(err, HD_EINVAL, "--parallel: zero=%d splits over the data-parallel ranks: give dp=2 or more with it", (int)p->zero);
    if (p->tables && p->tp == 1) return hd_fail(err, HD_EINVAL, "--parallel: tables are split over the tensor-parallel ranks: give tp=2 or more with it");
    return 0;
}

int hd_parallel_check(const hd_parallel *p, hd_error *err)
{
    bool gathers = false, cuts_tokens = false;
    if (hd_parallel_ranks(p) > HD_MAX_RANKS) return hd_fail(err, HD_EINVAL, "--parallel: that is more than %d ranks", HD_MAX_RANKS);
    if (p->n_parts && p->tables) return hd_fail(err, HD_EINVAL, "--parallel: tables is for stages of one mesh: leave it out, or the |");
    for (int i = 0; i < (p->n_parts ? p->n_parts : 1); i++) {
        hd_parallel one = hd_parallel_of_part(p, i);
        if (check_part(&one, err)) return HD_EINVAL;
        gathers |= one.zero == 3;
        cuts_tokens |= one.cp > 1;
    }
    if (!cuts_tokens && (p->has_attention || p->has_order))
        return hd_fail(err, HD_EINVAL, "--parallel: %s is about the tokens that cp splits: give cp=2 or more with it", p->has_attention ? "attention" : "order");
    if (p->keep && !gathers) return hd_fail(err, HD_EINVAL, "--parallel: keep is about what zero=3 gathers: give zero=3 with it");
    if (p->regather && !gathers) return hd_fail(err, HD_EINVAL, "--parallel: regather is about what zero=3 gathers: give zero=3 with it");
    if (p->n_parts && p->scatter) return hd_fail(err, HD_EINVAL, "--parallel: stages of different meshes send each byte once anyway: leave scatter out");
    if (p->scatter && (p->tp == 1 || p->pp == 1))
        return hd_fail(err, HD_EINVAL, "--parallel: scatter is about what tp ranks send between stages: give tp=2 and pp=2 or more with it");
    if (p->chunks > 1 && p->pp == 1) return hd_fail(err, HD_EINVAL, "--parallel: v=%d cuts a pipeline's stages: give pp=2 or more with it", (int)p->chunks);
    if (p->chunks > 1 && p->has_schedule && p->schedule != HD_SCHEDULE_INTERLEAVED)
        return hd_fail(err, HD_EINVAL, "--parallel: v=%d needs schedule=interleaved, not %s", (int)p->chunks, hd_schedule_name(p->schedule));
    if (p->pp * p->chunks > HD_MAX_CUTS + 1) return hd_fail(err, HD_EINVAL, "--parallel: pp x v is more than %d chunks", HD_MAX_CUTS + 1);
    if (p->recompute == HD_RECOMPUTE_FIRST && p->n_first != p->pp * p->chunks)
        return hd_fail(err, HD_EINVAL, "--parallel: recompute names %d chunks, pp x v is %d", p->n_first, (int)(p->pp * p->chunks));
    if (p->n_layers && p->n_layers != p->pp * p->chunks)
        return hd_fail(err, HD_EINVAL, "--parallel: layers names %d chunks, pp x v is %d", p->n_layers, (int)(p->pp * p->chunks));
    return 0;
}

/* Whether sizes that are left open could be such that the rest makes sense. */
static int check_open(const hd_parallel *p, hd_error *err)
{
    hd_parallel x = *p;
    int64_t chunks = x.n_layers > x.n_first ? x.n_layers : x.n_first;
    if ((x.keep || x.regather) && !(x.given >> HD_KEY_ZERO & 1)) x.zero = 3;
    if (x.zero && !(x.given >> HD_KEY_DP & 1)) x.dp = 2;
    if ((x.sp || x.tables || x.scatter) && !(x.given >> HD_KEY_TP & 1)) x.tp = 2;
    if ((x.chunks > 1 || x.scatter || chunks > 1) && !(x.given >> HD_KEY_PP & 1)) x.pp = chunks / x.chunks > 2 ? chunks / x.chunks : 2;
    if (chunks > 1 && chunks % x.pp == 0 && !(x.given >> HD_KEY_V & 1)) x.chunks = chunks / x.pp, x.has_schedule &= x.chunks == 1;
    if ((x.has_attention || x.has_order) && !(x.given >> HD_KEY_CP & 1)) x.cp = 2;
    return hd_parallel_check(&x, err);
}

/* ---- the text ---- */

static int read_items(parallel_reader *r, char *text)
{
    for (char *at = text; *at;) {
        char *comma = strchr(at, ',');
        if (comma) *comma = 0;
        if (read_item(r, at)) return HD_EINVAL;
        if (!comma) break;
        if (!comma[1]) return hd_fail(r->err, HD_EINVAL, "--parallel: nothing follows the last comma");
        at = comma + 1;
    }
    return 0;
}

static int begin_part(parallel_reader *r)
{
    hd_parallel *p = r->out;
    if (p->n_parts == HD_MAX_MESHES) return hd_fail(r->err, HD_EINVAL, "--parallel: more than %d meshes of stages", HD_MAX_MESHES);
    for (size_t i = 0; i < sizeof part_keys / sizeof *part_keys; i++) r->seen &= ~(1u << find_key(part_keys[i]));
    p->dp = p->tp = p->pp = p->cp = 1;
    p->sp = p->zero = 0;
    return 0;
}

/* Stages of meshes parted by "|". */
static int read_parts(parallel_reader *r, char *text)
{
    for (char *at = text, *bar; at; at = bar) {
        bar = strchr(at, '|');
        if (bar) *bar++ = 0;
        if (!*at) return hd_fail(r->err, HD_EINVAL, "--parallel: nothing stands before or behind a \"|\": a stage of one rank is dp=1");
        if (begin_part(r) || read_items(r, at)) return HD_EINVAL;
        r->out->part[r->out->n_parts++] = part_of(r->out);
    }
    return 0;
}

hd_parallel hd_parallel_default(void)
{
    return (hd_parallel){.dp = 1, .tp = 1, .pp = 1, .cp = 1, .chunks = 1, .slices = 1, .overlap = 1, .bucket = HD_PLAN_BUCKET, .sparse = 1};
}

int hd_parallel_parse(const char *text, hd_parallel *out, hd_error *err)
{
    char copy[2048];
    parallel_reader r = {.out = out, .err = err};
    *out = hd_parallel_default();
    if (strlen(text) >= sizeof copy) return hd_fail(err, HD_EINVAL, "--parallel: more than %zu characters", sizeof copy - 1);
    memcpy(copy, text, strlen(text) + 1);
    int rc = strchr(copy, '|') ? read_parts(&r, copy) : read_items(&r, copy);
    if (rc) return rc;
    join_parts(out);
    return out->open && !out->n_parts ? check_open(out, err) : hd_parallel_check(out, err);
}

/* ---- writing ---- */

static void print_numbers(const hd_parallel *p, const hd_parallel *none, uint32_t keys, hd_str *out, size_t begin)
{
    for (int k = 0; k < NUMBER_KEYS; k++) {
        int64_t n = *(const int64_t *)((const char *)p + number_keys[k].offset);
        if (!(keys >> k & 1) || n == *(const int64_t *)((const char *)none + number_keys[k].offset)) continue;
        hd_str_printf(out, "%s%s", out->len > begin ? "," : "", number_keys[k].name);
        if (number_keys[k].hi != 1 || !n) hd_str_printf(out, "=%" PRId64, n);
    }
}

static void print_list(const char *name, const int64_t *list, int n, hd_str *out, size_t begin)
{
    hd_str_printf(out, "%s%s=", out->len > begin ? "," : "", name);
    for (int i = 0; i < n; i++) hd_str_printf(out, "%s%" PRId64, i ? ":" : "", list[i]);
}

static void print_words(const hd_parallel *p, hd_str *out, size_t begin)
{
    const char *comma[] = {"", ","};
    if (p->has_schedule) hd_str_printf(out, "%sschedule=%s", comma[out->len > begin], hd_schedule_name(p->schedule));
    if (p->recompute == HD_RECOMPUTE_EVERY) hd_str_printf(out, "%srecompute=every:%" PRId64, comma[out->len > begin], p->every);
    else if (p->recompute == HD_RECOMPUTE_FIRST) print_list("recompute", p->first, p->n_first, out, begin);
    else if (p->recompute) hd_str_printf(out, "%srecompute=%s", comma[out->len > begin], recompute_names[p->recompute]);
    if (p->n_layers) print_list("layers", p->layers, p->n_layers, out, begin);
    if (p->n_lengths) print_list("slices", p->lengths, p->n_lengths, out, begin);
    else if (p->slices > 1) hd_str_printf(out, "%sslices=%" PRId64, comma[out->len > begin], p->slices);
    if (p->has_attention) hd_str_printf(out, "%sattention=%s", comma[out->len > begin], p->gather ? "gather" : "ring");
    if (p->has_order) hd_str_printf(out, "%sorder=%s", comma[out->len > begin], p->plain ? "plain" : "zigzag");
    if (p->tables) hd_str_printf(out, "%stables=%s", comma[out->len > begin], p->tables == HD_TABLES_ROWS ? "rows" : "columns");
}

/* Keys of a part stand in it, all others in the first. */
int hd_parallel_print(const hd_parallel *p, hd_str *out)
{
    hd_parallel none = hd_parallel_default();
    uint32_t of_parts = 0;
    for (size_t i = 0; i < sizeof part_keys / sizeof *part_keys; i++) of_parts |= 1u << find_key(part_keys[i]);
    for (int i = 0; i < (p->n_parts ? p->n_parts : 1); i++) {
        hd_parallel one = hd_parallel_of_part(p, i);
        if (p->n_parts) one.pp = p->part[i].pp;
        if (i) hd_str_printf(out, "|");
        size_t begin = out->len;
        print_numbers(&one, &none, i ? of_parts : ~0u, out, begin);
        if (p->n_parts && out->len == begin) hd_str_printf(out, "dp=1");
        if (!i) print_words(p, out, begin);
    }
    return out->failed ? HD_ENOMEM : 0;
}

/* ---- what the network is ---- */

bool hd_value_is_live(const hd_graph *g, hd_value v)
{
    const hd_value_info *i = &g->values[v];
    if (i->kind != HD_RESULT) return true;
    if (i->node < 0 || (size_t)i->node >= g->n_nodes) return false;
    const hd_node *n = g->nodes[i->node];
    return i->result < n->n_out && n->out[i->result] == v;
}

int hd_outline_dim(const hd_graph *g, const hd_outline *o, hd_value v, char letter)
{
    const hd_node *n = o->reader[v];
    const char *spec = n ? ((const hd_contract_attrs *)n->attrs)->spec : NULL, *second = spec ? strchr(spec, ',') : NULL;
    int rank = g->values[v].type.shape.rank;
    for (int i = 0; second && i < rank; i++)
        if (second[1 + i] == letter) return i;
    return -1;
}

static int find_readers(const hd_graph *g, hd_outline *o, hd_error *err)
{
    o->reader = hd_calloc(g->n_values + 1, sizeof *o->reader);
    if (!o->reader) return hd_fail_memory(err, g->n_values * sizeof *o->reader, "a plan");
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        if (n->phase != HD_FORWARD || strcmp(n->op->name, "contract")) continue;
        hd_value w = n->in[1];
        while (g->values[w].kind == HD_RESULT && !strcmp(g->nodes[g->values[w].node]->op->name, "cast")) w = g->nodes[g->values[w].node]->in[0];
        if (!o->reader[w]) o->reader[w] = n;
    }
    return 0;
}

static int64_t extent_of(const hd_graph *g, const hd_outline *o, const char *path, char letter)
{
    hd_value v = hd_graph_find(g, path);
    int dim = v == HD_NONE ? -1 : letter ? hd_outline_dim(g, o, v, letter) : 0;
    return dim < 0 ? 0 : g->values[v].type.shape.dim[dim];
}

static void measure_model(const hd_graph *g, hd_outline *o)
{
    hd_value embed = hd_graph_find(g, "embed.tokens"), tokens = hd_graph_find(g, "tokens");
    if (embed == HD_NONE || tokens == HD_NONE || g->values[embed].kind != HD_PARAM || g->values[tokens].kind != HD_INPUT) return;
    o->vocab = g->values[embed].type.shape.dim[0];
    o->width = g->values[embed].type.shape.dim[1];
    for (size_t v = 0; v < g->n_values; v++) {
        if (g->values[v].kind != HD_PARAM || strncmp(g->values[v].path, "layers.", 7)) continue;
        int64_t n = strtoll(g->values[v].path + 7, NULL, 10) + 1;
        if (n > o->layers) o->layers = n;
    }
    o->heads = extent_of(g, o, "layers.0.attn.q", 'h');
    o->kv_heads = extent_of(g, o, "layers.0.attn.k", 'h');
    o->hidden = extent_of(g, o, "layers.0.mlp.up", 'f');
    o->rows = g->values[tokens].type.shape.dim[0];
    o->language = o->layers && o->heads && o->kv_heads && o->hidden;
}

static int measure(const hd_graph *g, int64_t sequence, hd_outline *o, hd_error *err)
{
    int rc = find_readers(g, o, err);
    if (rc) return rc;
    measure_model(g, o);
    for (size_t v = 0; v < g->n_values && !o->language && !o->rows; v++)
        if (g->values[v].kind == HD_INPUT && g->values[v].micro == HD_TIME_SPLIT && g->values[v].type.shape.rank) o->rows = g->values[v].type.shape.dim[0];
    o->sequence = !o->language ? 1 : sequence ? sequence : o->rows;
    if (o->rows && o->rows % o->sequence == 0) return 0;
    return hd_fail(err, HD_EINVAL, "%" PRId64 " tokens of a call are no whole number of sequences of %" PRId64, o->rows, o->sequence);
}

/* ---- what cannot be ---- */

static int check_heads(const hd_parallel *p, const hd_outline *o, hd_error *err)
{
    if (p->tp > o->heads)
        return hd_fail(err, HD_EINVAL, "--parallel: tp=%" PRId64 " is more than the %" PRId64 " heads: give at most tp=%" PRId64, p->tp, o->heads, o->heads);
    if (p->tp > o->kv_heads && p->tp % o->kv_heads)
        return hd_fail(err, HD_EINVAL, "--parallel: tp=%" PRId64 " and %" PRId64 " key/value heads: give at most tp=%" PRId64 ", or a multiple of it up to %" PRId64,
                       p->tp, o->kv_heads, o->kv_heads, o->heads);
    if (p->tp > o->hidden || p->tp > o->vocab) return hd_fail(err, HD_EINVAL, "--parallel: tp=%" PRId64 " is more than the feed-forward's width or the vocabulary", p->tp);
    return 0;
}

static int check_rows(const hd_parallel *p, const hd_outline *o, hd_error *err)
{
    int64_t batch = o->rows / o->sequence;
    const char *unit = o->language ? "sequences" : "samples";
    if (!o->language && p->tp > 1 && !p->n_pins && p->dp * p->tp > batch)
        return hd_fail(err, HD_EINVAL, "--parallel: dp x tp = %" PRId64 " and %" PRId64 " samples in a micro-batch: give --batch %" PRId64, p->dp * p->tp, batch,
                       p->dp * p->tp);
    if (p->dp > batch && !p->n_pins)
        return hd_fail(err, HD_EINVAL, "--parallel: dp=%" PRId64 " and %" PRId64 " %s in a micro-batch: give at most dp=%" PRId64 ", or --batch %" PRId64, p->dp, batch,
                       unit, batch, p->dp);
    if (p->cp > 1 && batch != p->dp)
        return hd_fail(err, HD_EINVAL, "--parallel: cp splits one sequence per data-parallel rank, not %" PRId64 " over dp=%" PRId64 ": give --batch %" PRId64
                       " and more --micro-batches", batch, p->dp, p->dp);
    if (p->cp > o->sequence) return hd_fail(err, HD_EINVAL, "--parallel: a sequence of %" PRId64 " tokens cannot be split over cp=%" PRId64, o->sequence, p->cp);
    return 0;
}

static int check_network(const hd_parallel *p, const hd_outline *o, const hd_plan *plan, hd_error *err)
{
    if (p->slices > 1 && !o->language) return hd_fail(err, HD_EINVAL, "--parallel: slices cuts the tokens of a language model: leave it out for this network");
    bool asked = (p->has_attention && !p->gather) || (p->has_order && !p->plain);
    if (p->slices > 1 && p->cp > 1 && asked)
        return hd_fail(err, HD_EINVAL, "--parallel: slices with cp takes attention=gather and order=plain: keys and values of earlier slices are whole on every rank");
    if (!o->language && p->tp > 1 && !p->tables && !p->n_pins)
        return hd_fail(err, HD_EINVAL, "--parallel: tp goes by the names of a language model's layers; for this network's tables give tables=columns or tables=rows with it");
    if (!o->language && (p->sp || (p->cp > 1 && !p->n_pins) || p->n_layers || p->recompute != HD_RECOMPUTE_NONE))
        return hd_fail(err, HD_EINVAL, "--parallel: sp, cp, layers and recompute go by the names of a language model's layers; this network takes dp, tp with tables, zero and pp");
    if (plan->micro_batches % p->pp && (p->chunks > 1 || (p->has_schedule && p->schedule == HD_SCHEDULE_INTERLEAVED)) && p->pp > 1)
        return hd_fail(err, HD_EINVAL, "--parallel: the interleaved schedule wants a multiple of pp=%" PRId64 " micro-batches, not %" PRId64, p->pp, plan->micro_batches);
    int rc = check_rows(p, o, err);
    return rc || p->tp == 1 || !o->language ? rc : check_heads(p, o, err);
}

/* ---- mesh, schedule, recomputation ---- */

static void add_axis(hd_mesh *m, const char *name, int64_t size, hd_axis_role role)
{
    if (size == 1) return;
    hd_mesh_axis *x = &m->axis[m->n++];
    *x = (hd_mesh_axis){.size = (int)size, .role = role};
    snprintf(x->name, sizeof x->name, "%s", name);
}

static void make_mesh(const hd_parallel *p, const hd_outline *o, hd_mesh *m)
{
    *m = (hd_mesh){0};
    add_axis(m, "pp", p->pp, HD_AXIS_PIPELINE);
    add_axis(m, "dp", p->dp, HD_AXIS_DATA);
    add_axis(m, "cp", p->cp, HD_AXIS_DATA);
    if (p->tp <= o->kv_heads || o->kv_heads <= 1) {
        add_axis(m, "tp", p->tp, HD_AXIS_MODEL);
        return;
    }
    add_axis(m, "tp0", o->kv_heads, HD_AXIS_MODEL);
    add_axis(m, "tp1", p->tp / o->kv_heads, HD_AXIS_MODEL);
}

static int add_recompute(hd_plan *plan, const char *text, hd_error *err)
{
    if (plan->n_recompute == HD_MAX_RECOMPUTE) return hd_fail(err, HD_EINVAL, "--parallel: recompute names more than %d layers: take a larger every:K", HD_MAX_RECOMPUTE);
    snprintf(plan->recompute[plan->n_recompute++], sizeof plan->recompute[0], "%s", text);
    return 0;
}

/* Of the layers that `range` names ("*", "<0-5>"). A layer's input is the sum that its first norm gives, its last result; everything else of the layer follows
 * from it. */
static int add_full(const hd_graph *g, const char *range, hd_plan *plan, hd_error *err)
{
    static const char *const full[] = {"norm1", "norm1.1", "norm2*", "attn.*", "mlp.*", "norm1.2"};
    bool layer_norm = hd_graph_find(g, "layers.0.norm1.beta") != HD_NONE; /* y, mean, rstd, sum; else y, rstd, sum */
    char text[64];
    int rc = 0;
    for (int i = 0; i < (layer_norm ? 6 : 5) && !rc; i++) {
        snprintf(text, sizeof text, "layers.%s.%s", range, full[i]);
        rc = add_recompute(plan, text, err);
    }
    return rc;
}

static int add_selective(const hd_graph *g, hd_plan *plan, hd_error *err)
{
    static const char *const selective[] = {"layers.*.norm1", "layers.*.norm2", "layers.*.attn.*_biased", "layers.*.attn.*_rotated", "layers.*.mlp.*_biased",
                                            "layers.*.mlp.activation", "layers.*.mlp.product", NULL};
    static const char *const scores[] = {"layers.*.attn.scores*", "layers.*.attn.weights*", NULL}; /* where attention writes them out */
    int rc = 0;
    for (int i = 0; selective[i] && !rc; i++) rc = add_recompute(plan, selective[i], err);
    for (int i = 0; scores[i] && !rc && hd_graph_find(g, "layers.0.attn.scores") != HD_NONE; i++) rc = add_recompute(plan, scores[i], err);
    return rc;
}

static int add_every(const hd_parallel *p, const hd_outline *o, hd_plan *plan, hd_error *err)
{
    char text[64];
    int rc = p->every == 1 ? hd_fail(err, HD_EINVAL, "--parallel: recompute=every:1 is recompute=full") : 0;
    for (int64_t i = 0; i < o->layers && !rc; i += p->every) {
        snprintf(text, sizeof text, "layers.%d.*", (int)i);
        rc = add_recompute(plan, text, err);
    }
    return rc;
}

/* Chunks begin at layers: hd_parallel_cuts. */
static int add_first(const hd_parallel *p, const hd_graph *g, const hd_outline *o, hd_plan *plan, hd_error *err)
{
    char range[32];
    int rc = 0;
    for (int c = 0; c < p->n_first && !rc; c++) {
        int64_t begin = c ? atoll(plan->cuts[c - 1] + 7) : 0, end = c < plan->n_cuts ? atoll(plan->cuts[c] + 7) : o->layers;
        if (p->first[c] > end - begin)
            return hd_fail(err, HD_EINVAL, "--parallel: recompute=... %" PRId64 " layers of chunk %d, which has %" PRId64, p->first[c], c, end - begin);
        if (!p->first[c]) continue;
        snprintf(range, sizeof range, "<%" PRId64 "-%" PRId64 ">", begin, begin + p->first[c] - 1);
        rc = add_full(g, range, plan, err);
    }
    return rc;
}

/* Behind the cuts. */
static int make_recompute(const hd_parallel *p, const hd_graph *g, const hd_outline *o, hd_plan *plan, hd_error *err)
{
    plan->n_recompute = 0;
    switch (p->recompute) {
    case HD_RECOMPUTE_FULL: return add_full(g, "*", plan, err);
    case HD_RECOMPUTE_SELECTIVE: return add_selective(g, plan, err);
    case HD_RECOMPUTE_EVERY: return add_every(p, o, plan, err);
    case HD_RECOMPUTE_FIRST: return add_first(p, g, o, plan, err);
    default: return 0;
    }
}

int hd_parallel_slices(const hd_parallel *p, int64_t sequence, hd_plan *plan, hd_error *err)
{
    int64_t all = 0, end;
    plan->n_slices = 0;
    for (int i = 0; i < p->n_lengths; i++) all += p->lengths[i];
    if (p->n_lengths && all != sequence)
        return hd_fail(err, HD_EINVAL, "--parallel: slices adds up to %" PRId64 " tokens, a sequence has %" PRId64, all, sequence);
    if (p->slices <= 1) return 0;
    if (p->slices > sequence) return hd_fail(err, HD_EINVAL, "--parallel: %" PRId64 " slices of a sequence of %" PRId64 " tokens", p->slices, sequence);
    plan->n_slices = (int)p->slices;
    for (int i = 0; i < plan->n_slices; i++) {
        if (p->n_lengths) {
            plan->slices[i] = p->lengths[i];
            continue;
        }
        int64_t begin;
        hd_split(sequence, 1, i, plan->n_slices, &begin, &end);
        plan->slices[i] = end - begin;
    }
    return 0;
}

/* Of n ranks a ring sends 2 (n - 1) pieces of keys and values in forward and as much again, and their gradients, in backward; heads are exchanged for
 * (n - 1) / n pieces of q, k, v and out each. */
static bool goes_round(const hd_parallel *p, const hd_outline *o)
{
    int64_t heads = p->tp <= o->kv_heads && o->kv_heads % p->tp == 0 ? o->kv_heads / p->tp : 1;
    if (p->has_attention || p->slices > 1) return p->has_attention && !p->gather;
    return p->cp == 2 || heads % p->cp != 0;
}

/* ---- stages of different meshes ---- */

/* The number of the mesh that part k is of: that of an earlier one like it, or the next. */
static int mesh_of_part(const hd_parallel *p, int k, const int *mesh, int n_meshes)
{
    for (int i = 0; i < k; i++)
        if (same_part(&p->part[i], &p->part[k])) return mesh[i];
    return n_meshes;
}

/* One mesh's pins, made as if all stages were of it, behind those that there are. */
static int add_pins(const hd_parallel *one, const hd_graph *g, const hd_outline *o, hd_plan *plan, int mesh, hd_error *err)
{
    hd_plan *own = hd_malloc(sizeof *own);
    if (!own) return hd_fail_memory(err, sizeof *own, "a plan");
    *own = *plan;
    own->n_meshes = own->n_stages = 0;
    own->mesh = plan->meshes[mesh];
    int rc = hd_parallel_pins(one, g, o, own, err);
    if (!rc && plan->n_pins + own->n_pins > HD_MAX_PINS) rc = hd_fail(err, HD_EINVAL, "--parallel: meshes of more than %d pins in all", HD_MAX_PINS);
    for (int i = 0; i < own->n_pins && !rc; i++) {
        plan->pins[plan->n_pins] = own->pins[i];
        plan->pin_mesh[plan->n_pins++] = (uint8_t)mesh;
    }
    hd_free(own);
    return rc;
}

static int make_parts(const hd_parallel *p, const hd_graph *g, const hd_outline *o, hd_plan *plan, hd_error *err)
{
    int mesh[HD_MAX_MESHES], rc = 0;
    plan->mesh = (hd_mesh){0};
    plan->n_meshes = plan->n_stages = plan->n_pins = 0;
    for (int k = 0; k < p->n_parts && !rc; k++) {
        hd_parallel one = hd_parallel_of_part(p, k);
        mesh[k] = mesh_of_part(p, k, mesh, plan->n_meshes);
        for (int64_t s = 0; s < p->part[k].pp; s++) plan->stages[plan->n_stages++] = (uint8_t)mesh[k];
        if (mesh[k] < plan->n_meshes) continue;
        one.pp = 1;
        make_mesh(&one, o, &plan->meshes[plan->n_meshes++]);
        rc = add_pins(&one, g, o, plan, mesh[k], err);
    }
    return rc;
}

static int append_pins(const hd_pin *pins, int n, hd_plan *plan, hd_error *err)
{
    if (plan->n_pins + n > HD_MAX_PINS) return hd_fail(err, HD_EINVAL, "%d layouts are named, and a plan holds %d", plan->n_pins + n, HD_MAX_PINS);
    if (n) memcpy(plan->pins + plan->n_pins, pins, (size_t)n * sizeof *pins);
    plan->n_pins += n;
    return 0;
}

static int make_layouts(const hd_parallel *p, const hd_graph *g, const hd_outline *o, hd_plan *plan, hd_error *err)
{
    if (p->n_parts) return make_parts(p, g, o, plan, err);
    plan->n_meshes = plan->n_stages = plan->n_pins = 0;
    memset(plan->pin_mesh, 0, sizeof plan->pin_mesh);
    make_mesh(p, o, &plan->mesh);
    int rc = p->n_pins ? append_pins(p->pins, p->n_pins, plan, err) : hd_parallel_pins(p, g, o, plan, err);
    return rc ? rc : append_pins(p->also, p->n_also, plan, err);
}

/* Whether something counts keys in the order of their rows: dropout of attention's weights that are written out. */
static bool order_matters(const hd_graph *g)
{
    for (size_t i = 0; i < g->n_nodes; i++)
        if (!strcmp(g->nodes[i]->op->name, "weights_dropout")) return true;
    return false;
}

/* A ring in all stages whose tokens are cut, or in none; tokens are dealt only where all stages have the same ones. */
static int choose_token_axes(const hd_parallel *p, const hd_graph *g, const hd_outline *o, hd_plan *plan, hd_error *err)
{
    bool ring = false, cuts = false, alike = true;
    for (int i = 0; i < (p->n_parts ? p->n_parts : 1); i++) {
        hd_parallel one = hd_parallel_of_part(p, i), first = hd_parallel_of_part(p, 0);
        cuts |= one.cp > 1;
        ring |= one.cp > 1 && goes_round(&one, o);
        alike &= one.cp == first.cp && one.dp == first.dp;
    }
    if (cuts && !alike && p->has_order && !p->plain)
        return hd_fail(err, HD_EINVAL, "--parallel: order=zigzag wants the same dp and cp in all stages: their ranks would have different tokens");
    if (cuts && p->has_order && !p->plain && order_matters(g))
        return hd_fail(err, HD_EINVAL, "--parallel: dropout of attention's weights that are written out counts keys in the order of their rows: give order=plain, or fused attention");
    snprintf(plan->ring, sizeof plan->ring, "%s", ring ? "cp" : "");
    snprintf(plan->zigzag, sizeof plan->zigzag, "%s", cuts && alike && !p->plain && p->slices == 1 && !order_matters(g) ? "cp" : "");
    return 0;
}

/* Each slice has a token for each rank of the part's cp. */
static int check_slices(const hd_parallel *p, int part, const hd_plan *plan, hd_error *err)
{
    int64_t cp = hd_parallel_of_part(p, part).cp;
    for (int k = 0; k < plan->n_slices; k++)
        if (plan->slices[k] < cp)
            return hd_fail(err, HD_EINVAL, "--parallel: a slice of %" PRId64 " tokens cannot be split over cp=%" PRId64, plan->slices[k], cp);
    return 0;
}

static int expand(const hd_parallel *p, const hd_graph *g, const hd_outline *o, hd_plan *plan, hd_error *err)
{
    for (int i = 0; i < (p->n_parts ? p->n_parts : 1); i++) {
        hd_parallel one = hd_parallel_of_part(p, i);
        if (check_network(&one, o, plan, err)) return HD_EINVAL;
    }
    plan->overlap = p->overlap;
    plan->bucket = p->bucket;
    plan->sparse = p->sparse;
    if (choose_token_axes(p, g, o, plan, err)) return HD_EINVAL;
    plan->chunks = (int)p->chunks;
    plan->keep_gathered = p->keep;
    plan->regather = p->regather;
    plan->half_wire = p->half_wire;
    plan->scatter = p->scatter;
    int rc = hd_parallel_slices(p, o->sequence, plan, err);
    for (int i = 0; i < (p->n_parts ? p->n_parts : 1) && !rc; i++) rc = check_slices(p, i, plan, err);
    if (rc) return rc;
    plan->schedule = p->pp == 1 ? HD_SCHEDULE_GPIPE : p->has_schedule ? p->schedule : p->chunks > 1 ? HD_SCHEDULE_INTERLEAVED : HD_SCHEDULE_1F1B;
    rc = hd_parallel_cuts(p, g, o, plan, err);
    if (!rc) rc = make_recompute(p, g, o, plan, err);
    if (!rc) rc = make_layouts(p, g, o, plan, err);
    return rc ? rc : hd_plan_check(plan, NULL, err);
}

int hd_parallel_expand(const hd_parallel *p, const hd_graph *g, int64_t sequence, hd_plan *plan, hd_error *err)
{
    hd_outline o = {0};
    int rc = measure(g, sequence, &o, err);
    if (!rc) rc = expand(p, g, &o, plan, err);
    hd_free(o.reader);
    return rc;
}
