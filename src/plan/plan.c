/* plan.c: the Plan's completion rule, and JSON. */
#include "plan/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/json.h"
#include "base/thread.h"

enum { MAX_THREADS = 256, MAX_PLAN_BYTES = 64 << 20, MAX_CHUNKS = 64 };
#define MAX_MICRO_BATCHES 1000000

static const char *const known_keys[] = {"version", "fingerprint", "rows", "micro_batches", "precision", "threads", "backend", "pack", "overlap", "bucket", "sparse",
                                         "mesh", "meshes", "stages", "pins", "schedule", "chunks", "cuts", "slices", "keep_gathered", "scatter", "half_wire", "regather", "recompute", "ring", "zigzag"};
static const char *const axis_keys[] = {"name", "size", "role"}, *const pin_keys[] = {"values", "layout", "mesh"};
#define COUNT(a) ((int)(sizeof (a) / sizeof *(a)))

static const char *const role_names[] = {[HD_AXIS_DATA] = "data", [HD_AXIS_MODEL] = "model", [HD_AXIS_PIPELINE] = "pipeline"};
/* Axes with a meaning of their own; any other name may be data or model. */
static const struct { const char *name; hd_axis_role role; } known_axes[] = {
    {"pp", HD_AXIS_PIPELINE}, {"dp", HD_AXIS_DATA}, {"cp", HD_AXIS_DATA}, {"tp", HD_AXIS_MODEL}, {"tp0", HD_AXIS_MODEL}, {"tp1", HD_AXIS_MODEL},
};

static const char *const schedule_names[] = {"gpipe", "1f1b", "interleaved", "zero-bubble"};

const char *hd_schedule_name(hd_schedule_kind k)
{
    return schedule_names[k];
}

int hd_schedule_parse(const char *name, hd_schedule_kind *out)
{
    for (int i = 0; i < HD_SCHEDULE_KINDS; i++)
        if (!strcmp(name, schedule_names[i])) return *out = (hd_schedule_kind)i, 0;
    return HD_EINVAL;
}

/* ---- stages and their ranks ---- */

int hd_plan_stages(const hd_plan *p)
{
    int axis = hd_mesh_find(&p->mesh, "pp");
    if (p->n_meshes) return p->n_stages;
    return axis < 0 ? 1 : p->mesh.axis[axis].size;
}

bool hd_plan_is_meshed(const hd_plan *p)
{
    return p->mesh.n || p->n_meshes;
}

int hd_plan_first_rank(const hd_plan *p, int stage)
{
    int rank = 0;
    if (!p->n_meshes) return hd_mesh_size(&p->mesh) / hd_plan_stages(p) * stage;
    for (int s = 0; s < stage; s++) rank += hd_mesh_size(&p->meshes[p->stages[s]]);
    return rank;
}

int hd_plan_ranks(const hd_plan *p)
{
    return hd_plan_first_rank(p, hd_plan_stages(p));
}

int hd_plan_stage_of(const hd_plan *p, int rank)
{
    int stage = 0;
    while (stage + 1 < hd_plan_stages(p) && rank >= hd_plan_first_rank(p, stage + 1)) stage++;
    return stage;
}

hd_mesh hd_plan_stage_mesh(const hd_plan *p, int stage)
{
    if (!p->n_meshes) return p->mesh;
    const hd_mesh *own = &p->meshes[p->stages[stage]];
    hd_mesh m = {.n = own->n + 1, .axis = {{"pp", 1, HD_AXIS_PIPELINE}}};
    memcpy(&m.axis[1], own->axis, (size_t)own->n * sizeof *own->axis);
    return m;
}

int hd_plan_list_stages(const hd_plan *p, hd_arena *memory, hd_stages *out)
{
    int n = p->n_meshes ? p->n_stages : 0;
    *out = (hd_stages){0};
    if (!n) return 0;
    hd_mesh *mesh = hd_arena_alloc(memory, (size_t)n * sizeof *mesh);
    int *first = hd_arena_alloc(memory, ((size_t)n + 1) * sizeof *first);
    if (!mesh || !first) return HD_ENOMEM;
    for (int s = 0; s < n; s++) {
        mesh[s] = hd_plan_stage_mesh(p, s);
        first[s + 1] = first[s] + hd_mesh_size(&mesh[s]);
    }
    *out = (hd_stages){n, mesh, first};
    return 0;
}

