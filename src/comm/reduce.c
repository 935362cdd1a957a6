#include "comm/reduce.h"

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* Elements in hand at a time: sums of them stay in the first cache. */
enum { PIECE = 1024 };

typedef union piece { float f[PIECE]; double d[PIECE]; int64_t i[PIECE]; } piece;

/* ---- past the caches ---- */

#if defined(__SSE2__)
void hd_copy_stream(void *to, const void *from, size_t bytes)
{
    char *d = to;
    const char *s = from;
    size_t head = (size_t)(-(uintptr_t)d & 63);
    if (head > bytes) head = bytes;
    memcpy(d, s, head);
    size_t k = head;
    for (; k + 64 <= bytes; k += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)(s + k)), b = _mm_loadu_si128((const __m128i *)(s + k + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(s + k + 32)), e = _mm_loadu_si128((const __m128i *)(s + k + 48));
        _mm_stream_si128((__m128i *)(d + k), a);
        _mm_stream_si128((__m128i *)(d + k + 16), b);
        _mm_stream_si128((__m128i *)(d + k + 32), c);
        _mm_stream_si128((__m128i *)(d + k + 48), e);
    }
    memcpy(d + k, s + k, bytes - k);
}

void hd_copy_stream_two(void *to, void *also, const void *from, size_t bytes)
{
    char *d = to, *e = also;
    const char *s = from;
    size_t head = (size_t)(-(uintptr_t)d & 63), k;
    if (((uintptr_t)e & 63) != ((uintptr_t)d & 63)) {
        hd_copy_stream(to, from, bytes);
        hd_copy_stream(also, from, bytes);
        return;
    }
    if (head > bytes) head = bytes;
    memcpy(d, s, head);
    memcpy(e, s, head);
    for (k = head; k + 64 <= bytes; k += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)(s + k)), b = _mm_loadu_si128((const __m128i *)(s + k + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(s + k + 32)), f = _mm_loadu_si128((const __m128i *)(s + k + 48));
        __m128i *x = (__m128i *)(d + k), *y = (__m128i *)(e + k);
        _mm_stream_si128(x, a), _mm_stream_si128(x + 1, b), _mm_stream_si128(x + 2, c), _mm_stream_si128(x + 3, f);
        _mm_stream_si128(y, a), _mm_stream_si128(y + 1, b), _mm_stream_si128(y + 2, c), _mm_stream_si128(y + 3, f);
    }
    memcpy(d + k, s + k, bytes - k);
    memcpy(e + k, s + k, bytes - k);
}

