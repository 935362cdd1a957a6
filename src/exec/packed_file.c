#include "exec/packed_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"

enum { PAGE = 4096, FILE_VERSION = 1, PIECE = 1 << 20 /* bytes of a tensor that one thread sums at once */ };

/* All of the header's numbers; behind them the text, then from a multiple of 8 on the checksums, then zeros to the end of the page. */
typedef struct header {
    char magic[8];
    uint32_t version, tensors;
    uint64_t text_bytes, header_bytes, file_bytes;
    uint64_t checksum; /* of header_bytes, with 0 in its own place */
} header;

static const char magic[8] = {'H', 'D', 'P', 'A', 'C', 'K', 'E', 'D'};

static uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* ---- what a file would hold ---- */

static void describe(hd_packed_list *l, int b)
{
    char type[160];
    const hd_program *p = l->program;
    const hd_buffer *x = &p->buffers[b];
    const hd_type piece = hd_buffer_piece_type(p, b, l->place), whole = {.dtype = x->type.dtype, .blocks = x->type.blocks, .shape = x->whole};
    hd_str_printf(&l->text, "tensor %s %s", x->path, hd_type_format(type, sizeof type, &piece, NULL));
    if (x->layout) {
        hd_str_printf(&l->text, " of %s ", hd_type_format(type, sizeof type, &whole, NULL));
        hd_layout_print(&p->mesh, x->layout, x->whole.rank, &l->text);
    }
    hd_str_printf(&l->text, " %lld bytes\n", (long long)x->bytes);
}

static void place(hd_packed_list *l)
{
    uint64_t at = round_up(round_up(sizeof(header) + l->text.len, 8) + 8 * l->n, PAGE);
    l->header_bytes = at;
    for (size_t i = 0; i < l->n; i++) {
        l->tensors[i].offset = at;
        at = round_up(at + (uint64_t)l->tensors[i].bytes, PAGE);
    }
    l->file_bytes = at;
}

int hd_packed_list_init(hd_packed_list *l, const hd_packer *k, const char *source, hd_error *err)
{
    const hd_program *p = k->program;
    *l = (hd_packed_list){.program = p, .place = k->place, .tensors = hd_calloc((size_t)p->n_buffers + 1, sizeof *l->tensors)};
    hd_str_init(&l->text);
    hd_str_printf(&l->text, "heddle " HEDDLE_VERSION " packing %d\n%s", HD_PACK_VERSION, source);
    l->form = l->text.len;
    hd_str_printf(&l->text, "isa %s\nrank %d of %d\n", hd_isa_name(k->backend->isa), k->place, p->mesh.n ? hd_mesh_size(&p->mesh) : 1);
    for (int b = 0; b < p->n_buffers && l->tensors; b++) {
        if (!hd_buffer_is_packed(p, b)) continue;
        l->tensors[l->n++] = (hd_packed_tensor){.buffer = b, .bytes = p->buffers[b].bytes};
        describe(l, b);
    }
    if (l->tensors && !l->text.failed) return place(l), 0;
    hd_packed_list_free(l);
    return hd_fail_memory(err, (size_t)p->n_buffers * sizeof *l->tensors, "a list of packed weights");
}

void hd_packed_list_free(hd_packed_list *l)
{
    hd_str_free(&l->text);
    hd_free(l->tensors);
    *l = (hd_packed_list){0};
}

/* ---- checksums ---- */

typedef struct summing { const unsigned char *data; uint64_t bytes, *sum; int threads; } summing;

static void sum_pieces(void *arg, int tid)
{
    const summing *x = arg;
    int64_t begin, end;
    hd_split((int64_t)round_up(x->bytes, PIECE) / PIECE, 1, tid, x->threads, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        uint64_t at = (uint64_t)i * PIECE, left = x->bytes - at;
        x->sum[i] = hd_checksum_fast(x->data + at, left < PIECE ? left : PIECE);
    }
}

/* Of one tensor, by its pieces; room: for a number of each piece of the longest. */
static uint64_t sum_tensor(hd_team *team, const void *data, int64_t bytes, uint64_t *room)
{
    summing x = {data, (uint64_t)bytes, room, hd_team_size(team)};
    hd_team_run(team, sum_pieces, &x);
    return hd_checksum(HD_CHECKSUM_INIT, room, round_up((uint64_t)bytes, PIECE) / PIECE * 8);
}