hd_plan hd_plan_default(void)
{
    return (hd_plan){.version = HD_PLAN_VERSION, .micro_batches = 1, .precision = HD_F32, .chunks = 1, .overlap = true, .bucket = HD_PLAN_BUCKET, .sparse = true};
}

/* Rows of what is cut into micro-batches. */
static int64_t rows_of(const hd_graph *g)
{
    for (size_t v = 0; v < g->n_values; v++)
        if (g->values[v].kind == HD_INPUT && g->values[v].micro == HD_TIME_SPLIT && g->values[v].type.shape.rank) return g->values[v].type.shape.dim[0];
    return 0;
}

void hd_plan_complete(hd_plan *p, const hd_graph *g)
{
    if (p->threads == 0) p->threads = hd_core_count() < MAX_THREADS ? hd_core_count() : MAX_THREADS;
    if (!p->backend[0]) snprintf(p->backend, sizeof p->backend, "cpu");
    if (p->fingerprint || !g) return;
    p->fingerprint = hd_graph_fingerprint(g);
    p->rows = rows_of(g);
}

/* ---- checks of what many ranks need ---- */

static int check_axis_name(const hd_mesh *m, int a, hd_error *err)
{
    const char *name = m->axis[a].name;
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_");
    if (!n || name[n] || !strcmp(name, "max") || strchr("0123456789_", name[0]))
        return hd_fail(err, HD_EINVAL, "mesh: an axis' name is lower-case letters and digits, not \"%s\"", name);
    if (hd_mesh_find(m, name) < a) return hd_fail(err, HD_EINVAL, "mesh: two axes are named \"%s\"", name);
    return 0;
}

static int check_axis_role(const hd_mesh *m, int a, hd_error *err)
{
    const hd_mesh_axis *x = &m->axis[a];
    for (int k = 0; k < COUNT(known_axes); k++)
        if (!strcmp(x->name, known_axes[k].name) && x->role != known_axes[k].role)
            return hd_fail(err, HD_EINVAL, "mesh: the role of axis \"%s\" is \"%s\", not \"%s\"", x->name, role_names[known_axes[k].role], role_names[x->role]);
    if (x->role == HD_AXIS_PIPELINE && strcmp(x->name, "pp"))
        return hd_fail(err, HD_EINVAL, "mesh: the pipeline's axis must be named \"pp\", not \"%s\"", x->name);
    if (x->role == HD_AXIS_PIPELINE && a) return hd_fail(err, HD_EINVAL, "mesh: the pipeline's axis \"pp\" must come first");
    return 0;
}

static int check_mesh(const hd_mesh *m, hd_error *err)
{
    int64_t world = 1;
    for (int a = 0; a < m->n; a++) {
        const hd_mesh_axis *x = &m->axis[a];
        if (check_axis_name(m, a, err) || check_axis_role(m, a, err)) return HD_EINVAL;
        if (x->size < 1) return hd_fail(err, HD_EINVAL, "mesh: the size of axis \"%s\" must be at least 1, is %d", x->name, x->size);
        world *= x->size;
        if (world > HD_MAX_RANKS) return hd_fail(err, HD_EINVAL, "mesh: more than %d ranks", HD_MAX_RANKS);
    }
    return 0;
}

/* The rank of what a pin matches is not known here: only that each axis is one of the mesh, and cuts values. */
static int check_pin(const hd_mesh *m, const hd_pin *pin, hd_error *err)
{
    if (!pin->pattern[0]) return hd_fail(err, HD_EINVAL, "pins: a pin must name values");
    for (const char *at = pin->layout + (pin->layout[0] == '='); *at;) {
        size_t n = strspn(at, "abcdefghijklmnopqrstuvwxyz_0123456789");
        if (n && !(*at >= '0' && *at <= '9') && !(n == 3 && !strncmp(at, "max", 3))) {
            char name[32];
            snprintf(name, sizeof name, "%.*s", (int)n, at);
            int axis = hd_mesh_find(m, name);
            if (axis < 0) return hd_fail(err, HD_EINVAL, "pins: layout \"%s\" of \"%s\": the mesh has no axis \"%s\"", pin->layout, pin->pattern, name);
            if (m->axis[axis].role == HD_AXIS_PIPELINE)
                return hd_fail(err, HD_EINVAL, "pins: layout \"%s\" of \"%s\": the pipeline's axis cuts no value", pin->layout, pin->pattern);
        } else if (!n && !strchr(",.-*+ ", *at)) {
            return hd_fail(err, HD_EINVAL, "pins: layout \"%s\" of \"%s\" is none", pin->layout, pin->pattern);
        }
        at += n ? n : 1;
    }
    return 0;
}

