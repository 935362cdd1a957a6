/* blocks.c: packs block-quantized weights for their products (blocks_int.h names the layout, tensor/quant.c that of the files). */
#include "kernels/cpu/blocks_int.h"

#define WIDTH HD_BLOCKS_WIDTH
#define CHUNK HD_BLOCKS_CHUNK

#define KIND(name, bits, sub, super, minimum, table, offset) [HD_BLOCKS_##name] = {bits, sub, super, minimum, table, offset},
const hd_blocks_kind hd_blocks_kinds[HD_BLOCKS_KIND_COUNT] = {HD_BLOCKS_KINDS(KIND)};

typedef struct block_type block_type;

/* Packs one column of a chunk of n elements: src is the column's blocks, dst the panel's chunk, lane its column there. */
typedef void (*pack_fn)(const block_type *t, const unsigned char *src, int64_t n, unsigned char *dst, int lane);

/* Where the parts of a block lie in the file; 0: there is no such part (a block begins with its scale or its low bits). */
struct block_type {
    const char *name;
    int kind, scale, minimum, high, low, scales;
    pack_fn pack;
};

static const hd_blocks_kind *kind_of(const block_type *t) { return &hd_blocks_kinds[t->kind]; }

static uint32_t u32_at(const unsigned char *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static void copy_half(unsigned char *to, const unsigned char *from) { memcpy(to, from, 2); }

/* Words from[0 .. count-1] to their vectors. */
static void spread_words(unsigned char *to, int lane, const unsigned char *from, int count, uint32_t flip)
{
    for (int i = 0; i < count; i++) {
        uint32_t v = u32_at(from + 4 * i) ^ flip;
        memcpy(to + 64 * i + 4 * lane, &v, 4);
    }
}

/* Eight words of five-bit numbers into five vectors: the last three words in the spare bits. */
static void put_five(unsigned char *to, int lane, const uint32_t w[8])
{
    const uint32_t one = 0x01010101u, two = 0x03030303u, three = 0x07070707u;
    uint32_t v[5] = {
        w[0] | (w[5] & three) << 5,
        w[1] | (w[5] >> 3 & two) << 5 | (w[7] >> 3 & one) << 7,
        w[2] | (w[6] & three) << 5,
        w[3] | (w[6] >> 3 & two) << 5 | (w[7] >> 4 & one) << 7,
        w[4] | (w[7] & three) << 5,
    };
    for (int i = 0; i < 5; i++) memcpy(to + 64 * i + 4 * lane, &v[i], 4);
}

/* ---- f16, blocks of 32 ---- */

static void pack_f16(const block_type *t, const unsigned char *src, int64_t n, unsigned char *dst, int lane)
{
    (void)t;
    for (int64_t i = 0; i < n; i++) copy_half(dst + 2 * (WIDTH * i + lane), src + 2 * i);
}

/* A block of 32 five-bit numbers; the fifth bits lie next to each other. */
static void pack_five(unsigned char *to, int lane, const unsigned char *low, uint32_t high)
{
    uint32_t word[8];
    for (int i = 0; i < 8; i++) { /* the product moves bits 0 .. 3 to a byte each */
        uint32_t fifth = (high >> (4 * i) & 15) * 0x00204081u & 0x01010101u;
        word[i] = (u32_at(low + i % 4 * 4) >> (i / 4 * 4) & 0x0f0f0f0fu) | fifth << 4;
    }
    put_five(to, lane, word);
}

static void pack_32(const block_type *t, const unsigned char *src, int64_t n, unsigned char *dst, int lane)
{
    const hd_blocks_kind *kind = kind_of(t);
    int64_t blocks = n / 32;
    unsigned char *to = dst + hd_blocks_header_bytes(kind, n);
    int words = kind->bits == 8 ? 8 : 4, bytes = t->low + 4 * words;
    for (int64_t b = 0; b < blocks; b++, src += bytes, to += 64 * kind->bits) {
        copy_half(dst + 2 * (WIDTH * b + lane), src + t->scale);
        if (kind->minimum) copy_half(dst + 2 * (WIDTH * (blocks + b) + lane), src + t->minimum);
        if (kind->bits == 5) pack_five(to, lane, src + t->low, u32_at(src + t->high));
        else spread_words(to, lane, src + t->low, words, kind->bits == 8 ? 0x80808080u : 0);
    }
}

/* ---- K types: one chunk is one block ---- */

static void put_scale(const hd_blocks_kind *kind, unsigned char *dst, int lane, int group, int scale, int minimum)
{
    int groups = CHUNK / kind->sub;
    dst[64 + 16 * group + lane] = (unsigned char)scale;
    if (kind->minimum) dst[64 + 16 * groups + 32 * (group / 2) + 2 * lane + group % 2] = (unsigned char)minimum;
}

/* Q4_K, Q5_K: 6-bit scales and minima in 12 bytes. */
static void put_scales_6(const block_type *t, const unsigned char *p, unsigned char *dst, int lane)
{
    for (int g = 0; g < 4; g++) {
        put_scale(kind_of(t), dst, lane, g, p[g] & 63, p[4 + g] & 63);
        put_scale(kind_of(t), dst, lane, 4 + g, (p[8 + g] & 15) | (p[g] >> 6) << 4, p[8 + g] >> 4 | (p[4 + g] >> 6) << 4);
    }
}

/* Q5_K: bit g of byte i of high belongs to element i of group g. */
static void put_groups_5(unsigned char *to, int lane, const unsigned char *low, const unsigned char *high)
{
    for (int g = 0; g < 8; g++) {
        uint32_t word[8];
        for (int i = 0; i < 8; i++)
            word[i] = (u32_at(low + g / 2 * 32 + 4 * i) >> (g % 2 * 4) & 0x0f0f0f0fu) | (u32_at(high + 4 * i) >> g & 0x01010101u) << 4;
        put_five(to + 64 * 5 * g, lane, word);
    }
}

static void pack_k45(const block_type *t, const unsigned char *src, int64_t n, unsigned char *dst, int lane)
{
    unsigned char *to = dst + hd_blocks_header_bytes(kind_of(t), n);
    copy_half(dst + 2 * lane, src + t->scale);
    copy_half(dst + 32 + 2 * lane, src + t->minimum);
    put_scales_6(t, src + t->scales, dst, lane);
    if (t->high) put_groups_5(to, lane, src + t->low, src + t->high);
    else spread_words(to, lane, src + t->low, 32, 0);
}

/* Four words of six-bit numbers into three: the fourth's pairs of bits go on top of the others. */
static void put_six(unsigned char *to, int lane, const uint32_t word[4])
{
    for (int i = 0; i < 3; i++) {
        uint32_t v = word[i] | (word[3] >> (2 * i) & 0x03030303u) << 6;
        memcpy(to + 64 * i + 4 * lane, &v, 4);
    }
}

static void pack_q6(const block_type *t, const unsigned char *src, int64_t n, unsigned char *dst, int lane)
{
    unsigned char *to = dst + hd_blocks_header_bytes(kind_of(t), n);
    copy_half(dst + 2 * lane, src + t->scale);
    for (int g = 0; g < 16; g++) { /* groups as in the file (tensor/quant.c): of each 128 numbers, 64 bytes of low bits, 32 of high ones */
        int half = g / 8, quarter = g / 2 % 4, first = g % 2 * 16;
        const unsigned char *low = src + half * 64 + quarter % 2 * 32 + first, *high = src + t->high + half * 32 + first;
        uint32_t word[4];
        for (int i = 0; i < 4; i++)
            word[i] = (u32_at(low + 4 * i) >> (quarter / 2 * 4) & 0x0f0f0f0fu) | (u32_at(high + 4 * i) >> (2 * quarter) & 0x03030303u) << 4;
        put_scale(kind_of(t), dst, lane, g, src[t->scales + g], 0);
        put_six(to + 64 * 3 * g, lane, word);
    }
}

/* Four-bit integers of one column, in order of k, to where 4-bit kinds of K types have them. */
static void put_nibbles(unsigned char *to, const unsigned char *q, int lane)
{
    unsigned char bytes[CHUNK / 2];
    for (int i = 0; i < CHUNK / 2; i++) bytes[i] = (unsigned char)(q[i / 32 * 64 + i % 32] | q[i / 32 * 64 + 32 + i % 32] << 4);
    spread_words(to, lane, bytes, 32, 0);
}

/* Two bits, widened to four. */
static void pack_q2(const block_type *t, const unsigned char *src, int64_t n, unsigned char *dst, int lane)
{
    unsigned char q[CHUNK];
    copy_half(dst + 2 * lane, src + t->scale);
    copy_half(dst + 32 + 2 * lane, src + t->minimum);
    for (int g = 0; g < 16; g++) put_scale(kind_of(t), dst, lane, g, src[g] & 15, src[g] >> 4);
    for (int i = 0; i < CHUNK; i++) q[i] = src[t->low + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
    put_nibbles(dst + hd_blocks_header_bytes(kind_of(t), n), q, lane);
}

/* Three bits, widened to four. */
static void pack_q3(const block_type *t, const unsigned char *src, int64_t n, unsigned char *dst, int lane)
{
    unsigned char q[CHUNK];
    const unsigned char *s = src + t->scales;
    copy_half(dst + 2 * lane, src + t->scale);
    for (int g = 0; g < 16; g++) {
        int low = g < 8 ? s[g] & 15 : s[g - 8] >> 4;
        put_scale(kind_of(t), dst, lane, g, (low | (s[8 + g % 4] >> (g / 4 * 2) & 3) << 4) - 32, 0);
    }
    for (int i = 0; i < CHUNK; i++)
        q[i] = (unsigned char)((src[t->low + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3) | (src[i % 32] >> (i / 32) & 1) << 2);
    put_nibbles(dst + hd_blocks_header_bytes(kind_of(t), n), q, lane);
}

static void pack_iq4_xs(const block_type *t, const unsigned char *src, int64_t n, unsigned char *dst, int lane)
{
    unsigned char q[CHUNK];
    int high = src[2] | src[3] << 8;
    copy_half(dst + 2 * lane, src + t->scale);
    for (int g = 0; g < 8; g++)
        put_scale(kind_of(t), dst, lane, g, ((src[t->scales + g / 2] >> (g % 2 * 4) & 15) | (high >> (2 * g) & 3) << 4) - 32, 0);
    for (int i = 0; i < CHUNK; i++) q[i] = src[t->low + i / 32 * 16 + i % 16] >> (i / 16 % 2 * 4) & 15;
    put_nibbles(dst + hd_blocks_header_bytes(kind_of(t), n), q, lane);
}

/* ---- types ---- */

static const block_type types[] = {
    {.name = "F16", .kind = HD_BLOCKS_F16, .pack = pack_f16},
    {.name = "Q8_0", .kind = HD_BLOCKS_B8, .low = 2, .pack = pack_32},
    {.name = "Q4_0", .kind = HD_BLOCKS_B4, .low = 2, .pack = pack_32},
    {.name = "Q4_1", .kind = HD_BLOCKS_B4M, .minimum = 2, .low = 4, .pack = pack_32},
    {.name = "Q5_0", .kind = HD_BLOCKS_B5, .high = 2, .low = 6, .pack = pack_32},
    {.name = "Q5_1", .kind = HD_BLOCKS_B5M, .minimum = 2, .high = 4, .low = 8, .pack = pack_32},
    {.name = "IQ4_NL", .kind = HD_BLOCKS_B4T, .low = 2, .pack = pack_32},
    {.name = "Q2_K", .kind = HD_BLOCKS_K4SM, .scale = 80, .minimum = 82, .low = 16, .pack = pack_q2},
    {.name = "Q3_K", .kind = HD_BLOCKS_K4S, .scale = 108, .scales = 96, .low = 32, .pack = pack_q3},
    {.name = "Q4_K", .kind = HD_BLOCKS_K4M, .minimum = 2, .scales = 4, .low = 16, .pack = pack_k45},
    {.name = "Q5_K", .kind = HD_BLOCKS_K5M, .minimum = 2, .scales = 4, .high = 16, .low = 48, .pack = pack_k45},
    {.name = "Q6_K", .kind = HD_BLOCKS_K6, .high = 128, .scales = 192, .scale = 208, .pack = pack_q6},
    {.name = "IQ4_XS", .kind = HD_BLOCKS_K4T, .scales = 4, .low = 8, .pack = pack_iq4_xs},
};

static const block_type *find(const hd_quant *type)
{
    for (size_t i = 0; type && i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, type->name)) return &types[i];
    return NULL;
}

int hd_blocks_kind_of(const hd_quant *type)
{
    const block_type *t = find(type);
    return t ? t->kind : -1;
}

/* Every instruction set reads the same layout. */
size_t hd_blocks_packed_bytes(hd_isa isa, const hd_quant *type, int64_t columns, int64_t k)
{
    const block_type *t = find(type);
    (void)isa;
    if (!t || columns < 0 || k < 0 || k % type->block) return 0;
    return (size_t)((columns + WIDTH - 1) / WIDTH * hd_blocks_panel_bytes(kind_of(t), k));
}

/* One panel, of `columns` columns at rows. */
static void pack_panel(const block_type *t, const hd_quant *type, const unsigned char *rows, int columns, int64_t k, unsigned char *dst)
{
    int64_t column_bytes = k / type->block * type->bytes, chunk_bytes = (int64_t)CHUNK / type->block * type->bytes;
    for (int64_t k0 = 0; k0 < k; k0 += CHUNK, rows += chunk_bytes) {
        int64_t n = k - k0 < CHUNK ? k - k0 : CHUNK, bytes = hd_blocks_chunk_bytes(kind_of(t), n);
        if (columns < WIDTH) memset(dst, 0, (size_t)bytes);
        for (int lane = 0; lane < columns; lane++) t->pack(t, rows + lane * column_bytes, n, dst, lane);
        dst += bytes;
    }
}

void hd_blocks_pack(hd_isa isa, const hd_quant *type, const void *rows, int64_t columns, int64_t k, void *dst, int tid, int threads)
{
    const block_type *t = find(type);
    int64_t begin, end, panels = (columns + WIDTH - 1) / WIDTH;
    (void)isa;
    if (!t) return;
    int64_t panel_bytes = hd_blocks_panel_bytes(kind_of(t), k), column_bytes = k / type->block * type->bytes;
    hd_split(panels, 1, tid, threads, &begin, &end);
    for (int64_t p = begin; p < end; p++) {
        int64_t left = columns - p * WIDTH;
        pack_panel(t, type, (const unsigned char *)rows + p * WIDTH * column_bytes, (int)(left < WIDTH ? left : WIDTH), k,
                   (unsigned char *)dst + p * panel_bytes);
    }
}