static uint64_t *room_for_sums(const hd_packed_list *l, hd_error *err)
{
    int64_t most = 0;
    for (size_t i = 0; i < l->n; i++) most = l->tensors[i].bytes > most ? l->tensors[i].bytes : most;
    uint64_t *room = hd_calloc((size_t)most / PIECE + 1, sizeof *room);
    if (!room) hd_fail_memory(err, (size_t)most / PIECE, "checksums");
    return room;
}

/* bytes: the header as it lies in a file, a whole number of words. */
static uint64_t sum_header(const unsigned char *bytes, uint64_t n)
{
    header h;
    memcpy(&h, bytes, sizeof h);
    h.checksum = 0;
    return hd_checksum(hd_checksum(HD_CHECKSUM_INIT, &h, sizeof h), bytes + sizeof h, n - sizeof h);
}

/* ---- reading ---- */

static const char *path_of(const hd_packed_list *l, size_t i) { return l->program->buffers[l->tensors[i].buffer].path; }

/* What the first line says that isn't as it would be written now. */
static const char *difference(const hd_packed_list *l, const char *have, size_t n)
{
    static const struct { const char *word, *what; } kinds[] = {
        {"heddle", "was made by another version"}, {"source", "was made from other weights"}, {"isa", "is for another instruction set"},
        {"rank", "is another rank's"}, {"tensor", "is for other tensors"},
    };
    const char *want = l->text.data;
    size_t line = 0, i = 0;
    for (; i < n && i < l->text.len && have[i] == want[i]; i++)
        if (want[i] == '\n') line = i + 1;
    if (i == n && n == l->text.len) return NULL;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        if (!strncmp(want + line, kinds[k].word, strlen(kinds[k].word))) return kinds[k].what;
    return "is for other tensors";
}

static int check_header(const hd_packed_file *f, const char *path, hd_error *err)
{
    header h = {0};
    const hd_packed_list *l = f->list;
    if (f->size >= sizeof h) memcpy(&h, f->data, sizeof h);
    if (memcmp(h.magic, magic, sizeof magic)) return hd_fail(err, HD_EFORMAT, "%s: holds no packed weights", path);
    if (h.version != FILE_VERSION) return hd_fail(err, HD_EFORMAT, "%s: is of version %u, not %d", path, h.version, FILE_VERSION);
    if (h.header_bytes > f->size) return hd_fail(err, HD_EFORMAT, "%s: is cut short", path);
    if (h.header_bytes < sizeof h || h.header_bytes % 8 || sum_header(f->data, h.header_bytes) != h.checksum)
        return hd_fail(err, HD_EFORMAT, "%s: its header is damaged", path);
    if (h.file_bytes != f->size)
        return hd_fail(err, HD_EFORMAT, "%s: is %s: %zu bytes instead of %llu", path, f->size < h.file_bytes ? "cut short" : "too long", f->size,
                       (unsigned long long)h.file_bytes);
    const char *what = h.text_bytes > h.header_bytes - sizeof h ? "has no text" : difference(l, (const char *)f->data + sizeof h, h.text_bytes);
    if (!what && (h.header_bytes != l->header_bytes || h.file_bytes != l->file_bytes || h.tensors != l->n)) what = "is laid out in another way";
    return what ? hd_fail(err, HD_EFORMAT, "%s: %s", path, what) : 0;
}

static int check_tensors(const hd_packed_file *f, const char *path, hd_team *team, hd_error *err)
{
    const hd_packed_list *l = f->list;
    const unsigned char *sums = f->data + round_up(sizeof(header) + l->text.len, 8);
    uint64_t *room = room_for_sums(l, err);
    int rc = room ? 0 : err->code;
    madvise((void *)f->data, f->size, MADV_WILLNEED); /* from a disk in long reads, not page by page */
    for (size_t i = 0; i < l->n && !rc; i++) {
        uint64_t want;
        memcpy(&want, sums + 8 * i, 8);
        if (sum_tensor(team, f->data + l->tensors[i].offset, l->tensors[i].bytes, room) != want)
            rc = hd_fail(err, HD_EFORMAT, "%s: %s is damaged", path, path_of(l, i));
    }
    hd_free(room);
    return rc;
}