static int check_pipeline(const hd_plan *p, hd_error *err)
{
    int64_t all = (int64_t)hd_plan_stages(p) * p->chunks;
    if (p->chunks < 1 || p->chunks > MAX_CHUNKS) return hd_fail(err, HD_EINVAL, "chunks must be from 1 to %d, is %d", MAX_CHUNKS, p->chunks);
    if (all > HD_MAX_CUTS + 1) return hd_fail(err, HD_EINVAL, "%d stages of %d chunks: a plan can have %d chunks in all", hd_plan_stages(p), p->chunks, HD_MAX_CUTS + 1);
    if (p->chunks > 1 && p->schedule != HD_SCHEDULE_INTERLEAVED)
        return hd_fail(err, HD_EINVAL, "several chunks a stage need the schedule \"interleaved\", not \"%s\"", hd_schedule_name(p->schedule));
    if (p->n_cuts && p->n_cuts != all - 1)
        return hd_fail(err, HD_EINVAL, "%d stages of %d chunks need %d cuts, not %d", hd_plan_stages(p), p->chunks, (int)all - 1, p->n_cuts);
    for (int i = 0; i < p->n_cuts; i++)
        for (int k = 0; k < i; k++)
            if (!strcmp(p->cuts[i], p->cuts[k])) return hd_fail(err, HD_EINVAL, "cuts: \"%s\" is named twice", p->cuts[i]);
    return 0;
}

/* Each is of one of several meshes at least. */
static int check_token_axes_of_meshes(const hd_plan *p, const char *text, const char *key, hd_error *err)
{
    for (const char *at = text; *at; at += *at == '.') {
        char name[sizeof p->ring];
        bool found = false;
        size_t n = strcspn(at, ".");
        snprintf(name, sizeof name, "%.*s", (int)n, at);
        for (int m = 0; m < p->n_meshes; m++) found |= hd_mesh_find(&p->meshes[m], name) >= 0;
        if (!found) return hd_fail(err, HD_EINVAL, "%s: \"%s\" is no axis of any of the meshes", key, name);
        at += n;
    }
    return 0;
}

/* Axes over which tokens may be cut. */
static int check_token_axes(const hd_mesh *m, const char *text, const char *key, hd_error *err)
{
    int8_t axes[HD_MAX_AXES];
    int n = hd_mesh_parse_axes(m, text, axes);
    if (n < 0) return hd_fail(err, HD_EINVAL, "%s: \"%s\" are no axes of the mesh", key, text);
    for (int i = 0; i < n; i++)
        if (m->axis[axes[i]].role == HD_AXIS_PIPELINE) return hd_fail(err, HD_EINVAL, "%s: the pipeline's axis cuts no tokens", key);
    return 0;
}

/* The next data axis of m from a on; m->n: none. */
static int data_axis(const hd_mesh *m, int a)
{
    while (a < m->n && m->axis[a].role != HD_AXIS_DATA) a++;
    return a;
}

static bool same_data_axes(const hd_mesh *x, const hd_mesh *y)
{
    int a = data_axis(x, 0), b = data_axis(y, 0);
    for (; a < x->n && b < y->n; a = data_axis(x, a + 1), b = data_axis(y, b + 1))
        if (strcmp(x->axis[a].name, y->axis[b].name) || x->axis[a].size != y->axis[b].size) return false;
    return a == x->n && b == y->n;
}

/* Tokens that are dealt cross in the order in which the sender has them: the receiver must have dealt them likewise. */
static int check_dealt_meshes(const hd_plan *p, hd_error *err)
{
    int rc = check_token_axes_of_meshes(p, p->zigzag, "zigzag", err);
    for (int m = 1; m < p->n_meshes && !rc && p->zigzag[0]; m++)
        if (!same_data_axes(&p->meshes[0], &p->meshes[m]))
            rc = hd_fail(err, HD_EINVAL, "zigzag: tokens of \"%s\" can be dealt only where all meshes have the same data axes", p->zigzag);
    return rc;
}

