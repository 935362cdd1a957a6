/* task.c: what tasks share: filling inputs of a program that may not read them all. */
#include "train/task.h"

static bool find(hd_exec *e, const char *name, hd_tensor *t)
{
    hd_error ignored = {0};
    return hd_program_input(hd_exec_program(e), name) >= 0 && !hd_exec_input(e, name, t, &ignored);
}

void hd_task_set_scalar(hd_exec *e, const char *name, double value)
{
    hd_tensor t;
    if (find(e, name, &t)) hd_store_f64(t.data, t.dtype, 0, value);
}

void hd_task_put(hd_exec *e, const char *name, const void *from, size_t bytes)
{
    hd_tensor t;
    if (find(e, name, &t)) memcpy(t.data, from, bytes);
}

void hd_task_number_samples(hd_exec *e, int64_t first, int64_t rows_each)
{
    hd_tensor t;
    if (!find(e, "samples", &t)) return;
    for (int64_t i = 0; i < hd_tensor_count(&t); i++) ((int64_t *)t.data)[i] = first + i / rows_each;
}
