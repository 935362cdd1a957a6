/* parse.c: a program from its text (grammar: dump.c). Never trusts a number: everything that an array is indexed with is checked here,
 * the rest by hd_program_verify. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>

#include "base/file.h"
#include "program/text_int.h"

enum { MAX_TEXT = 1 << 30, MAX_BUFFERS = 1 << 24, MAX_COPIES = 1 << 20, MAX_CHUNKS = 4096, MAX_SEGMENTS = 2 + 3 * MAX_CHUNKS };

typedef struct parser {
    hd_program *p;
    const char *name;
    int line;
    char *at; /* in the current line, which ends in NUL */
    hd_error *err;
    size_t cap_buffers, cap_outputs, cap_calls;
    hd_instr *instrs; size_t n_instrs, cap_instrs; /* of all segments, in order */
    size_t start[MAX_SEGMENTS]; /* where each segment's begin */
    hd_mesh *stage_mesh; int *stage_first; /* [stages] where they are of different meshes */
} parser;

static int bad(parser *s, const char *what)
{
    char near[48];
    size_t n = 0;
    for (const char *c = s->at; *c && n + 1 < sizeof near; c++) near[n++] = *c;
    near[n] = 0;
    return hd_fail(s->err, HD_EFORMAT, "%s:%d: expected %s before \"%s\"", s->name, s->line, what, near);
}

static int no_memory(parser *s)
{
    return hd_fail_memory(s->err, sizeof(hd_program), "a program");
}

/* ---- words ---- */

static void skip_blanks(parser *s)
{
    while (*s->at == ' ') s->at++;
}

static bool accept(parser *s, const char *text)
{
    skip_blanks(s);
    size_t n = strlen(text);
    if (strncmp(s->at, text, n)) return false;
    s->at += n;
    return true;
}

static int expect(parser *s, const char *text)
{
    return accept(s, text) ? 0 : bad(s, text);
}

static int parse_number(parser *s, int64_t low, int64_t high, int64_t *out)
{
    char *end;
    skip_blanks(s);
    errno = 0;
    long long v = strtoll(s->at, &end, 10);
    if (end == s->at || errno || v < low || v > high) return bad(s, "a number in range");
    s->at = end;
    *out = v;
    return 0;
}

static int parse_int(parser *s, int low, int high, int *out)
{
    int64_t v = 0;
    int rc = parse_number(s, low, high, &v);
    *out = (int)v;
    return rc;
}

static int parse_key(parser *s, const char *key, int64_t low, int64_t high, int64_t *out)
{
    int rc = expect(s, key);
    return rc ? rc : parse_number(s, low, high, out);
}

/* A run of characters up to a blank, in place; NULL when there is none. */
static char *parse_word(parser *s)
{
    skip_blanks(s);
    char *word = s->at;
    while (*s->at && *s->at != ' ') s->at++;
    if (s->at == word) return NULL;
    if (*s->at) *s->at++ = 0;
    return word;
}

/* One of n words, as its index. name(i) gives them. */
static int parse_choice(parser *s, const char *(*name)(int), int n, const char *what, int *out)
{
    skip_blanks(s);
    for (int i = 0; i < n; i++) {
        size_t length = strlen(name(i));
        if (strncmp(s->at, name(i), length) || (s->at[length] && s->at[length] != ' ')) continue;
        s->at += length;
        *out = i;
        return 0;
    }
    return bad(s, what);
}

static const char *class_name(int i) { return hd_buffer_class_name((hd_buffer_class)i); }
static const char *role_name(int i) { return hd_role_name((hd_role)i); }
static const char *segment_name(int i) { return hd_segment_name((hd_segment_kind)i); }
static const char *tier_name(int i) { return hd_tier_names[i]; }
static const char *format_name(int i) { return hd_format_names[i]; }
static const char *micro_name(int i) { return hd_micro_names[i]; }

/* "; path" to the end of the line. */
static int parse_path(parser *s, const char **out)
{
    int rc = expect(s, ";");
    if (rc) return rc;
    skip_blanks(s);
    *out = hd_arena_strdup(&s->p->memory, s->at);
    s->at += strlen(s->at);
    return *out ? 0 : no_memory(s);
}

