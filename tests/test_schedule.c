/* test_schedule.c: schedules of pipelines: complete, free of deadlock, and as short as their papers say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/mem.h"
#include "program/schedule.h"

enum { MOST_STAGES = 8, MOST_CHUNKS = 4, MOST_MICRO = 24 };

typedef struct job {
    hd_schedule_kind kind;
    int stages, chunks, micro;
    int cost[3];                  /* of a slot, by kind */
    hd_slot *slots[MOST_STAGES];
    int n[MOST_STAGES];
    int done[3][MOST_STAGES * MOST_CHUNKS][MOST_MICRO]; /* when a call of a chunk of the model ended, 0: not yet */
    int makespan, last_of_forward; /* in slots */
} job;

static void job_open(job *j, hd_schedule_kind kind, int stages, int chunks, int micro, int backward, int weight)
{
    hd_error err = {0};
    *j = (job){.kind = kind, .stages = stages, .chunks = chunks, .micro = micro, .cost = {1, backward, weight}};
    for (int i = 0; i < stages; i++) assert_int_equal(hd_schedule_make(kind, i, stages, chunks, micro, &j->slots[i], &j->n[i], &err), 0);
}

static void job_close(job *j)
{
    for (int i = 0; i < j->stages; i++) hd_free(j->slots[i]);
}

/* ---- what must have ended before a call may start: 0 if something is missing, else when (at least 1) ---- */

static int ready_at(const job *j, int chunk, const hd_slot *s)
{
    int last = j->stages * j->chunks - 1;
    if (s->kind == HD_SLOT_FORWARD) return chunk == 0 ? 1 : j->done[HD_SLOT_FORWARD][chunk - 1][s->micro];
    if (s->kind == HD_SLOT_WEIGHT) return j->done[HD_SLOT_BACKWARD][chunk][s->micro];
    int forward = j->done[HD_SLOT_FORWARD][chunk][s->micro], behind = chunk == last ? 1 : j->done[HD_SLOT_BACKWARD][chunk + 1][s->micro];
    if (!forward || !behind) return 0;
    return forward > behind ? forward : behind;
}

/* Runs the stages against each other; times start at 1. Fails where none can go on. */
static void simulate(job *j)
{
    int at[MOST_STAGES] = {0}, clock[MOST_STAGES], left = 0;
    for (int i = 0; i < j->stages; i++) clock[i] = 1, left += j->n[i];
    while (left) {
        int before = left;
        for (int i = 0; i < j->stages; i++) {
            while (at[i] < j->n[i]) {
                const hd_slot *s = &j->slots[i][at[i]];
                int chunk = s->chunk * j->stages + i, start = ready_at(j, chunk, s);
                if (!start) break;
                clock[i] = (start > clock[i] ? start : clock[i]) + j->cost[s->kind];
                j->done[s->kind][chunk][s->micro] = clock[i];
                if (s->kind == HD_SLOT_FORWARD && clock[i] - 1 > j->last_of_forward) j->last_of_forward = clock[i] - 1;
                at[i]++, left--;
            }
            if (clock[i] - 1 > j->makespan) j->makespan = clock[i] - 1;
        }
        assert_true(left < before); /* else a deadlock */
    }
}

/* ---- each call exactly once, F before B before W, micro-batches in ascending order ---- */

static void check_complete(const job *j)
{
    bool weights = j->kind == HD_SCHEDULE_ZERO_BUBBLE && j->stages > 1;
    for (int i = 0; i < j->stages; i++) {
        int next[3][MOST_CHUNKS] = {{0}};
        assert_int_equal(j->n[i], j->micro * j->chunks * (weights ? 3 : 2));
        for (int k = 0; k < j->n[i]; k++) {
            const hd_slot *s = &j->slots[i][k];
            assert_in_range(s->chunk, 0, j->chunks - 1);
            assert_int_equal(s->micro, next[s->kind][s->chunk]);
            next[s->kind][s->chunk]++;
            if (s->kind != HD_SLOT_FORWARD) assert_true(s->micro < next[s->kind - 1][s->chunk]);
        }
        for (int c = 0; c < j->chunks; c++)
            for (int kind = 0; kind < 3; kind++) assert_int_equal(next[kind][c], kind == HD_SLOT_WEIGHT && !weights ? 0 : j->micro);
    }
}

/* Messages of one direction between chunks that lie on two stages are sent in the order in which they are wanted: by chunk and micro-batch of the
 * sender and of the receiver. */
static int messages(const job *j, int stage, int from, int to, bool sending, int *out)
{
    int n = 0, chunks = j->stages * j->chunks;
    for (int k = 0; k < j->n[stage]; k++) {
        const hd_slot *s = &j->slots[stage][k];
        if (s->kind == HD_SLOT_WEIGHT) continue;
        int chunk = s->chunk * j->stages + stage, step = s->kind == HD_SLOT_FORWARD ? 1 : -1;
        int source = sending ? chunk : chunk - step, target = source + step;
        if (source < 0 || target < 0 || source >= chunks || target >= chunks) continue;
        if (source % j->stages != from || target % j->stages != to) continue;
        out[n++] = (source * chunks + target) * MOST_MICRO + s->micro;
    }
    return n;
}

