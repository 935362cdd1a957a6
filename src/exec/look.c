/* look.c: looking inside: the first value that is not finite, time by op. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "exec/exec_int.h"

/* ---- the first value that is not finite ---- */

static bool is_finite_tensor(const hd_tensor *t, bool minus_infinity)
{
    if (!t->data || !hd_dtype_is_float(t->dtype) || t->format != HD_PLAIN) return true;
    int64_t n = hd_tensor_count(t);
    for (int64_t i = 0; i < n; i++) {
        double v = hd_load_f64(t->data, t->dtype, i);
        if (!isfinite(v) && !(minus_infinity && v == -INFINITY)) return false;
    }
    return true;
}

/* Everything that is there before the call: inputs, parameters, states. */
static int find_bad_leaf(const hd_exec *e)
{
    const hd_program *p = e->program;
    for (int b = 0; b < p->n_buffers; b++) {
        const hd_buffer *x = &p->buffers[b];
        bool leaf = x->class == HD_BUFFER_INPUT || x->class == HD_BUFFER_STATE || x->class == HD_BUFFER_CONSTANT;
        if (!leaf || x->view_of >= 0 || x->data) continue;
        hd_tensor t = hd_exec_tensor(e, b, e->binding);
        if (!is_finite_tensor(&t, false)) return b;
    }
    return -1;
}

static int find_bad_result(const hd_step *s)
{
    for (int i = 0; i < s->instr->n_out; i++) {
        if (s->instr->out[i] < 0) continue;
        /* The log-sum-exp of a query that sees no key is minus infinity by definition. */
        bool empty = s->instr->op && !strcmp(s->instr->op->name, "attention") && i == 1;
        if (!is_finite_tensor(&s->args.out[i], empty)) return s->instr->out[i];
    }
    return -1;
}

/* The running call, one instruction at a time; the buffer with the first bad value, or -1. */
static int check_call(hd_exec *e)
{
    hd_steps *segment = &e->segments[e->segment];
    int bad = find_bad_leaf(e);
    for (int i = 0; i < segment->n && bad < 0; i++) {
        if (segment->steps[i].updates_only || !hd_instr_runs(segment->steps[i].instr, e->micro, e->micro_batches)) continue;
        e->only = i;
        hd_exec_run_team(e);
        bad = find_bad_result(&segment->steps[i]);
    }
    e->only = -1;
    return bad;
}

int hd_exec_find_nonfinite(hd_exec *e, const hd_exec_hooks *hooks, char *path, size_t path_size, hd_error *err)
{
    hd_call_iter it = hd_program_calls(e->program);
    hd_call call;
    path[0] = 0;
    while (hd_call_next(&it, &call)) {
        hd_segment_kind kind = e->program->segments[call.segment].kind;
        e->micro = call.micro;
        int rc = hooks && hooks->before ? hooks->before(hooks->arg, e, kind, &call, err) : 0;
        if (!rc) rc = hd_exec_bind(e, &call, err);
        if (rc) return rc;
        int bad = check_call(e);
        if (bad < 0) continue;
        snprintf(path, path_size, "%s", e->program->buffers[bad].path);
        return 0;
    }
    return 0;
}

/* ---- time by op ---- */

static void actual_types(const hd_tensor *t, int n, hd_type *out)
{
    for (int i = 0; i < n; i++) {
        out[i] = hd_type_of(t[i].dtype, t[i].rank, t[i].dim);
        out[i].absent = !t[i].data;
    }
}

hd_cost hd_step_cost(const hd_step *s)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_cost c = {0};
    if (s->instr->opcode != HD_KERNEL || !s->instr->op->cost) {
        c.bytes = (double)hd_tensor_bytes(s->instr->n_out ? &s->args.out[0] : &s->args.in[0]);
        return c;
    }
    actual_types(s->args.in, s->args.n_in, in);
    actual_types(s->args.out, s->args.n_out, out);
    hd_sig sig = {s->instr->op, in, out, s->args.n_in, s->args.n_out, s->args.attrs};
    s->instr->op->cost(&sig, &c);
    return c;
}

void hd_exec_count_cost(hd_step *s, double seconds)
{
    hd_cost c = hd_step_cost(s);
    s->seconds += seconds;
    s->runs++;
    s->flops += c.flops;
    s->bytes += c.bytes;
}

int hd_exec_profile(hd_exec *e, bool on, hd_error *err)
{
    (void)err;
    for (int s = 0; s < e->program->n_segments && on && !e->profiling; s++)
        for (int i = 0; i < e->segments[s].n; i++) {
            hd_step *x = &e->segments[s].steps[i];
            x->seconds = x->flops = x->bytes = 0;
            x->runs = 0;
        }
    e->profiling = on;
    return 0;
}

typedef struct op_time {
    const char *name;
    int64_t runs;
    double seconds, flops, bytes;
} op_time;

static void add_time(op_time *list, int *n, const hd_step *s)
{
    int k = 0;
    while (k < *n && strcmp(list[k].name, hd_instr_name(s->instr))) k++;
    if (k == *n) list[(*n)++] = (op_time){.name = hd_instr_name(s->instr)};
    list[k].runs += s->runs;
    list[k].seconds += s->seconds;
    list[k].flops += s->flops;
    list[k].bytes += s->bytes;
}

static int compare_times(const void *x, const void *y)
{
    const op_time *a = x, *b = y;
    return (a->seconds < b->seconds) - (a->seconds > b->seconds);
}

void hd_exec_profile_print(const hd_exec *e, hd_str *out)
{
    op_time *list = hd_malloc((size_t)(hd_op_count + 2) * sizeof *list);
    int n = 0;
    double total = 0;
    if (!list) {
        out->failed = true;
        return;
    }
    for (int s = 0; s < e->program->n_segments; s++)
        for (int i = 0; i < e->segments[s].n; i++) {
            if (!e->segments[s].steps[i].runs) continue;
            add_time(list, &n, &e->segments[s].steps[i]);
            total += e->segments[s].steps[i].seconds;
        }
    qsort(list, (size_t)n, sizeof *list, compare_times);
    hd_str_printf(out, "%-24s %9s %11s %7s %9s %9s\n", "op", "runs", "seconds", "share", "GFLOP/s", "GB/s");
    for (int i = 0; i < n; i++) {
        double t = list[i].seconds > 0 ? list[i].seconds : 1e-12;
        hd_str_printf(out, "%-24s %9lld %11.6f %6.1f%% %9.2f %9.2f\n", list[i].name, (long long)list[i].runs, list[i].seconds,
                      total > 0 ? 100 * list[i].seconds / total : 0, list[i].flops / t * 1e-9, list[i].bytes / t * 1e-9);
    }
    hd_str_printf(out, "%-24s %9s %11.6f\n", "total", "", total);
    hd_free(list);
}
