/* dataset.h: samples for network files: named columns of the same length, all in memory, drawn by a generator or read from a file.
 *
 * Invariants: every column has `count` samples of `elements` elements each, row after row. */
#ifndef HD_DATA_DATASET_H
#define HD_DATA_DATASET_H

#include <jansson.h>

#include "tensor/dtype.h"

#define HD_MAX_COLUMNS 16

typedef struct hd_column {
    char name[64];
    hd_dtype dtype;
    int64_t elements; /* of one sample */
    void *data;       /* [count, elements], owned */
} hd_column;

typedef struct hd_dataset {
    int64_t count; /* samples */
    int n_columns;
    hd_column column[HD_MAX_COLUMNS];
} hd_dataset;

/* Opens what the "data" section of a network file describes: the training samples, or those held out for testing. where stands in front of
 * messages. d need not be initialised; on failure there is nothing to free. */
int hd_dataset_open(hd_dataset *d, const json_t *section, bool test, const char *where, hd_error *err);
void hd_dataset_free(hd_dataset *d);

/* Appends a zeroed column. NULL when out of memory or columns. */
hd_column *hd_dataset_add(hd_dataset *d, const char *name, hd_dtype dtype, int64_t elements, hd_error *err);
const hd_column *hd_dataset_column(const hd_dataset *d, const char *name); /* NULL if there is none */

/* Copies the samples row[0..n) of a column to out, as dtype: [n, elements]. Rows must be in [0, count). */
void hd_dataset_rows(const hd_column *c, const int64_t *row, int64_t n, hd_dtype dtype, void *out);

#endif
