/* table.c: see table.h. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "planners/table.h"

enum { MAX_COLUMNS = 8, MAX_FIELD = 63 };

typedef struct reader {
    const char *at, *end, *name;
    const hd_column *columns;
    int n_columns, line;
    hd_table *out;
    size_t room, line_room;
} reader;

typedef struct field { char text[MAX_FIELD + 1]; } field;

static const char *wanted(hd_column_type t)
{
    static const char *const what[] = {[HD_COLUMN_COUNT] = "an integer from 0", [HD_COLUMN_SIGNED] = "an integer from -1",
                                       [HD_COLUMN_COST] = "a number from 0, or inf", [HD_COLUMN_TEXT] = "a word"};
    return what[t];
}

static bool parse_integer(const char *text, int64_t least, int64_t *out)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    *out = v;
    return !*end && end != text && !errno && v >= least && v <= INT32_MAX;
}

static bool parse_cost(const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    bool impossible = !strcmp(text, "inf");
    return !*end && end != text && *out >= 0 && (impossible || isfinite(*out));
}

static bool parse_cell(reader *r, int column, const char *text, hd_cell *out)
{
    switch (r->columns[column].type) {
    case HD_COLUMN_COUNT: return parse_integer(text, 0, &out->integer);
    case HD_COLUMN_SIGNED: return parse_integer(text, -1, &out->integer);
    case HD_COLUMN_COST: return parse_cost(text, &out->number);
    case HD_COLUMN_TEXT: return *text && (out->text = hd_arena_strdup(&r->out->memory, text));
    }
    return false;
}

/* The fields of the line [at, end) up to a comment; how many there are, or -1 if one is too long. */
static int split_line(const char *at, const char *end, field *fields, int most)
{
    const char *comment = memchr(at, '#', (size_t)(end - at));
    int n = 0;
    if (comment) end = comment;
    while (end > at && strchr(" \t\r", end[-1])) end--;
    if (end > at && memchr(at, 0, (size_t)(end - at))) return -1;
    while (at < end) {
        const char *tab = memchr(at, '\t', (size_t)(end - at));
        const char *stop = tab ? tab : end;
        size_t length = (size_t)(stop - at);
        if (length > MAX_FIELD) return -1;
        if (n < most) memcpy(fields[n].text, at, length), fields[n].text[length] = 0;
        n++;
        at = tab ? tab + 1 : end;
    }
    return n;
}

static bool is_heading(const reader *r, const field *fields)
{
    return !r->out->n && !strcmp(fields[0].text, r->columns[0].name);
}

static int add_row(reader *r, const field *fields, hd_error *err)
{
    hd_table *t = r->out;
    hd_cell cells[MAX_COLUMNS];
    for (int c = 0; c < r->n_columns; c++)
        if (!parse_cell(r, c, fields[c].text, &cells[c]))
            return hd_fail(err, HD_EFORMAT, "%s:%d: %s must be %s, is \"%s\"", r->name, r->line, r->columns[c].name, wanted(r->columns[c].type),
                           fields[c].text);
    if (hd_grow(&t->cells, &r->room, (size_t)(t->n + 1) * (size_t)r->n_columns, sizeof *t->cells)
        || hd_grow(&t->line, &r->line_room, (size_t)t->n + 1, sizeof *t->line))
        return hd_fail_memory(err, 0, "a profile");
    memcpy(t->cells + (size_t)t->n * (size_t)r->n_columns, cells, (size_t)r->n_columns * sizeof *cells);
    t->line[t->n++] = r->line;
    return 0;
}

static int read_line(reader *r, const char *end, hd_error *err)
{
    field fields[MAX_COLUMNS];
    int n = split_line(r->at, end, fields, MAX_COLUMNS);
    if (n < 0) return hd_fail(err, HD_EFORMAT, "%s:%d: a column of more than %d bytes, or with a zero byte", r->name, r->line, MAX_FIELD);
    if (!n || is_heading(r, fields)) return 0;
    if (n != r->n_columns)
        return hd_fail(err, HD_EFORMAT, "%s:%d: %d columns instead of %d (%s ... %s, separated by tabs)", r->name, r->line, n, r->n_columns,
                       r->columns[0].name, r->columns[r->n_columns - 1].name);
    return add_row(r, fields, err);
}

int hd_table_parse(const char *text, size_t n, const char *name, const hd_column *columns, hd_table *out, hd_error *err)
{
    reader r = {.at = text, .end = text + n, .name = name, .columns = columns, .out = out};
    int rc = 0;
    *out = (hd_table){0};
    while (columns[r.n_columns].name) r.n_columns++;
    out->columns = r.n_columns;
    for (r.line = 1; !rc && r.at < r.end; r.line++) {
        const char *newline = memchr(r.at, '\n', (size_t)(r.end - r.at));
        const char *end = newline ? newline : r.end;
        rc = read_line(&r, end, err);
        r.at = end + 1;
    }
    if (!rc && !out->n) rc = hd_fail(err, HD_EFORMAT, "%s: no rows", name);
    if (rc) hd_table_free(out);
    return rc;
}

void hd_table_free(hd_table *t)
{
    hd_free(t->cells);
    hd_free(t->line);
    hd_arena_free(&t->memory);
    *t = (hd_table){0};
}
