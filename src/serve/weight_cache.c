#include "serve/weight_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "base/rng.h"
#include "base/term.h"
#include "tensor/safetensors.h"

#define PATIENCE 200.0 /* seconds that one waits for another's writing: less than ranks wait for each other (lm_ranks.c) */

/* ---- what the weights are read from ---- */

/* A line of one file. Contents are those that are mapped, in case that the name is another's by now: such a line fits no file. */
static int add_file(hd_str *out, const char *path, const hd_map *m, size_t head, hd_error *err)
{
    struct stat st;
    const char *name = strrchr(path, '/');
    if (stat(path, &st)) return hd_fail_errno(err, "%s", path);
    hd_str_printf(out, "source %s %lld bytes of %lld.%09ld %016llx\n", name ? name + 1 : path, (long long)st.st_size, (long long)st.st_mtim.tv_sec,
                  st.st_mtim.tv_nsec, (unsigned long long)hd_checksum_samples(m, head));
    return 0;
}

/* Where its tensors begin. */
static size_t gguf_head(const hd_gguf *g)
{
    size_t head = g->map.size;
    for (size_t i = 0; i < g->count; i++)
        if (g->tensors[i].bytes && (size_t)(g->tensors[i].data - g->map.data) < head) head = (size_t)(g->tensors[i].data - g->map.data);
    return head;
}

static int add_directory(hd_str *out, const char *dir, hd_error *err)
{
    char path[4096];
    hd_weights w = {0};
    hd_map config = {0};
    int rc = hd_path_join(path, sizeof path, dir, "config.json", err);
    if (!rc && hd_file_exists(path) && !(rc = hd_map_open(&config, path, err))) rc = add_file(out, path, &config, 0, err);
    if (!rc) rc = hd_weights_open(&w, dir, err);
    for (size_t i = 0; i < w.shard_count && !rc; i++) {
        const hd_safetensors *s = &w.shards[i];
        uint64_t head = 0;
        if (s->count) memcpy(&head, s->map.data, sizeof head); /* a sound file has it */
        if (s->count) rc = add_file(out, s->tensors[0].file, &s->map, (size_t)head + 8, err);
    }
    hd_weights_close(&w);
    hd_map_close(&config);
    return rc;
}

static int describe_source(const hd_model_files *m, hd_str *out, hd_error *err)
{
    hd_str_clear(out);
    int rc = m->is_gguf ? add_file(out, m->path, &m->file.map, gguf_head(&m->file), err) : add_directory(out, m->path, err);
    return !rc && out->failed ? hd_fail_memory(err, out->len, "a list of files") : rc;
}

/* ---- the file's name ---- */

/* NAME.ISA.HASH.packed: of the model's path and of what is packed in which way. */
static int name_file(hd_weight_cache *c, hd_error *err)
{
    char name[256], full[PATH_MAX];
    const char *path = realpath(c->model->path, full) ? full : c->model->path, *last = strrchr(path, '/');
    uint64_t form = hd_hash_string(c->list.text.data + c->list.form);
    snprintf(name, sizeof name, "%.150s.%s.%016llx.packed", last && last[1] ? last + 1 : path, hd_isa_name(c->packer.backend->isa),
             (unsigned long long)hd_hash_mix(hd_hash_string(path), form));
    for (char *s = name; *s; s++)
        if (*s == '/') *s = '_';
    int rc = hd_path_join(c->path, sizeof c->path, c->folder, name, err);
    if (rc || snprintf(c->temporary, sizeof c->temporary, "%s.tmp", c->path) < (int)sizeof c->temporary) return rc;
    return hd_fail(err, HD_EINVAL, "path too long: %s", c->path);
}

/* ---- the right to write ---- */

