/* attrs.c: an op's parameters as text, and back. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "graph/op.h"

static char *at(const void *attrs, const hd_attr *a)
{
    return (char *)attrs + a->offset;
}

/* ---- printing: "name=value" parted by blanks; a double in the shortest form that reads back exactly ---- */

static void print_double(double v, hd_str *out)
{
    char text[32];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    hd_str_puts(out, text);
}

static void print_dims(const hd_dims_attrs *d, hd_str *out)
{
    for (int i = 0; i < d->rank; i++) hd_str_printf(out, "%s%lld", i ? "x" : "", (long long)d->dim[i]);
    if (!d->rank) hd_str_puts(out, "scalar");
}

/* "2:scale(0;0.5),add(1,2);3f32" - operands, steps, then results as register and dtype */
static void print_chain(const hd_fused_attrs *f, hd_str *out)
{
    hd_str_printf(out, "%d:", f->n_in);
    for (int i = 0; i < f->n_steps; i++) {
        const hd_chain_step *s = &f->step[i];
        hd_str_printf(out, "%s%s(", i ? "," : "", hd_ew_name((hd_ew)s->op));
        for (int k = 0; k < hd_ew_arity((hd_ew)s->op); k++) hd_str_printf(out, "%s%d", k ? "," : "", s->arg[k]);
        hd_str_putc(out, ';');
        print_double(s->imm, out);
        hd_str_printf(out, ";%s)", hd_dtype_name((hd_dtype)s->dtype));
    }
    hd_str_putc(out, '>');
    for (int i = 0; i < f->n_out; i++) hd_str_printf(out, "%s%d:%s", i ? "," : "", f->out[i], hd_dtype_name(f->out_dtype[i]));
}

static void print_value(const hd_attr *a, const void *attrs, hd_str *out)
{
    const char *p = at(attrs, a);
    switch (a->type) {
    case HD_ATTR_INT32: hd_str_printf(out, "%d", *(const int32_t *)p); break;
    case HD_ATTR_INT64: hd_str_printf(out, "%lld", (long long)*(const int64_t *)p); break;
    case HD_ATTR_UINT32: hd_str_printf(out, "%u", *(const uint32_t *)p); break;
    case HD_ATTR_DOUBLE: print_double(*(const double *)p, out); break;
    case HD_ATTR_BOOL: hd_str_puts(out, *(const bool *)p ? "true" : "false"); break;
    case HD_ATTR_STRING: hd_str_puts(out, p); break;
    case HD_ATTR_DTYPE: hd_str_puts(out, hd_dtype_name(*(const hd_dtype *)p)); break;
    case HD_ATTR_INT32_2: hd_str_printf(out, "%dx%d", ((const int32_t *)p)[0], ((const int32_t *)p)[1]); break;
    case HD_ATTR_DIMS: print_dims((const hd_dims_attrs *)p, out); break;
    case HD_ATTR_CHAIN: print_chain((const hd_fused_attrs *)p, out); break;
    }
}

/* A text that may be left out, and is. */
static bool is_left_out(const hd_attr *a, const void *attrs)
{
    return a->type == HD_ATTR_STRING && !isnan(a->preset) && !*at(attrs, a);
}

void hd_attrs_print(const hd_op *op, const void *attrs, hd_str *out)
{
    for (const hd_attr *a = op->attrs; a && a->name; a++) {
        if (is_left_out(a, attrs)) continue;
        hd_str_printf(out, "%s%s=", a == op->attrs ? "" : " ", a->name);
        print_value(a, attrs, out);
    }
}

/* ---- parsing ---- */

static bool parse_int(const char **s, int64_t lo, int64_t hi, int64_t *out)
{
    char *end;
    errno = 0;
    long long v = strtoll(*s, &end, 10);
    if (end == *s || errno || v < lo || v > hi) return false;
    *out = v;
    *s = end;
    return true;
}

static bool parse_double(const char **s, double *out)
{
    char *end;
    *out = strtod(*s, &end);
    bool ok = end != *s;
    *s = end;
    return ok;
}

static bool take(const char **s, char c)
{
    if (**s != c) return false;
    (*s)++;
    return true;
}

static bool parse_word(const char **s, char *out, size_t n)
{
    size_t k = 0;
    while ((isalnum((unsigned char)**s) || **s == '_') && k + 1 < n) out[k++] = *(*s)++;
    out[k] = 0;
    return k > 0;
}

static bool parse_dtype(const char **s, hd_dtype *out)
{
    char word[16];
    return parse_word(s, word, sizeof word) && !hd_dtype_parse(word, out);
}

static bool parse_dims(const char **s, hd_dims_attrs *d)
{
    d->rank = 0;
    if (!strcmp(*s, "scalar")) return *s += 6, true;
    do {
        if (d->rank == HD_MAX_RANK || !parse_int(s, INT64_MIN, INT64_MAX, &d->dim[d->rank++])) return false;
    } while (take(s, 'x'));
    return true;
}

static int find_ew(const char *name)
{
    for (int i = 0; i < HD_EW_COUNT; i++)
        if (!strcmp(hd_ew_name((hd_ew)i), name)) return i;
    return -1;
}

static bool parse_step(const char **s, hd_chain_step *step, int registers)
{
    char word[32];
    int op;
    if (!parse_word(s, word, sizeof word) || (op = find_ew(word)) < 0 || !take(s, '(')) return false;
    step->op = (uint8_t)op;
    for (int k = 0; k < hd_ew_arity((hd_ew)op); k++) {
        int64_t r;
        if ((k && !take(s, ',')) || !parse_int(s, 0, registers - 1, &r)) return false;
        step->arg[k] = (uint8_t)r;
    }
    hd_dtype t;
    if (!take(s, ';') || !parse_double(s, &step->imm) || !take(s, ';') || !parse_dtype(s, &t)) return false;
    step->dtype = t;
    return take(s, ')');
}

