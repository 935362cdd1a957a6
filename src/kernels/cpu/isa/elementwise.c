/* elementwise.c: the elementwise family and `fused` chains: one interpreter over tiles that stay in the first-level cache.
 *
 * Every op is a chain of steps over registers; a register is a tile of at most TILE floats. A tile is a run of one row of the result
 * after neighbouring dimensions were merged, so that each operand is there contiguous, constant, or strided. When rows are short, tiles
 * run over many of them and operands are collected element by element. Lanes past a tile's end are computed and thrown away, so an
 * element's value never depends on where tiles or threads begin. */
#include "kernels/cpu/isa/rows.h"
#include "kernels/cpu/isa/vmath.h"

#if HD_ISA_LEVEL <= 2 /* nothing to gain from the sets above AVX-512 */

#define TILE 1024
#define SHORT_ROW 192 /* below it a tile spans rows */
#define MAX_REGISTERS (HD_MAX_OPERANDS + HD_CHAIN_MAX)

typedef struct lanes {
    float *y;
    const float *a, *b, *c;
    float imm;
    double imm64;
    hd_dtype dtype;
    int n; /* a multiple of HD_VL */
} lanes;

/* ---- steps ---- */

typedef vf (*unary_fn)(vf a, float imm);
typedef vf (*binary_fn)(vf a, vf b);

HD_INLINE void unary_loop(const lanes *s, unary_fn f)
{
    float *y = s->y;
    const float *a = s->a;
    float imm = s->imm;
    int n = s->n;
    for (int i = 0; i < n; i += HD_VL) vf_store(y + i, f(vf_load(a + i), imm));
}

HD_INLINE void binary_loop(const lanes *s, binary_fn f)
{
    float *y = s->y;
    const float *a = s->a, *b = s->b;
    int n = s->n;
    for (int i = 0; i < n; i += HD_VL) vf_store(y + i, f(vf_load(a + i), vf_load(b + i)));
}