/* Stages of different meshes. */
static int check_meshes(const hd_plan *p, hd_error *err)
{
    int64_t ranks = 0;
    if (!p->n_meshes) return p->n_stages ? hd_fail(err, HD_EINVAL, "stages: the plan has no list \"meshes\" for them to be of") : 0;
    if (p->mesh.n) return hd_fail(err, HD_EINVAL, "mesh and meshes: a plan has the one, or the other with \"stages\"");
    if (p->n_stages < 2) return hd_fail(err, HD_EINVAL, "meshes: \"stages\" must name the mesh of each of at least two stages");
    for (int m = 0; m < p->n_meshes; m++) {
        if (p->meshes[m].n == HD_MAX_AXES) return hd_fail(err, HD_EINVAL, "meshes: a stage's mesh has at most %d axes", HD_MAX_AXES - 1);
        if (check_mesh(&p->meshes[m], err)) return HD_EINVAL;
        if (hd_mesh_find(&p->meshes[m], "pp") >= 0) return hd_fail(err, HD_EINVAL, "meshes: a stage's mesh has no axis \"pp\": \"stages\" counts them");
    }
    for (int s = 0; s < p->n_stages; s++) {
        if (p->stages[s] >= p->n_meshes) return hd_fail(err, HD_EINVAL, "stages: stage %d is of mesh %d; there are %d, from 0", s, p->stages[s], p->n_meshes);
        ranks += hd_mesh_size(&p->meshes[p->stages[s]]);
    }
    return ranks > HD_MAX_RANKS ? hd_fail(err, HD_EINVAL, "meshes: more than %d ranks", HD_MAX_RANKS) : 0;
}

static int check_ranks(const hd_plan *p, hd_error *err)
{
    int rc = check_mesh(&p->mesh, err);
    if (!rc) rc = check_meshes(p, err);
    if (!rc) rc = p->n_meshes ? check_token_axes_of_meshes(p, p->ring, "ring", err) : check_token_axes(&p->mesh, p->ring, "ring", err);
    if (!rc) rc = p->n_meshes ? check_dealt_meshes(p, err) : check_token_axes(&p->mesh, p->zigzag, "zigzag", err);
    for (int i = 0; i < p->n_pins && !rc; i++) {
        int mesh = p->pin_mesh[i];
        if (mesh >= (p->n_meshes ? p->n_meshes : 1)) rc = hd_fail(err, HD_EINVAL, "pins: \"%s\" is over mesh %d, which there isn't", p->pins[i].pattern, mesh);
        else rc = check_pin(p->n_meshes ? &p->meshes[mesh] : &p->mesh, &p->pins[i], err);
    }
    return rc ? rc : check_pipeline(p, err);
}

static int check_graph(const hd_plan *p, const hd_graph *g, hd_error *err)
{
    int64_t rows = rows_of(g);
    if (!p->fingerprint || p->fingerprint == hd_graph_fingerprint(g)) return 0;
    if (p->rows && p->rows != rows)
        return hd_fail(err, HD_EINVAL, "the plan was made for micro-batches of %" PRId64 " %s, these have %" PRId64 ": give the --batch and --sequence that it was made with",
                       p->rows, hd_graph_find(g, "tokens") == HD_NONE ? "samples" : "tokens", rows);
    return hd_fail(err, HD_EINVAL, "the plan was made for another network, optimizer or precision: its fingerprint is %016" PRIx64 ", this one's %016" PRIx64, p->fingerprint,
                   hd_graph_fingerprint(g));
}

int hd_plan_check(const hd_plan *p, const hd_graph *g, hd_error *err)
{
    if (p->version != HD_PLAN_VERSION)
        return hd_fail(err, HD_EUNSUPPORTED, "the plan is of version %d, this program reads version %d", p->version, HD_PLAN_VERSION);
    if (p->micro_batches < 1 || p->micro_batches > MAX_MICRO_BATCHES)
        return hd_fail(err, HD_EINVAL, "micro_batches must be from 1 to %d, is %" PRId64, MAX_MICRO_BATCHES, p->micro_batches);
    if (p->precision != HD_F32 && p->precision != HD_BF16)
        return hd_fail(err, HD_EINVAL, "precision must be f32 or bf16, is %s", hd_dtype_name(p->precision));
    if (p->threads < 0 || p->threads > MAX_THREADS) return hd_fail(err, HD_EINVAL, "threads must be from 0 to %d, is %d", MAX_THREADS, p->threads);
    if (check_ranks(p, err)) return HD_EINVAL;
    return g ? check_graph(p, g, err) : 0;
}

/* ---- JSON ---- */

