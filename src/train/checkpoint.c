#include "train/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/file.h"
#include "base/json.h"
#include "base/term.h"
#include "exec/pieces.h"

#define STATE_FILE "state.safetensors"
#define MANIFEST "manifest.json"
#define PATH_SIZE 4096

/* ---- state ---- */

static bool belongs_to_state(hd_kind kind, const char *path)
{
    if (kind == HD_STATE) return !hd_glob_match("kv.*", path);
    return hd_glob_match("*.lora_a", path) || hd_glob_match("*.lora_b", path);
}

static int write_state(const hd_store *s, const char *dir, hd_share *share, hd_error *err)
{
    char path[PATH_SIZE];
    hd_whole *list = NULL;
    size_t all = 0, n = 0;
    int rc = hd_path_join(path, sizeof path, dir, STATE_FILE, err);
    if (!rc) rc = hd_store_wholes(s, &list, &all, err);
    for (size_t i = 0; i < all && !rc; i++)
        if (belongs_to_state(list[i].kind, list[i].path)) list[n++] = list[i];
    if (!rc) rc = hd_wholes_save(s, list, n, path, share, err);
    hd_free(list);
    return rc;
}

static int load_one(const hd_safetensors *f, const hd_store *s, const hd_store_tensor *t, hd_error *err)
{
    const hd_weight *w = hd_safetensors_find(f, t->path);
    hd_shape whole = hd_store_tensor_whole(t);
    if (!w) return hd_fail(err, HD_EFORMAT, "it has no tensor \"%s\": was it saved with another optimizer or other LoRA targets?", t->path);
    int rc = hd_weight_need_shape(w, whole.rank, whole.dim, err);
    if (!rc) hd_piece_load(w, s, t, (hd_file_place){0});
    return rc;
}

int hd_checkpoint_load_state(const char *dir, hd_store *store, hd_error *err)
{
    char path[PATH_SIZE];
    hd_safetensors f = {0};
    int rc = hd_path_join(path, sizeof path, dir, STATE_FILE, err);
    if (!rc) rc = hd_safetensors_open(&f, path, err);
    if (rc) return rc;
    for (size_t i = 0; i < store->n_tensors && !rc; i++) {
        const hd_store_tensor *t = store->tensors[i];
        if (belongs_to_state(t->kind, t->path)) rc = load_one(&f, store, t, err);
    }
    hd_safetensors_close(&f);
    return rc ? hd_error_context(err, "%s", path) : 0;
}

/* ---- the manifest ---- */

static int file_checksum(const char *path, uint64_t *sum, int64_t *bytes, hd_error *err)
{
    static const size_t chunk = 1 << 20;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return hd_fail_errno(err, "%s", path);
    char *buffer = hd_malloc(chunk);
    if (!buffer) {
        close(fd);
        return hd_fail_memory(err, chunk, "a checksum");
    }
    ssize_t got = 0;
    *sum = HD_CHECKSUM_INIT;
    *bytes = 0;
    for (size_t have = 0;; have = 0) {
        /* whole chunks, so that the sum does not depend on how read(2) cuts the file */
        while (have < chunk && (got = read(fd, buffer + have, chunk - have)) > 0) have += (size_t)got;
        *sum = hd_checksum(*sum, buffer, have);
        *bytes += (int64_t)have;
        if (have < chunk) break;
    }
    int rc = got < 0 ? hd_fail_errno(err, "reading %s", path) : 0;
    hd_free(buffer);
    close(fd);
    return rc;
}

static int describe_files(const char *dir, json_t *files, hd_error *err)
{
    char path[PATH_SIZE], hex[20];
    DIR *d = opendir(dir);
    if (!d) return hd_fail_errno(err, "%s", dir);
    int rc = 0;
    for (struct dirent *e; !rc && (e = readdir(d));) {
        uint64_t sum;
        int64_t bytes;
        if (e->d_name[0] == '.') continue;
        rc = hd_path_join(path, sizeof path, dir, e->d_name, err);
        if (rc || hd_is_dir(path)) continue;
        rc = file_checksum(path, &sum, &bytes, err);
        snprintf(hex, sizeof hex, "%016" PRIx64, sum);
        if (!rc) json_object_set_new(files, e->d_name, json_pack("{s:I,s:s}", "bytes", (json_int_t)bytes, "checksum", hex));
    }
    closedir(d);
    return rc;
}

static int write_manifest(const char *dir, const hd_progress_point *at, const json_t *settings, hd_error *err)
{
    char path[PATH_SIZE];
    json_t *files = json_object();
    json_t *j = json_pack("{s:i,s:I,s:I,s:I,s:o*,s:O*}", "heddle_checkpoint", 1, "step", (json_int_t)at->step, "samples", (json_int_t)at->samples,
                          "seed", (json_int_t)at->seed, "files", files, "settings", (json_t *)settings);
    if (!j) return hd_fail_memory(err, 4096, "a manifest");
    int rc = describe_files(dir, files, err);
    if (!rc) rc = hd_path_join(path, sizeof path, dir, MANIFEST, err);
    if (!rc) rc = hd_json_save(j, path, err);
    json_decref(j);
    return rc;
}