#define UNARY(name, expression)                             \
    HD_INLINE vf lane_##name(vf x, float imm)               \
    {                                                       \
        (void)imm;                                          \
        return expression;                                  \
    }                                                       \
    static void step_##name(const lanes *s)                 \
    {                                                       \
        unary_loop(s, lane_##name);                         \
    }

#define BINARY(name, expression)                            \
    HD_INLINE vf lane_##name(vf x, vf z)                    \
    {                                                       \
        return expression;                                  \
    }                                                       \
    static void step_##name(const lanes *s)                 \
    {                                                       \
        binary_loop(s, lane_##name);                        \
    }

HD_INLINE vf one_or_zero(vi mask)
{
    return (vf)(mask & 0x3f800000);
}

UNARY(copy, x)
UNARY(neg, -x)
UNARY(abs, vf_abs(x))
UNARY(square, x * x)
UNARY(sqrt, vf_sqrt(x))
UNARY(rsqrt, 1.0f / vf_sqrt(x))
UNARY(recip, 1.0f / x)
UNARY(exp, vf_exp(x))
UNARY(log, vf_log(x))
UNARY(tanh, vf_tanh(x))
UNARY(sigmoid, vf_sigmoid(x))
UNARY(softplus, vf_softplus(x))
UNARY(relu, vf_larger(x, vf_zero()))
UNARY(gelu, vf_gelu(x))
UNARY(gelu_tanh, vf_gelu_tanh(x))
UNARY(silu, vf_silu(x))
UNARY(erf, vf_erf(x))
UNARY(sign, vf_select(x != x, x, one_or_zero(x > 0.0f) - one_or_zero(x < 0.0f)))
UNARY(isfinite, one_or_zero(((vi)x & 0x7f800000) != 0x7f800000))
UNARY(scale, x * imm)
UNARY(offset, x + imm)
UNARY(mini, vf_smaller(x, vf_set1(imm)))
UNARY(maxi, vf_larger(x, vf_set1(imm)))
BINARY(add, x + z)
BINARY(sub, x - z)
BINARY(mul, x * z)
BINARY(div, x / z)
BINARY(max, vf_larger(x, z))
BINARY(min, vf_smaller(x, z))
BINARY(lt, one_or_zero(x < z))
BINARY(le, one_or_zero(x <= z))
BINARY(eq, one_or_zero(x == z))
BINARY(relu_grad, (vf)((vi)z & (vi)(x > 0.0f)))
BINARY(gelu_grad, vf_gelu_grad(x) * z)
BINARY(gelu_tanh_grad, vf_gelu_tanh_grad(x) * z)
BINARY(silu_grad, vf_silu_grad(x) * z)
BINARY(tanh_grad, (1.0f - x * x) * z)
BINARY(sigmoid_grad, x * (1.0f - x) * z)

/* Above 8192 the three-part pi/2 runs out of bits: rare, so libm does it. */
HD_INLINE void sincos_loop(const lanes *s, int phase)
{
    for (int i = 0; i < s->n; i += HD_VL) {
        vf x = vf_load(s->a + i), y = vf_sincos(x, phase);
        vi wide = (vi)(vf_abs(x) > 8192.0f);
        if (vf_hmax(one_or_zero(wide)) > 0)
            for (int l = 0; l < HD_VL; l++)
                if (wide[l]) y[l] = (float)(phase ? cos(x[l]) : sin(x[l]));
        vf_store(s->y + i, y);
    }
}

static void step_sin(const lanes *s)
{
    sincos_loop(s, 0);
}

static void step_cos(const lanes *s)
{
    sincos_loop(s, 1);
}

static void step_pow(const lanes *s)
{
    for (int i = 0; i < s->n; i++) s->y[i] = (float)pow(s->a[i], s->b[i]);
}

static void step_powi(const lanes *s)
{
    if (s->imm64 == 2)
        step_square(s);
    else if (s->imm64 == 0.5)
        step_sqrt(s);
    else if (s->imm64 == -0.5)
        step_rsqrt(s);
    else if (s->imm64 == -1)
        step_recip(s);
    else
        for (int i = 0; i < s->n; i++) s->y[i] = (float)pow(s->a[i], s->imm64);
}

static void step_cast(const lanes *s)
{
    const float *a = s->a;
    float *y = s->y;
    if (s->dtype == HD_BF16)
        for (int i = 0; i < s->n; i += HD_VL) vf_store(y + i, vf_from_bf16(bf16_from_vf(vf_load(a + i))));
    else if (s->dtype == HD_F16)
        for (int i = 0; i < s->n; i += HD_VL) vf_store(y + i, vf_from_f16(f16_from_vf(vf_load(a + i))));
    else
        step_copy(s);
}

static void step_select(const lanes *s)
{
    for (int i = 0; i < s->n; i += HD_VL) vf_store(s->y + i, vf_select(vf_load(s->a + i) != 0.0f, vf_load(s->b + i), vf_load(s->c + i)));
}

static void (*const step_table[HD_EW_COUNT])(const lanes *) = {
    [HD_EW_COPY] = step_copy, [HD_EW_NEG] = step_neg, [HD_EW_ABS] = step_abs, [HD_EW_SQUARE] = step_square, [HD_EW_SQRT] = step_sqrt,
    [HD_EW_RSQRT] = step_rsqrt, [HD_EW_RECIP] = step_recip, [HD_EW_EXP] = step_exp, [HD_EW_LOG] = step_log, [HD_EW_TANH] = step_tanh,
    [HD_EW_SIGMOID] = step_sigmoid, [HD_EW_SOFTPLUS] = step_softplus, [HD_EW_RELU] = step_relu, [HD_EW_GELU] = step_gelu,
    [HD_EW_GELU_TANH] = step_gelu_tanh, [HD_EW_SILU] = step_silu, [HD_EW_ERF] = step_erf, [HD_EW_SIN] = step_sin,
    [HD_EW_COS] = step_cos, [HD_EW_SIGN] = step_sign, [HD_EW_ISFINITE] = step_isfinite, [HD_EW_SCALE] = step_scale,
    [HD_EW_OFFSET] = step_offset, [HD_EW_POWI] = step_powi, [HD_EW_MINI] = step_mini, [HD_EW_MAXI] = step_maxi, [HD_EW_CAST] = step_cast,
    [HD_EW_ADD] = step_add, [HD_EW_SUB] = step_sub, [HD_EW_MUL] = step_mul, [HD_EW_DIV] = step_div, [HD_EW_MAX] = step_max,
    [HD_EW_MIN] = step_min, [HD_EW_POW] = step_pow, [HD_EW_LT] = step_lt, [HD_EW_LE] = step_le, [HD_EW_EQ] = step_eq,
    [HD_EW_RELU_GRAD] = step_relu_grad, [HD_EW_GELU_GRAD] = step_gelu_grad, [HD_EW_GELU_TANH_GRAD] = step_gelu_tanh_grad,
    [HD_EW_SILU_GRAD] = step_silu_grad, [HD_EW_TANH_GRAD] = step_tanh_grad, [HD_EW_SIGMOID_GRAD] = step_sigmoid_grad,
    [HD_EW_SELECT] = step_select,
};

/* ---- the plan of one call ---- */

typedef struct operand {
    const char *data;
    hd_dtype dtype;
    int64_t stride[HD_MAX_RANK]; /* elements, per merged dimension; 0: broadcast */
    bool constant;               /* one element for all */
    bool copied;                 /* never read in place: also a result, which another result may overwrite */
} operand;

typedef struct plan {
    int rank;                  /* merged dimensions, at least 1 */
    int64_t dim[HD_MAX_RANK];  /* outermost first */
    int n_in, n_steps, n_out;
    operand in[HD_MAX_OPERANDS];
    lanes step[HD_CHAIN_MAX];
    void (*run[HD_CHAIN_MAX])(const lanes *);
    uint8_t arg[HD_CHAIN_MAX][3];
    uint8_t slot[MAX_REGISTERS]; /* buffer of each register */
    int slots;
    uint8_t out[HD_MAX_RESULTS];
    const hd_tensor *result[HD_MAX_RESULTS];
} plan;

static void operand_strides(operand *o, const hd_tensor *t, const hd_tensor *shape)
{
    int64_t step = 1;
    for (int i = 0; i < shape->rank; i++) {
        int d = t->rank - 1 - i, at = shape->rank - 1 - i;
        int64_t extent = d >= 0 ? t->dim[d] : 1;
        o->stride[at] = extent == 1 ? 0 : step;
        step *= extent;
    }
}

static bool dims_merge(const plan *p, int outer, int inner)
{
    for (int i = 0; i < p->n_in; i++)
        if (p->in[i].stride[outer] != p->in[i].stride[inner] * p->dim[inner]) return false;
    return true;
}

static void copy_dim(plan *p, int to, int from)
{
    p->dim[to] = p->dim[from];
    for (int i = 0; i < p->n_in; i++) p->in[i].stride[to] = p->in[i].stride[from];
}

/* Drops extents of 1 and joins neighbours over which every operand walks as over one dimension. */
static void merge_dims(plan *p)
{
    int n = 0;
    for (int d = 0; d < p->rank; d++) {
        if (p->dim[d] == 1) continue;
        if (n > 0 && dims_merge(p, n - 1, d)) {
            int64_t outer = p->dim[n - 1];
            copy_dim(p, n - 1, d);
            p->dim[n - 1] *= outer;
        } else {
            copy_dim(p, n++, d);
        }
    }
    if (n == 0) {
        p->dim[n] = 1;
        for (int i = 0; i < p->n_in; i++) p->in[i].stride[n] = 0;
        n = 1;
    }
    p->rank = n;
}

/* Gives each register a buffer; a step's buffer is free again after its last reader. */
static void assign_slots(plan *p)
{
    int last[MAX_REGISTERS], free_slots[MAX_REGISTERS], n_free = 0;
    for (int r = 0; r < p->n_in + p->n_steps; r++) last[r] = -1;
    for (int s = 0; s < p->n_steps; s++)
        for (int k = 0; k < 3; k++) last[p->arg[s][k]] = s;
    for (int o = 0; o < p->n_out; o++) last[p->out[o]] = p->n_steps;
    for (int r = 0; r < p->n_in; r++) p->slot[r] = (uint8_t)r;
    p->slots = p->n_in;
    for (int s = 0; s < p->n_steps; s++) {
        for (int r = p->n_in; r < p->n_in + s; r++)
            if (last[r] == s) {
                free_slots[n_free++] = p->slot[r];
                last[r] = -2;
            }
        int reg = p->n_in + s;
        p->slot[reg] = (uint8_t)(n_free > 0 ? free_slots[--n_free] : p->slots++);
        if (last[reg] == -1) last[reg] = s + 1; /* never read: free at the next step */
    }
}

static void plan_operands(plan *p, const hd_kernel_args *a, int n_in)
{
    const hd_tensor *shape = &a->out[0];
    p->n_in = n_in;
    p->rank = shape->rank;
    for (int d = 0; d < shape->rank; d++) p->dim[d] = shape->dim[d];
    for (int i = 0; i < n_in; i++) {
        p->in[i].data = a->in[i].data;
        p->in[i].dtype = a->in[i].dtype;
        p->in[i].copied = false;
        operand_strides(&p->in[i], &a->in[i], shape);
    }
    merge_dims(p);
    for (int i = 0; i < n_in; i++) {
        p->in[i].constant = true;
        for (int d = 0; d < p->rank; d++) p->in[i].constant &= p->in[i].stride[d] == 0;
    }
}

static void plan_step(plan *p, int s, hd_ew op, double imm, hd_dtype dtype, const uint8_t arg[3])
{
    int arity = hd_ew_arity(op);
    p->run[s] = step_table[op];
    p->step[s] = (lanes){.imm = (float)imm, .imm64 = imm, .dtype = dtype};
    for (int k = 0; k < 3; k++) p->arg[s][k] = arg[k < arity ? k : 0];
}

static void plan_single(plan *p, const hd_kernel_args *a)
{
    const hd_ew_attrs *at = a->attrs;
    const uint8_t arg[3] = {0, 1, 2};
    plan_operands(p, a, hd_ew_arity((hd_ew)a->code));
    p->n_steps = 1;
    plan_step(p, 0, (hd_ew)a->code, at->imm, a->out[0].dtype, arg);
    p->n_out = 1;
    p->out[0] = (uint8_t)p->n_in;
    p->result[0] = &a->out[0];
    if (a->code == HD_EW_CAST || a->code == HD_EW_COPY) { /* the store rounds */
        p->n_steps = 0;
        p->out[0] = 0;
    }
    assign_slots(p);
}

static void plan_fused(plan *p, const hd_kernel_args *a)
{
    const hd_fused_attrs *at = a->attrs;
    plan_operands(p, a, at->n_in);
    p->n_steps = at->n_steps;
    for (int s = 0; s < at->n_steps; s++)
        plan_step(p, s, (hd_ew)at->step[s].op, at->step[s].imm, (hd_dtype)at->step[s].dtype, at->step[s].arg);
    p->n_out = 0;
    for (int o = 0; o < at->n_out; o++) {
        if (!a->out[o].data) continue;
        p->out[p->n_out] = at->out[o];
        p->result[p->n_out++] = &a->out[o];
        if (at->out[o] < at->n_in && at->n_out > 1) p->in[at->out[o]].copied = true;
    }
    assign_slots(p);
}

/* ---- tiles ---- */

static float element_load(const operand *o, int64_t i)
{
    if (o->dtype == HD_I8) return ((const int8_t *)o->data)[i];
    if (o->dtype == HD_U8) return ((const uint8_t *)o->data)[i];
    if (o->dtype == HD_I32) return (float)((const int32_t *)o->data)[i];
    if (o->dtype == HD_I64) return (float)((const int64_t *)o->data)[i];
    return f32_load_as(o->data, o->dtype, i);
}

static void fill(float *dst, float v, int n)
{
    for (int i = 0; i < n; i += HD_VL) vf_store(dst + i, vf_set1(v));
}

static void zero_padding(float *dst, int n)
{
    for (int i = n; i % HD_VL != 0; i++) dst[i] = 0;
}

/* A run of one row: elements base, base + stride, ... */
static const float *load_run(const operand *o, float *buffer, int64_t base, int64_t stride, int n)
{
    if (stride == 0) {
        fill(buffer, element_load(o, base), n);
    } else if (stride == 1 && is_vf_dtype(o->dtype)) {
        if (o->dtype == HD_F32 && n % HD_VL == 0 && !o->copied) return (const float *)o->data + base;
        row_load(buffer, o->data, o->dtype, base, n);
    } else {
        for (int i = 0; i < n; i++) buffer[i] = element_load(o, base + i * stride);
        zero_padding(buffer, n);
    }
    return buffer;
}

/* Elements [begin, begin+n) in row-major order, across rows. */
static void collect(const plan *p, const operand *o, float *buffer, int64_t begin, int n)
{
    int64_t index[HD_MAX_RANK], at = 0, rest = begin;
    for (int d = p->rank - 1; d >= 0; d--) {
        index[d] = rest % p->dim[d];
        rest /= p->dim[d];
        at += index[d] * o->stride[d];
    }
    int last = p->rank - 1;
    for (int i = 0; i < n; i++) {
        buffer[i] = element_load(o, at);
        int d = last;
        at += o->stride[d];
        while (++index[d] == p->dim[d] && d > 0) {
            at += o->stride[d - 1] - index[d] * o->stride[d];
            index[d] = 0;
            d--;
        }
    }
    zero_padding(buffer, n);
}

static bool is_dense(const plan *p, const operand *o)
{
    int64_t step = 1;
    for (int d = p->rank - 1; d >= 0; d--) {
        if (o->stride[d] != step) return false;
        step *= p->dim[d];
    }
    return true;
}

static void store_result(const hd_tensor *t, int64_t at, const float *x, int n)
{
    if (is_vf_dtype(t->dtype)) {
        if (t->dtype == HD_F32 && (const float *)t->data + at == x) return;
        row_store(t->data, t->dtype, at, x, n);
        return;
    }
    for (int i = 0; i < n; i++) { /* 0, 1 or -1 */
        if (t->dtype == HD_I32) ((int32_t *)t->data)[at + i] = (int32_t)x[i];
        else if (t->dtype == HD_I64) ((int64_t *)t->data)[at + i] = (int64_t)x[i];
        else ((int8_t *)t->data)[at + i] = (int8_t)x[i];
    }
}

/* Runs the steps over one tile whose operands are in reg[0 .. n_in) and stores the results at element `at`. */
static void run_tile(plan *p, const float **reg, float (*buffer)[TILE], int64_t at, int n)
{
    for (int s = 0; s < p->n_steps; s++) {
        lanes *l = &p->step[s];
        float *y = buffer[p->slot[p->n_in + s]];
        bool in_place = s == p->n_steps - 1 && p->n_out == 1 && p->out[0] == p->n_in + s && p->result[0]->dtype == HD_F32 && n % HD_VL == 0;
        l->y = in_place ? (float *)p->result[0]->data + at : y;
        l->a = reg[p->arg[s][0]];
        l->b = reg[p->arg[s][1]];
        l->c = reg[p->arg[s][2]];
        l->n = (int)hd_round_up(n, HD_VL);
        p->run[s](l);
        reg[p->n_in + s] = l->y;
    }
    for (int o = 0; o < p->n_out; o++) store_result(p->result[o], at, reg[p->out[o]], n);
}

static void fill_constants(const plan *p, const float **reg, float (*buffer)[TILE])
{
    for (int i = 0; i < p->n_in; i++)
        if (p->in[i].constant) {
            fill(buffer[i], element_load(&p->in[i], 0), TILE);
            reg[i] = buffer[i];
        }
}

static void run_rows(plan *p, const hd_kernel_args *a, int64_t rows, float (*buffer)[TILE])
{
    const float *reg[MAX_REGISTERS];
    int64_t inner = p->dim[p->rank - 1], pieces = (inner + TILE - 1) / TILE, begin, end;
    hd_split(rows * pieces, 1, a->tid, a->threads, &begin, &end);
    if (begin < end) fill_constants(p, reg, buffer);
    for (int64_t u = begin; u < end; u++) {
        int64_t row = u / pieces, col = u % pieces * TILE;
        int n = (int)(inner - col < TILE ? inner - col : TILE);
        for (int i = 0; i < p->n_in; i++) {
            const operand *o = &p->in[i];
            if (o->constant) continue;
            int64_t base = col * o->stride[p->rank - 1], rest = row;
            for (int d = p->rank - 2; d >= 0; d--) {
                base += rest % p->dim[d] * o->stride[d];
                rest /= p->dim[d];
            }
            reg[i] = load_run(o, buffer[i], base, o->stride[p->rank - 1], n);
        }
        run_tile(p, reg, buffer, row * inner + col, n);
    }
}

static void run_across_rows(plan *p, const hd_kernel_args *a, int64_t count, float (*buffer)[TILE])
{
    const float *reg[MAX_REGISTERS];
    bool dense[HD_MAX_OPERANDS];
    int64_t begin, end;
    hd_split(count, HD_VL, a->tid, a->threads, &begin, &end);
    if (begin < end) fill_constants(p, reg, buffer);
    for (int i = 0; i < p->n_in; i++) dense[i] = is_dense(p, &p->in[i]);
    for (int64_t at = begin; at < end; at += TILE) {
        int n = (int)(end - at < TILE ? end - at : TILE);
        for (int i = 0; i < p->n_in; i++) {
            if (p->in[i].constant) continue;
            reg[i] = buffer[i];
            if (dense[i]) reg[i] = load_run(&p->in[i], buffer[i], at, 1, n);
            else collect(p, &p->in[i], buffer[i], at, n);
        }
        run_tile(p, reg, buffer, at, n);
    }
}

static void run_plan(plan *p, const hd_kernel_args *a)
{
    _Alignas(64) float buffer[MAX_REGISTERS][TILE];
    int64_t rows = 1;
    for (int d = 0; d + 1 < p->rank; d++) rows *= p->dim[d];
    int64_t inner = p->dim[p->rank - 1];
    if (rows == 0 || inner == 0 || p->n_out == 0) return;
    if (rows == 1 || inner >= SHORT_ROW) run_rows(p, a, rows, buffer);
    else run_across_rows(p, a, rows * inner, buffer);
}

static void run_single(const hd_kernel_args *a)
{
    plan p;
    if (!a->out[0].data) return;
    plan_single(&p, a);
    run_plan(&p, a);
}

static void run_fused(const hd_kernel_args *a)
{
    plan p;
    plan_fused(&p, a);
    run_plan(&p, a);
}

/* broadcast is a copy to the result's shape. */
static void run_broadcast(const hd_kernel_args *a)
{
    hd_ew_attrs at = {0};
    hd_kernel_args copy = *a;
    copy.attrs = &at;
    copy.code = HD_EW_COPY;
    run_single(&copy);
}

/* Any dtypes, through the definition, one element at a time: f64, and arithmetic on integers. */
static void run_any(const hd_kernel_args *a)
{
    const hd_ew_attrs *at = a->attrs;
    const hd_tensor *y = &a->out[0];
    plan p;
    int64_t begin, end;
    if (!y->data) return;
    plan_operands(&p, a, a->n_in);
    hd_split(hd_tensor_count(y), 16, a->tid, a->threads, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        double x[3] = {0};
        for (int o = 0; o < a->n_in; o++) {
            int64_t from = 0, rest = i;
            for (int d = p.rank - 1; d >= 0; d--) {
                from += rest % p.dim[d] * p.in[o].stride[d];
                rest /= p.dim[d];
            }
            x[o] = hd_load_f64(a->in[o].data, a->in[o].dtype, from);
        }
        hd_store_f64(y->data, y->dtype, i, hd_ew_eval((hd_ew)a->code, at->imm, x[0], x[1], x[2]));
    }
}

/* ---- what is taken ---- */

/* Except i64 results of integers, for which f64 is too short. */
static bool supports_any(const hd_kernel_args *a)
{
    bool integers = a->out[0].dtype == HD_I64;
    for (int i = 0; i < a->n_in; i++) integers = integers && !hd_dtype_is_float(a->in[i].dtype);
    return !integers && !a->accumulate && a->n_in == hd_ew_arity((hd_ew)a->code) && a->n_out == 1;
}

static bool is_exact_in_f32(hd_dtype t)
{
    return is_vf_dtype(t) || t == HD_I8 || t == HD_U8;
}

static bool gives_small_integers(int op)
{
    return op == HD_EW_LT || op == HD_EW_LE || op == HD_EW_EQ || op == HD_EW_ISFINITE;
}

static bool supports_single(const hd_kernel_args *a)
{
    int arity = hd_ew_arity((hd_ew)a->code);
    if (a->n_in != arity || a->n_out != 1 || a->accumulate) return false;
    hd_dtype out = a->out[0].dtype, in = a->in[0].dtype;
    if ((a->code == HD_EW_CAST || a->code == HD_EW_COPY) && (in == HD_I32 || in == HD_I64)) return out == HD_F32;
    for (int i = 0; i < arity; i++)
        if (!is_exact_in_f32(a->in[i].dtype)) return false;
    if (is_vf_dtype(out)) return true;
    return gives_small_integers(a->code) && out != HD_F64;
}

static bool supports_fused(const hd_kernel_args *a)
{
    const hd_fused_attrs *at = a->attrs;
    if (a->n_in != at->n_in || at->n_in > HD_MAX_OPERANDS || at->n_steps > HD_CHAIN_MAX || at->n_out > HD_MAX_RESULTS) return false;
    if (a->accumulate || !results_are_vf(a)) return false;
    for (int i = 0; i < a->n_in; i++)
        if (!is_exact_in_f32(a->in[i].dtype)) return false;
    for (int s = 0; s < at->n_steps; s++)
        if (at->step[s].op >= HD_EW_COUNT || (at->step[s].op == HD_EW_CAST && !is_vf_dtype((hd_dtype)at->step[s].dtype))) return false;
    return true;
}

static bool supports_broadcast(const hd_kernel_args *a)
{
    return !a->accumulate && is_vf_dtype(a->in[0].dtype) && a->in[0].dtype == a->out[0].dtype;
}

/* Same dtype, same shape: bytes. */
static bool supports_bytes(const hd_kernel_args *a)
{
    return a->n_in == 1 && a->in[0].dtype == a->out[0].dtype && hd_tensor_count(&a->in[0]) == hd_tensor_count(&a->out[0]);
}

static void run_bytes(const hd_kernel_args *a)
{
    int64_t begin, end;
    if (!a->out[0].data || a->out[0].data == a->in[0].data) return;
    hd_split((int64_t)hd_tensor_bytes(&a->out[0]), 64, a->tid, a->threads, &begin, &end);
    if (begin < end) memcpy((char *)a->out[0].data + begin, (const char *)a->in[0].data + begin, (size_t)(end - begin));
}

#define SINGLE(name) {.op = name, .supports = supports_single, .run = run_single}, {.op = name, .supports = supports_any, .run = run_any}
const hd_kernel HD_ISA(hd_kernels_elementwise)[] = {
    {.op = "copy", .supports = supports_bytes, .run = run_bytes},
    {.op = "cast", .supports = supports_bytes, .run = run_bytes},
    SINGLE("copy"), SINGLE("neg"), SINGLE("abs"), SINGLE("square"), SINGLE("sqrt"), SINGLE("rsqrt"), SINGLE("recip"), SINGLE("exp"),
    SINGLE("log"), SINGLE("tanh"), SINGLE("sigmoid"), SINGLE("softplus"), SINGLE("relu"), SINGLE("gelu"), SINGLE("gelu_tanh"),
    SINGLE("silu"), SINGLE("erf"), SINGLE("sin"), SINGLE("cos"), SINGLE("sign"), SINGLE("isfinite"), SINGLE("scale"), SINGLE("offset"),
    SINGLE("powi"), SINGLE("mini"), SINGLE("maxi"), SINGLE("cast"), SINGLE("add"), SINGLE("sub"), SINGLE("mul"), SINGLE("div"),
    SINGLE("max"), SINGLE("min"), SINGLE("pow"), SINGLE("lt"), SINGLE("le"), SINGLE("eq"), SINGLE("relu_grad"), SINGLE("gelu_grad"),
    SINGLE("gelu_tanh_grad"), SINGLE("silu_grad"), SINGLE("tanh_grad"), SINGLE("sigmoid_grad"), SINGLE("select"),
    {.op = "broadcast", .supports = supports_broadcast, .run = run_broadcast},
    {.op = "fused", .supports = supports_fused, .run = run_fused},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_elementwise)[] = {{0}};
#endif
