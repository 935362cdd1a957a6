#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

/* Opens a regular file for reading and tells its size; anything else (a directory, a device) is an error. */
static int open_regular(const char *path, size_t *size, int *out, hd_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return hd_fail_errno(err, "cannot open %s", path);
    struct stat st;
    int rc = HD_OK;
    if (fstat(fd, &st)) rc = hd_fail_errno(err, "cannot read %s", path);
    else if (!S_ISREG(st.st_mode)) rc = hd_fail(err, HD_EIO, "cannot read %s: not a regular file", path);
    if (rc) {
        close(fd);
        return rc;
    }
    *size = (size_t)st.st_size;
    *out = fd;
    return HD_OK;
}

int hd_map_open(hd_map *m, const char *path, hd_error *err)
{
    *m = (hd_map){0};
    int fd = -1;
    int rc = open_regular(path, &m->size, &fd, err);
    if (rc) return rc;
    if (m->size) {
        void *p = mmap(NULL, m->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            rc = hd_fail_errno(err, "cannot map %s (%zu bytes)", path, m->size);
            *m = (hd_map){0};
        } else {
            m->data = p;
        }
    }
    close(fd);
    return rc;
}

void hd_map_close(hd_map *m)
{
    if (m->data) munmap((void *)m->data, m->size);
    *m = (hd_map){0};
}

int hd_file_read(hd_str *s, const char *path, size_t max_bytes, hd_error *err)
{
    hd_map m;
    int rc = hd_map_open(&m, path, err);
    if (rc) return rc;
    hd_str_clear(s);
    if (max_bytes && m.size > max_bytes) {
        rc = hd_fail(err, HD_EFORMAT, "%s is too large: %zu bytes, at most %zu are taken", path, m.size, max_bytes);
    } else {
        hd_str_add(s, m.data, m.size);
        if (s->failed) rc = hd_fail_memory(err, m.size, path);
    }
    hd_map_close(&m);
    return rc;
}

/* ---- writing ---- */

int hd_write_all(int fd, const void *data, size_t n, const char *path, hd_error *err)
{
    const char *p = data;
    while (n) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR) continue;
        if (k == 0) errno = ENOSPC;
        if (k <= 0) return hd_fail_errno(err, "cannot write %s", path);
        p += k;
        n -= (size_t)k;
    }
    return HD_OK;
}

int hd_pwrite_all(int fd, const void *data, size_t n, uint64_t offset, const char *path, hd_error *err)
{
    const char *p = data;
    while (n) {
        ssize_t k = pwrite(fd, p, n, (off_t)offset);
        if (k < 0 && errno == EINTR) continue;
        if (k == 0) errno = ENOSPC;
        if (k <= 0) return hd_fail_errno(err, "cannot write %s", path);
        p += k;
        offset += (uint64_t)k;
        n -= (size_t)k;
    }
    return HD_OK;
}

/* Writes, syncs and closes fd; the first thing to go wrong is the one reported. */
static int write_and_close(int fd, const char *path, const void *data, size_t n, hd_error *err)
{
    int rc = hd_write_all(fd, data, n, path, err);
    if (!rc && fsync(fd)) rc = hd_fail_errno(err, "cannot write %s", path);
    if (close(fd) && !rc) rc = hd_fail_errno(err, "cannot write %s", path);
    return rc;
}

/* Syncs the directory that path lies in. */
static int sync_parent(const char *path, hd_error *err)
{
    char dir[4096];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    if (n >= sizeof dir) return HD_OK;
    memcpy(dir, path, n);
    dir[n] = 0;
    return hd_sync_dir(!slash ? "." : n ? dir : "/", err);
}

int hd_file_write_atomic(const char *path, const void *data, size_t n, hd_error *err)
{
    char temporary[4096];
    if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= (int)sizeof temporary)
        return hd_fail(err, HD_EINVAL, "path too long: %s", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return hd_fail_errno(err, "cannot create %s", temporary);
    int rc = write_and_close(fd, path, data, n, err);
    if (!rc && rename(temporary, path)) rc = hd_fail_errno(err, "cannot rename %s to %s", temporary, path);
    if (rc) {
        unlink(temporary);
        return rc;
    }
    return sync_parent(path, err);
}

/* ---- directories ---- */

int hd_make_dirs(const char *path, hd_error *err)
{
    char part[4096];
    size_t n = strlen(path);
    if (!n || n >= sizeof part) return hd_fail(err, HD_EINVAL, "%s", n ? "path too long" : "empty path for a directory");
    memcpy(part, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (part[i] && part[i] != '/') continue;
        char end = part[i];
        part[i] = 0;
        if (mkdir(part, 0777) && errno != EEXIST) return hd_fail_errno(err, "cannot make directory %s", part);
        part[i] = end;
    }
    return hd_is_dir(path) ? HD_OK : hd_fail(err, HD_EIO, "cannot make directory %s: a file is in the way", path);
}