/* The whole of a regular file. */
static int map_shared(hd_packed_file *f, const char *path, hd_error *err)
{
    struct stat st;
    int rc = 0, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st)) rc = hd_fail_errno(err, "cannot open %s", path);
    else if (!S_ISREG(st.st_mode) || !st.st_size) rc = hd_fail(err, HD_EFORMAT, "%s: holds no packed weights", path);
    if (!rc) {
        f->size = (size_t)st.st_size;
        f->data = mmap(NULL, f->size, PROT_READ, MAP_SHARED, fd, 0);
        if (f->data == MAP_FAILED) f->data = NULL, rc = hd_fail_errno(err, "cannot map %s", path);
    }
    if (fd >= 0) close(fd);
    return rc;
}

int hd_packed_file_open(hd_packed_file *f, const hd_packed_list *l, const char *path, hd_team *team, hd_error *err)
{
    *f = (hd_packed_file){.list = l};
    int rc = map_shared(f, path, err);
    if (!rc) rc = check_header(f, path, err);
    if (!rc && team) rc = check_tensors(f, path, team, err);
    if (rc) hd_packed_file_close(f);
    return rc;
}

int hd_packed_file_lend(const hd_packed_file *f, hd_store *s, hd_error *err)
{
    const hd_packed_list *l = f->list;
    int rc = 0;
    for (size_t i = 0; i < l->n && !rc; i++) {
        hd_type type = hd_buffer_piece_type(l->program, l->tensors[i].buffer, l->place);
        rc = hd_store_lend_packed(s, path_of(l, i), &type, l->tensors[i].bytes, f->data + l->tensors[i].offset, err);
    }
    return rc;
}

void hd_packed_file_close(hd_packed_file *f)
{
    if (f->data) munmap((void *)f->data, f->size);
    *f = (hd_packed_file){0};
}

/* ---- writing ---- */

/* Makes the file as long as it will be, with disk space for all of it where that can be had beforehand. */
static int reserve(const hd_packed_list *l, int fd, const char *path, hd_error *err)
{
    int rc = ftruncate(fd, 0) ? -1 : fallocate(fd, 0, 0, (off_t)l->file_bytes);
    if (rc && (errno == EOPNOTSUPP || errno == ENOSYS)) rc = ftruncate(fd, (off_t)l->file_bytes);
    return rc ? hd_fail_errno(err, "cannot write %s", path) : 0;
}

static int write_tensors(const hd_packed_list *l, const hd_packer *k, hd_store *s, int fd, const char *path, uint64_t *sums, hd_error *err)
{
    uint64_t *room = room_for_sums(l, err);
    int rc = room ? 0 : err->code;
    for (size_t i = 0; i < l->n && !rc; i++) {
        const hd_packed_tensor *t = &l->tensors[i];
        rc = hd_pack_constant(k, s, t->buffer, err);
        if (rc) break;
        const hd_store_tensor *made = hd_store_find(s, path_of(l, i));
        sums[i] = sum_tensor(k->team, made->data, t->bytes, room);
        rc = hd_pwrite_all(fd, made->data, (size_t)t->bytes, t->offset, path, err);
        hd_store_drop(s, path_of(l, i));
    }
    hd_free(room);
    return rc;
}

int hd_packed_file_write(const hd_packed_list *l, const hd_packer *k, hd_store *s, int fd, const char *path, hd_error *err)
{
    unsigned char *bytes = hd_calloc(1, l->header_bytes);
    if (!bytes) return hd_fail_memory(err, l->header_bytes, path);
    header h = {.version = FILE_VERSION, .tensors = (uint32_t)l->n, .text_bytes = l->text.len, .header_bytes = l->header_bytes, .file_bytes = l->file_bytes};
    uint64_t *sums = (uint64_t *)(bytes + round_up(sizeof h + l->text.len, 8));
    memcpy(h.magic, magic, sizeof magic);
    memcpy(bytes + sizeof h, l->text.data, l->text.len);
    int rc = reserve(l, fd, path, err);
    if (!rc) rc = write_tensors(l, k, s, fd, path, sums, err);
    memcpy(bytes, &h, sizeof h);
    h.checksum = sum_header(bytes, l->header_bytes);
    memcpy(bytes, &h, sizeof h);
    if (!rc) rc = hd_pwrite_all(fd, bytes, l->header_bytes, 0, path, err);
    if (!rc && fsync(fd)) rc = hd_fail_errno(err, "cannot write %s", path);
    hd_free(bytes);
    return rc;
}