void hd_stream_end(void) { _mm_sfence(); }
#else
void hd_copy_stream(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
void hd_copy_stream_two(void *to, void *also, const void *from, size_t bytes) { memcpy(to, from, bytes), memcpy(also, from, bytes); }
void hd_stream_end(void) {}
#endif

/* ---- an element type to what it is summed in, and back ---- */

static void f32_widen(piece *x, const void *p, int64_t n) { memcpy(x->f, p, (size_t)n * 4); }
static void f32_narrow(void *p, const piece *x, int64_t n) { memcpy(p, x->f, (size_t)n * 4); }
static void f64_widen(piece *x, const void *p, int64_t n) { memcpy(x->d, p, (size_t)n * 8); }
static void f64_narrow(void *p, const piece *x, int64_t n) { memcpy(p, x->d, (size_t)n * 8); }
static void i64_widen(piece *x, const void *p, int64_t n) { memcpy(x->i, p, (size_t)n * 8); }
static void i64_narrow(void *p, const piece *x, int64_t n) { memcpy(p, x->i, (size_t)n * 8); }

static void bf16_widen(piece *x, const void *p, int64_t n)
{
    const uint16_t *h = p;
    for (int64_t i = 0; i < n; i++) x->f[i] = hd_bf16_to_f32(h[i]);
}

static void bf16_narrow(void *p, const piece *x, int64_t n)
{
    uint16_t *h = p;
    for (int64_t i = 0; i < n; i++) h[i] = hd_bf16_from_f32(x->f[i]);
}

static void f16_widen(piece *x, const void *p, int64_t n)
{
    const uint16_t *h = p;
    for (int64_t i = 0; i < n; i++) x->f[i] = hd_f16_to_f32(h[i]);
}

static void f16_narrow(void *p, const piece *x, int64_t n)
{
    uint16_t *h = p;
    for (int64_t i = 0; i < n; i++) h[i] = hd_f16_from_f32(x->f[i]);
}

static void i32_widen(piece *x, const void *p, int64_t n)
{
    const int32_t *v = p;
    for (int64_t i = 0; i < n; i++) x->i[i] = v[i];
}

static void i32_narrow(void *p, const piece *x, int64_t n)
{
    uint32_t *v = p;
    for (int64_t i = 0; i < n; i++) v[i] = (uint32_t)x->i[i];
}

static void i8_widen(piece *x, const void *p, int64_t n)
{
    const int8_t *v = p;
    for (int64_t i = 0; i < n; i++) x->i[i] = v[i];
}

static void u8_widen(piece *x, const void *p, int64_t n)
{
    const uint8_t *v = p;
    for (int64_t i = 0; i < n; i++) x->i[i] = v[i];
}

static void byte_narrow(void *p, const piece *x, int64_t n)
{
    uint8_t *v = p;
    for (int64_t i = 0; i < n; i++) v[i] = (uint8_t)x->i[i];
}

/* ---- sums and maxima ---- */

static void f32_add(piece *restrict x, const piece *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x->f[i] += y->f[i];
}

static void f64_add(piece *restrict x, const piece *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x->d[i] += y->d[i];
}

static void i64_add(piece *restrict x, const piece *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x->i[i] = (int64_t)((uint64_t)x->i[i] + (uint64_t)y->i[i]);
}

static void f32_max(piece *restrict x, const piece *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x->f[i] = ((y->f[i] > x->f[i]) | (y->f[i] != y->f[i])) ? y->f[i] : x->f[i];
}

static void f64_max(piece *restrict x, const piece *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x->d[i] = ((y->d[i] > x->d[i]) | (y->d[i] != y->d[i])) ? y->d[i] : x->d[i];
}

static void i64_max(piece *restrict x, const piece *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x->i[i] = y->i[i] > x->i[i] ? y->i[i] : x->i[i];
}

typedef struct reducer {
    void (*widen)(piece *x, const void *p, int64_t n);
    void (*narrow)(void *p, const piece *x, int64_t n);
    void (*add)(piece *restrict x, const piece *restrict y, int64_t n);
    void (*max)(piece *restrict x, const piece *restrict y, int64_t n);
} reducer;

static const reducer reducers[HD_DTYPE_COUNT] = {
    [HD_F64] = {f64_widen, f64_narrow, f64_add, f64_max},    [HD_F32] = {f32_widen, f32_narrow, f32_add, f32_max},
    [HD_BF16] = {bf16_widen, bf16_narrow, f32_add, f32_max}, [HD_F16] = {f16_widen, f16_narrow, f32_add, f32_max},
    [HD_I64] = {i64_widen, i64_narrow, i64_add, i64_max},    [HD_I32] = {i32_widen, i32_narrow, i64_add, i64_max},
    [HD_I8] = {i8_widen, byte_narrow, i64_add, i64_max},     [HD_U8] = {u8_widen, byte_narrow, i64_add, i64_max},
};

/* ---- two addends of f32, the case that must run at the speed of memory ---- */

#if defined(__SSE2__)
/* Each element is loaded from both before it is stored to any, so outputs may be inputs. */
static void add_two(const float *a, const float *b, float *x, float *y, int64_t n)
{
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m128 s0 = _mm_add_ps(_mm_loadu_ps(a + i), _mm_loadu_ps(b + i)), s1 = _mm_add_ps(_mm_loadu_ps(a + i + 4), _mm_loadu_ps(b + i + 4));
        __m128 s2 = _mm_add_ps(_mm_loadu_ps(a + i + 8), _mm_loadu_ps(b + i + 8)), s3 = _mm_add_ps(_mm_loadu_ps(a + i + 12), _mm_loadu_ps(b + i + 12));
        _mm_storeu_ps(x + i, s0), _mm_storeu_ps(x + i + 4, s1), _mm_storeu_ps(x + i + 8, s2), _mm_storeu_ps(x + i + 12, s3);
        _mm_storeu_ps(y + i, s0), _mm_storeu_ps(y + i + 4, s1), _mm_storeu_ps(y + i + 8, s2), _mm_storeu_ps(y + i + 12, s3);
    }
    for (; i < n; i++) x[i] = y[i] = a[i] + b[i];
}