static int check_files(const char *dir, const json_t *files, hd_error *err)
{
    char path[PATH_SIZE], hex[20];
    const char *name, *want;
    json_t *f;
    json_object_foreach((json_t *)files, name, f) {
        uint64_t sum;
        int64_t bytes, expected = -1;
        if (!hd_path_is_inside(name)) return hd_fail(err, HD_EFORMAT, "it names the file \"%s\", which is not in the checkpoint", name);
        int rc = hd_path_join(path, sizeof path, dir, name, err);
        if (!rc) rc = hd_json_int(f, "bytes", 0, INT64_MAX, &expected, name, err);
        if (!rc) rc = hd_json_string(f, "checksum", &want, name, err);
        if (!rc && !hd_file_exists(path)) rc = hd_fail(err, HD_EFORMAT, "%s is missing", name);
        if (!rc && hd_file_size(path) != expected)
            rc = hd_fail(err, HD_EFORMAT, "%s has %lld bytes instead of %lld", name, (long long)hd_file_size(path), (long long)expected);
        if (!rc) rc = file_checksum(path, &sum, &bytes, err);
        if (rc) return rc;
        snprintf(hex, sizeof hex, "%016" PRIx64, sum);
        if (strcmp(hex, want)) return hd_fail(err, HD_EFORMAT, "%s is damaged: its checksum is %s instead of %s", name, hex, want);
    }
    return 0;
}

static int read_manifest(const json_t *j, const char *dir, hd_progress_point *at, hd_error *err)
{
    int64_t version = 0, seed = 0;
    const char *where = MANIFEST;
    const json_t *files = json_object_get(j, "files");
    int rc = hd_json_need(j, "heddle_checkpoint", where, err);
    if (!rc) rc = hd_json_int(j, "heddle_checkpoint", 1, 1, &version, where, err);
    if (!rc) rc = hd_json_need(j, "step", where, err);
    if (!rc) rc = hd_json_int(j, "step", 0, INT64_MAX, &at->step, where, err);
    if (!rc) rc = hd_json_int(j, "samples", 0, INT64_MAX, &at->samples, where, err);
    if (!rc) rc = hd_json_int(j, "seed", INT64_MIN, INT64_MAX, &seed, where, err);
    if (!rc && !json_is_object(files)) rc = hd_fail(err, HD_EFORMAT, "%s: \"files\" must be an object", where);
    at->seed = (uint64_t)seed;
    return rc ? rc : check_files(dir, files, err);
}

int hd_checkpoint_open(const char *dir, hd_progress_point *at, json_t **settings, hd_error *err)
{
    char path[PATH_SIZE];
    *at = (hd_progress_point){0};
    int rc = hd_path_join(path, sizeof path, dir, MANIFEST, err);
    json_t *j = rc ? NULL : hd_json_load(path, err);
    if (!j) return err->code;
    rc = read_manifest(j, dir, at, err);
    if (!rc && settings) *settings = json_incref(json_object_get(j, "settings"));
    json_decref(j);
    return rc ? hd_error_context(err, "%s", dir) : 0;
}

/* ---- the directory of checkpoints ---- */

static bool step_of(const char *name, int64_t *step)
{
    char *end;
    if (strncmp(name, "step-", 5) || name[5] < '0' || name[5] > '9') return false;
    *step = strtoll(name + 5, &end, 10);
    return !*end;
}

/* Calls fn for every entry of out; fn may remove it. */
static void each_entry(const char *out, void (*fn)(void *arg, const char *name), void *arg)
{
    DIR *d = opendir(out);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) fn(arg, e->d_name);
    closedir(d);
}

typedef struct step_list {
    int64_t *step;
    size_t n, cap;
    const char *out;
} step_list;

static void collect_step(void *arg, const char *name)
{
    step_list *l = arg;
    int64_t step;
    char path[PATH_SIZE];
    if (!strncmp(name, ".step-", 6) && strstr(name, ".partial") && !hd_path_join(path, sizeof path, l->out, name, NULL)) hd_remove_tree(path, NULL);
    if (step_of(name, &step) && !hd_grow(&l->step, &l->cap, l->n + 1, sizeof *l->step)) l->step[l->n++] = step;
}

static int descending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

static step_list list_steps(const char *out)
{
    step_list l = {.out = out};
    each_entry(out, collect_step, &l);
    if (l.n) qsort(l.step, l.n, sizeof *l.step, descending);
    return l;
}

