#include "base/thread.h"

#include <assert.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"

enum { MAX_THREADS = 256, CACHE_LINE = 64, SPINS_PER_CLOCK = 32 };
#define POLITE_NS 5000
#define SPIN_NS 300000 /* then sleep: an idle team must not burn cores, and waking costs some 5-50 us */

/* ---- gates: a word that waiters watch until it changes ---- */

typedef struct gate {
    _Alignas(CACHE_LINE) _Atomic uint32_t value;
    _Atomic uint32_t sleepers; /* in futex_wait or about to be; makes the waking system call rare */
} gate;

static inline void relax_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Whether value left `old` within SPIN_NS. */
static bool gate_spin(gate *g, uint32_t old)
{
    int64_t end = 0;
    for (;;) {
        for (int i = 0; i < SPINS_PER_CLOCK; i++) {
            if (atomic_load_explicit(&g->value, memory_order_acquire) != old) return true;
            relax_cpu();
        }
        int64_t now = now_ns();
        if (!end) end = now + SPIN_NS;
        else if (now > end) return false;
        else if (end - now < SPIN_NS - POLITE_NS) sched_yield(); /* perhaps the one we wait for wants this core */
    }
}

static void gate_wait(gate *g, uint32_t old, bool spin)
{
    if (atomic_load_explicit(&g->value, memory_order_acquire) != old) return;
    if (spin && gate_spin(g, old)) return;
    /* Sequentially consistent on both sides: either we see the new value here, or gate_set sees the sleeper. */
    atomic_fetch_add(&g->sleepers, 1);
    while (atomic_load(&g->value) == old) syscall(SYS_futex, &g->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&g->sleepers, 1);
}