static void add_two_stream(const float *a, const float *b, float *x, float *y, int64_t n)
{
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m128 s0 = _mm_add_ps(_mm_loadu_ps(a + i), _mm_loadu_ps(b + i)), s1 = _mm_add_ps(_mm_loadu_ps(a + i + 4), _mm_loadu_ps(b + i + 4));
        __m128 s2 = _mm_add_ps(_mm_loadu_ps(a + i + 8), _mm_loadu_ps(b + i + 8)), s3 = _mm_add_ps(_mm_loadu_ps(a + i + 12), _mm_loadu_ps(b + i + 12));
        _mm_stream_ps(x + i, s0), _mm_stream_ps(x + i + 4, s1), _mm_stream_ps(x + i + 8, s2), _mm_stream_ps(x + i + 12, s3);
        _mm_stream_ps(y + i, s0), _mm_stream_ps(y + i + 4, s1), _mm_stream_ps(y + i + 8, s2), _mm_stream_ps(y + i + 12, s3);
    }
    for (; i < n; i++) x[i] = y[i] = a[i] + b[i];
}

static bool add_two_everywhere(const void *const *in, int64_t first, int64_t count, void *const *out, int64_t to, bool stream)
{
    const float *a = (const float *)in[0] + first, *b = (const float *)in[1] + first;
    float *x = (float *)out[0] + to, *y = (float *)out[1] + to;
    uintptr_t skew = (uintptr_t)x & 63;
    if (!stream || skew % 4 || ((uintptr_t)y & 63) != skew) {
        add_two(a, b, x, y, count);
        return true;
    }
    int64_t head = skew ? (int64_t)(64 - skew) / 4 : 0;
    if (head > count) head = count;
    add_two(a, b, x, y, head);
    add_two_stream(a + head, b + head, x + head, y + head, count - head);
    return true;
}
#else
static bool add_two_everywhere(const void *const *in, int64_t first, int64_t count, void *const *out, int64_t to, bool stream)
{
    (void)in, (void)first, (void)count, (void)out, (void)to, (void)stream;
    return false;
}
#endif

/* ---- any ---- */

static void store_everywhere(const reducer *r, size_t size, const piece *sum, int64_t n, void *const *out, int n_out, int64_t to, bool stream)
{
    uint64_t packed[PIECE];
    r->narrow(packed, sum, n);
    for (int o = 0; o < n_out; o++) {
        char *at = (char *)out[o] + (size_t)to * size;
        if (stream) hd_copy_stream(at, packed, (size_t)n * size);
        else memcpy(at, packed, (size_t)n * size);
    }
}

void hd_comm_reduce(hd_dtype dtype, bool max, const void *const *in, int n_in, int64_t first, int64_t count, void *const *out, int n_out, int64_t to, bool stream)
{
    const reducer *r = &reducers[dtype];
    size_t size = hd_dtype_size(dtype);
    if (dtype == HD_F32 && !max && n_in == 2 && n_out == 2 && add_two_everywhere(in, first, count, out, to, stream)) return;
    for (int64_t k = 0; k < count; k += PIECE) {
        piece sum, next;
        int64_t n = count - k < PIECE ? count - k : PIECE;
        r->widen(&sum, (const char *)in[0] + (size_t)(first + k) * size, n);
        for (int i = 1; i < n_in; i++) {
            r->widen(&next, (const char *)in[i] + (size_t)(first + k) * size, n);
            (max ? r->max : r->add)(&sum, &next, n);
        }
        store_everywhere(r, size, &sum, n, out, n_out, to + k, stream);
    }
}