/* Whether the temporary file is still the one that is open at fd, not renamed or removed by whoever had the lock before. */
static bool is_current(const hd_weight_cache *c, int fd)
{
    struct stat open, named;
    return !fstat(fd, &open) && !stat(c->temporary, &named) && open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

static int wait_for(const hd_weight_cache *c, double since, bool *told, hd_error *err)
{
    if (hd_time() - since > PATIENCE) return hd_fail(err, HD_EIO, "%s: another process has been writing it for %.0f s", c->path, PATIENCE);
    if (!*told && hd_time() - since > 1) hd_log("weight cache: another process writes %s: waiting for it", c->path), *told = true;
    nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
    return 0;
}

/* Without locks two could write into one file, and it would be renamed under the eyes of those who map it: then there is no cache. */
static int take_lock(hd_weight_cache *c, hd_error *err)
{
    double since = hd_time();
    bool told = false;
    for (int rc = hd_make_dirs(c->folder, err); !rc;) {
        int fd = open(c->temporary, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (fd < 0) return hd_fail_errno(err, "cannot create %s", c->temporary);
        bool locked = !flock(fd, LOCK_EX | LOCK_NB);
        if (!locked && errno != EWOULDBLOCK && errno != EINTR) rc = hd_fail_errno(err, "cannot lock %s", c->temporary);
        if (locked && is_current(c, fd)) return c->lock = fd, 0;
        close(fd);
        if (!locked && !rc) rc = wait_for(c, since, &told, err);
    }
    return err->code;
}

/* The temporary file goes, unless it has become the file. */
static void give_up_lock(hd_weight_cache *c)
{
    if (c->lock < 0) return;
    if (is_current(c, c->lock)) unlink(c->temporary);
    close(c->lock);
    c->lock = -1;
}

/* ---- opening ---- */

/* Maps the file if it is there and fits. A reason that it doesn't is told, unless `quiet`. */
static int try_file(hd_weight_cache *c, bool quiet, hd_error *err)
{
    hd_error why = {0};
    if (!hd_file_exists(c->path)) return 0;
    int rc = hd_packed_file_open(&c->file, &c->list, c->path, c->packer.team, &why);
    if (rc == HD_ENOMEM) return hd_fail(err, rc, "%s", why.message);
    if (rc && !quiet) hd_log("weight cache: %s: weights are packed anew", why.message);
    return 0;
}

static void go_without(hd_weight_cache *c, const char *why)
{
    hd_log("weight cache: %s: going on without it", why);
    give_up_lock(c);
    c->path[0] = 0;
}

int hd_weight_cache_open(hd_weight_cache *c, const char *folder, const hd_model_files *m, const hd_packer *k, hd_error *err)
{
    hd_error why = {0};
    *c = (hd_weight_cache){.model = m, .packer = *k, .lock = -1};
    hd_str_init(&c->source);
    if (!folder || !m->path) return 0;
    int rc = describe_source(m, &c->source, &why);
    if (!rc) rc = hd_packed_list_init(&c->list, k, c->source.data, &why);
    if (!rc && !c->list.n) return 0;
    if (!rc && snprintf(c->folder, sizeof c->folder, "%s", folder) >= (int)sizeof c->folder) rc = hd_fail(&why, HD_EINVAL, "path too long: %s", folder);
    if (!rc) rc = name_file(c, &why);
    if (!rc) rc = try_file(c, false, &why);
    if (!rc && !c->file.data) rc = take_lock(c, &why);
    if (!rc && !c->file.data) rc = try_file(c, true, &why); /* by whoever had the lock before */
    if (c->file.data) give_up_lock(c);
    if (rc == HD_ENOMEM) return hd_fail(err, rc, "%s", why.message);
    if (rc) go_without(c, why.message);
    return 0;
}

/* ---- making the file ---- */

static int make_file(hd_weight_cache *c, hd_store *s, hd_error *err)
{
    hd_str now;
    hd_str_init(&now);
    int rc = hd_packed_file_write(&c->list, &c->packer, s, c->lock, c->temporary, err);
    if (!rc) rc = describe_source(c->model, &now, err);
    if (!rc && strcmp(now.data, c->source.data)) rc = hd_fail(err, HD_EIO, "%s changed while it was read", c->model->path);
    hd_str_free(&now);
    if (!rc && rename(c->temporary, c->path)) rc = hd_fail_errno(err, "cannot rename %s to %s", c->temporary, c->path);
    if (!rc) rc = hd_sync_dir(c->folder, err);
    return rc ? rc : hd_packed_file_open(&c->file, &c->list, c->path, NULL, err);
}

int hd_weight_cache_fill(hd_weight_cache *c, hd_store *s, hd_error *err)
{
    hd_error why = {0};
    if (c->lock < 0) return 0;
    int rc = make_file(c, s, &why);
    c->made = !rc;
    if (rc) go_without(c, why.message);
    give_up_lock(c);
    return rc ? 0 : hd_packed_file_lend(&c->file, s, err);
}

void hd_weight_cache_close(hd_weight_cache *c)
{
    if (c->model) give_up_lock(c);
    hd_packed_file_close(&c->file);
    hd_packed_list_free(&c->list);
    hd_str_free(&c->source);
    *c = (hd_weight_cache){0};
}
