/* Dense products (contract) and convolutions of the cpu back end against plain loops in f64, under every instruction set of this machine,
 * and bit for bit over row counts, thread counts, layouts and packing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include "base/mem.h"
#include "base/rng.h"
#include "kernels/cpu/gemm.h"
#include "sanitized.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/* ---- tensors ---- */

static hd_tensor tensor_new(hd_dtype dtype, int rank, const int64_t *dim)
{
    hd_tensor t = {.dtype = dtype, .rank = rank};
    memcpy(t.dim, dim, (size_t)rank * sizeof *dim);
    t.data = hd_calloc(hd_tensor_bytes(&t) + 64, 1);
    assert_non_null(t.data);
    return t;
}

static void tensor_fill(hd_tensor *t, hd_rng *rng)
{
    int64_t n = hd_tensor_count(t);
    for (int64_t i = 0; i < n; i++)
        hd_store_f64(t->data, t->dtype, i, t->dtype == HD_I8 ? (double)hd_rng_below(rng, 256) - 128 : 2 * hd_rng_uniform(rng) - 1);
}

/* ---- running a kernel on a team ---- */

typedef struct job { hd_kernel_args args; const hd_kernel *kernel; } job;

static void run_member(void *arg, int tid)
{
    job *j = arg;
    hd_kernel_args a = j->args;
    a.tid = tid;
    j->kernel->run(&a);
}

/* Runs op; false when no fast kernel takes it. The workspace is poisoned, and the bytes after it must stay as they are. */
static bool run_op(const char *op, hd_isa isa, hd_kernel_args *a, int threads)
{
    job j = {*a, hd_cpu_kernel_find(op, isa, a)};
    if (!j.kernel) return false;
    size_t bytes = j.kernel->workspace ? j.kernel->workspace(a, threads) : 0;
    unsigned char *raw = hd_malloc(bytes + 192), *workspace = raw + (64 - (uintptr_t)raw % 64);
    assert_non_null(raw);
    memset(workspace, 0xff, bytes + 64);
    j.args.workspace = workspace;
    j.args.threads = threads;
    j.args.team = hd_team_new(threads, false, NULL);
    assert_non_null(j.args.team);
    hd_team_run(j.args.team, run_member, &j);
    hd_team_free(j.args.team);
    for (int i = 0; i < 64; i++) assert_int_equal(workspace[bytes + (size_t)i], 0xff);
    hd_free(raw);
    return true;
}

static bool run_contract(hd_isa isa, const char *spec, const hd_tensor *a, const hd_tensor *b, hd_tensor *c, bool accumulate, int threads)
{
    hd_contract_attrs attrs = {.dtype = c->dtype};
    snprintf(attrs.spec, sizeof attrs.spec, "%s", spec);
    hd_tensor in[2] = {*a, *b};
    hd_kernel_args args = {.in = in, .out = c, .n_in = 2, .n_out = 1, .attrs = &attrs, .accumulate = accumulate};
    return run_op("contract", isa, &args, threads);
}

/* ---- the definition, in f64 ---- */

/* expected and the sum of absolute products, for each element of c. */
static void naive_contract(const hd_einsum *e, const int64_t *extent, const hd_tensor *a, const hd_tensor *b, double *sum,
                           double *magnitude)
{
    hd_einsum_nest l[HD_EINSUM_GROUPS];
    for (int g = 0; g < HD_EINSUM_GROUPS; g++) hd_einsum_loops(e, extent, g, &l[g]);
    for (int64_t p = 0; p < l[0].total * l[1].total * l[2].total; p++) {
        int64_t i[3] = {p / (l[1].total * l[2].total), p / l[2].total % l[1].total, p % l[2].total}, at[3] = {0};
        for (int g = 0; g < 3; g++)
            for (int o = 0; o < 3; o++) at[o] += hd_einsum_offset(&l[g], o, i[g]);
        double s = 0, m = 0;
        for (int64_t k = 0; k < l[3].total; k++) {
            double x = hd_load_f64(a->data, a->dtype, at[0] + hd_einsum_offset(&l[3], 0, k)) *
                       hd_load_f64(b->data, b->dtype, at[1] + hd_einsum_offset(&l[3], 1, k));
            s += x, m += fabs(x);
        }
        sum[at[2]] = s, magnitude[at[2]] = m;
    }
}

