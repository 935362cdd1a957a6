/* Products with block-quantized weights against the machine's bounds, measured in turns with them; of each product the best of several rounds.
 *     bench_blocks [threads [rounds [type ...]]]
 * Weights of a language model's shapes, copied until they are far larger than the caches and gone through in turn, so that they come from memory.
 * Few rows are held against the read bandwidth (GB/s of weights as in the file), many against 8-bit multiply-adds (vpdpbusd). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/mem.h"
#include "base/term.h"
#include "kernels/cpu/blocks.h"

#define TOTAL_BYTES ((size_t)512 << 20)
#define READ_BYTES ((size_t)256 << 20)
#define READ_PIECE ((size_t)4 << 20)
#define MAX_WEIGHTS 512

typedef struct job { hd_kernel_args args; const hd_kernel *kernel; } job;

static void run_member(void *arg, int tid)
{
    job *j = arg;
    hd_kernel_args a = j->args;
    a.tid = tid;
    j->kernel->run(&a);
}

static double time_team(hd_team *team, void (*fn)(void *, int), void *arg)
{
    double start = hd_time();
    hd_team_run(team, fn, arg);
    return hd_time() - start;
}

/* ---- bounds: the loops of kernels/cpu/isa/measure.c ---- */

typedef struct bound { job j; double work[256]; hd_tensor in, out; } bound;

static void bound_new(bound *b, const char *op, void *data, size_t bytes, int code, hd_team *team)
{
    int threads = hd_team_size(team);
    b->in = (hd_tensor){.data = data, .dtype = HD_U8, .rank = 1, .dim = {(int64_t)bytes}};
    b->out = (hd_tensor){.data = b->work, .dtype = HD_F64, .rank = 1, .dim = {threads}};
    b->j.args = (hd_kernel_args){.in = &b->in, .out = &b->out, .n_in = 1, .n_out = 1, .code = code, .team = team, .threads = threads};
    b->j.kernel = hd_cpu_kernel_find(op, hd_isa_detect(), &b->j.args);
}

/* Operations a second, once. */
static double bound_rate(bound *b, hd_team *team)
{
    double sum = 0;
    if (!b->j.kernel) return 0;
    double seconds = time_team(team, run_member, &b->j);
    for (int i = 0; i < hd_team_size(team); i++) sum += b->work[i];
    return sum / seconds;
}

/* Reads all of the memory, in pieces as large as the weights are; best[i]: seconds of piece i, lowered. Bytes a second so far. */
static double read_rate(bound *b, hd_team *team, double *best)
{
    double seconds = 0;
    char *first = b->in.data;
    b->in.dim[0] = READ_PIECE;
    for (size_t i = 0; i < READ_BYTES / READ_PIECE; i++) {
        b->in.data = first + i * READ_PIECE;
        best[i] = fmin(best[i], time_team(team, run_member, &b->j));
        seconds += best[i];
    }
    b->in.data = first;
    return (double)READ_BYTES / seconds;
}

/* ---- weights ---- */

static const int64_t shapes[][2] = {{2048, 2048}, {5632, 2048}, {2048, 5632}, {32000, 2048}};

typedef struct weights {
    const hd_quant *type;
    int count;
    hd_tensor w[MAX_WEIGHTS];
    char *memory;
    size_t bytes, file_bytes; /* packed and in the file, of all */
    double operations;        /* of one row with all of them */
} weights;

typedef struct pack_job { const hd_quant *type; const void *rows; hd_tensor *w; int threads; } pack_job;

static void pack_member(void *arg, int tid)
{
    pack_job *p = arg;
    hd_blocks_pack(hd_isa_detect(), p->type, p->rows, p->w->dim[0], p->w->dim[1], p->w->data, tid, p->threads);
}

/* Small random numbers: every f16 of a block is between 1e-5 and 1e-3 or so. */
static void *random_rows(const hd_quant *q, size_t bytes)
{
    unsigned char *p = hd_map_memory(bytes);
    uint32_t seed = 1;
    if (!p) exit(1);
    for (size_t i = 0; i < bytes; i++) p[i] = (unsigned char)((seed = seed * 1664525u + 1013904223u) >> 24) & (q->plain ? 0x1f : 0x0f);
    return p;
}

/* Packs copies of the four shapes until they are TOTAL_BYTES; prints how fast. */
static double weights_new(weights *s, const hd_quant *q, hd_team *team)
{
    hd_isa isa = hd_isa_detect();
    int64_t largest = 0;
    double seconds = 1e30;
    *s = (weights){.type = q};
    hd_quant_bytes(q, 32000 * 2048, &largest);
    void *rows = random_rows(q, (size_t)largest);
    s->memory = hd_map_memory(TOTAL_BYTES + (size_t)largest * 2);
    if (!s->memory) exit(1);
    for (int i = 0; s->bytes < TOTAL_BYTES && s->count < MAX_WEIGHTS; i++) {
        const int64_t *shape = shapes[i % 20 == 19 ? 3 : i % 3];
        int64_t file;
        hd_quant_bytes(q, shape[0] * shape[1], &file);
        hd_tensor *w = &s->w[s->count++];
        *w = (hd_tensor){.data = s->memory + s->bytes, .dtype = HD_F32, .format = HD_PACKED, .blocks = q, .rank = 2, .dim = {shape[0], shape[1]}};
        pack_job p = {q, rows, w, hd_team_size(team)};
        double took = time_team(team, pack_member, &p);
        if (i >= 3) seconds = fmin(seconds, took / (double)file);
        s->bytes += hd_blocks_packed_bytes(isa, q, shape[0], shape[1]);
        s->file_bytes += (size_t)file;
        s->operations += 2.0 * (double)(shape[0] * shape[1]);
    }
    hd_unmap_memory(rows, (size_t)largest);
    return 1 / seconds;
}