static int parse_end(parser *s)
{
    skip_blanks(s);
    return *s->at ? bad(s, "the end of the line") : 0;
}

/* ---- the first lines ---- */

static int parse_axis_role(parser *s, hd_axis_role *out)
{
    for (int i = 0; i < 3; i++) {
        if (!accept(s, hd_axis_role_names[i])) continue;
        *out = (hd_axis_role)i;
        return 0;
    }
    return bad(s, "data, model or pipeline");
}

static int parse_axis(parser *s, hd_mesh *m)
{
    size_t n = strspn(s->at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
    hd_mesh_axis *a = &m->axis[m->n];
    if (m->n == HD_MAX_AXES || !n || n >= sizeof a->name) return bad(s, "an axis as NAME:SIZE:ROLE, at most 8");
    *a = (hd_mesh_axis){.size = 0};
    memcpy(a->name, s->at, n);
    if (hd_mesh_find(m, a->name) >= 0) return bad(s, "axes of different names");
    s->at += n;
    int rc = expect(s, ":");
    if (!rc) rc = parse_int(s, 1, HD_MAX_RANKS / hd_mesh_size(m), &a->size);
    if (!rc) rc = expect(s, ":");
    if (!rc) rc = parse_axis_role(s, &a->role);
    if (!rc) m->n++;
    return rc;
}

static int parse_mesh(parser *s, hd_mesh *m)
{
    int rc;
    do {
        rc = parse_axis(s, m);
    } while (!rc && accept(s, ","));
    return rc;
}

/* One stage of different meshes; they come in order, and each begins where the one before ends. */
static int parse_stage(parser *s)
{
    hd_program *p = s->p;
    hd_stages *all = &p->meshes;
    int number = 0, first = 0;
    if (p->n_buffers || all->n >= p->stages || p->stages == 1) return bad(s, "fewer stages");
    if (!all->n) {
        all->mesh = s->stage_mesh = hd_arena_alloc(&p->memory, (size_t)p->stages * sizeof *s->stage_mesh);
        all->first = s->stage_first = hd_arena_alloc(&p->memory, ((size_t)p->stages + 1) * sizeof *s->stage_first);
    }
    if (!all->mesh || !all->first) return no_memory(s);
    int rc = parse_int(s, all->n, all->n, &number), begin = s->stage_first[all->n];
    if (!rc) rc = expect(s, "first=");
    if (!rc) rc = parse_int(s, begin, begin, &first);
    if (!rc) rc = expect(s, "mesh=");
    if (!rc) rc = parse_mesh(s, &s->stage_mesh[all->n]);
    if (rc) return rc;
    if (begin + hd_mesh_size(&s->stage_mesh[all->n]) > HD_MAX_RANKS) return bad(s, "fewer ranks");
    s->stage_first[all->n + 1] = begin + hd_mesh_size(&s->stage_mesh[all->n]);
    all->n++;
    return parse_end(s);
}

/* "{...}", a layout of that rank, in place. */
static int parse_layout(parser *s, int rank, hd_layout *out)
{
    char *end = accept(s, "{") ? strchr(s->at, '}') : NULL;
    hd_error local = {0};
    if (!end) return bad(s, "a layout in braces");
    *end = 0;
    int rc = hd_layout_parse(&s->p->mesh, s->at, rank, out, &local);
    *end = '}';
    if (rc) return hd_fail(s->err, HD_EFORMAT, "%s:%d: %s", s->name, s->line, local.message);
    s->at = end + 1;
    return 0;
}

static int parse_header(parser *s)
{
    hd_program *p = s->p;
    int64_t threads = 0;
    int rc = parse_key(s, "threads=", 1, 256, &threads);
    if (!rc) rc = parse_key(s, "arena=", 0, (int64_t)1 << 46, &p->arena_bytes);
    if (!rc) rc = parse_key(s, "bound=", 0, (int64_t)1 << 46, &p->arena_bound);
    p->threads = (int)threads;
    p->repeat_first = p->repeat_last = -1;
    p->stages = 1;
    if (!rc && accept(s, "repeat=")) {
        rc = parse_int(s, 0, MAX_SEGMENTS - 1, &p->repeat_first);
        if (!rc) rc = expect(s, "..");
        if (!rc) rc = parse_int(s, p->repeat_first, MAX_SEGMENTS - 1, &p->repeat_last);
    }
    if (!rc && accept(s, "stage=")) {
        rc = parse_int(s, 0, HD_MAX_RANKS - 1, &p->stage);
        if (!rc) rc = expect(s, "/");
        if (!rc) rc = parse_int(s, p->stage + 1, HD_MAX_RANKS, &p->stages);
    }
    if (!rc && accept(s, "mesh=")) rc = parse_mesh(s, &p->mesh);
    return rc ? rc : parse_end(s);
}

static int parse_symbol(parser *s)
{
    hd_program *p = s->p;
    skip_blanks(s);
    char *name = s->at, *end = strstr(name, "<=");
    if (!end || p->n_symbols == HD_MAX_SYMBOLS) return bad(s, "a symbol as NAME<=MAXIMUM, at most 8");
    *end = 0;
    s->at = end + 2;
    hd_symbol *x = &p->symbols[p->n_symbols++];
    x->name = hd_arena_strdup(&p->memory, name);
    if (!x->name) return no_memory(s);
    int rc = parse_number(s, 1, (int64_t)1 << 40, &x->max);
    return rc ? rc : parse_end(s);
}

/* ---- buffers ---- */

static int parse_type(parser *s, hd_type *t)
{
    skip_blanks(s);
    char *open = strchr(s->at, '[');
    *t = (hd_type){.shape.sym = -1};
    if (!open) return bad(s, "a type as f32[2, 3]");
    *open = 0;
    char *colon = strchr(s->at, ':');
    if (colon) {
        *colon = 0;
        t->blocks = hd_quant_by_name(colon + 1);
    }
    int unknown = hd_dtype_parse(s->at, &t->dtype) || (colon && !t->blocks);
    if (colon) *colon = ':';
    *open = '[';
    if (unknown) return bad(s, "an element type");
    s->at = open + 1;
    if (accept(s, "]")) return 0;
    do {
        if (t->shape.rank == HD_MAX_RANK) return bad(s, "at most 8 dimensions");
        int rc = 0;
        if (t->shape.rank == 0 && accept(s, "$")) {
            rc = parse_int(s, 0, s->p->n_symbols - 1, &t->shape.sym);
            if (!rc) rc = expect(s, "<=");
        }
        if (!rc) rc = parse_number(s, 0, (int64_t)1 << 40, &t->shape.dim[t->shape.rank++]);
        if (rc) return rc;
    } while (accept(s, ","));
    return expect(s, "]");
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int parse_data(parser *s, hd_buffer *b)
{
    size_t digits = strspn(s->at, "0123456789abcdef");
    if (digits % 2 || (int64_t)(digits / 2) != b->bytes) return bad(s, "as many bytes of data as the buffer has");
    unsigned char *data = hd_arena_alloc(&s->p->memory, digits / 2);
    if (!data) return no_memory(s);
    for (size_t i = 0; i < digits / 2; i++) data[i] = (unsigned char)(hex_digit(s->at[2 * i]) << 4 | hex_digit(s->at[2 * i + 1]));
    s->at += digits;
    b->data = data;
    return 0;
}

static int parse_buffer_words(parser *s, hd_buffer *b)
{
    int class = 0, format = 0, role = 0, tier = 0, micro = 0;
    int rc = parse_choice(s, class_name, HD_BUFFER_CLASS_COUNT, "a buffer's class", &class);
    if (!rc) rc = parse_type(s, &b->type);
    if (!rc) rc = parse_choice(s, format_name, 2, "a format", &format);
    if (!rc) rc = parse_choice(s, role_name, HD_ROLE_COUNT, "a role", &role);
    if (!rc) rc = parse_choice(s, tier_name, HD_TIER_COUNT, "a tier", &tier);
    if (!rc) rc = expect(s, "micro=");
    if (!rc) rc = parse_choice(s, micro_name, 3, "replicate, split or partial", &micro);
    b->class = (hd_buffer_class)class;
    b->format = (hd_format)format;
    b->role = (hd_role)role;
    b->tier = (hd_tier)tier;
    b->micro = (hd_time_layout)micro;
    return rc;
}

static int parse_whole(parser *s, hd_buffer *b)
{
    hd_layout layout;
    b->whole = (hd_shape){.sym = -1};
    int rc = expect(s, "[");
    while (!rc && b->whole.rank < b->type.shape.rank) {
        if (b->whole.rank) rc = expect(s, ",");
        if (!rc) rc = parse_number(s, 0, (int64_t)1 << 40, &b->whole.dim[b->whole.rank++]);
    }
    if (!rc) rc = expect(s, "]");
    if (!rc) rc = expect(s, "layout=");
    if (!rc) rc = parse_layout(s, b->whole.rank, &layout);
    if (rc) return rc;
    b->whole.sym = b->type.shape.sym;
    b->layout = hd_arena_copy(&s->p->memory, &layout, sizeof layout);
    return b->layout ? 0 : no_memory(s);
}

static int parse_buffer_rest(parser *s, hd_buffer *b)
{
    int64_t arena = 0, copies = 0;
    int rc = parse_key(s, "arena=", 0, 0, &arena);
    if (!rc) rc = parse_key(s, "copies=", 1, MAX_COPIES, &copies);
    if (!rc) rc = parse_key(s, "offset=", 0, (int64_t)1 << 46, &b->offset);
    if (!rc) rc = parse_key(s, "bytes=", 0, (int64_t)1 << 46, &b->bytes);
    b->copies = (int)copies;
    b->view_of = -1;
    if (!rc && accept(s, "view=%")) rc = parse_int(s, 0, MAX_BUFFERS, &b->view_of);
    if (!rc && accept(s, "whole=")) rc = parse_whole(s, b);
    if (!rc && accept(s, "data=")) rc = parse_data(s, b);
    return rc ? rc : parse_path(s, &b->path);
}

static int parse_buffer(parser *s)
{
    hd_program *p = s->p;
    int number = 0;
    if (hd_grow(&p->buffers, &s->cap_buffers, (size_t)p->n_buffers + 1, sizeof *p->buffers)) return no_memory(s);
    int rc = expect(s, "%");
    if (!rc) rc = parse_int(s, p->n_buffers, p->n_buffers, &number);
    hd_buffer *b = &p->buffers[p->n_buffers];
    *b = (hd_buffer){0};
    if (!rc) rc = parse_buffer_words(s, b);
    if (!rc) rc = parse_buffer_rest(s, b);
    if (!rc) p->n_buffers++;
    return rc;
}

static int parse_operand(parser *s, int *out)
{
    *out = -1;
    if (accept(s, "-")) return 0;
    int rc = expect(s, "%");
    return rc ? rc : parse_int(s, 0, s->p->n_buffers - 1, out);
}

static int parse_output(parser *s)
{
    hd_program *p = s->p;
    if (hd_grow(&p->outputs, &s->cap_outputs, (size_t)p->n_outputs + 1, sizeof *p->outputs)) return no_memory(s);
    char *name = parse_word(s);
    if (!name) return bad(s, "an output's name");
    hd_port *o = &p->outputs[p->n_outputs];
    o->name = hd_arena_strdup(&p->memory, name);
    if (!o->name) return no_memory(s);
    int rc = parse_operand(s, &o->buffer);
    if (!rc && o->buffer < 0) rc = bad(s, "a buffer");
    if (!rc) p->n_outputs++;
    return rc ? rc : parse_end(s);
}

/* ---- instructions ---- */

static int *keep_list(parser *s, const int *list, int n)
{
    return hd_arena_copy(&s->p->memory, list, (size_t)(n ? n : 1) * sizeof *list);
}

/* A list of at most `most` operands that ends before the text `end`, which is taken too. */
static int parse_list(parser *s, int most, const char *end, int *list, int *n)
{
    *n = 0;
    if (end[0] && accept(s, end)) return 0;
    do {
        if (*n == most) return bad(s, "fewer operands");
        int rc = parse_operand(s, &list[(*n)++]);
        if (rc) return rc;
    } while (accept(s, ","));
    return end[0] ? expect(s, end) : 0;
}

static int find_opcode(parser *s, hd_instr *x)
{
    char word[64];
    size_t n = 0;
    skip_blanks(s);
    const char *start = s->at;
    while (*s->at && *s->at != '(' && n + 1 < sizeof word) word[n++] = *s->at++;
    word[n] = 0;
    for (int i = HD_VIEW; i < HD_COMM; i++)
        if (!strcmp(word, hd_opcode_names[i])) return x->opcode = (hd_opcode)i, 0;
    if (!strcmp(word, hd_opcode_names[HD_WAIT])) return x->opcode = HD_WAIT, 0;
    x->op = hd_op_find(word);
    x->opcode = x->op && x->op->is_view ? HD_VIEW : x->op && x->op->is_comm ? HD_COMM : HD_KERNEL;
    if (x->op) return expect(s, "(") ? s->err->code : (s->at--, 0);
    s->at = (char *)start;
    return bad(s, "an op");
}

static int parse_operands(parser *s, hd_instr *x)
{
    int list[HD_MAX_LIST] = {0};
    int rc = accept(s, "()") ? 0 : parse_list(s, HD_MAX_LIST, "", list, &x->n_out);
    x->out = keep_list(s, list, x->n_out);
    bool add = !rc && accept(s, "+=");
    if (!rc && !add) rc = expect(s, "=");
    x->accumulate = add ? HD_ACCUMULATE_ALWAYS : HD_ACCUMULATE_NEVER;
    if (!rc) rc = find_opcode(s, x);
    if (!rc) rc = expect(s, "(");
    if (!rc) rc = parse_list(s, HD_MAX_LIST, ")", list, &x->n_in);
    x->in = keep_list(s, list, x->n_in);
    if (!rc && x->opcode != HD_COMM && (x->n_in > HD_MAX_OPERANDS || x->n_out > HD_MAX_RESULTS)) rc = bad(s, "fewer operands");
    if (!rc && (!x->in || !x->out)) rc = no_memory(s);
    return rc;
}

static int parse_split(parser *s, hd_instr *x)
{
    hd_loop_split all[HD_MAX_LOOPS];
    hd_layout one;
    if (x->n_splits == HD_MAX_LOOPS || !x->op) return bad(s, "an op with fewer splits");
    if (x->n_splits) memcpy(all, x->splits, (size_t)x->n_splits * sizeof *all);
    hd_loop_split *new = &all[x->n_splits];
    memset(new, 0, sizeof *new);
    int rc = parse_int(s, 0, HD_MAX_LOOPS - 1, &new->loop);
    if (!rc) rc = expect(s, ":");
    if (!rc) rc = parse_layout(s, 1, &one);
    if (rc) return rc;
    new->over = one.dim[0];
    x->n_splits++;
    x->splits = hd_arena_copy(&s->p->memory, all, (size_t)x->n_splits * sizeof *all);
    return x->splits ? 0 : no_memory(s);
}

static int parse_note(parser *s, hd_instr *x)
{
    int waits[HD_MAX_WAITS];
    if (accept(s, "later")) {
        if (!x->accumulate) return bad(s, "+= with @later");
        x->accumulate = HD_ACCUMULATE_LATER;
        return 0;
    }
    if (accept(s, "workspace=")) {
        int rc = parse_operand(s, &x->workspace);
        return rc ? rc : x->workspace < 0 ? bad(s, "a buffer") : 0;
    }
    if (accept(s, "split=")) return parse_split(s, x);
    if (accept(s, "last")) return x->last = true, 0;
    if (accept(s, "stream=")) return parse_int(s, 0, 1 << 20, &x->stream);
    if (accept(s, "signal=")) return parse_int(s, 0, 1 << 20, &x->signal);
    if (!accept(s, "wait=") || x->n_waits == HD_MAX_WAITS) return bad(s, "later, last, workspace, split, stream, wait or signal");
    if (x->n_waits) memcpy(waits, x->waits, (size_t)x->n_waits * sizeof *waits);
    int rc = parse_int(s, 0, 1 << 20, &waits[x->n_waits++]);
    x->waits = keep_list(s, waits, x->n_waits);
    return rc ? rc : x->waits ? 0 : no_memory(s);
}

/* Parameters, which end at " @" or " ;". */
static int parse_attrs(parser *s, hd_instr *x)
{
    if (!x->op || !x->op->attrs_size) return 0;
    void *attrs = hd_arena_alloc(&s->p->memory, x->op->attrs_size);
    if (!attrs) return no_memory(s);
    x->attrs = attrs;
    hd_attrs_preset(x->op, attrs);
    char *end = s->at;
    while (*end && !(end[0] == ' ' && (end[1] == '@' || end[1] == ';'))) end++;
    char kept = *end;
    *end = 0;
    hd_error local = {0};
    int rc = hd_attrs_parse(x->op, s->at, attrs, &local);
    *end = kept;
    s->at = end;
    return rc ? hd_fail(s->err, HD_EFORMAT, "%s:%d: %s", s->name, s->line, local.message) : 0;
}

static int parse_instr(parser *s)
{
    hd_program *p = s->p;
    if (!p->n_segments) return bad(s, "a segment");
    if (hd_grow(&s->instrs, &s->cap_instrs, s->n_instrs + 1, sizeof *s->instrs)) return no_memory(s);
    hd_instr *x = &s->instrs[s->n_instrs];
    *x = (hd_instr){.workspace = -1, .signal = -1};
    int rc = parse_operands(s, x);
    if (!rc) rc = parse_attrs(s, x);
    while (!rc && accept(s, "@")) rc = parse_note(s, x);
    if (!rc) rc = parse_path(s, &x->path);
    if (rc) return rc;
    s->n_instrs++;
    p->segments[p->n_segments - 1].n_instrs++;
    return 0;
}

/* Position in the order of segments: backward and weight go from the last chunk to the first. */
static int segment_order(const hd_segment *x)
{
    bool back = x->kind == HD_SEGMENT_BACKWARD || x->kind == HD_SEGMENT_WEIGHT;
    return (int)x->kind * MAX_CHUNKS + (back ? MAX_CHUNKS - 1 - x->chunk : x->chunk);
}

static int parse_segment(parser *s)
{
    hd_program *p = s->p;
    int kind = 0;
    int rc = parse_choice(s, segment_name, HD_SEGMENT_KINDS, "a segment's name", &kind);
    if (rc) return rc;
    hd_segment new = {.kind = (hd_segment_kind)kind};
    bool once = kind == HD_SEGMENT_PREPARE || kind == HD_SEGMENT_UPDATE;
    if (!once && accept(s, "chunk=")) rc = parse_int(s, 1, MAX_CHUNKS - 1, &new.chunk);
    if (rc) return rc;
    if (p->n_segments && segment_order(&p->segments[p->n_segments - 1]) >= segment_order(&new)) return bad(s, "segments in order");
    s->start[p->n_segments] = s->n_instrs;
    p->segments[p->n_segments++] = new;
    return parse_end(s);
}

static int parse_call(parser *s)
{
    hd_program *p = s->p;
    int kind = 0, symbol = 0, chunk = 0;
    if (hd_grow(&p->calls, &s->cap_calls, (size_t)p->n_calls + 1, sizeof *p->calls)) return no_memory(s);
    int rc = parse_choice(s, segment_name, HD_SEGMENT_KINDS, "a segment's name", &kind);
    if (!rc && accept(s, "chunk=")) rc = parse_int(s, 1, MAX_CHUNKS - 1, &chunk);
    int segment = rc ? -1 : hd_program_segment_of(p, (hd_segment_kind)kind, chunk);
    if (!rc && segment < 0) rc = bad(s, "a segment that there is");
    hd_call *c = &p->calls[p->n_calls];
    *c = hd_program_call(p, segment);
    if (!rc) rc = expect(s, "micro=");
    if (!rc) rc = parse_int(s, 0, 1 << 30, &c->micro);
    if (!rc) rc = expect(s, "slice=");
    if (!rc) rc = parse_int(s, 0, 1 << 30, &c->slice);
    while (!rc && accept(s, "$")) {
        rc = parse_int(s, 0, p->n_symbols - 1, &symbol);
        if (!rc) rc = parse_key(s, "=", 0, p->symbols[symbol].max, &c->binding[symbol]);
    }
    if (!rc) p->n_calls++;
    return rc ? rc : parse_end(s);
}

/* ---- lines ---- */

static const struct { const char *word; int (*parse)(parser *); } line_kinds[] = {
    {"stage ", parse_stage}, {"symbol ", parse_symbol}, {"buffer ", parse_buffer}, {"output ", parse_output}, {"segment ", parse_segment}, {"call ", parse_call}, {"  ", parse_instr},
};

static int parse_line(parser *s)
{
    if (s->line == 1) {
        int rc = expect(s, "program ");
        return rc ? rc : parse_header(s);
    }
    for (size_t i = 0; i < sizeof line_kinds / sizeof line_kinds[0]; i++) {
        size_t n = strlen(line_kinds[i].word);
        if (strncmp(s->at, line_kinds[i].word, n)) continue;
        s->at += n;
        return line_kinds[i].parse(s);
    }
    return *s->at ? bad(s, "symbol, buffer, output, stage, segment, call or an instruction") : 0;
}

static int parse_lines(parser *s, char *text, size_t n)
{
    if (memchr(text, 0, n)) return hd_fail(s->err, HD_EFORMAT, "%s: not a program's text: it holds a zero byte", s->name);
    int rc = 0;
    for (char *line = text, *next; line && !rc; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        s->line++;
        s->at = line;
        rc = parse_line(s);
    }
    return rc;
}

/* Moves the growing arrays into the program's arena. */
static int keep_arrays(parser *s)
{
    hd_program *p = s->p;
    hd_instr *instrs = hd_arena_copy(&p->memory, s->instrs, s->n_instrs * sizeof *instrs);
    hd_buffer *buffers = hd_arena_copy(&p->memory, p->buffers, (size_t)p->n_buffers * sizeof *buffers);
    hd_port *outputs = hd_arena_copy(&p->memory, p->outputs, (size_t)p->n_outputs * sizeof *outputs);
    hd_call *calls = hd_arena_copy(&p->memory, p->calls, (size_t)p->n_calls * sizeof *calls);
    hd_free(p->buffers);
    hd_free(p->outputs);
    hd_free(p->calls);
    p->buffers = buffers;
    p->outputs = outputs;
    p->calls = calls;
    for (int i = 0; instrs && i < p->n_segments; i++) p->segments[i].instrs = instrs + s->start[i];
    return instrs && buffers && outputs && calls ? 0 : no_memory(s);
}

static int parse_all(parser *s, const char *text, size_t n)
{
    char *copy = n < MAX_TEXT ? hd_malloc(n + 1) : NULL;
    s->p->segments = hd_arena_alloc(&s->p->memory, MAX_SEGMENTS * sizeof *s->p->segments);
    int rc = copy && s->p->segments ? 0 : no_memory(s);
    if (!rc) {
        memcpy(copy, text, n);
        copy[n] = 0;
        rc = parse_lines(s, copy, n);
    }
    hd_free(copy);
    int kept = keep_arrays(s);
    if (!rc) rc = kept;
    if (!rc) rc = hd_program_verify(s->p, s->err);
    return rc;
}

int hd_program_parse(const char *text, size_t n, const char *name, hd_program **out, hd_error *err)
{
    hd_error local = {0};
    *out = NULL;
    parser s = {.name = name, .err = err ? err : &local, .p = hd_calloc(1, sizeof *s.p)};
    if (!s.p) return no_memory(&s);
    int rc = parse_all(&s, text, n);
    hd_free(s.instrs);
    if (rc) hd_program_free(s.p);
    else *out = s.p;
    return rc;
}

int hd_program_load(const char *path, hd_program **out, hd_error *err)
{
    hd_str text;
    *out = NULL;
    hd_str_init(&text);
    int rc = hd_file_read(&text, path, MAX_TEXT, err);
    if (!rc) rc = hd_program_parse(text.data, text.len, path, out, err);
    hd_str_free(&text);
    return rc;
}