static double rounding_of(hd_dtype t)
{
    return t == HD_BF16 ? 0x1.1p-8 : t == HD_F16 ? 0x1.1p-11 : 0;
}

/* Elements of c that are not within tolerance of sum + before; before may be NULL. */
static int64_t count_wrong(const hd_tensor *c, const double *before, const double *sum, const double *magnitude)
{
    int64_t wrong = 0, n = hd_tensor_count(c);
    for (int64_t i = 0; i < n; i++) {
        double want = sum[i] + (before ? before[i] : 0), got = hd_load_f64(c->data, c->dtype, i);
        double tol = c->dtype == HD_I32 ? 0 : 1e-5 * (magnitude[i] + fabs(want)) + rounding_of(c->dtype) * fabs(want) +
                     (c->dtype == HD_F16 ? 0x1p-24 : 1e-30);
        wrong += !(fabs(got - want) <= tol);
    }
    return wrong;
}

/* Builds operands for spec, extents as given (in the order of the parsed labels) or drawn from [1, most], and checks every instruction set,
 * plain and packed. */
static void check_spec(const char *spec, const int64_t *want_extent, int64_t most, hd_dtype ta, hd_dtype tb, hd_dtype tc, bool accumulate,
                       hd_rng *rng)
{
    hd_einsum e;
    int64_t extent[HD_EINSUM_LABELS], dim[3][HD_MAX_RANK];
    assert_int_equal(hd_einsum_parse(&e, spec, NULL), 0);
    for (int i = 0; i < e.count; i++) {
        extent[i] = want_extent ? want_extent[i] : 1 + (int64_t)hd_rng_below(rng, (uint64_t)most);
        for (int o = 0; o < 3; o++)
            if (e.label[i].dim[o] >= 0) dim[o][e.label[i].dim[o]] = extent[i];
    }
    hd_tensor a = tensor_new(ta, e.rank[0], dim[0]), b = tensor_new(tb, e.rank[1], dim[1]), c = tensor_new(tc, e.rank[2], dim[2]);
    hd_tensor c0 = tensor_new(tc, e.rank[2], dim[2]);
    tensor_fill(&a, rng), tensor_fill(&b, rng), tensor_fill(&c0, rng);
    int64_t n = hd_tensor_count(&c);
    double *sum = hd_calloc((size_t)n + 1, 8), *magnitude = hd_calloc((size_t)n + 1, 8), *before = hd_calloc((size_t)n + 1, 8);
    naive_contract(&e, extent, &a, &b, sum, magnitude);
    for (int64_t i = 0; i < n; i++) before[i] = hd_load_f64(c0.data, tc, i);
    for (hd_isa isa = HD_ISA_PORTABLE; isa <= hd_isa_detect(); isa++) {
        for (int packed = 0; packed < 2; packed++) {
            hd_tensor p = b;
            size_t bytes = packed ? hd_gemm_packed_bytes(isa, spec, &b) : 0;
            if (packed && !bytes) continue;
            if (packed) {
                p.data = hd_malloc(bytes), p.format = HD_PACKED;
                for (int tid = 0; tid < 3; tid++) hd_gemm_pack(isa, spec, &b, p.data, tid, 3);
            }
            memcpy(c.data, c0.data, hd_tensor_bytes(&c));
            bool ran = run_contract(isa, spec, &a, &p, &c, accumulate, 1 + (int)hd_rng_below(rng, 3));
            int64_t wrong = ran ? count_wrong(&c, accumulate ? before : NULL, sum, magnitude) : 0;
            if (wrong) {
                fprintf(stderr, "%s %s%s %s x %s -> %s%s: %lld of %lld wrong; extents", spec, hd_isa_name(isa), packed ? " packed" : "",
                        hd_dtype_name(ta), hd_dtype_name(tb), hd_dtype_name(tc), accumulate ? " accumulate" : "", (long long)wrong,
                        (long long)n);
                for (int i = 0; i < e.count; i++) fprintf(stderr, " %c=%lld", e.label[i].name, (long long)extent[i]);
                fprintf(stderr, "\n");
            }
            assert_int_equal(wrong, 0);
            if (ta == HD_F32 && tb == HD_F32 && tc == HD_F32) assert_true(ran);
            if (packed) hd_free(p.data);
        }
    }
    hd_free(a.data), hd_free(b.data), hd_free(c.data), hd_free(c0.data), hd_free(sum), hd_free(magnitude), hd_free(before);
}

