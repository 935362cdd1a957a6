/* Convolutions and their gradients as dense products in f32 whose second operand is read from the images through a window while it is
 * packed (im2col without the matrix). One product for each group of channels; images run along one dimension of it:
 *     conv2d         y[o, (n, p)]     = sum over (c, ky, kx) of w[o, (c, ky, kx)] * x at (n, c, p*stride + k*dilation - pad)
 *     conv2d_grad_x  dx[c, (n, q)]    = sum over (o, ky, kx) of w[(o, ky, kx), c] * dy at (n, o, (q + pad - k*dilation) / stride)
 *     conv2d_grad_w  dw[o, (c,ky,kx)] = sum over (n, p)      of dy[o, (n, p)]     * x at (n, c, p*stride + k*dilation - pad) */
#include "kernels/cpu/isa/gemm_isa.h"

#if HD_GEMM_UNIT == 1

/* Adds a loop inside of the others, with its steps in a, b and c. */
static void add_loop(hd_einsum_nest *l, int64_t extent, int64_t a, int64_t b, int64_t c)
{
    if (l->n == 0) l->total = 1;
    l->total *= extent;
    l->extent[l->n] = extent;
    l->stride[0][l->n] = a;
    l->stride[1][l->n] = b;
    l->stride[2][l->n] = c;
    l->n++;
}

/* The extents that all three products are made of. */
typedef struct conv_shape {
    int64_t images, groups;
    int64_t c, o;            /* channels of one group */
    int64_t h, w, plane;     /* of x */
    int64_t oh, ow, oplane;  /* of y */
    int64_t kh, kw, kernel;
} conv_shape;

static conv_shape make_shape(const hd_conv_attrs *at, int64_t images, int64_t channels, int64_t h, int64_t w, int64_t out, int64_t kh,
                             int64_t kw)
{
    conv_shape s = {.images = images, .groups = at->groups, .c = channels / at->groups, .o = out / at->groups, .h = h, .w = w, .kh = kh,
                    .kw = kw};
    int64_t reach_h = h + 2 * at->pad[0] - at->dilation[0] * (kh - 1) - 1, reach_w = w + 2 * at->pad[1] - at->dilation[1] * (kw - 1) - 1;
    s.oh = reach_h < 0 ? 0 : reach_h / at->stride[0] + 1;
    s.ow = reach_w < 0 ? 0 : reach_w / at->stride[1] + 1;
    s.plane = h * w, s.oplane = s.oh * s.ow, s.kernel = kh * kw;
    return s;
}

/* Reads x at output positions. */
static hd_gemm_window window_on_x(const hd_conv_attrs *at, const conv_shape *s, bool transposed)
{
    return (hd_gemm_window){
        .height = s->h, .width = s->w, .out_w = s->ow, .out_plane = s->oplane, .kernel_w = s->kw, .kernel_plane = s->kernel,
        .step = {at->stride[0], at->stride[1]}, .tap = {at->dilation[0], at->dilation[1]}, .shift = {-at->pad[0], -at->pad[1]},
        .divide = {1, 1},
        .image_stride = s->groups * s->c * s->plane, .transposed = transposed,
    };
}

/* Reads dy at positions of x. */
static hd_gemm_window window_on_dy(const hd_conv_attrs *at, const conv_shape *s)
{
    return (hd_gemm_window){
        .height = s->oh, .width = s->ow, .out_w = s->w, .out_plane = s->plane, .kernel_w = s->kw, .kernel_plane = s->kernel,
        .step = {1, 1}, .tap = {-at->dilation[0], -at->dilation[1]}, .shift = {at->pad[0], at->pad[1]},
        .divide = {at->stride[0], at->stride[1]},
        .image_stride = s->groups * s->o * s->oplane,
    };
}

typedef void (*conv_setup)(hd_gemm *g, hd_gemm_window *w, const hd_kernel_args *a);

static void setup_forward(hd_gemm *g, hd_gemm_window *window, const hd_kernel_args *a)
{
    const hd_conv_attrs *at = a->attrs;
    const int64_t *x = a->in[0].dim, *w = a->in[1].dim;
    conv_shape s = make_shape(at, x[0], x[1], x[2], x[3], w[0], w[2], w[3]);
    g->a = a->in[1].data, g->ta = a->in[1].dtype;
    g->b = a->in[0].data, g->tb = a->in[0].dtype;
    *window = window_on_x(at, &s, false);
    add_loop(&g->batch, s.groups, s.o * s.c * s.kernel, s.c * s.plane, s.o * s.oplane);
    add_loop(&g->m, s.o, s.c * s.kernel, 0, s.oplane);
    add_loop(&g->n, s.images, 0, 0, s.groups * s.o * s.oplane);
    add_loop(&g->n, s.oplane, 0, 0, 1);
    add_loop(&g->k, s.c * s.kernel, 1, 0, 0);
}

