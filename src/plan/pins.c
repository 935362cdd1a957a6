/* pins.c: as few pins as say exactly which layout each value is to have. */
#include <stdio.h>
#include <string.h>

#include "plan/parallel_int.h"

enum { PATTERN = sizeof ((hd_pin *)0)->pattern };

/* Numbers that are whole parts of a path become '*', and with it exp_avg and exp_avg_sq one. */
static void generalise(const char *path, char *out, size_t size)
{
    size_t n = 0;
    for (const char *at = path; *at && n + 2 < size;) {
        size_t length = strcspn(at, "."), digits = strspn(at, "0123456789");
        if (length && digits == length && at != path && at[length]) out[n++] = '*';
        else if (at == path && !strncmp(at, "exp_avg", 7) && (length == 7 || length == 10)) n += (size_t)snprintf(out + n, size - n, "exp_avg*");
        else n += (size_t)snprintf(out + n, size - n, "%.*s", (int)length, at);
        at += length;
        if (n + 1 < size && *at == '.') out[n++] = *at++;
    }
    out[n < size ? n : size - 1] = 0;
}

/* The first part and the last `parts` of a path, and anything between. */
static void shorten(const char *path, int parts, char *out, size_t size)
{
    const char *dot = strchr(path, '.'), *tail = path + strlen(path);
    bool states = dot && !strncmp(path, "exp_avg", 7);
    for (; parts && tail > path; parts--)
        while (--tail > path && *tail != '.') {}
    if (!dot || tail <= dot) generalise(path, out, size);
    else snprintf(out, size, "%.*s*%s", states ? 7 : (int)(dot - path), path, tail);
}

static bool same_text(const hd_pinning *s, hd_value a, hd_value b)
{
    int rank = s->graph->values[a].type.shape.rank;
    if (rank != s->graph->values[b].type.shape.rank) return false;
    for (int d = 0; d < rank; d++) {
        const hd_dim_layout *x = &s->layout[a].dim[d], *y = &s->layout[b].dim[d];
        if (x->n != y->n || memcmp(x->axis, y->axis, (size_t)x->n) || memcmp(x->unit, y->unit, (size_t)x->n * sizeof x->unit[0])) return false;
    }
    return true;
}

/* Whether everything the pattern matches is to have the layout of v (or will have it anyway), or is left over and of its rank. */
static bool is_safe(const hd_pinning *s, const char *pattern, hd_value v)
{
    size_t fixed = strcspn(pattern, s->sliced ? "*." : "*"); /* a slice's mark may stand before any dot */
    for (size_t i = 0; i < s->graph->n_values; i++) {
        const hd_value_info *x = &s->graph->values[i];
        if (strncmp(x->path, pattern, fixed) || !hd_path_match(pattern, x->path)) continue;
        bool live = hd_value_is_live(s->graph, (hd_value)i);
        bool known = s->pinned[i] || (s->same && s->same[i]);
        if (live ? !known || !same_text(s, (hd_value)i, v) : x->type.shape.rank != s->graph->values[v].type.shape.rank) return false;
    }
    return true;
}

static bool is_covered(const hd_pinning *s, const hd_pin *pins, int n, hd_value v)
{
    for (int i = 0; i < n; i++)
        if (hd_path_match(pins[i].pattern, s->graph->values[v].path)) return true;
    return false;
}

/* A pattern for v: the widest that is safe; brief: also those that tell less of the path. */
static int choose_pattern(const hd_pinning *s, hd_value v, bool brief, char *out, hd_error *err)
{
    const char *path = s->graph->values[v].path, *mark = strchr(path, '@');
    char wide[1024], all[1024];
    if (mark) { /* what all slices have in common */
        snprintf(all, sizeof all, "%.*s%s", (int)(mark - path), path, mark + 1 + strspn(mark + 1, "0123456789"));
        path = all;
    }
    generalise(path, wide, sizeof wide);
    if (mark && strlen(wide) < PATTERN && is_safe(s, wide, v)) return memcpy(out, wide, strlen(wide) + 1), 0;
    path = s->graph->values[v].path;
    for (int parts = brief ? 1 : 3; parts < 3; parts++) {
        shorten(path, parts, wide, sizeof wide);
        if (strlen(wide) < PATTERN && is_safe(s, wide, v)) return memcpy(out, wide, strlen(wide) + 1), 0;
    }
    generalise(path, wide, sizeof wide);
    if (strlen(wide) < PATTERN && is_safe(s, wide, v)) return memcpy(out, wide, strlen(wide) + 1), 0;
    if (strlen(path) >= PATTERN) return hd_fail(err, HD_EINVAL, "a plan cannot name %s: it is longer than %d characters", path, PATTERN - 1);
    return memcpy(out, path, strlen(path) + 1), 0;
}

static int write_layout(const hd_pinning *s, hd_value v, char *out, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    hd_layout_print(s->mesh, &s->layout[v], s->graph->values[v].type.shape.rank, &text);
    int rc = text.failed ? hd_fail_memory(err, 64, "a plan")
                         : text.len >= PATTERN ? hd_fail(err, HD_EINVAL, "the layout %s is too long for a plan", text.data) : 0;
    if (!rc) memcpy(out, text.data, text.len + 1);
    hd_str_free(&text);
    return rc;
}

/* Stops when there are more than `most`. */
static int write_pins(const hd_pinning *s, bool brief, hd_pin *pins, int most, int *n, hd_error *err)
{
    *n = 0;
    for (size_t v = 0; v < s->graph->n_values; v++) {
        if (!s->pinned[v] || !hd_value_is_live(s->graph, (hd_value)v) || is_covered(s, pins, *n, (hd_value)v)) continue;
        if (*n == most) return *n = most + 1, 0;
        int rc = choose_pattern(s, (hd_value)v, brief, pins[*n].pattern, err);
        if (!rc) rc = write_layout(s, (hd_value)v, pins[*n].layout, err);
        if (rc) return rc;
        ++*n;
    }
    return 0;
}

int hd_pins_write(const hd_pinning *s, hd_pin *pins, int most, int *n, hd_error *err)
{
    int rc = write_pins(s, false, pins, most, n, err);
    return rc || *n <= most ? rc : write_pins(s, true, pins, most, n, err);
}