static void check_messages(const job *j)
{
    static int sent[2 * MOST_CHUNKS * MOST_MICRO], wanted[2 * MOST_CHUNKS * MOST_MICRO];
    if (j->stages == 1) return;
    for (int i = 0; i < j->stages; i++)
        for (int k = 0; k < j->stages; k++) {
            int n = messages(j, i, i, k, true, sent);
            assert_int_equal(n, messages(j, k, i, k, false, wanted));
            if (j->stages == 2 && j->chunks > 1) continue; /* both directions between one pair: told apart by their chunks */
            for (int x = 0; x < n; x++) assert_int_equal(sent[x], wanted[x]);
        }
}

static void check_job(job *j)
{
    check_complete(j);
    check_messages(j);
    simulate(j);
}

/* ---- tests ---- */

static void test_gpipe_and_1f1b(void **state)
{
    (void)state;
    for (int p = 1; p <= MOST_STAGES; p++)
        for (int m = 1; m <= 13; m++)
            for (int kind = HD_SCHEDULE_GPIPE; kind <= HD_SCHEDULE_1F1B; kind++) {
                static job j;
                job_open(&j, kind, p, 1, m, 1, 0);
                check_job(&j);
                assert_int_equal(j.makespan, 2 * (p + m - 1));
                if (kind == HD_SCHEDULE_GPIPE && p > 1) assert_int_equal(j.last_of_forward, p + m - 1);
                for (int i = 0; i < p; i++) {
                    int flight = hd_schedule_in_flight(j.slots[i], j.n[i], 0, HD_SLOT_FORWARD, HD_SLOT_BACKWARD);
                    int theirs = kind == HD_SCHEDULE_GPIPE && p > 1 ? m : m < p - i ? m : p - i;
                    assert_int_equal(flight, theirs);
                }
                job_close(&j);
            }
}

static void test_interleaved(void **state)
{
    (void)state;
    for (int p = 1; p <= MOST_STAGES; p++)
        for (int v = 1; v <= MOST_CHUNKS; v++)
            for (int m = p; m <= 3 * p; m += p) {
                static job j;
                job_open(&j, HD_SCHEDULE_INTERLEAVED, p, v, m, 1, 0);
                check_job(&j);
                assert_int_equal(j.makespan - 2 * m * v, 2 * (p - 1)); /* of slots 1/v as long as those of 1F1B, which idles as many */
                for (int i = 0, warm = 0; i < p; i++, warm = 0) { /* as in section 2.2.2's figure and Megatron */
                    while (j.slots[i][warm].kind == HD_SLOT_FORWARD) warm++;
                    int most = 2 * (p - 1 - i) + (v - 1) * p + 1;
                    assert_int_equal(warm, most < m * v ? most : m * v);
                }
                job_close(&j);
                job_open(&j, HD_SCHEDULE_INTERLEAVED, p, v, m, 2, 0);
                check_job(&j);
                assert_int_equal(j.makespan - 3 * m * v, 3 * (p - 1));
                job_close(&j);
            }
}

static void test_zero_bubble(void **state)
{
    (void)state;
    for (int p = 1; p <= MOST_STAGES; p++)
        for (int m = 1; m <= 3 * p; m++) {
            static job zero, plain;
            job_open(&zero, HD_SCHEDULE_ZERO_BUBBLE, p, 1, m, p == 1 ? 2 : 1, 1);
            job_open(&plain, HD_SCHEDULE_1F1B, p, 1, m, 2, 0);
            check_job(&zero);
            check_job(&plain);
            assert_int_equal(plain.makespan, 3 * (p + m - 1));
            if (p > 1) assert_true(zero.makespan < plain.makespan);
            if (m >= p) assert_int_equal(zero.makespan - 3 * m, p - 1);
            for (int i = 0; i < p && p > 1; i++) {
                assert_true(hd_schedule_in_flight(zero.slots[i], zero.n[i], 0, HD_SLOT_FORWARD, HD_SLOT_BACKWARD) <= p - i);
                assert_true(hd_schedule_in_flight(zero.slots[i], zero.n[i], 0, HD_SLOT_FORWARD, HD_SLOT_WEIGHT) <= p);
            }
            job_close(&zero);
            job_close(&plain);
        }
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct { int kind, stage, stages, chunks, micro; } bad[] = {
        {HD_SCHEDULE_KINDS, 0, 1, 1, 1},   {-1, 0, 1, 1, 1},                       {HD_SCHEDULE_1F1B, 2, 2, 1, 4},     {HD_SCHEDULE_1F1B, -1, 2, 1, 4},
        {HD_SCHEDULE_1F1B, 0, 0, 1, 4},    {HD_SCHEDULE_1F1B, 0, 2, 2, 4},         {HD_SCHEDULE_GPIPE, 0, 2, 0, 4},    {HD_SCHEDULE_GPIPE, 0, 2, 1, 0},
        {HD_SCHEDULE_INTERLEAVED, 0, 2, 2, 3}, {HD_SCHEDULE_ZERO_BUBBLE, 0, 2, 2, 4}, {HD_SCHEDULE_GPIPE, 0, 2, 1, INT32_MAX},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        hd_error err = {0};
        hd_slot *slots;
        int n;
        assert_int_equal(hd_schedule_make(bad[i].kind, bad[i].stage, bad[i].stages, bad[i].chunks, bad[i].micro, &slots, &n, &err), HD_EINVAL);
        assert_null(slots);
        assert_true(err.message[0] != 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gpipe_and_1f1b), cmocka_unit_test(test_interleaved), cmocka_unit_test(test_zero_bubble),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
