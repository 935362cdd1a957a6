/* mem.h: the only way Heddle allocates: a counting, swappable allocator, and arenas by lifetime.
 *
 * Tests make the Nth allocation fail, and count allocations on the hot path, through hd_mem_fail_at and hd_mem_count. */
#ifndef HD_BASE_MEM_H
#define HD_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

/* As the C functions of the same name; NULL on failure. hd_calloc and hd_realloc_array check n * size for overflow. */
void *hd_malloc(size_t bytes);
void *hd_calloc(size_t n, size_t size);
void *hd_realloc_array(void *p, size_t n, size_t size);
char *hd_strdup(const char *s);
void hd_free(void *p);

/* Number of allocations since the process started (any thread). */
uint64_t hd_mem_count(void);
/* Makes the nth allocation from now fail (1 is the next one), once; 0 switches this off. hd_mem_failed: how many were made to fail. */
void hd_mem_fail_at(uint64_t nth);
uint64_t hd_mem_failed(void);

/* Big zeroed memory straight from the kernel, 2 MiB aligned, transparent huge pages asked for; touched lazily. NULL on failure. */
void *hd_map_memory(size_t bytes);
void hd_unmap_memory(void *p, size_t bytes);
/* Gives the whole pages inside a piece of such memory back; they read as zeros afterwards. */
void hd_release_pages(void *p, size_t bytes);

/* Ensures *array (elements of size bytes, *capacity of them) holds at least `need`, doubling. Returns 0 or HD_ENOMEM. */
int hd_grow(void *array, size_t *capacity, size_t need, size_t size);

/* ---- arenas: many small pieces, freed together ---- */

typedef struct hd_arena_chunk hd_arena_chunk;
typedef struct hd_arena {
    hd_arena_chunk *head; /* newest chunk; NULL when empty, so a zeroed struct is a valid arena */
    size_t used;          /* bytes handed out */
} hd_arena;

/* Zeroed memory aligned to 16 bytes that lives until hd_arena_free; NULL when out of memory. bytes may be 0. */
void *hd_arena_alloc(hd_arena *a, size_t bytes);
/* Copies of n bytes, of a string, and a formatted string in the arena; NULL when out of memory. */
void *hd_arena_copy(hd_arena *a, const void *p, size_t bytes);
char *hd_arena_strdup(hd_arena *a, const char *s);
char *hd_arena_printf(hd_arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void hd_arena_free(hd_arena *a);

#endif
