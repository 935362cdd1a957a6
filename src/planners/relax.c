#include "planners/relax.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/term.h"

enum { TRIES = 12, FEW_TRIES = 4 /* of deep networks, which take long to lower */, DEEP = 32, NAMED = 3,
       MOST_LAYERS = 128 /* of a network whose constraints are each tried without */ };

/* The job's constraints by number: each key pinned, each key forbidden, the number of micro-batches, named layouts. */
enum { PINNED, FORBIDDEN = HD_KEY_AUTO, MICRO = 2 * HD_KEY_AUTO, LAYOUTS, CONSTRAINTS };

static bool has(const hd_planner_job *j, int c)
{
    if (c < FORBIDDEN) return j->pinned.given >> c & 1;
    if (c < MICRO) return (j->forbidden >> (c - FORBIDDEN) & 1) && !(j->pinned.given >> (c - FORBIDDEN) & 1);
    return c == MICRO ? j->micro_batches && !j->network.whole_batch : j->n_pins > 0;
}

static const char *name_of(int c, char text[64])
{
    if (c < FORBIDDEN) snprintf(text, 64, "leaving %s out of --parallel", hd_parallel_key_name((hd_parallel_key)c));
    else if (c < MICRO) snprintf(text, 64, "leaving %s out of --forbid", hd_parallel_key_name((hd_parallel_key)(c - FORBIDDEN)));
    else snprintf(text, 64, "%s", c == MICRO ? "other --micro-batches" : "leaving --pin out");
    return text;
}

static void without(hd_planner_job *j, int c)
{
    hd_parallel none = hd_parallel_default();
    if (c < FORBIDDEN) {
        hd_parallel_key k = (hd_parallel_key)c;
        j->pinned.given &= ~(1u << k);
        if (k == HD_KEY_DP) j->pinned.dp = 1;
        if (k == HD_KEY_TP) j->pinned.tp = 1;
        if (k == HD_KEY_PP) j->pinned.pp = 1;
        if (k == HD_KEY_CP) j->pinned.cp = 1;
        if (k == HD_KEY_LAYERS) j->pinned.n_layers = 0;
        if (k == HD_KEY_SLICES) j->pinned.slices = 1, j->pinned.n_lengths = 0;
        if (k == HD_KEY_RECOMPUTE) j->pinned.recompute = none.recompute, j->pinned.n_first = 0;
        if (k == HD_KEY_ATTENTION) j->pinned.has_attention = j->pinned.gather = false;
        if (k == HD_KEY_ORDER) j->pinned.has_order = j->pinned.plain = false;
        if (k == HD_KEY_BUCKET) j->pinned.bucket = none.bucket;
        if (k == HD_KEY_OVERLAP) j->pinned.overlap = none.overlap;
        if (k == HD_KEY_SPARSE) j->pinned.sparse = none.sparse;
        if (k == HD_KEY_HALF_WIRE) j->pinned.half_wire = 0;
    } else if (c < MICRO) j->forbidden &= ~(1u << (c - FORBIDDEN));
    else if (c == MICRO) j->micro_batches = 0;
    else j->n_pins = 0;
}

/* Whether a plan is there without the constraint: where none was for want of forms, any form. */
static int helps(const hd_planner_job *job, int c, bool any, bool *does, hd_error *err)
{
    hd_planner_job j = *job;
    hd_error local = {0};
    hd_least l = {0};
    hd_form_list forms = {0};
    without(&j, c);
    int rc = any ? hd_forms_list(&j, &forms, &local) : hd_search_least(&j, job->network.layers > DEEP ? FEW_TRIES : TRIES, &l, &local);
    *does = !rc && (any ? forms.n > 0 : l.known && l.fits);
    hd_free(forms.list);
    return rc == HD_ENOMEM ? hd_fail(err, rc, "%s", local.message) : 0;
}

/* Appends the constraints without which there is a plan, parted by ", or "; *n: how many. */
static int add_helpful(const hd_planner_job *job, bool any, hd_str *out, int *n, hd_error *err)
{
    for (int c = 0; c < CONSTRAINTS && *n < NAMED; c++) {
        char text[64];
        bool does = false;
        int rc = has(job, c) && (any || job->network.layers <= MOST_LAYERS) ? helps(job, c, any, &does, err) : 0;
        if (rc) return rc;
        if (does) hd_str_printf(out, "%s%s", (*n)++ ? ", or " : "", name_of(c, text));
    }
    return 0;
}