static const char *const specs[] = {
    "mk,kn->mn", "mk,nk->mn", "km,kn->mn", "km,nk->mn", "mk,kn->nm", "km,nk->nm", "td,hed->the", "the,hed->td", "the,td->hed",
    "bhqe,bhke->bhqk", "bqhe,bkhe->bhqk", "bhqk,bkhe->bqhe", "eti,eio->eto", "ab,b->a", "a,ab->b", "a,b->ab", "ab,ab->", "ab,ab->a",
    "ab,ab->b",
    "abc,cd->abd", "acb,bd->dca", "ab,c->ac", "ab,cd->ac", "ab,ab->ab", "a,->a", ",a->a", ",->", "thd,hed->teh", "xyz,zwx->wy",
};
static const hd_dtype mixes[][3] = {
    {HD_F32, HD_F32, HD_F32},    {HD_BF16, HD_BF16, HD_BF16}, {HD_BF16, HD_BF16, HD_F32}, {HD_F32, HD_BF16, HD_F32},
    {HD_BF16, HD_F32, HD_BF16},  {HD_F16, HD_F16, HD_F16},    {HD_F16, HD_F32, HD_F32},   {HD_I8, HD_I8, HD_I32},
};

static void random_shapes(void **state)
{
    (void)state;
    hd_rng rng = hd_rng_new(1);
    for (int i = 0; i < COUNT(specs); i++)
        for (int t = 0; t < COUNT(mixes); t++)
            for (int round = 0; round < 2; round++) {
                bool accumulate = round && (mixes[t][2] == HD_F32 || mixes[t][2] == HD_I32);
                check_spec(specs[i], NULL, strlen(specs[i]) > 9 ? 11 : 70, mixes[t][0], mixes[t][1], mixes[t][2], accumulate, &rng);
            }
}

/* Shapes that reach every way through the loops: several blocks of k, of rows and of columns, A kept and not kept, narrow edges. */
static void cache_blocks(void **state)
{
    (void)state;
    static const struct { const char *spec; int64_t m, n, k; } shapes[] = {
        {"mk,kn->mn", 1, 100, 900},  {"mk,nk->mn", 9, 97, 1700}, {"km,kn->mn", 30, 50, 2111}, {"mk,nk->mn", 5, 1601, 2100},
        {"mk,kn->mn", 1100, 20, 5},  {"km,nk->mn", 521, 49, 2065}, {"mk,nk->nm", 33, 70, 4200}, {"mk,kn->mn", 17, 48, 769},
        {"mk,kn->mn", 4, 77, 40},    {"mk,kn->mn", 3, 1100, 810},  {"bmk,bkn->bmn", 7, 35, 2101},
    };
    hd_rng rng = hd_rng_new(2);
    for (int i = 0; i < COUNT(shapes); i++)
        for (int t = 0; t < COUNT(mixes); t++) {
            hd_einsum e;
            int64_t extent[4];
            assert_int_equal(hd_einsum_parse(&e, shapes[i].spec, NULL), 0);
            for (int j = 0; j < e.count; j++) {
                char name = e.label[j].name;
                extent[j] = name == 'b' ? 3 : name == 'm' ? shapes[i].m : name == 'n' ? shapes[i].n : shapes[i].k;
            }
            if ((t + i) % (SANITIZED ? 6 : 2) == 0) check_spec(shapes[i].spec, extent, 0, mixes[t][0], mixes[t][1], mixes[t][2],
                                           t != 1 && t != 5 && i % 3 == 0, &rng);
        }
}

