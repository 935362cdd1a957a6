/* megatron_rows.h: the rows of published/megatron-sc21-table1.tsv as jobs. */
#ifndef CHECK_MEGATRON_ROWS_H
#define CHECK_MEGATRON_ROWS_H

#include "base/file.h"
#include "cluster_run.h"

enum { MEGATRON_ROWS = 16 };

typedef struct megatron_row { cluster_job job; char billions[16]; double published; int gpus; } megatron_row;

/* Returns how many, or a negative code. */
static inline int megatron_read(const char *path, megatron_row *rows, hd_error *err)
{
    hd_str text;
    int n = 0;
    hd_str_init(&text);
    int rc = hd_file_read(&text, path, 1 << 20, err);
    for (char *save, *line = rc ? NULL : strtok_r(text.data, "\n", &save); line && n < MEGATRON_ROWS; line = strtok_r(NULL, "\n", &save)) {
        megatron_row *r = &rows[n];
        long heads, width, layers, tp, pp, dp, batch, micro, chunks;
        if (*line == '#' || sscanf(line, "%15s %ld %ld %ld %ld %ld %ld %d %ld %ld %ld %lf", r->billions, &heads, &width, &layers, &tp, &pp, &dp, &r->gpus, &batch,
                                   &micro, &chunks, &r->published) != 12) continue;
        r->job = (cluster_job){.layers = layers, .width = width, .heads = heads, .tp = tp, .pp = pp, .dp = dp, .chunks = chunks, .batch = batch, .micro_batch = micro};
        n++;
    }
    hd_str_free(&text);
    return rc ? rc : n;
}

/* Lowered and simulated on Selene. The caller frees *out. */
static inline int megatron_predict(const megatron_row *r, hd_sim_result *out, hd_error *err)
{
    hd_programs p;
    hd_cluster c;
    char name[64];
    snprintf(name, sizeof name, "dgx-a100-80:%d", r->gpus);
    int rc = hd_cluster_find(name, &c, err);
    if (!rc) rc = cluster_lower(&r->job, &p, err);
    if (rc) return rc;
    rc = cluster_simulate(&p, &c, out, err);
    hd_programs_free(&p);
    return rc;
}

#endif