static void add_form(const hd_planner_job *job, const hd_form *f, hd_str *out)
{
    hd_parallel p;
    size_t begin = out->len;
    hd_form_write(job, f, NULL, NULL, &p);
    hd_parallel_print(&p, out);
    if (out->len == begin) hd_str_puts(out, "one rank");
    hd_str_printf(out, " with %" PRId64 " micro-batch%s", f->micro_batches, f->micro_batches == 1 ? "" : "es");
}

/* What is pinned, as text; keys that have their defaults are not in it, and are named. */
static void add_constraints(const hd_planner_job *job, hd_str *out)
{
    char text[64];
    size_t begin = out->len;
    int n = 0;
    if (job->pinned.dp) hd_parallel_print(&job->pinned, out);
    n = out->len > begin;
    for (int c = 0; c < CONSTRAINTS; c++) {
        if (!has(job, c)) continue;
        if (c < FORBIDDEN) {
            const char *name = hd_parallel_key_name((hd_parallel_key)c);
            if (out->len > begin && strstr(out->data + begin, name)) continue;
            snprintf(text, sizeof text, "%s by default", name);
        } else if (c < MICRO) snprintf(text, sizeof text, "no %s", hd_parallel_key_name((hd_parallel_key)(c - FORBIDDEN)));
        else if (c == MICRO) snprintf(text, sizeof text, "%" PRId64 " micro-batches", job->micro_batches);
        else snprintf(text, sizeof text, "--pin");
        hd_str_printf(out, "%s%s", n++ ? ", " : "", text);
    }
}

/* Constraints that no form keeps to. */
static int explain_none(const hd_planner_job *job, hd_str *out, hd_error *err)
{
    int n = 0;
    hd_str_puts(out, "no form keeps to all that is asked (");
    add_constraints(job, out);
    hd_str_printf(out, ") on %d device%s with %" PRId64 " samples a step", hd_planner_ranks(job), hd_planner_ranks(job) == 1 ? "" : "s", job->network.samples);
    if (job->network.layers) hd_str_printf(out, " and %" PRId64 " layers of %" PRId64 " heads", job->network.layers, job->network.heads);
    hd_str_puts(out, ": what would help: ");
    int rc = add_helpful(job, true, out, &n, err);
    if (!n) hd_str_puts(out, "pinning less, or other numbers of devices or samples");
    return rc;
}

static int explain_memory(const hd_planner_job *job, const hd_least *l, hd_str *out, hd_error *err)
{
    char need[24], have[24];
    hd_planner_job whole = *job;
    int n = 0;
    whole.memory = 0;
    bool capped = job->memory > 0 && l->capacity == job->memory;
    bool enough = capped && hd_planner_capacity(&whole, hd_form_ranks(&l->form)) >= l->peak;
    hd_str_puts(out, "nothing fits: the form that needs least memory, ");
    add_form(job, &l->form, out);
    hd_str_printf(out, ", needs %" PRId64 " bytes (%s) of a device, and %" PRId64 " (%s) are there%s: what would help: ", l->peak,
                  hd_format_bytes(need, (double)l->peak), l->capacity, hd_format_bytes(have, (double)l->capacity), capped ? " by --device-memory" : "");
    if (enough) hd_str_printf(out, "--device-memory %" PRId64, l->peak), n++;
    int rc = add_helpful(job, false, out, &n, err);
    hd_str_printf(out, "%smore devices", n ? ", or " : "");
    return rc;
}

int hd_relax_explain(const hd_planner_job *job, const hd_least *least, char *why, size_t size, hd_error *err)
{
    hd_str text;
    int rc = 0;
    hd_str_init(&text);
    if (!least->forms) rc = explain_none(job, &text, err);
    else if (least->known) rc = explain_memory(job, least, &text, err);
    else hd_str_printf(&text, "the network cannot be split in any of the %zu forms that keep to what is asked: %s", least->forms,
                       least->refused[0] ? least->refused : "none was tried");
    if (!rc && text.failed) rc = hd_fail_memory(err, 0, "the reason why nothing fits");
    if (!rc) snprintf(why, size, "%s", text.data);
    hd_str_free(&text);
    return rc;
}
