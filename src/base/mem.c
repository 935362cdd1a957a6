#include "base/mem.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"

/* The one place with process-wide state: instruments for tests, touched only through atomics. */
static _Atomic uint64_t allocations, failures;
static _Atomic uint64_t fail_in; /* 0: off; n: the nth allocation from now fails */

/* Counts one allocation; false when a test wants it to fail. */
static bool count_allocation(void)
{
    atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
    uint64_t left = atomic_load_explicit(&fail_in, memory_order_relaxed);
    while (left > 0) {
        if (!atomic_compare_exchange_weak(&fail_in, &left, left - 1)) continue;
        if (left > 1) return true;
        atomic_fetch_add(&failures, 1);
        return false;
    }
    return true;
}

uint64_t hd_mem_count(void) { return atomic_load_explicit(&allocations, memory_order_relaxed); }
void hd_mem_fail_at(uint64_t nth) { atomic_store(&fail_in, nth); }
uint64_t hd_mem_failed(void) { return atomic_load(&failures); }

/* No request beyond the address space (47 bits) ever reaches the C library, so none can overflow there. */
static bool too_large(size_t n, size_t size) { return n > (SIZE_MAX >> 17) / size; }

void *hd_malloc(size_t bytes)
{
    return count_allocation() && !too_large(bytes, 1) ? malloc(bytes ? bytes : 1) : NULL;
}

void *hd_calloc(size_t n, size_t size)
{
    if (!n || !size) n = size = 1;
    return count_allocation() && !too_large(n, size) ? calloc(n, size) : NULL;
}

void *hd_realloc_array(void *p, size_t n, size_t size)
{
    if (!n || !size) n = size = 1;
    return count_allocation() && !too_large(n, size) ? reallocarray(p, n, size) : NULL;
}

char *hd_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *copy = hd_malloc(n);
    return copy ? memcpy(copy, s, n) : NULL;
}

void hd_free(void *p) { free(p); }

/* ---- memory from the kernel ---- */

#define HUGE_PAGE ((size_t)2 << 20)

static size_t round_to_huge(size_t bytes)
{
    if (!bytes) bytes = 1;
    return bytes > SIZE_MAX - 2 * HUGE_PAGE ? 0 : (bytes + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
}

void *hd_map_memory(size_t bytes)
{
    size_t size = round_to_huge(bytes);
    if (!size || !count_allocation()) return NULL;
    /* One huge page more than needed; what lies before and behind the aligned piece goes back at once. */
    char *raw = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return NULL;
    size_t before = (HUGE_PAGE - (uintptr_t)raw % HUGE_PAGE) % HUGE_PAGE;
    char *p = raw + before;
    if (before) munmap(raw, before);
    if (HUGE_PAGE - before) munmap(p + size, HUGE_PAGE - before);
    madvise(p, size, bytes > HUGE_PAGE / 2 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE); /* only a wish. What is small would take a whole one */
    return p;
}

void hd_unmap_memory(void *p, size_t bytes)
{
    if (p) munmap(p, round_to_huge(bytes));
}

void hd_release_pages(void *p, size_t bytes)
{
    uintptr_t page = 4096, begin = ((uintptr_t)p + page - 1) / page * page, end = ((uintptr_t)p + bytes) / page * page;
    if (end > begin) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

/* ---- growing arrays ---- */

int hd_grow(void *array, size_t *capacity, size_t need, size_t size)
{
    if (need <= *capacity) return HD_OK;
    size_t want = *capacity < 8 ? 8 : *capacity;
    while (want < need) want = want > SIZE_MAX / 2 ? need : want * 2;
    void *p;
    memcpy(&p, array, sizeof p);
    p = hd_realloc_array(p, want, size);
    if (!p) return HD_ENOMEM;
    memcpy(array, &p, sizeof p);
    *capacity = want;
    return HD_OK;
}

/* ---- arenas ---- */

struct hd_arena_chunk {
    hd_arena_chunk *next;
    size_t size, used; /* bytes of data[] */
    _Alignas(16) unsigned char data[];
};

enum { FIRST_CHUNK = 4096, LARGEST_CHUNK = 1 << 20 };

/* A new head of at least `bytes`; a chunk made for one large piece goes behind the head, which may have room left. */
static hd_arena_chunk *add_chunk(hd_arena *a, size_t bytes)
{
    size_t usual = a->head ? a->head->size * 2 : FIRST_CHUNK;
    if (usual > LARGEST_CHUNK) usual = LARGEST_CHUNK;
    size_t size = bytes > usual ? bytes : usual;
    hd_arena_chunk *c = hd_malloc(sizeof *c + size);
    if (!c) return NULL;
    c->size = size;
    c->used = 0;
    if (a->head && bytes > usual / 2) {
        c->next = a->head->next;
        a->head->next = c;
    } else {
        c->next = a->head;
        a->head = c;
    }
    return c;
}

static void *arena_take(hd_arena *a, size_t bytes)
{
    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = (bytes + 15) & ~(size_t)15;
    hd_arena_chunk *c = a->head;
    if (!c || c->size - c->used < bytes) c = add_chunk(a, bytes);
    if (!c) return NULL;
    void *p = c->data + c->used;
    c->used += bytes;
    a->used += bytes;
    return p;
}

void *hd_arena_alloc(hd_arena *a, size_t bytes)
{
    void *p = arena_take(a, bytes);
    return p ? memset(p, 0, bytes) : NULL;
}

void *hd_arena_copy(hd_arena *a, const void *p, size_t bytes)
{
    void *copy = arena_take(a, bytes);
    if (copy && bytes) memcpy(copy, p, bytes);
    return copy;
}

char *hd_arena_strdup(hd_arena *a, const char *s) { return hd_arena_copy(a, s, strlen(s) + 1); }

char *hd_arena_printf(hd_arena *a, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    char *p = n < 0 ? NULL : arena_take(a, (size_t)n + 1);
    if (p) vsnprintf(p, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(args);
    return p;
}

void hd_arena_free(hd_arena *a)
{
    for (hd_arena_chunk *c = a->head, *next; c; c = next) {
        next = c->next;
        hd_free(c);
    }
    *a = (hd_arena){0};
}