static void extent_zero(void **state)
{
    (void)state;
    hd_rng rng = hd_rng_new(3);
    for (int zero = 0; zero < 3; zero++)
        for (int accumulate = 0; accumulate < 2; accumulate++)
            for (int i = 0; i < 5; i++) {
                int64_t extent[3] = {9, 50, 7};
                extent[zero] = 0;
                check_spec(specs[i], extent, 0, HD_F32, HD_F32, HD_F32, accumulate, &rng);
                check_spec(specs[i], extent, 0, HD_BF16, HD_BF16, HD_BF16, false, &rng);
                check_spec(specs[i], extent, 0, HD_I8, HD_I8, HD_I32, accumulate, &rng);
            }
}

/* ---- bit for bit ---- */

/* The reference run: "mk,nk->mn" with every row, one thread; then the same product in other ways. */
typedef struct twin { hd_isa isa; hd_dtype ta, tb, tc; hd_tensor a, b, bt, c; int64_t m, n, k; } twin;

static void transpose_into(hd_tensor *to, const hd_tensor *from)
{
    for (int64_t i = 0; i < from->dim[0]; i++)
        for (int64_t j = 0; j < from->dim[1]; j++)
            hd_store_f64(to->data, to->dtype, j * from->dim[0] + i, hd_load_f64(from->data, from->dtype, i * from->dim[1] + j));
}

static void expect_rows(const twin *t, const hd_tensor *c, int64_t first, int64_t rows, const char *what)
{
    size_t row = (size_t)t->n * hd_dtype_size(t->tc);
    if (memcmp(c->data, (char *)t->c.data + (size_t)first * row, (size_t)rows * row))
        fail_msg("%s: %s %s differs", what, hd_isa_name(t->isa), hd_dtype_name(t->ta));
}

static void check_row_counts(twin *t)
{
    for (int64_t rows = 1; rows <= t->m; rows++)
        for (int threads = 1; threads <= 3; threads += 2) {
            int64_t first = rows == 1 ? t->m - 1 : rows % 3 && rows + 2 <= t->m ? 2 : 0;
            hd_tensor a = t->a, c = tensor_new(t->tc, 2, (int64_t[]){rows, t->n});
            a.data = (char *)t->a.data + (size_t)(first * t->k) * hd_dtype_size(t->ta);
            a.dim[0] = rows;
            assert_true(run_contract(t->isa, "mk,nk->mn", &a, &t->b, &c, false, threads));
            expect_rows(t, &c, first, rows, "row count");
            assert_true(run_contract(t->isa, "mk,kn->mn", &a, &t->bt, &c, false, threads));
            expect_rows(t, &c, first, rows, "row count, b transposed");
            hd_free(c.data);
        }
}

static void check_layouts(twin *t)
{
    hd_tensor c = tensor_new(t->tc, 2, (int64_t[]){t->m, t->n}), back = tensor_new(t->tc, 2, (int64_t[]){t->n, t->m});
    for (int threads = 1; threads <= 3; threads++) {
        assert_true(run_contract(t->isa, "mk,nk->mn", &t->a, &t->b, &c, false, threads));
        expect_rows(t, &c, 0, t->m, "threads");
    }
    assert_true(run_contract(t->isa, "mk,kn->mn", &t->a, &t->bt, &c, false, 2));
    expect_rows(t, &c, 0, t->m, "b transposed");
    assert_true(run_contract(t->isa, "mk,nk->nm", &t->a, &t->b, &back, false, 2));
    transpose_into(&c, &back);
    expect_rows(t, &c, 0, t->m, "c transposed");
    hd_free(c.data), hd_free(back.data);
}

static void check_packed(twin *t)
{
    size_t bytes = hd_gemm_packed_bytes(t->isa, "mk,nk->mn", &t->b);
    if (!bytes) return;
    hd_tensor p = t->b;
    p.format = HD_PACKED, p.data = hd_malloc(bytes);
    hd_gemm_pack(t->isa, "mk,nk->mn", &t->b, p.data, 0, 1);
    for (int64_t rows = 1; rows <= t->m; rows += rows < 9 ? 1 : t->m / 6)
        for (int threads = 1; threads <= 2; threads++) {
            hd_tensor a = t->a, c = tensor_new(t->tc, 2, (int64_t[]){rows, t->n});
            a.dim[0] = rows;
            assert_true(run_contract(t->isa, "mk,nk->mn", &a, &p, &c, false, threads));
            expect_rows(t, &c, 0, rows, "packed");
            hd_free(c.data);
        }
    hd_free(p.data);
}