bool hd_checkpoint_newest(const char *out, char *dir, size_t n)
{
    step_list l = list_steps(out);
    bool found = false;
    for (size_t i = 0; i < l.n && !found; i++) {
        hd_error err = {0};
        hd_progress_point at;
        if ((size_t)snprintf(dir, n, "%s/step-%lld", out, (long long)l.step[i]) >= n) break;
        found = !hd_checkpoint_open(dir, &at, NULL, &err);
        if (!found) hd_log("passing over a checkpoint: %s", err.message);
    }
    hd_free(l.step);
    return found;
}

static void prune(const char *out, int64_t keep)
{
    char path[PATH_SIZE];
    step_list l = list_steps(out);
    for (size_t i = (size_t)keep; keep > 0 && i < l.n; i++) {
        hd_error err = {0};
        snprintf(path, sizeof path, "%s/step-%lld", out, (long long)l.step[i]);
        if (hd_remove_tree(path, &err)) hd_log("an old checkpoint stays: %s", err.message);
    }
    hd_free(l.step);
}

/* ---- saving ---- */

typedef struct places { char partial[PATH_SIZE], final[PATH_SIZE], old[PATH_SIZE]; } places;

static int name_places(const hd_saving *s, places *p, hd_error *err)
{
    long long step = (long long)s->at.step;
    snprintf(p->final, PATH_SIZE, "%s/step-%lld", s->out, step);
    snprintf(p->old, PATH_SIZE, "%s/.step-%lld.replaced.partial", s->out, step);
    int n = snprintf(p->partial, PATH_SIZE, "%s/.step-%lld.partial", s->out, step);
    return n < PATH_SIZE - 16 ? 0 : hd_fail(err, HD_EINVAL, "the path %s is too long", s->out);
}

static int write_part(const hd_saving *s, const char *dir, hd_share *share, hd_error *err)
{
    int rc = s->model.write(s->model.arg, dir, share, err);
    return rc ? rc : write_state(s->store, dir, share, err);
}

int hd_saving_frame(const hd_saving *s, hd_share *share, hd_error *err)
{
    places p;
    share->part = HD_SHARE_FRAME;
    int rc = name_places(s, &p, err);
    if (!rc) rc = hd_remove_tree(p.partial, err);
    if (!rc) rc = hd_make_dirs(p.partial, err);
    return rc ? rc : write_part(s, p.partial, share, err);
}

int hd_saving_pieces(const hd_saving *s, hd_share *share, hd_error *err)
{
    places p;
    share->part = HD_SHARE_PIECES;
    int rc = name_places(s, &p, err);
    return rc ? rc : write_part(s, p.partial, share, err);
}

int hd_saving_finish(const hd_saving *s, const json_t *settings, int64_t keep, hd_error *err)
{
    places p;
    int rc = name_places(s, &p, err);
    if (!rc) rc = write_manifest(p.partial, &s->at, settings, err);
    if (!rc) rc = hd_sync_dir(p.partial, err);
    if (!rc && rename(p.final, p.old) && errno != ENOENT) rc = hd_fail_errno(err, "renaming %s", p.final); /* the same step saved before */
    if (!rc && rename(p.partial, p.final)) rc = hd_fail_errno(err, "renaming %s", p.partial);
    if (!rc) rc = hd_sync_dir(s->out, err);
    if (rc) return rc;
    hd_remove_tree(p.old, NULL);
    prune(s->out, keep);
    return 0;
}

/* Waits for all pieces, and checks that together they are everything. */
static int all_written(const hd_share *share, const hd_rank *rank, hd_error *err)
{
    int64_t sum[2] = {share->total, share->written};
    int rc = hd_ranks_sum(rank, sum, 2, err);
    if (rc || sum[0] == sum[1]) return rc;
    return hd_fail(err, HD_EINVAL, "%lld bytes of tensors were written instead of %lld: no rank has the rest", (long long)sum[1], (long long)sum[0]);
}

int hd_checkpoint_save(const hd_saving *s, const json_t *settings, int64_t keep, const hd_rank *rank, hd_error *err)
{
    places p;
    hd_share share = {0};
    bool first = hd_rank_is_first(rank);
    int rc = first ? hd_saving_frame(s, &share, err) : 0;
    if (!rc) rc = hd_ranks_barrier(rank, err);
    if (!rc) rc = hd_saving_pieces(s, &share, err);
    if (!rc) rc = all_written(&share, rank, err);
    if (!rc && first) rc = hd_saving_finish(s, settings, keep, err);
    if (!rc) return 0;
    if (first && !name_places(s, &p, NULL)) hd_remove_tree(p.partial, NULL);
    return hd_error_context(err, "saving step %lld", (long long)s->at.step);
}