static int remove_at(int parent, const char *name, const char *shown, hd_error *err);

static int remove_entries(DIR *dir, const char *shown, hd_error *err)
{
    for (struct dirent *e; (e = readdir(dir));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        int rc = remove_at(dirfd(dir), e->d_name, shown, err);
        if (rc) return rc;
    }
    return HD_OK;
}

/* Never follows a symbolic link: what it points at stays. */
static int remove_at(int parent, const char *name, const char *shown, hd_error *err)
{
    if (!unlinkat(parent, name, 0) || errno == ENOENT) return HD_OK;
    if (errno != EISDIR && errno != EPERM) return hd_fail_errno(err, "cannot remove %s in %s", name, shown);
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int rc = hd_fail_errno(err, "cannot remove %s in %s", name, shown);
        if (fd >= 0) close(fd);
        return rc;
    }
    int rc = remove_entries(dir, shown, err);
    closedir(dir);
    if (!rc && unlinkat(parent, name, AT_REMOVEDIR)) rc = hd_fail_errno(err, "cannot remove %s in %s", name, shown);
    return rc;
}

int hd_remove_tree(const char *path, hd_error *err) { return remove_at(AT_FDCWD, path, path, err); }

int hd_sync_dir(const char *path, hd_error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return hd_fail_errno(err, "cannot open directory %s", path);
    int rc = HD_OK;
    if (fsync(fd) && errno != EINVAL) rc = hd_fail_errno(err, "cannot sync directory %s", path);
    close(fd);
    return rc;
}

bool hd_file_exists(const char *path) { return access(path, F_OK) == 0; }

bool hd_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int64_t hd_file_size(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? (int64_t)st.st_size : -1;
}

/* ---- paths ---- */

int hd_path_join(char *out, size_t out_size, const char *dir, const char *name, hd_error *err)
{
    size_t n = strlen(dir);
    const char *separator = n && dir[n - 1] != '/' ? "/" : "";
    int k = snprintf(out, out_size, "%s%s%s", dir, separator, name);
    if (k < 0 || (size_t)k >= out_size) return hd_fail(err, HD_EINVAL, "path too long: %s/%s", dir, name);
    return HD_OK;
}

bool hd_path_is_inside(const char *name)
{
    if (!*name || *name == '/') return false;
    for (const char *part = name; part;) {
        size_t n = strcspn(part, "/");
        if (n == 2 && part[0] == '.' && part[1] == '.') return false;
        part = part[n] ? part + n + 1 : NULL;
    }
    return true;
}

uint64_t hd_checksum(uint64_t state, const void *data, size_t n)
{
    const uint64_t prime = 0x100000001b3ull;
    const unsigned char *p = data;
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        state = (state ^ word) * prime;
        state ^= state >> 32; /* the product carries upwards only: bring the high bits back down */
    }
    for (; n; p++, n--) state = (state ^ *p) * prime;
    return state;
}

/* A product waits for the one before it: four chains keep the multiplier busy. */
uint64_t hd_checksum_fast(const void *data, size_t n)
{
    const uint64_t prime = 0x100000001b3ull;
    uint64_t lane[4] = {HD_CHECKSUM_INIT, HD_CHECKSUM_INIT + 1, HD_CHECKSUM_INIT + 2, HD_CHECKSUM_INIT + 3}, word[4];
    const unsigned char *p = data;
    for (; n >= sizeof word; p += sizeof word, n -= sizeof word) {
        memcpy(word, p, sizeof word);
        for (int i = 0; i < 4; i++) {
            lane[i] = (lane[i] ^ word[i]) * prime;
            lane[i] ^= lane[i] >> 32;
        }
    }
    return hd_checksum(hd_checksum(HD_CHECKSUM_INIT, lane, sizeof lane), p, n);
}

enum { SAMPLE = 4096, SAMPLE_EVERY = 1 << 20, SAMPLES = 1024, SAMPLE_NOTHING_BELOW = 64 << 20 };

uint64_t hd_checksum_samples(const hd_map *m, size_t head)
{
    uint64_t sum = HD_CHECKSUM_INIT;
    if (m->size <= SAMPLE_NOTHING_BELOW) return hd_checksum_fast(m->data, m->size);
    head = head < m->size - SAMPLE ? (head + 7) / 8 * 8 : m->size / 8 * 8;
    size_t step = m->size / SAMPLES > SAMPLE_EVERY ? m->size / SAMPLES : SAMPLE_EVERY;
    madvise((void *)m->data, m->size, MADV_RANDOM); /* no reading ahead: a page a sample */
    sum = hd_checksum(sum, m->data, head);
    for (size_t at = head; at + SAMPLE <= m->size; at += step) sum = hd_checksum(sum, m->data + at, SAMPLE);
    sum = hd_checksum(sum, m->data + m->size - SAMPLE, SAMPLE);
    madvise((void *)m->data, m->size, MADV_NORMAL);
    return sum;
}
