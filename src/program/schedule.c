/* schedule.c: the order of calls of a pipeline's stages.
 *
 * Stage i of p, m micro-batches, v chunks a stage. Within a chunk, forward, backward and weight calls each take the micro-batches in ascending order,
 * so that what is under way is a run of consecutive micro-batches, and micro-batch 0 is the first to reach every accumulator.
 *
 *   gpipe        F0 .. F(m-1), B0 .. B(m-1)                                     p + m - 1 slots of F, then as many of B
 *   1f1b         w = min(m, p-1-i) times F; m-w times F B; w times B            the same slots; at most p-i in flight
 *   interleaved  The k-th forward is of chunk (k / p) mod v and micro-batch p * (k / (p v)) + k mod p; the k-th backward of chunk
 *                v-1 - (k / p) mod v and the same micro-batch. w = min(m v, 2 (p-1-i) + (v-1) p) times F; then F B in turn; then the other B:
 *                2 (p-1) slots idle, each 1/v as long
 *   zero-bubble  1f1b, in which B gives only what the stage before waits for. W of a micro-batch comes i micro-batches after its B, and the last i
 *                W fill the end: with F, B, W of one slot each, (p-1)(F + B - W) = p-1 slots idle instead of 3 (p-1), at most p in flight up to W,
 *                which is what the first stage of 1f1b holds (Qi et al. 2023, section 2.3 and table 2: ZB-H1) */
#include "program/schedule.h"

#include "base/mem.h"

typedef struct schedule {
    int stage, stages, chunks, micro;
    hd_slot *slots;
    int n;
} schedule;

static void put(schedule *s, hd_slot_kind kind, int chunk, int micro)
{
    s->slots[s->n++] = (hd_slot){kind, chunk, micro};
}

static int least(int a, int b) { return a < b ? a : b; }

static void make_gpipe(schedule *s)
{
    for (int k = 0; k < s->micro; k++) put(s, HD_SLOT_FORWARD, 0, k);
    for (int k = 0; k < s->micro; k++) put(s, HD_SLOT_BACKWARD, 0, k);
}

/* The k-th forward or backward call of an interleaved stage. */
static void put_interleaved(schedule *s, hd_slot_kind kind, int k)
{
    int group = k / s->stages, chunk = group % s->chunks;
    put(s, kind, kind == HD_SLOT_FORWARD ? chunk : s->chunks - 1 - chunk, group / s->chunks * s->stages + k % s->stages);
}

static void make_interleaved(schedule *s)
{
    int all = s->micro * s->chunks, warm = least(all, 2 * (s->stages - 1 - s->stage) + (s->chunks - 1) * s->stages);
    for (int k = 0; k < all + warm; k++) {
        if (k < all) put_interleaved(s, HD_SLOT_FORWARD, k);
        if (k >= warm) put_interleaved(s, HD_SLOT_BACKWARD, k - warm);
    }
}

static void make_1f1b(schedule *s)
{
    int warm = least(s->micro, s->stages - 1 - s->stage);
    for (int k = 0; k < s->micro + warm; k++) {
        if (k < s->micro) put(s, HD_SLOT_FORWARD, 0, k);
        if (k >= warm) put(s, HD_SLOT_BACKWARD, 0, k - warm);
    }
}

static void make_zero_bubble(schedule *s)
{
    int warm = least(s->micro, s->stages - 1 - s->stage), lag = s->stages == 1 ? 0 : s->stage;
    for (int k = 0; k < s->micro + warm + lag; k++) {
        int back = k - warm, weight = back - lag;
        if (k < s->micro) put(s, HD_SLOT_FORWARD, 0, k);
        if (back >= 0 && back < s->micro) put(s, HD_SLOT_BACKWARD, 0, back);
        if (weight >= 0) put(s, HD_SLOT_WEIGHT, 0, weight);
    }
}

static void (*const makers[HD_SCHEDULE_KINDS])(schedule *s) = {
    [HD_SCHEDULE_GPIPE] = make_gpipe,
    [HD_SCHEDULE_1F1B] = make_1f1b,
    [HD_SCHEDULE_INTERLEAVED] = make_interleaved,
    [HD_SCHEDULE_ZERO_BUBBLE] = make_zero_bubble,
};

static int check(hd_schedule_kind kind, const schedule *s, hd_error *err)
{
    enum { MOST = 1 << 24 }; /* calls of one stage */
    if ((int)kind < 0 || kind >= HD_SCHEDULE_KINDS) return hd_fail(err, HD_EINVAL, "there is no schedule number %d", (int)kind);
    if (s->stages < 1 || s->stage < 0 || s->stage >= s->stages) return hd_fail(err, HD_EINVAL, "there is no stage %d of %d", s->stage, s->stages);
    if (s->chunks < 1 || s->micro < 1) return hd_fail(err, HD_EINVAL, "a schedule needs at least one chunk a stage and one micro-batch");
    if (s->micro > MOST / 3 / s->chunks) return hd_fail(err, HD_EINVAL, "%d micro-batches of %d chunks are too many", s->micro, s->chunks);
    if (kind != HD_SCHEDULE_INTERLEAVED && s->chunks != 1)
        return hd_fail(err, HD_EINVAL, "only the interleaved schedule has several chunks a stage (here %d)", s->chunks);
    if (kind == HD_SCHEDULE_INTERLEAVED && s->micro % s->stages)
        return hd_fail(err, HD_EINVAL, "the interleaved schedule needs a multiple of %d (stages) micro-batches, not %d", s->stages, s->micro);
    return 0;
}

int hd_schedule_make(hd_schedule_kind kind, int stage, int stages, int chunks, int micro, hd_slot **out, int *n, hd_error *err)
{
    schedule s = {.stage = stage, .stages = stages, .chunks = chunks, .micro = micro};
    *out = NULL;
    *n = 0;
    if (check(kind, &s, err)) return HD_EINVAL;
    size_t calls = 3 * (size_t)micro * (size_t)chunks;
    s.slots = hd_calloc(calls, sizeof *s.slots);
    if (!s.slots) return hd_fail_memory(err, calls * sizeof *s.slots, "a schedule");
    (stages == 1 && chunks == 1 ? make_1f1b : makers[kind])(&s);
    *out = s.slots;
    *n = s.n;
    return 0;
}

int hd_schedule_in_flight(const hd_slot *slots, int n, int chunk, hd_slot_kind from, hd_slot_kind to)
{
    int now = 0, most = 0;
    for (int i = 0; i < n; i++) {
        if (slots[i].chunk != chunk) continue;
        now += slots[i].kind == from;
        if (now > most) most = now;
        now -= slots[i].kind == to;
    }
    return most;
}