static void bitwise(void **state)
{
    (void)state;
    hd_rng rng = hd_rng_new(4);
    for (hd_isa isa = HD_ISA_PORTABLE; isa <= hd_isa_detect(); isa++)
        for (int mix = SANITIZED ? (int)isa % 3 : 0; mix < COUNT(mixes); mix += SANITIZED ? 3 : 1) {
            twin t = {.isa = isa, .ta = mixes[mix][0], .tb = mixes[mix][1], .tc = mixes[mix][2], .m = 40, .n = 103, .k = 801};
            t.a = tensor_new(t.ta, 2, (int64_t[]){t.m, t.k});
            t.b = tensor_new(t.tb, 2, (int64_t[]){t.n, t.k});
            t.bt = tensor_new(t.tb, 2, (int64_t[]){t.k, t.n});
            t.c = tensor_new(t.tc, 2, (int64_t[]){t.m, t.n});
            tensor_fill(&t.a, &rng), tensor_fill(&t.b, &rng);
            transpose_into(&t.bt, &t.b);
            if (run_contract(isa, "mk,nk->mn", &t.a, &t.b, &t.c, false, 1)) check_row_counts(&t), check_layouts(&t), check_packed(&t);
            hd_free(t.a.data), hd_free(t.b.data), hd_free(t.bt.data), hd_free(t.c.data);
        }
}

/* Weights as training leaves them, `rare` of them far smaller. trims: whether the first panel is to be trimmed. */
static void check_trimmed(hd_dtype ta, hd_dtype tc, int64_t n, int64_t k, int64_t rare, bool trims, hd_rng *rng)
{
    twin t = {.isa = hd_isa_detect(), .ta = ta, .tb = HD_BF16, .tc = tc, .m = 123, .n = n, .k = k};
    t.a = tensor_new(t.ta, 2, (int64_t[]){t.m, t.k});
    t.b = tensor_new(t.tb, 2, (int64_t[]){t.n, t.k});
    t.c = tensor_new(t.tc, 2, (int64_t[]){t.m, t.n});
    tensor_fill(&t.a, rng);
    for (int64_t i = 0; i < n * k; i++) hd_store_f64(t.b.data, t.tb, i, (i % 2 ? 1 : -1) * ldexp(0.5 + hd_rng_uniform(rng) / 2, -(int)(i / 7 % 15)));
    for (int64_t i = 0; i < rare; i++) hd_store_f64(t.b.data, t.tb, (int64_t)hd_rng_below(rng, (uint64_t)(n * k)), (i % 2 ? -1 : 1) * ldexp(1.5, -(int)(20 + i % 40)));
    assert_true(run_contract(t.isa, "mk,nk->mn", &t.a, &t.b, &t.c, false, 1));
    check_packed(&t);
    size_t bytes = hd_gemm_packed_bytes(t.isa, "mk,nk->mn", &t.b);
    hd_gemm_trim *head = hd_malloc(bytes);
    hd_gemm_pack(t.isa, "mk,nk->mn", &t.b, head, 0, 1);
    assert_true((head->groups > 0) == (trims && t.isa >= HD_ISA_BF16));
    if (head->groups && rare >= 30) assert_true(head->rare > 0 && head->rare <= rare);
    hd_free(head);
    hd_free(t.a.data), hd_free(t.b.data), hd_free(t.c.data);
}

