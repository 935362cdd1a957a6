/* plan.c: the Plan's completion rule, and JSON. */
#include "plan/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/json.h"
#include "base/thread.h"

enum { MAX_THREADS = 256, MAX_PLAN_BYTES = 64 << 20 };
#define MAX_MICRO_BATCHES 1000000

static const char *const known_keys[] = {"version", "fingerprint", "micro_batches", "precision", "threads", "backend", "pack"};

static const char *const schedule_names[] = {"gpipe", "1f1b", "interleaved", "zero-bubble"};

const char *hd_schedule_name(hd_schedule_kind k)
{
    return schedule_names[k];
}

int hd_schedule_parse(const char *name, hd_schedule_kind *out)
{
    for (int i = 0; i < HD_SCHEDULE_KINDS; i++)
        if (!strcmp(name, schedule_names[i])) return *out = (hd_schedule_kind)i, 0;
    return HD_EINVAL;
}

int hd_plan_stages(const hd_plan *p)
{
    int axis = hd_mesh_find(&p->mesh, "pp");
    return axis < 0 ? 1 : p->mesh.axis[axis].size;
}

hd_plan hd_plan_default(void)
{
    return (hd_plan){.version = HD_PLAN_VERSION, .micro_batches = 1, .precision = HD_F32, .chunks = 1};
}

void hd_plan_complete(hd_plan *p, const hd_graph *g)
{
    if (p->threads == 0) p->threads = hd_core_count() < MAX_THREADS ? hd_core_count() : MAX_THREADS;
    if (!p->backend[0]) snprintf(p->backend, sizeof p->backend, "cpu");
    if (!p->fingerprint && g) p->fingerprint = hd_graph_fingerprint(g);
}

int hd_plan_check(const hd_plan *p, const hd_graph *g, hd_error *err)
{
    if (p->version != HD_PLAN_VERSION)
        return hd_fail(err, HD_EUNSUPPORTED, "the plan is of version %d, this program reads version %d", p->version, HD_PLAN_VERSION);
    if (p->micro_batches < 1 || p->micro_batches > MAX_MICRO_BATCHES)
        return hd_fail(err, HD_EINVAL, "micro_batches must be from 1 to %d, is %" PRId64, MAX_MICRO_BATCHES, p->micro_batches);
    if (p->precision != HD_F32 && p->precision != HD_BF16)
        return hd_fail(err, HD_EINVAL, "precision must be f32 or bf16, is %s", hd_dtype_name(p->precision));
    if (p->threads < 0 || p->threads > MAX_THREADS) return hd_fail(err, HD_EINVAL, "threads must be from 0 to %d, is %d", MAX_THREADS, p->threads);
    if (g && p->fingerprint && p->fingerprint != hd_graph_fingerprint(g))
        return hd_fail(err, HD_EINVAL, "the plan was made for another network: its fingerprint is %016" PRIx64 ", this one's %016" PRIx64, p->fingerprint,
                       hd_graph_fingerprint(g));
    return 0;
}

/* ---- JSON ---- */

static json_t *to_json(const hd_plan *p)
{
    char fingerprint[24];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, p->fingerprint);
    return json_pack("{s:i, s:s, s:I, s:s, s:i, s:s, s:b}", "version", p->version, "fingerprint", fingerprint, "micro_batches",
                     (json_int_t)p->micro_batches, "precision", hd_dtype_name(p->precision), "threads", p->threads, "backend", p->backend, "pack", p->pack);
}

int hd_plan_print(const hd_plan *p, hd_str *out)
{
    json_t *j = to_json(p);
    char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    if (text) {
        hd_str_puts(out, text);
        hd_str_putc(out, '\n');
    }
    bool ok = text && !out->failed;
    free(text); /* jansson's own allocator */
    json_decref(j);
    return ok ? 0 : HD_ENOMEM;
}

int hd_plan_save(const hd_plan *p, const char *path, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    int rc = hd_plan_print(p, &text) ? hd_fail_memory(err, 1024, "a plan") : hd_file_write_atomic(path, text.data, text.len, err);
    hd_str_free(&text);
    return rc;
}

static int check_keys(const json_t *j, const char *name, hd_error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)j, key, value) {
        bool known = false;
        for (size_t i = 0; i < sizeof known_keys / sizeof known_keys[0]; i++) known |= !strcmp(key, known_keys[i]);
        if (!known) return hd_fail(err, HD_EFORMAT, "%s: a plan has no key \"%s\"", name, key);
    }
    return 0;
}

static int read_fingerprint(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    const char *text = NULL;
    int rc = hd_json_string(j, "fingerprint", &text, name, err);
    if (rc || !text) return rc;
    size_t digits = strspn(text, "0123456789abcdef");
    if (!digits || digits > 16 || text[digits]) return hd_fail(err, HD_EFORMAT, "%s: \"fingerprint\" must be up to 16 hexadecimal digits", name);
    p->fingerprint = strtoull(text, NULL, 16);
    return 0;
}

static int read_precision(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    const char *text = NULL;
    int rc = hd_json_string(j, "precision", &text, name, err);
    if (rc || !text) return rc;
    if (hd_dtype_parse(text, &p->precision)) return hd_fail(err, HD_EFORMAT, "%s: \"precision\" must be \"f32\" or \"bf16\"", name);
    return 0;
}

static int read_backend(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    const char *text = NULL;
    int rc = hd_json_string(j, "backend", &text, name, err);
    if (rc || !text) return rc;
    if (strlen(text) >= sizeof p->backend) return hd_fail(err, HD_EFORMAT, "%s: there is no back end \"%s\"", name, text);
    memcpy(p->backend, text, strlen(text) + 1);
    return 0;
}

static int from_json(const json_t *j, const char *name, hd_plan *p, hd_error *err)
{
    int64_t version = HD_PLAN_VERSION, threads = p->threads;
    if (!json_is_object(j)) return hd_fail(err, HD_EFORMAT, "%s: a plan must be a JSON object", name);
    int rc = hd_json_int(j, "version", 1, 1000000, &version, name, err);
    if (!rc && version != HD_PLAN_VERSION)
        rc = hd_fail(err, HD_EUNSUPPORTED, "%s: the plan is of version %d, this program reads version %d", name, (int)version, HD_PLAN_VERSION);
    if (!rc) rc = check_keys(j, name, err);
    if (!rc) rc = read_fingerprint(j, name, p, err);
    if (!rc) rc = hd_json_int(j, "micro_batches", 1, MAX_MICRO_BATCHES, &p->micro_batches, name, err);
    if (!rc) rc = read_precision(j, name, p, err);
    if (!rc) rc = hd_json_int(j, "threads", 0, MAX_THREADS, &threads, name, err);
    if (!rc) rc = read_backend(j, name, p, err);
    if (!rc) rc = hd_json_bool(j, "pack", &p->pack, name, err);
    p->threads = (int)threads;
    return rc ? rc : hd_plan_check(p, NULL, err);
}

int hd_plan_parse(const char *text, size_t n, const char *name, hd_plan *out, hd_error *err)
{
    hd_error local = {0};
    json_t *j = hd_json_parse(text, n, name, &local);
    if (!j) return hd_fail(err, local.code, "%s", local.message);
    *out = hd_plan_default();
    int rc = from_json(j, name, out, err);
    json_decref(j);
    return rc;
}

int hd_plan_load(const char *path, hd_plan *out, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    int rc = hd_file_read(&text, path, MAX_PLAN_BYTES, err);
    if (!rc) rc = hd_plan_parse(text.data, text.len, path, out, err);
    hd_str_free(&text);
    return rc;
}