static json_t *mesh_to_json(const hd_mesh *m)
{
    json_t *j = json_array();
    for (int a = 0; a < m->n; a++)
        json_array_append_new(j, json_pack("{s:s, s:i, s:s}", "name", m->axis[a].name, "size", m->axis[a].size, "role", role_names[m->axis[a].role]));
    return j;
}

static json_t *pins_to_json(const hd_plan *p)
{
    json_t *j = json_array();
    for (int i = 0; i < p->n_pins; i++) {
        json_t *pin = json_pack("{s:s, s:s}", "values", p->pins[i].pattern, "layout", p->pins[i].layout);
        if (p->pin_mesh[i]) json_object_set_new(pin, "mesh", json_integer(p->pin_mesh[i]));
        json_array_append_new(j, pin);
    }
    return j;
}

static json_t *meshes_to_json(const hd_plan *p)
{
    json_t *j = json_array();
    for (int m = 0; m < p->n_meshes; m++) json_array_append_new(j, mesh_to_json(&p->meshes[m]));
    return j;
}

static json_t *stages_to_json(const hd_plan *p)
{
    json_t *j = json_array();
    for (int s = 0; s < p->n_stages; s++) json_array_append_new(j, json_integer(p->stages[s]));
    return j;
}

static json_t *strings_to_json(const char (*text)[64], int n)
{
    json_t *j = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(j, json_string(text[i]));
    return j;
}

static json_t *numbers_to_json(const int64_t *x, int n)
{
    json_t *j = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(j, json_integer((json_int_t)x[i]));
    return j;
}

/* Only what isn't at its default: the plan of one rank has none of it. */
static void add_ranks(json_t *j, const hd_plan *p)
{
    if (p->mesh.n) json_object_set_new(j, "mesh", mesh_to_json(&p->mesh));
    if (p->n_meshes) json_object_set_new(j, "meshes", meshes_to_json(p));
    if (p->n_meshes) json_object_set_new(j, "stages", stages_to_json(p));
    if (p->n_pins) json_object_set_new(j, "pins", pins_to_json(p));
    if (p->schedule != HD_SCHEDULE_GPIPE) json_object_set_new(j, "schedule", json_string(hd_schedule_name(p->schedule)));
    if (p->chunks != 1) json_object_set_new(j, "chunks", json_integer(p->chunks));
    if (!p->overlap) json_object_set_new(j, "overlap", json_false());
    if (!p->sparse) json_object_set_new(j, "sparse", json_false());
    if (p->bucket != HD_PLAN_BUCKET) json_object_set_new(j, "bucket", json_integer(p->bucket));
    if (p->n_cuts) json_object_set_new(j, "cuts", strings_to_json(p->cuts, p->n_cuts));
    if (p->keep_gathered) json_object_set_new(j, "keep_gathered", json_true());
    if (p->ring[0]) json_object_set_new(j, "ring", json_string(p->ring));
    if (p->zigzag[0]) json_object_set_new(j, "zigzag", json_string(p->zigzag));
    if (p->regather) json_object_set_new(j, "regather", json_true());
    if (p->half_wire) json_object_set_new(j, "half_wire", json_true());
    if (p->scatter) json_object_set_new(j, "scatter", json_true());
    if (p->n_slices) json_object_set_new(j, "slices", numbers_to_json(p->slices, p->n_slices));
    if (p->n_recompute) json_object_set_new(j, "recompute", strings_to_json(p->recompute, p->n_recompute));
}

static json_t *to_json(const hd_plan *p)
{
    char fingerprint[24];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, p->fingerprint);
    json_t *j = json_pack("{s:i, s:s, s:I, s:s, s:i, s:s, s:b}", "version", p->version, "fingerprint", fingerprint, "micro_batches",
                          (json_int_t)p->micro_batches, "precision", hd_dtype_name(p->precision), "threads", p->threads, "backend", p->backend, "pack", p->pack);
    if (j && p->rows) json_object_set_new(j, "rows", json_integer(p->rows));
    if (j) add_ranks(j, p);
    return j;
}

int hd_plan_print(const hd_plan *p, hd_str *out)
{
    json_t *j = to_json(p);
    char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    if (text) {
        hd_str_puts(out, text);
        hd_str_putc(out, '\n');
    }
    bool ok = text && !out->failed;
    free(text); /* jansson's own allocator */
    json_decref(j);
    return ok ? 0 : HD_ENOMEM;
}

