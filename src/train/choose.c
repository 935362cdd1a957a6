/* choose.c: a plan for a training job, found on the machine at hand. */
#include "train/choose.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/term.h"
#include "cluster/machine.h"
#include "cluster/measure.h"
#include "train/planning.h"

#define CALIBRATION 40.0 /* seconds */
#define WORTH 10.0       /* a job must be so many times as long */
#define REACHED 0.5      /* share of the peak that a job is taken to reach, so that it is rather said to be short */
#define SEARCHING 0.05   /* share of the job's time that may go into searching, */
#define LEAST_SEARCH 10.0 /* but at least so many seconds: what is cut off may come out differently the next time */
#define MOST_SEARCH 120.0
enum { ROUNDS = 5 };     /* for measuring the peak, of some 5 ms */
#define PREDICTION "HEDDLE_PREDICTED"

/* What a choice is made from. */
typedef struct maker {
    const hd_train_config *c;
    const hd_session_options *session;
    hd_model model;
    hd_cluster cluster;
    hd_planning planning;
    hd_planner_network network;
    double job;              /* seconds that the whole job takes on one rank, about */
    bool asked;              /* the person wants something of a plan: it is made even if it isn't worth it */
    int64_t samples;
} maker;

/* ---- the model and how long it takes ---- */

static int open_model(maker *m, hd_error *err)
{
    const hd_train_config *c = m->c;
    int rc = hd_model_open(&m->model, c->model, err);
    if (rc) return rc;
    if (c->dropout >= 0) m->model.config.embd_dropout = m->model.config.resid_dropout = c->dropout;
    m->samples = c->batch * c->micro_batches;
    m->planning = (hd_planning){.model = &m->model, .cluster = &m->cluster, .precision = m->session->plan.precision, .step = m->session->step,
                                .samples = m->samples, .sequence = c->sequence, .threads = (int)c->threads};
    return hd_planning_network(&m->planning, &m->network, err);
}

static int estimate_job(maker *m, hd_error *err)
{
    hd_graph *g = m->network.graph(&m->planning, m->c->micro_batches, 0, err);
    hd_team *team = g ? hd_team_new(hd_core_count(), true, err) : NULL;
    hd_bound bound = m->planning.precision == HD_BF16 ? HD_BOUND_BF16 : HD_BOUND_F32;
    double rate = team ? REACHED * hd_measure(bound, team, hd_isa_detect(), ROUNDS, NULL) : 0;
    double flops = g ? hd_graph_flops(g) * (double)m->c->micro_batches : 0;
    bool failed = !team;
    hd_team_free(team);
    hd_graph_free(g);
    m->job = rate > 0 ? (double)m->c->steps * flops / rate : 0;
    return failed ? err->code : 0;
}

/* ---- the machine ---- */

static void say_short(const maker *m)
{
    char time[24];
    if (m->c->quiet) return;
    hd_format_seconds(time, m->job < 1 ? 1 : m->job);
    hd_log("one rank: the job takes it some %s, too little for calibrating this machine (%.0f s, once); --planner search searches for a plan on a guess",
           time, CALIBRATION);
}

static int calibrate(maker *m, const char *path, hd_error *err)
{
    hd_error why = {0};
    if (!m->c->quiet) hd_log("this machine is calibrated, once, for %.0f s: %s", CALIBRATION, path);
    if (!hd_machine_calibrate(path, CALIBRATION, m->c->quiet, &m->cluster, &why)) return 0;
    hd_log("%s: planning with a guess", why.message);
    return hd_machine_guess(&m->cluster, err);
}

/* Ranks on CPUs share cores and memory: of this machine there are as many as are asked for. What others use now, or isn't to be used, isn't there. */
static void fit_cluster(maker *m)
{
    hd_cluster *k = &m->cluster;
    int ranks = (int)m->c->ranks, devices = hd_cluster_devices(k);
    if (hd_cluster_nodes(k) > 1) return;
    hd_level *outer = k->n_levels ? &k->level[k->n_levels - 1] : NULL;
    if (outer && ranks > devices) outer->fanout = (ranks + devices / outer->fanout - 1) / (devices / outer->fanout);
    int64_t has = (int64_t)hd_memory_available() + (int64_t)hd_memory_resident(), most = (int64_t)(m->c->memory * 0x1p30);
    if (most && most < has) has = most;
    if (has < k->device.memory) k->device.memory = has;
}