static void trimmed(void **state)
{
    (void)state;
    hd_rng rng = hd_rng_new(31);
    static const struct { int64_t n, k, rare; bool trims; } shapes[] = {
        {103, 3000, 90, true}, {48, 2048, 40, true}, {96, 768, 9, true}, {144, 1602, 30, true}, {200, 1544, 0, true}, {50, 6, 0, true},
        {49, 5, 0, false}, {48, 1, 0, false}, {48, 2304, 3000, false}};
    for (int i = 0; i < COUNT(shapes); i++)
        for (int mix = 0; mix < 3; mix++)
            check_trimmed(mix ? HD_BF16 : HD_F32, mix == 1 ? HD_BF16 : HD_F32, shapes[i].n, shapes[i].k, shapes[i].rare, shapes[i].trims, &rng);
}

/* ---- convolutions ---- */

/* Each product x * w that y's definition has, with where it goes: the three convolutions are sums over the same list. */
typedef struct conv_case { hd_conv_attrs at; int64_t n, c, o, h, w, oh, ow; } conv_case;

static int64_t conv_out(int64_t in, int64_t pad, int64_t dilation, int64_t kernel, int64_t stride)
{
    return (in + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
}

static conv_case conv_draw(hd_rng *r)
{
    conv_case s;
    do {
        memset(&s, 0, sizeof s);
        for (int i = 0; i < 2; i++) {
            s.at.stride[i] = 1 + (int)hd_rng_below(r, 3), s.at.pad[i] = (int)hd_rng_below(r, 3);
            s.at.dilation[i] = 1 + (int)hd_rng_below(r, 2), s.at.kernel[i] = 1 + (int)hd_rng_below(r, 4);
        }
        s.at.groups = 1 + (int)hd_rng_below(r, 3);
        s.n = 1 + (int64_t)hd_rng_below(r, 3), s.c = s.at.groups * (1 + (int64_t)hd_rng_below(r, 5));
        s.o = s.at.groups * (1 + (int64_t)hd_rng_below(r, 9));
        s.h = 1 + (int64_t)hd_rng_below(r, 12), s.w = 1 + (int64_t)hd_rng_below(r, 12);
        s.at.in[0] = (int32_t)s.h, s.at.in[1] = (int32_t)s.w;
        s.oh = conv_out(s.h, s.at.pad[0], s.at.dilation[0], s.at.kernel[0], s.at.stride[0]);
        s.ow = conv_out(s.w, s.at.pad[1], s.at.dilation[1], s.at.kernel[1], s.at.stride[1]);
    } while (s.h + 2 * s.at.pad[0] <= s.at.dilation[0] * (s.at.kernel[0] - 1) ||
             s.w + 2 * s.at.pad[1] <= s.at.dilation[1] * (s.at.kernel[1] - 1));
    return s;
}

/* result: 0 for y from (x, w), 1 for dx from (dy, w), 2 for dw from (dy, x); t[] are x, w and y. */
static void naive_conv(const conv_case *s, const hd_tensor *t, int result, double *sum, double *magnitude)
{
    static const int factor[3][2] = {{0, 1}, {2, 1}, {2, 0}}, target[3] = {2, 0, 1};
    int64_t cg = s->c / s->at.groups, og = s->o / s->at.groups, kh = s->at.kernel[0], kw = s->at.kernel[1];
    for (int64_t n = 0; n < s->n; n++)
        for (int64_t o = 0; o < s->o; o++)
            for (int64_t p = 0; p < s->oh * s->ow; p++)
                for (int64_t k = 0; k < cg * kh * kw; k++) {
                    int64_t y = p / s->ow * s->at.stride[0] + k / kw % kh * s->at.dilation[0] - s->at.pad[0];
                    int64_t x = p % s->ow * s->at.stride[1] + k % kw * s->at.dilation[1] - s->at.pad[1];
                    if (y < 0 || y >= s->h || x < 0 || x >= s->w) continue;
                    int64_t channel = o / og * cg + k / (kh * kw);
                    int64_t at[3] = {((n * s->c + channel) * s->h + y) * s->w + x, o * cg * kh * kw + k,
                                     (n * s->o + o) * s->oh * s->ow + p};
                    const hd_tensor *f = &t[factor[result][0]], *g = &t[factor[result][1]];
                    double v = hd_load_f64(f->data, f->dtype, at[factor[result][0]]) *
                               hd_load_f64(g->data, g->dtype, at[factor[result][1]]);
                    sum[at[target[result]]] += v, magnitude[at[target[result]]] += fabs(v);
                }
}

static void check_conv(conv_case *s, hd_dtype dtype, int result, hd_rng *rng)
{
    static const char *const ops[3] = {"conv2d", "conv2d_grad_x", "conv2d_grad_w"};
    static const int operand[3][2] = {{0, 1}, {2, 1}, {2, 0}}, target[3] = {2, 0, 1};
    hd_tensor t[3] = {tensor_new(dtype, 4, (int64_t[]){s->n, s->c, s->h, s->w}),
                      tensor_new(dtype, 4, (int64_t[]){s->o, s->c / s->at.groups, s->at.kernel[0], s->at.kernel[1]}),
                      tensor_new(dtype, 4, (int64_t[]){s->n, s->o, s->oh, s->ow})};
    for (int i = 0; i < 3; i++) tensor_fill(&t[i], rng);
    hd_tensor *want = &t[target[result]], out = tensor_new(result == 2 ? HD_F32 : dtype, 4, want->dim);
    int64_t n = hd_tensor_count(&out);
    double *sum = hd_calloc((size_t)n + 1, 8), *magnitude = hd_calloc((size_t)n + 1, 8), *before = hd_calloc((size_t)n + 1, 8);
    naive_conv(s, t, result, sum, magnitude);
    s->at.dtype = dtype;
    bool accumulate = result == 2 && hd_rng_below(rng, 2);
    hd_tensor in[2] = {t[operand[result][0]], t[operand[result][1]]};
    hd_kernel_args args = {.in = in, .out = &out, .n_in = 2, .n_out = 1, .attrs = &s->at, .accumulate = accumulate};
    for (hd_isa isa = HD_ISA_PORTABLE; isa <= hd_isa_detect() && isa <= HD_ISA_AVX512; isa++) {
        tensor_fill(&out, rng);
        for (int64_t i = 0; i < n; i++) before[i] = hd_load_f64(out.data, out.dtype, i);
        assert_true(run_op(ops[result], isa, &args, 1 + (int)hd_rng_below(rng, 3)));
        int64_t wrong = count_wrong(&out, accumulate ? before : NULL, sum, magnitude);
        if (wrong) fail_msg("%s %s %s: %lld of %lld wrong", ops[result], hd_isa_name(isa), hd_dtype_name(dtype), (long long)wrong,
                            (long long)n);
    }
    for (int i = 0; i < 3; i++) hd_free(t[i].data);
    hd_free(out.data), hd_free(sum), hd_free(magnitude), hd_free(before);
}

static void convolutions(void **state)
{
    (void)state;
    hd_rng rng = hd_rng_new(5);
    for (int round = 0; round < 60; round++) {
        conv_case s = conv_draw(&rng);
        for (int result = 0; result < 3; result++) check_conv(&s, round % 4 == 3 ? HD_BF16 : HD_F32, result, &rng);
    }
    conv_case empty = conv_draw(&rng);
    empty.n = 0;
    for (int result = 0; result < 3; result++) check_conv(&empty, HD_F32, result, &rng);
}

static void bad_notation(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "ab", "ab,bc", "ab,bc->ad", "aab,bc->ac", "ab,bc->acc", "a1,bc->ac", "ab,bc->ac,", "ab,bc->ac->"};
    for (int i = 0; i < COUNT(bad); i++) {
        hd_einsum e;
        hd_error err = {0};
        int code = hd_einsum_parse(&e, bad[i], &err);
        assert_int_equal(code, HD_EINVAL);
        assert_true(err.message[0] != 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_shapes), cmocka_unit_test(cache_blocks), cmocka_unit_test(extent_zero),
        cmocka_unit_test(bitwise),       cmocka_unit_test(convolutions), cmocka_unit_test(trimmed),
        cmocka_unit_test(bad_notation),
    };
#ifdef __SANITIZE_THREAD__
    cmocka_set_test_filter("bitwise"); /* over many splits among threads; the others let them do the same, for minutes */
#endif
    return cmocka_run_group_tests(tests, NULL, NULL);
}