static bool parse_chain(const char **s, hd_fused_attrs *f)
{
    int64_t n;
    if (!parse_int(s, 0, HD_MAX_OPERANDS, &n) || !take(s, ':')) return false;
    f->n_in = (int32_t)n;
    while (**s != '>') {
        if (f->n_steps == HD_CHAIN_MAX || (f->n_steps && !take(s, ','))) return false;
        if (!parse_step(s, &f->step[f->n_steps], f->n_in + f->n_steps)) return false;
        f->n_steps++;
    }
    for (take(s, '>'); **s;) {
        if (f->n_out == 8 || (f->n_out && !take(s, ','))) return false;
        if (!parse_int(s, 0, f->n_in + f->n_steps - 1, &n) || !take(s, ':') || !parse_dtype(s, &f->out_dtype[f->n_out])) return false;
        f->out[f->n_out++] = (uint8_t)n;
    }
    return f->n_out > 0;
}

static bool parse_value(const hd_attr *a, const char *s, void *attrs)
{
    char *p = at(attrs, a);
    int64_t v = 0, w = 0;
    bool ok = false;
    switch (a->type) {
    case HD_ATTR_INT32: ok = parse_int(&s, INT32_MIN, INT32_MAX, &v), *(int32_t *)p = (int32_t)v; break;
    case HD_ATTR_INT64: ok = parse_int(&s, INT64_MIN, INT64_MAX, &v), *(int64_t *)p = v; break;
    case HD_ATTR_UINT32: ok = parse_int(&s, 0, UINT32_MAX, &v), *(uint32_t *)p = (uint32_t)v; break;
    case HD_ATTR_DOUBLE: ok = parse_double(&s, (double *)p); break;
    case HD_ATTR_BOOL: ok = !strcmp(s, "true") || !strcmp(s, "false"), *(bool *)p = *s == 't'; return ok;
    case HD_ATTR_STRING: return strlen(s) < 64 ? strcpy(p, s), true : false;
    case HD_ATTR_DTYPE: ok = parse_dtype(&s, (hd_dtype *)p); break;
    case HD_ATTR_INT32_2:
        ok = parse_int(&s, INT32_MIN, INT32_MAX, &v) && take(&s, 'x') && parse_int(&s, INT32_MIN, INT32_MAX, &w);
        ((int32_t *)p)[0] = (int32_t)v, ((int32_t *)p)[1] = (int32_t)w;
        break;
    case HD_ATTR_DIMS: ok = parse_dims(&s, (hd_dims_attrs *)p); break;
    case HD_ATTR_CHAIN: ok = parse_chain(&s, (hd_fused_attrs *)p); break;
    }
    return ok && !*s;
}

static const hd_attr *find_attr(const hd_op *op, const char *name, size_t n)
{
    for (const hd_attr *a = op->attrs; a && a->name; a++)
        if (strlen(a->name) == n && !memcmp(a->name, name, n)) return a;
    return NULL;
}

int hd_attrs_parse(const hd_op *op, const char *text, void *attrs, hd_error *err)
{
    char value[2048];
    while (*text == ' ') text++;
    while (*text) {
        const char *eq = strchr(text, '='), *end;
        if (!eq) return hd_fail(err, HD_EFORMAT, "%s: \"%s\" is not name=value", op->name, text);
        const hd_attr *a = find_attr(op, text, (size_t)(eq - text));
        if (!a) return hd_fail(err, HD_EFORMAT, "%s has no parameter \"%.*s\"", op->name, (int)(eq - text), text);
        end = strchrnul(eq, ' ');
        size_t n = (size_t)(end - eq - 1);
        if (n >= sizeof value) return hd_fail(err, HD_EFORMAT, "%s: parameter %s is too long", op->name, a->name);
        memcpy(value, eq + 1, n);
        value[n] = 0;
        if (!parse_value(a, value, attrs)) return hd_fail(err, HD_EFORMAT, "%s: \"%s\" is no value for %s", op->name, value, a->name);
        for (text = end; *text == ' ';) text++;
    }
    return 0;
}

void hd_attrs_preset(const hd_op *op, void *attrs)
{
    memset(attrs, 0, op->attrs_size);
    for (const hd_attr *a = op->attrs; a && a->name; a++) {
        char *p = at(attrs, a);
        if (isnan(a->preset)) continue;
        switch (a->type) {
        case HD_ATTR_INT32: *(int32_t *)p = (int32_t)a->preset; break;
        case HD_ATTR_INT64: *(int64_t *)p = (int64_t)a->preset; break;
        case HD_ATTR_UINT32: *(uint32_t *)p = (uint32_t)a->preset; break;
        case HD_ATTR_DOUBLE: *(double *)p = a->preset; break;
        case HD_ATTR_BOOL: *(bool *)p = a->preset != 0; break;
        case HD_ATTR_DTYPE: *(hd_dtype *)p = (hd_dtype)a->preset; break;
        case HD_ATTR_INT32_2: ((int32_t *)p)[0] = ((int32_t *)p)[1] = (int32_t)a->preset; break;
        case HD_ATTR_STRING: case HD_ATTR_DIMS: case HD_ATTR_CHAIN: break;
        }
    }
}
