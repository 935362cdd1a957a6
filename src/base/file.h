/* file.h: reading, mapping, and writing files so that a crash never leaves half of one. */
#ifndef HD_BASE_FILE_H
#define HD_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "base/error.h"
#include "base/str.h"

/* A whole file mapped read-only. */
typedef struct hd_map {
    const unsigned char *data; /* NULL when size is 0 */
    size_t size;               /* bytes */
} hd_map;

int hd_map_open(hd_map *m, const char *path, hd_error *err);
void hd_map_close(hd_map *m);

/* Reads a whole file into s (binary safe). Refuses one over max_bytes (0: no bound). */
int hd_file_read(hd_str *s, const char *path, size_t max_bytes, hd_error *err);

/* Writes a file by way of "<path>.tmp", fsync and rename: the old content or the new, never a mixture.
 * On failure (disk full too) the temporary file is removed and the old file untouched. */
int hd_file_write_atomic(const char *path, const void *data, size_t n, hd_error *err);

/* write(2)/pwrite(2) until done; a short write or ENOSPC is an error naming path. */
int hd_write_all(int fd, const void *data, size_t n, const char *path, hd_error *err);
int hd_pwrite_all(int fd, const void *data, size_t n, uint64_t offset, const char *path, hd_error *err);

int hd_make_dirs(const char *path, hd_error *err);      /* mkdir -p */
int hd_remove_tree(const char *path, hd_error *err);    /* rm -rf; no error when it isn't there */
int hd_sync_dir(const char *path, hd_error *err);       /* fsync of a directory, so that a rename in it lasts */
bool hd_file_exists(const char *path);
bool hd_is_dir(const char *path);
int64_t hd_file_size(const char *path);                 /* bytes, or -1 */

/* "dir/name" into out; HD_EINVAL when it doesn't fit. */
int hd_path_join(char *out, size_t out_size, const char *dir, const char *name, hd_error *err);
/* Whether name stays inside a directory: relative, no "..", no absolute path, no empty name. */
bool hd_path_is_inside(const char *name);

/* Streaming 64-bit checksum of file contents: FNV-1a over 8-byte words, folded after each. Start with HD_CHECKSUM_INIT; every
 * piece but the last must be a multiple of 8 bytes long, so that how the contents are cut does not matter. */
#define HD_CHECKSUM_INIT 0xcbf29ce484222325ull
uint64_t hd_checksum(uint64_t state, const void *data, size_t n);

/* Several times as fast: four such chains side by side. Another number than hd_checksum's. */
uint64_t hd_checksum_fast(const void *data, size_t n);
/* Of a mapped file that is too large to be read for it: its first `head` bytes and its last page, and 4 KiB of every MiB, or of every 1/1024 of a file over
 * 1 GiB; of a file of up to 64 MiB all bytes. */
uint64_t hd_checksum_samples(const hd_map *m, size_t head);

#endif