static void gate_set(gate *g, uint32_t value)
{
    atomic_store(&g->value, value);
    if (atomic_load(&g->sleepers)) syscall(SYS_futex, &g->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* ---- the team ---- */

typedef struct helper {
    hd_team *team;
    pthread_t thread;
    int tid;
} helper;

struct hd_team {
    gate go;    /* run number; helpers wait here between runs */
    gate done;  /* run number of the last run that all helpers finished */
    gate phase; /* of the barrier: its sense, as a count */
    _Alignas(CACHE_LINE) _Atomic uint32_t arrived; /* at the barrier, in this phase */
    _Alignas(CACHE_LINE) _Atomic uint32_t running; /* helpers not done with this run */
    /* Written before go changes, read after. */
    _Alignas(CACHE_LINE) void (*fn)(void *arg, int tid);
    void *arg;
    bool stop;
    int size;
    bool spin;
    helper helpers[]; /* size - 1 */
};

static void *helper_main(void *p)
{
    helper *h = p;
    hd_team *t = h->team;
    for (uint32_t run = 0;; run++) {
        gate_wait(&t->go, run, t->spin);
        if (t->stop) return NULL;
        t->fn(t->arg, h->tid);
        if (atomic_fetch_sub(&t->running, 1) == 1) gate_set(&t->done, run + 1);
    }
}

void hd_team_run(hd_team *t, void (*fn)(void *arg, int tid), void *arg)
{
    if (t->size > 1) {
        uint32_t run = atomic_load_explicit(&t->go.value, memory_order_relaxed);
        t->fn = fn;
        t->arg = arg;
        atomic_store(&t->running, (uint32_t)t->size - 1);
        gate_set(&t->go, run + 1);
        fn(arg, 0);
        gate_wait(&t->done, run, t->spin);
    } else {
        fn(arg, 0);
    }
}

void hd_team_barrier(hd_team *t, int tid)
{
    assert(tid >= 0 && tid < t->size);
    (void)tid;
    if (t->size == 1) return;
    /* Cannot change before this member arrives, so it is the phase of this very meeting. */
    uint32_t phase = atomic_load_explicit(&t->phase.value, memory_order_relaxed);
    if (atomic_fetch_add(&t->arrived, 1) + 1 == (uint32_t)t->size) {
        atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
        gate_set(&t->phase, phase + 1);
    } else {
        gate_wait(&t->phase, phase, t->spin);
    }
}

/* Cores first .. first + count - 1 of `all`; whether there are as many. */
static bool pick_cores(const cpu_set_t *all, int first, int count, cpu_set_t *out)
{
    CPU_ZERO(out);
    for (int c = 0, n = 0; c < CPU_SETSIZE; c++) {
        if (!CPU_ISSET(c, all)) continue;
        if (n >= first && n < first + count) CPU_SET(c, out);
        n++;
    }
    return count > 0 && CPU_COUNT(out) == count;
}

/* Keeps a thread to the nth of the cores that its starter may run on. */
static void pin_helper(pthread_t thread, int nth)
{
    cpu_set_t all, one;
    if (sched_getaffinity(0, sizeof all, &all) || !pick_cores(&all, nth, 1, &one)) return;
    pthread_setaffinity_np(thread, sizeof one, &one); /* only a wish */
}

static int cores_of_caller(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? hd_core_count() : CPU_COUNT(&set);
    return n < hd_core_count() ? n : hd_core_count();
}

/* Ends the helpers 1 .. count-1 and gives the memory back. */
static void stop_team(hd_team *t, int count)
{
    t->stop = true;
    gate_set(&t->go, atomic_load(&t->go.value) + 1);
    for (int i = 0; i < count - 1; i++) pthread_join(t->helpers[i].thread, NULL);
    hd_unmap_memory(t, sizeof *t + sizeof(helper) * (size_t)(t->size - 1));
}

hd_team *hd_team_new(int threads, bool pin, hd_error *err)
{
    if (threads < 1 || threads > MAX_THREADS) {
        hd_fail(err, HD_EINVAL, "%d threads asked for, must be 1 to %d", threads, MAX_THREADS);
        return NULL;
    }
    size_t bytes = sizeof(hd_team) + sizeof(helper) * (size_t)(threads - 1);
    hd_team *t = hd_map_memory(bytes); /* for its alignment: gates must not share cache lines */
    if (!t) {
        hd_fail_memory(err, bytes, "a thread team");
        return NULL;
    }
    t->size = threads;
    t->spin = threads <= hd_core_count();
    for (int i = 1; i < threads; i++) {
        helper *h = &t->helpers[i - 1];
        *h = (helper){ .team = t, .tid = i };
        int rc = pthread_create(&h->thread, NULL, helper_main, h);
        if (rc) {
            hd_fail(err, HD_ENOMEM, "cannot start thread %d of %d: %s", i + 1, threads, strerror(rc));
            stop_team(t, i);
            return NULL;
        }
        if (pin && threads == cores_of_caller()) pin_helper(h->thread, i);
    }
    return t;
}

void hd_team_free(hd_team *t)
{
    if (t) stop_team(t, t->size);
}

int hd_team_size(const hd_team *t) { return t->size; }

void hd_split(int64_t n, int64_t unit, int tid, int count, int64_t *begin, int64_t *end)
{
    int64_t units = n / unit + (n % unit != 0);
    int64_t each = units / count, extra = units % count; /* the first `extra` members take one more */
    int64_t first = each * tid + (tid < extra ? tid : extra);
    int64_t last = first + each + (tid < extra);
    *begin = first >= units ? n : first * unit;
    *end = last >= units ? n : last * unit;
}

/* The processor time a container may use, in whole cores rounded up; 0 when not limited. */
static int core_quota(void)
{
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    double quota, period;
    int n = 0;
    if (!f) return 0;
    if (fscanf(f, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0) n = (int)((quota + period - 1) / period);
    fclose(f);
    return n;
}

int hd_core_count(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(getpid(), sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
    int quota = core_quota();
    if (quota > 0 && quota < n) n = quota;
    return n > 0 ? n : 1;
}

void hd_thread_pin(int first, int count)
{
    cpu_set_t all, some;
    if (sched_getaffinity(getpid(), sizeof all, &all) || !pick_cores(&all, first, count, &some)) return;
    pthread_setaffinity_np(pthread_self(), sizeof some, &some);
}

void hd_thread_wake_soon(void)
{
    /* struct sched_attr, version 0 (sched_setattr(2)); glibc 2.36 has no name for it. Of SCHED_OTHER, `runtime` is the slice: 100 us is the least. */
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; } a = {.size = sizeof a, .policy = SCHED_OTHER};
    a.nice = getpriority(PRIO_PROCESS, 0);
    a.runtime = 100000;
    syscall(SYS_sched_setattr, 0, &a, 0);
}