int hd_plan_save(const hd_plan *p, const char *path, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    int rc = hd_plan_print(p, &text) ? hd_fail_memory(err, 1024, "a plan") : hd_file_write_atomic(path, text.data, text.len, err);
    hd_str_free(&text);
    return rc;
}

static int check_keys(const json_t *j, const char *const *keys, int n, const char *what, const char *name, hd_error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)j, key, value) {
        bool known = false;
        for (int i = 0; i < n; i++) known |= !strcmp(key, keys[i]);
        if (!known) return hd_fail(err, HD_EFORMAT, "%s: %s has no key \"%s\"", name, what, key);
    }
    return 0;
}

static int read_fingerprint(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    const char *text = NULL;
    int rc = hd_json_string(j, "fingerprint", &text, name, err);
    if (rc || !text) return rc;
    size_t digits = strspn(text, "0123456789abcdef");
    if (!digits || digits > 16 || text[digits]) return hd_fail(err, HD_EFORMAT, "%s: \"fingerprint\" must be up to 16 hexadecimal digits", name);
    p->fingerprint = strtoull(text, NULL, 16);
    return 0;
}

static int read_precision(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    const char *text = NULL;
    int rc = hd_json_string(j, "precision", &text, name, err);
    if (rc || !text) return rc;
    if (hd_dtype_parse(text, &p->precision)) return hd_fail(err, HD_EFORMAT, "%s: \"precision\" must be \"f32\" or \"bf16\"", name);
    return 0;
}

static int read_backend(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    const char *text = NULL;
    int rc = hd_json_string(j, "backend", &text, name, err);
    if (rc || !text) return rc;
    if (strlen(text) >= sizeof p->backend) return hd_fail(err, HD_EFORMAT, "%s: there is no back end \"%s\"", name, text);
    memcpy(p->backend, text, strlen(text) + 1);
    return 0;
}

/* The list under key, of at most `most` entries; *out stays NULL where there is none. */
static int read_list(const json_t *j, const char *key, int most, const json_t **out, const char *name, hd_error *err)
{
    const json_t *list = json_object_get(j, key);
    if (!list || json_is_null(list)) return 0;
    if (!json_is_array(list)) return hd_fail(err, HD_EFORMAT, "%s: \"%s\" must be a list", name, key);
    if (json_array_size(list) > (size_t)most)
        return hd_fail(err, HD_EFORMAT, "%s: \"%s\" has %zu entries, a plan can have %d", name, key, json_array_size(list), most);
    *out = list;
    return 0;
}

/* Copies text of at most size - 1 bytes. */
static int take_text(const char *text, char *out, size_t size, const char *key, const char *name, hd_error *err)
{
    if (!text || !*text) return hd_fail(err, HD_EFORMAT, "%s: \"%s\": an entry is missing or empty", name, key);
    if (strlen(text) >= size) return hd_fail(err, HD_EFORMAT, "%s: \"%s\": \"%.80s\" is longer than %zu characters", name, key, text, size - 1);
    memcpy(out, text, strlen(text) + 1);
    return 0;
}

static int read_strings(const json_t *j, const char *key, char (*out)[64], int most, int *n, const char *name, hd_error *err)
{
    const json_t *list = NULL;
    int rc = read_list(j, key, most, &list, name, err);
    for (size_t i = 0; i < json_array_size(list) && !rc; i++, ++*n) {
        const json_t *entry = json_array_get(list, i);
        if (!json_is_string(entry)) return hd_fail(err, HD_EFORMAT, "%s: \"%s\" must be a list of strings", name, key);
        rc = take_text(json_string_value(entry), out[i], sizeof out[i], key, name, err);
    }
    return rc;
}

static int read_axis(const json_t *j, hd_mesh_axis *x, const char *name, hd_error *err)
{
    const char *text = NULL, *role = NULL;
    int64_t size = 1;
    if (!json_is_object(j)) return hd_fail(err, HD_EFORMAT, "%s: an axis of \"mesh\" must be an object of name, size and role", name);
    int rc = check_keys(j, axis_keys, COUNT(axis_keys), "an axis of \"mesh\"", name, err);
    if (!rc) rc = hd_json_string(j, "name", &text, name, err);
    if (!rc) rc = take_text(text, x->name, sizeof x->name, "mesh", name, err);
    if (!rc) rc = hd_json_need(j, "size", name, err);
    if (!rc) rc = hd_json_int(j, "size", 1, HD_MAX_RANKS, &size, name, err);
    if (!rc) rc = hd_json_string(j, "role", &role, name, err);
    if (rc) return rc;
    x->size = (int)size;
    for (int i = 0; i < COUNT(role_names); i++)
        if (role && !strcmp(role, role_names[i])) return x->role = (hd_axis_role)i, 0;
    return hd_fail(err, HD_EFORMAT, "%s: \"role\" of axis \"%s\" must be \"data\", \"model\" or \"pipeline\"", name, x->name);
}