/* ---- one type ---- */

/* All products of `rows` rows with the weights, first to last; at most `count` of them. best[i]: seconds, lowered. */
static void run_all(const weights *s, hd_tensor *x, hd_tensor *y, int64_t rows, int count, void *workspace, hd_team *team, double *best)
{
    for (int i = 0; i < count; i++) {
        hd_contract_attrs attrs = {.spec = "td,fd->tf", .dtype = y->dtype};
        hd_tensor in[2] = {*x, s->w[i]}, out = *y;
        in[0].dim[0] = out.dim[0] = rows, in[0].dim[1] = s->w[i].dim[1], out.dim[1] = s->w[i].dim[0];
        job j = {{.in = in, .out = &out, .n_in = 2, .n_out = 1, .attrs = &attrs, .team = team, .threads = hd_team_size(team), .workspace = workspace}, NULL};
        j.kernel = hd_cpu_kernel_find("contract", hd_isa_detect(), &j.args);
        if (!j.kernel) return;
        best[i] = fmin(best[i], time_team(team, run_member, &j));
    }
}

static hd_tensor new_tensor(int64_t rows, int64_t columns)
{
    hd_tensor t = {.dtype = HD_BF16, .rank = 2, .dim = {rows, columns}};
    t.data = hd_map_memory(hd_tensor_bytes(&t));
    if (!t.data) exit(1);
    for (int64_t i = 0; i < rows * columns; i++) ((uint16_t *)t.data)[i] = hd_bf16_from_f32((float)((i * 2654435761u >> 7) % 255) / 127.0f - 1);
    return t;
}

static void run_type(const hd_quant *q, int rounds, hd_team *team, bound *read, bound *multiply)
{
    static const int64_t row_counts[] = {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64, 128, 512};
    static weights s;
    double pack_rate = weights_new(&s, q, team);
    hd_tensor x = new_tensor(512, 5632), y = new_tensor(512, 32000);
    size_t workspace_bytes = (size_t)64 << 20;
    void *workspace = hd_map_memory(workspace_bytes);
    printf("%s: packed %.1f GB/s, %.1f %% larger\n", q->name, pack_rate * 1e-9, 100.0 * ((double)s.bytes / (double)s.file_bytes - 1));
    for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
        int64_t rows = row_counts[i];
        int count = rows <= 4 ? s.count : rows <= 32 ? (s.count < 21 ? s.count : 21) : 3;
        double each[MAX_WEIGHTS], pieces[READ_BYTES / READ_PIECE], best = 0, bytes_rate = 0, rate = 0, bytes = 0, operations = 0;
        for (size_t k = 0; k < READ_BYTES / READ_PIECE; k++) pieces[k] = 1e30;
        for (int k = 0; k < count; k++) {
            int64_t file;
            hd_quant_bytes(q, s.w[k].dim[0] * s.w[k].dim[1], &file);
            each[k] = 1e30;
            bytes += (double)file, operations += 2.0 * (double)(s.w[k].dim[0] * s.w[k].dim[1]) * (double)rows;
        }
        for (int round = 0; round < rounds; round++) {
            bytes_rate = read_rate(read, team, pieces);
            rate = fmax(rate, bound_rate(multiply, team));
            run_all(&s, &x, &y, rows, count, workspace, team, each);
        }
        for (int k = 0; k < count; k++) best += each[k];
        double floor = fmax(bytes / bytes_rate, operations / rate); /* seconds */
        printf("  %4lld rows %9.3f ms  %6.1f GB/s of %5.1f %4.0f%%  %7.1f Gops of %6.1f %4.0f%%  of both %4.0f%%\n", (long long)rows, best * 1e3,
               bytes / best * 1e-9, bytes_rate * 1e-9, 100 * bytes / best / bytes_rate, operations / best * 1e-9, rate * 1e-9,
               100 * operations / best / rate, 100 * floor / best);
        fflush(stdout);
    }
    hd_unmap_memory(x.data, hd_tensor_bytes(&x)), hd_unmap_memory(y.data, hd_tensor_bytes(&y));
    hd_unmap_memory(workspace, workspace_bytes);
    int64_t largest;
    hd_quant_bytes(q, 32000 * 2048, &largest);
    hd_unmap_memory(s.memory, TOTAL_BYTES + (size_t)largest * 2);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"Q8_0", "Q4_0", "Q4_K", "Q6_K", "Q5_K", "Q5_0", "Q4_1", "IQ4_NL", "Q2_K", "Q3_K", "F16"};
    int threads = argc > 1 ? atoi(argv[1]) : hd_core_count(), rounds = argc > 2 ? atoi(argv[2]) : 5;
    hd_error err = {0};
    hd_team *team = threads >= 1 && threads <= 256 ? hd_team_new(threads, true, &err) : NULL;
    char *memory = hd_map_memory(READ_BYTES);
    if (!team || !memory || rounds < 1) {
        fprintf(stderr, "bench_blocks [threads [rounds [type ...]]]: %s\n", err.message);
        return 2;
    }
    memset(memory, 1, READ_BYTES);
    static bound read, multiply;
    bound_new(&read, "measure.read", memory, READ_BYTES, 0, team);
    bound_new(&multiply, "measure.i8", memory, 64, 100000, team);
    printf("%s, %d threads\n", hd_isa_name(hd_isa_detect()), threads);
    for (int i = 0; i < (argc > 3 ? argc - 3 : (int)(sizeof names / sizeof *names)); i++) {
        const hd_quant *q = hd_quant_by_name(argc > 3 ? argv[3 + i] : names[i]);
        if (q) run_type(q, rounds, team, &read, &multiply);
    }
    hd_unmap_memory(memory, READ_BYTES);
    hd_team_free(team);
    return 0;
}
