/* predict_ops.h: what the cost model says of each kernel of one rank's Program, summed by op. */
#ifndef CHECK_PREDICT_OPS_H
#define CHECK_PREDICT_OPS_H

#include "cluster/cost.h"
#include "program/program.h"

typedef struct op_sum { const char *name; double seconds; int64_t runs; } op_sum;
typedef struct op_sums { op_sum list[128]; int n; double total; } op_sums;

static inline void op_sums_add(op_sums *s, const char *name, double seconds)
{
    int i = 0;
    while (i < s->n && strcmp(s->list[i].name, name)) i++;
    if (i == s->n && s->n < 127) s->list[s->n++] = (op_sum){.name = name};
    s->list[i].seconds += seconds;
    s->list[i].runs++;
    s->total += seconds;
}

static inline void piece_types(const hd_program *p, const int *buffers, int n, int rank, const hd_call *call, hd_type *out)
{
    for (int i = 0; i < n; i++) {
        out[i] = (hd_type){.absent = true, .shape.sym = -1};
        if (buffers[i] < 0) continue;
        hd_tensor t = hd_buffer_piece(p, buffers[i], rank, call->binding);
        out[i] = hd_type_of(t.dtype, t.rank, t.dim);
    }
}

static inline double instr_seconds(const hd_cluster *c, const hd_program *p, const hd_instr *x, int rank, const hd_call *call, int threads, int teams)
{
    static _Thread_local _Alignas(16) char attrs[HD_MAX_ATTRS];
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_kernel_cost cost;
    piece_types(p, x->in, x->n_in, rank, call, in);
    piece_types(p, x->out, x->n_out, rank, call, out);
    if (x->opcode == HD_ZERO || x->opcode == HD_COPY)
        return hd_cost_copy(c, hd_shape_count(&out[0].shape) * (int64_t)hd_dtype_size(out[0].dtype), threads, teams);
    hd_sig sig = {x->op, in, out, x->n_in, x->n_out, x->attrs};
    if (x->n_splits) hd_instr_attrs(p, x, rank, attrs), sig.attrs = attrs;
    hd_cost_kernel(c, &sig, threads, teams, &cost);
    return cost.seconds;
}

/* A whole step of the rank; transfers and waiting are left out. */
static inline op_sums predict_op_sums(const hd_cluster *c, const hd_program *p, int rank, int threads, int teams)
{
    op_sums s = {.n = 0};
    hd_call_iter calls = hd_program_calls(p);
    hd_call call;
    while (hd_call_next(&calls, &call)) {
        hd_instr_iter it = hd_segment_instrs(p, call.segment);
        for (const hd_instr *x; (x = hd_instr_next(&it));) {
            if (x->opcode == HD_VIEW || x->opcode == HD_WAIT || x->opcode == HD_COMM) continue;
            op_sums_add(&s, x->op ? x->op->name : x->opcode == HD_ZERO ? "(zero)" : "(copy)", instr_seconds(c, p, x, rank, &call, threads, teams));
        }
    }
    return s;
}

#endif