static int read_axes(const json_t *list, hd_mesh *m, const char *name, hd_error *err)
{
    int rc = 0;
    for (size_t i = 0; i < json_array_size(list) && !rc; i++) rc = read_axis(json_array_get(list, i), &m->axis[m->n++], name, err);
    return rc;
}

static int read_mesh(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    const json_t *list = NULL;
    int rc = read_list(j, "mesh", HD_MAX_AXES, &list, name, err);
    return rc ? rc : read_axes(list, &p->mesh, name, err);
}

static int read_meshes(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    const json_t *list = NULL;
    int rc = read_list(j, "meshes", HD_MAX_MESHES, &list, name, err);
    for (size_t i = 0; i < json_array_size(list) && !rc; i++) {
        const json_t *mesh = json_array_get(list, i);
        if (!json_is_array(mesh) || json_array_size(mesh) > HD_MAX_AXES)
            return hd_fail(err, HD_EFORMAT, "%s: \"meshes\" must be lists of axes, at most %d each", name, HD_MAX_AXES);
        rc = read_axes(mesh, &p->meshes[p->n_meshes++], name, err);
    }
    list = NULL;
    if (!rc) rc = read_list(j, "stages", HD_MAX_CUTS + 1, &list, name, err);
    for (size_t i = 0; i < json_array_size(list) && !rc; i++) {
        const json_t *x = json_array_get(list, i);
        int64_t mesh = json_is_integer(x) ? (int64_t)json_integer_value(x) : -1;
        if (mesh < 0 || mesh >= HD_MAX_MESHES) return hd_fail(err, HD_EFORMAT, "%s: \"stages\" must be numbers of \"meshes\", from 0", name);
        p->stages[p->n_stages++] = (uint8_t)mesh;
    }
    return rc;
}

static int read_pin(const json_t *j, hd_pin *pin, uint8_t *of_mesh, const char *name, hd_error *err)
{
    const char *values = NULL, *layout = NULL;
    int64_t mesh = 0;
    if (!json_is_object(j)) return hd_fail(err, HD_EFORMAT, "%s: a pin must be an object of values and layout", name);
    int rc = check_keys(j, pin_keys, COUNT(pin_keys), "a pin", name, err);
    if (!rc) rc = hd_json_string(j, "values", &values, name, err);
    if (!rc) rc = take_text(values, pin->pattern, sizeof pin->pattern, "values", name, err);
    if (!rc) rc = hd_json_need(j, "layout", name, err);
    if (!rc) rc = hd_json_int(j, "mesh", 0, HD_MAX_MESHES - 1, &mesh, name, err);
    if (!rc) rc = hd_json_string(j, "layout", &layout, name, err);
    *of_mesh = (uint8_t)mesh;
    if (rc || !layout || !*layout) return rc; /* "": a scalar that is whole */
    return take_text(layout, pin->layout, sizeof pin->layout, "layout", name, err);
}

static int read_pins(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    const json_t *list = NULL;
    int rc = read_list(j, "pins", HD_MAX_PINS, &list, name, err);
    for (size_t i = 0; i < json_array_size(list) && !rc; i++) rc = read_pin(json_array_get(list, i), &p->pins[i], &p->pin_mesh[i], name, err);
    p->n_pins = (int)json_array_size(list);
    return rc;
}

static int read_schedule(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    const char *text = NULL;
    int64_t chunks = p->chunks;
    int rc = hd_json_string(j, "schedule", &text, name, err);
    if (!rc && text && hd_schedule_parse(text, &p->schedule))
        rc = hd_fail(err, HD_EFORMAT, "%s: \"schedule\" must be gpipe, 1f1b, interleaved or zero-bubble, not \"%s\"", name, text);
    if (!rc) rc = hd_json_int(j, "chunks", 1, MAX_CHUNKS, &chunks, name, err);
    p->chunks = (int)chunks;
    return rc;
}

