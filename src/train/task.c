/* task.c: what tasks share: filling inputs of a program that may not read them all. */
#include "train/task.h"

int hd_task_set_scalar(hd_exec *e, const char *name, double value, hd_error *err)
{
    const hd_program *p = hd_exec_program(e);
    int at = hd_program_input(p, name);
    int64_t room = 0;
    if (at < 0) return 0;
    hd_store_f64(&room, p->buffers[at].type.dtype, 0, value);
    return hd_exec_put(e, name, &room, err);
}

int hd_task_number_samples(hd_exec *e, int64_t first, int64_t rows_each, int64_t rows, int64_t *scratch, hd_error *err)
{
    if (hd_program_input(hd_exec_program(e), "samples") < 0) return 0;
    for (int64_t i = 0; i < rows; i++) scratch[i] = first + i / rows_each;
    return hd_exec_put(e, "samples", scratch, err);
}