static void setup_grad_x(hd_gemm *g, hd_gemm_window *window, const hd_kernel_args *a)
{
    const hd_conv_attrs *at = a->attrs;
    const int64_t *dy = a->in[0].dim, *w = a->in[1].dim;
    conv_shape s = make_shape(at, dy[0], w[1] * at->groups, at->in[0], at->in[1], w[0], w[2], w[3]);
    g->a = a->in[1].data, g->ta = a->in[1].dtype;
    g->b = a->in[0].data, g->tb = a->in[0].dtype;
    *window = window_on_dy(at, &s);
    add_loop(&g->batch, s.groups, s.o * s.c * s.kernel, s.o * s.oplane, s.c * s.plane);
    add_loop(&g->m, s.c, s.kernel, 0, s.plane);
    add_loop(&g->n, s.images, 0, 0, s.groups * s.c * s.plane);
    add_loop(&g->n, s.plane, 0, 0, 1);
    add_loop(&g->k, s.o, s.c * s.kernel, 0, 0);
    add_loop(&g->k, s.kernel, 1, 0, 0);
}

static void setup_grad_w(hd_gemm *g, hd_gemm_window *window, const hd_kernel_args *a)
{
    const hd_conv_attrs *at = a->attrs;
    const int64_t *dy = a->in[0].dim, *x = a->in[1].dim;
    conv_shape s = make_shape(at, x[0], x[1], x[2], x[3], dy[1], at->kernel[0], at->kernel[1]);
    g->a = a->in[0].data, g->ta = a->in[0].dtype;
    g->b = a->in[1].data, g->tb = a->in[1].dtype;
    *window = window_on_x(at, &s, true);
    add_loop(&g->batch, s.groups, s.o * s.oplane, s.c * s.plane, s.o * s.c * s.kernel);
    add_loop(&g->m, s.o, s.oplane, 0, s.c * s.kernel);
    add_loop(&g->n, s.c * s.kernel, 0, 0, 1);
    add_loop(&g->k, s.images, s.groups * s.o * s.oplane, 0, 0);
    add_loop(&g->k, s.oplane, 1, 0, 0);
}

static void setup(hd_gemm *g, hd_gemm_window *w, const hd_kernel_args *a, conv_setup fill, hd_dtype result)
{
    memset(g, 0, sizeof *g);
    fill(g, w, a);
    g->c = a->n_out > 0 ? a->out[0].data : NULL;
    g->tc = result;
    g->accumulate = a->accumulate;
    g->window = w;
}

static bool takes(const hd_kernel_args *a)
{
    return is_vf_dtype(a->in[0].dtype) && is_vf_dtype(a->in[1].dtype) && a->in[0].format == HD_PLAIN && a->in[1].format == HD_PLAIN;
}

static bool takes_result(const hd_kernel_args *a)
{
    return takes(a) && is_vf_dtype(((const hd_conv_attrs *)a->attrs)->dtype);
}

static size_t workspace_of(const hd_kernel_args *a, int threads, conv_setup fill, hd_dtype result)
{
    hd_gemm g;
    hd_gemm_window w;
    setup(&g, &w, a, fill, result);
    return HD_ISA(hd_gemm_workspace)(&g, threads);
}

static void run_of(const hd_kernel_args *a, conv_setup fill, hd_dtype result)
{
    hd_gemm g;
    hd_gemm_window w;
    setup(&g, &w, a, fill, result);
    HD_ISA(hd_gemm_run)(&g, a);
}

static hd_dtype result_of(const hd_kernel_args *a)
{
    return ((const hd_conv_attrs *)a->attrs)->dtype;
}

static size_t forward_workspace(const hd_kernel_args *a, int threads) { return workspace_of(a, threads, setup_forward, result_of(a)); }
static size_t grad_x_workspace(const hd_kernel_args *a, int threads) { return workspace_of(a, threads, setup_grad_x, result_of(a)); }
static size_t grad_w_workspace(const hd_kernel_args *a, int threads) { return workspace_of(a, threads, setup_grad_w, HD_F32); }
static void forward(const hd_kernel_args *a) { run_of(a, setup_forward, result_of(a)); }
static void grad_x(const hd_kernel_args *a) { run_of(a, setup_grad_x, result_of(a)); }
static void grad_w(const hd_kernel_args *a) { run_of(a, setup_grad_w, HD_F32); }

const hd_kernel HD_ISA(hd_kernels_conv)[] = {
    {"conv2d", takes_result, forward_workspace, forward},
    {"conv2d_grad_x", takes_result, grad_x_workspace, grad_x},
    {"conv2d_grad_w", takes, grad_w_workspace, grad_w},
    {0},
};
#else
const hd_kernel HD_ISA(hd_kernels_conv)[] = {{0}};
#endif