static int read_slices(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    const json_t *list = NULL;
    int rc = read_list(j, "slices", HD_MAX_SLICES, &list, name, err);
    for (size_t i = 0; i < json_array_size(list) && !rc; i++) {
        const json_t *x = json_array_get(list, i);
        p->slices[p->n_slices] = json_is_integer(x) ? (int64_t)json_integer_value(x) : 0;
        if (p->slices[p->n_slices++] < 1) rc = hd_fail(err, HD_EFORMAT, "%s: \"slices\" must be numbers of tokens", name);
    }
    return rc;
}

static int read_text(const json_t *j, const char *key, char *out, size_t size, const char *name, hd_error *err)
{
    const char *text = NULL;
    int rc = hd_json_string(j, key, &text, name, err);
    return rc || !text ? rc : take_text(text, out, size, key, name, err);
}

static int read_ranks(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    int rc = read_mesh(j, name, p, err);
    if (!rc) rc = read_meshes(j, name, p, err);
    if (!rc) rc = read_pins(j, name, p, err);
    if (!rc) rc = read_schedule(j, name, p, err);
    if (!rc) rc = read_strings(j, "cuts", p->cuts, HD_MAX_CUTS, &p->n_cuts, name, err);
    if (!rc) rc = hd_json_bool(j, "keep_gathered", &p->keep_gathered, name, err);
    if (!rc) rc = hd_json_bool(j, "regather", &p->regather, name, err);
    if (!rc) rc = hd_json_bool(j, "half_wire", &p->half_wire, name, err);
    if (!rc) rc = hd_json_bool(j, "scatter", &p->scatter, name, err);
    if (!rc) rc = read_slices(j, name, p, err);
    if (!rc) rc = read_text(j, "ring", p->ring, sizeof p->ring, name, err);
    if (!rc) rc = read_text(j, "zigzag", p->zigzag, sizeof p->zigzag, name, err);
    return rc ? rc : read_strings(j, "recompute", p->recompute, HD_MAX_RECOMPUTE, &p->n_recompute, name, err);
}

static int from_json(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    int64_t version = HD_PLAN_VERSION, threads = p->threads;
    if (!json_is_object(j)) return hd_fail(err, HD_EFORMAT, "%s: a plan must be a JSON object", name);
    int rc = hd_json_int(j, "version", 1, 1000000, &version, name, err);
    if (!rc && version != HD_PLAN_VERSION)
        rc = hd_fail(err, HD_EUNSUPPORTED, "%s: the plan is of version %d, this program reads version %d", name, (int)version, HD_PLAN_VERSION);
    if (!rc) rc = check_keys(j, known_keys, COUNT(known_keys), "a plan", name, err);
    if (!rc) rc = read_fingerprint(j, name, p, err);
    if (!rc) rc = hd_json_int(j, "micro_batches", 1, MAX_MICRO_BATCHES, &p->micro_batches, name, err);
    if (!rc) rc = hd_json_int(j, "rows", 0, (int64_t)1 << 48, &p->rows, name, err);
    if (!rc) rc = read_precision(j, name, p, err);
    if (!rc) rc = hd_json_int(j, "threads", 0, MAX_THREADS, &threads, name, err);
    if (!rc) rc = read_backend(j, name, p, err);
    if (!rc) rc = hd_json_bool(j, "pack", &p->pack, name, err);
    if (!rc) rc = hd_json_bool(j, "overlap", &p->overlap, name, err);
    if (!rc) rc = hd_json_bool(j, "sparse", &p->sparse, name, err);
    if (!rc) rc = hd_json_int(j, "bucket", 0, (int64_t)1 << 40, &p->bucket, name, err);
    p->threads = (int)threads;
    if (!rc) rc = read_ranks(j, name, p, err);
    return rc ? rc : hd_plan_check(p, NULL, err);
}

int hd_plan_parse(const char *text, size_t n, const char *name, hd_plan *out, hd_error *err)
{
    hd_error local = {0};
    json_t *j = hd_json_parse(text, n, name, &local);
    if (!j) return hd_fail(err, local.code, "%s", local.message);
    *out = hd_plan_default();
    int rc = from_json(j, name, out, err);
    json_decref(j);
    return rc;
}

int hd_plan_load(const char *path, hd_plan *out, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    int rc = hd_file_read(&text, path, MAX_PLAN_BYTES, err);
    if (!rc) rc = hd_plan_parse(text.data, text.len, path, out, err);
    hd_str_free(&text);
    return rc;
}