/* *found: whether there is a machine to plan for. HEDDLE_CLUSTER names its file; none: there is none. */
static int find_cluster(maker *m, bool *found, hd_error *err)
{
    char path[4096] = "";
    hd_error nowhere = {0};
    const char *named = getenv("HEDDLE_CLUSTER");
    bool none = named && !strcmp(named, "none");
    int rc = 0;
    *found = true;
    if (named && *named && !none) return hd_cluster_find(named, &m->cluster, err);
    bool kept = !none && !hd_machine_path(path, sizeof path, &nowhere);
    if (kept && hd_machine_load(path, &m->cluster)) return 0;
    if (kept && m->job >= WORTH * CALIBRATION) return calibrate(m, path, err);
    *found = m->asked;
    if (m->asked) rc = hd_machine_guess(&m->cluster, err);
    else if (!none && hd_core_count() > 1) say_short(m);
    return rc;
}

/* ---- what is said ---- */

static double share_of_limit(const hd_plan_found *f)
{
    return f->step > 0 ? 100 * f->part[f->most] / f->step : 0;
}

/* Of one rank: its default has no text. */
static void print_form(const hd_plan_found *f, hd_str *out)
{
    size_t begin = out->len;
    if (hd_parallel_print(&f->form, out) || out->len == begin) hd_str_puts(out, "dp=1");
    if (f->form.n_pins || f->form.n_also) hd_str_puts(out, " with layouts of its own");
}

static void say_others(const maker *m, const hd_planner_answer *a, hd_str *out)
{
    const hd_plan_found *best = &a->best[0];
    hd_str_printf(out, "; %.0f %% of a step is %s", share_of_limit(best), best->limit);
    if (a->n > 1) {
        hd_str_puts(out, "; next best, ");
        hd_str_printf(out, "%.1f %% slower: ", 100 * (a->best[1].step / best->step - 1));
        print_form(&a->best[1], out);
        long long micro = (long long)a->best[1].micro_batches;
        if (micro != best->micro_batches) hd_str_printf(out, " in %lld micro-batches", micro);
    }
    hd_str_printf(out, "; %lld forms considered, %lld simulated in %.2f s (%s)", (long long)a->considered, (long long)a->tried, a->seconds,
                  m->cluster.name);
}

static void say(const maker *m, const hd_planner_answer *a)
{
    char peak[24], capacity[24];
    const hd_plan_found *best = &a->best[0];
    int ranks = (int)hd_parallel_ranks(&best->form);
    hd_plan target = hd_plan_default();
    hd_str text;
    if (m->c->quiet) return;
    hd_str_init(&text);
    hd_planning_target(&m->cluster, ranks, m->planning.threads, &target);
    hd_str_puts(&text, "plan: ");
    print_form(best, &text);
    hd_format_bytes(peak, (double)best->peak);
    hd_format_bytes(capacity, (double)best->capacity);
    long long micro = (long long)best->micro_batches;
    hd_str_printf(&text, ": %d rank%s of %d thread%s, %lld micro-batch%s of %lld; predicted %.3g ms a step and %s of %s a rank", ranks,
                  ranks == 1 ? "" : "s", target.threads, target.threads == 1 ? "" : "s", micro, micro == 1 ? "" : "es", (long long)m->samples / micro,
                  1e3 * best->step, peak, capacity);
    say_others(m, a, &text);
    if (!text.failed) hd_log("%s", text.data);
    hd_str_free(&text);
}

/* ---- the plan as settings ---- */

/* As many samples in an evaluation as the person asked for. */
static int keep_evaluation(const maker *m, hd_choice *out, hd_error *err)
{
    hd_train_rhythm r;
    int64_t batch = out->config.batch;
    int rc = hd_train_config_rhythm(m->c, &r, err);
    if (rc || !r.eval_batches || batch == m->c->batch) return rc;
    long long batches = (long long)((r.eval_batches * m->c->batch + batch - 1) / batch);
    snprintf(out->eval_every, sizeof out->eval_every, "%lld:%lld", (long long)r.eval_every, batches);
    out->config.eval_every = out->eval_every;
    return 0;
}

/* Layouts and cuts that no text names: the whole plan, in a file. */
static int write_plan(const maker *m, const hd_plan_found *f, hd_choice *out, hd_error *err)
{
    const char *temporary = getenv("TMPDIR");
    hd_programs p = {0};
    int rc = m->network.lower(&m->planning, &f->form, f->micro_batches, 0, &p, err);
    if (!rc && m->c->out) rc = hd_make_dirs(m->c->out, err);
    if (rc) return rc;
    out->temporary = !m->c->out;
    if (m->c->out) snprintf(out->plan_path, sizeof out->plan_path, "%.4000s/plan.json", m->c->out);
    else snprintf(out->plan_path, sizeof out->plan_path, "%.4000s/heddle-plan-%d.json", temporary ? temporary : "/tmp", (int)getpid());
    p.plan.fingerprint = p.fingerprint;
    p.plan.threads = 0;
    p.plan.backend[0] = 0;
    rc = hd_plan_save(&p.plan, out->plan_path, err);
    hd_programs_free(&p);
    out->config.plan = out->plan_path;
    return rc;
}

