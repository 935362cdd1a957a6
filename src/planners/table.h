/* table.h: profiles that a person brings: lines of tab-separated columns, in a fixed order, `#` begins a comment; a first line that repeats the columns' names
 * is left out. */
#ifndef HD_PLANNERS_TABLE_H
#define HD_PLANNERS_TABLE_H

#include "base/error.h"
#include "base/mem.h"

typedef enum hd_column_type {
    HD_COLUMN_COUNT, /* an integer >= 0, below 2^31 */
    HD_COLUMN_SIGNED, /* an integer >= -1 */
    HD_COLUMN_COST,  /* a number >= 0; "inf": impossible */
    HD_COLUMN_TEXT,  /* anything but empty, of at most 63 bytes */
} hd_column_type;

typedef struct hd_column { const char *name; hd_column_type type; } hd_column; /* a name of NULL ends the list */

typedef union hd_cell { int64_t integer; double number; const char *text; } hd_cell;

typedef struct hd_table {
    hd_arena memory;  /* owns everything below */
    int columns, n;   /* n: rows */
    hd_cell *cells;   /* [n][columns] */
    int *line;        /* [n] in the file, from 1 */
} hd_table;

/* Reads n bytes of text; name is used in messages ("NAME:LINE: ..."). HD_EFORMAT for a malformed line or a table without rows. */
int hd_table_parse(const char *text, size_t n, const char *name, const hd_column *columns, hd_table *out, hd_error *err);
void hd_table_free(hd_table *t);
static inline const hd_cell *hd_table_row(const hd_table *t, int row) { return t->cells + (size_t)row * (size_t)t->columns; }

#endif