static int write_text(const hd_plan_found *f, hd_choice *out, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    int rc = hd_parallel_print(&f->form, &text) ? hd_fail_memory(err, text.len, "a plan") : 0;
    if (!rc && text.len >= sizeof out->parallel) rc = hd_fail(err, HD_EINVAL, "the plan's text is too long");
    if (!rc) memcpy(out->parallel, text.data, text.len + 1);
    hd_str_free(&text);
    if (!rc && out->parallel[0]) out->config.parallel = out->parallel;
    return rc;
}

static int take(const maker *m, const hd_plan_found *f, hd_choice *out, hd_error *err)
{
    hd_train_config *c = &out->config;
    out->planned = true;
    c->parallel = c->plan = NULL;
    c->planner = "given";
    c->ranks = hd_parallel_ranks(&f->form);
    c->micro_batches = f->micro_batches;
    c->batch = m->samples / f->micro_batches;
    c->predicted_step = f->step;
    c->predicted_rank = f->peak;
    int rc = f->form.n_pins || f->form.n_also || f->form.n_cuts ? write_plan(m, f, out, err) : write_text(f, out, err);
    return rc ? rc : keep_evaluation(m, out, err);
}

/* ---- all of it ---- */

static double seconds_for(const maker *m)
{
    double s = SEARCHING * m->job;
    return s < LEAST_SEARCH ? LEAST_SEARCH : s > MOST_SEARCH ? MOST_SEARCH : s;
}

static int find_plan(maker *m, hd_choice *out, hd_error *err)
{
    const hd_planner *planner = hd_planner_find(m->c->planner ? m->c->planner : hd_planner_name(0));
    hd_planner_job job = {.network = m->network, .cluster = &m->cluster, .ranks = (int)m->c->ranks, .pinned = hd_parallel_default(), .memory = m->session->device_memory,
                          .seconds = seconds_for(m), .quiet = m->c->quiet};
    hd_planner_answer a = {0};
    if (m->session->parallel.dp) job.pinned = m->session->parallel;
    job.pinned.open = false;
    job.pinned.given &= ~(1u << HD_KEY_AUTO);
    if (!job.ranks && hd_cluster_nodes(&m->cluster) == 1) job.ranks = hd_core_count();
    if (m->network.whole_batch) job.micro_batches = m->c->micro_batches;
    fit_cluster(m);
    hd_error why = {0};
    int rc = planner->find(&job, &a, &why);
    if (rc && !m->asked) {
        hd_log("no plan is found (%s): one rank", why.message);
        return 0;
    }
    if (rc) rc = hd_fail(err, rc, "%s", why.message);
    if (!rc && !a.n) rc = hd_fail(err, HD_ENOPLAN, "%s", a.why);
    if (!rc) rc = take(m, &a.best[0], out, err);
    if (!rc) say(m, &a);
    hd_planner_answer_free(&a);
    return rc;
}

/* What is wrong with the model, or with one rank's graph of it, the run says itself. */
static int choose(maker *m, hd_choice *out, hd_error *err)
{
    bool found = false;
    hd_error ignored = {0};
    if (!hd_file_exists(m->c->model) || open_model(m, &ignored)) return 0;
    int rc = estimate_job(m, m->asked ? err : &ignored);
    if (rc) return m->asked ? rc : 0;
    rc = find_cluster(m, &found, err);
    if (!rc && found) rc = find_plan(m, out, err);
    return rc;
}

int hd_choose(const hd_train_config *c, hd_choice *out, hd_error *err)
{
    hd_session_options session;
    hd_lora_options lora;
    hd_lr_schedule lr;
    *out = (hd_choice){.config = *c};
    int rc = hd_train_config_check(c, &session, &lora, &lr, err);
    if (rc || !hd_train_config_is_open(c, &session.parallel)) return rc;
    maker m = {.c = c, .session = &session, .asked = c->ranks || c->parallel || c->planner || c->device_memory};
    rc = choose(&m, out, err);
    hd_cluster_free(&m.cluster);
    hd_model_close(&m.model);
    return rc;
}

void hd_choice_free(hd_choice *choice)
{
    if (choice->temporary) remove(choice->plan_path);
    choice->temporary = false;
}

/* ---- to the ranks ---- */

void hd_choice_pass_on(const hd_train_config *c)
{
    char text[64];
    snprintf(text, sizeof text, "%.17g:%lld", c->predicted_step, (long long)c->predicted_rank);
    if (c->predicted_step > 0) setenv(PREDICTION, text, 1);
    else unsetenv(PREDICTION);
}

void hd_choice_take_over(hd_train_config *c)
{
    long long bytes = 0;
    const char *text = getenv(PREDICTION);
    if (text && sscanf(text, "%lf:%lld", &c->predicted_step, &bytes) == 2) c->predicted_rank = bytes;
}
