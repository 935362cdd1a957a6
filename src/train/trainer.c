#include "train/trainer.h"

#include <math.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/file.h"
#include "base/term.h"
#include "cluster/measure.h"
#include "report/curve.h"
#include "train/checkpoint.h"
#include "train/stop.h"
#include "train/task.h"
#include "train/tracing.h"

#define PATH_SIZE 4096
enum { PREDICTED_STEPS = 10 }; /* after which a plan's prediction is compared with them */

typedef struct series {
    double *x, *y;
    size_t n, cap_x, cap_y;
} series;

typedef struct run {
    const hd_train_config *c;
    const hd_rank *rank;        /* NULL: the only one */
    bool first;                 /* the rank that reports */
    hd_session_options options;
    hd_lora_options lora;
    hd_lr_schedule lr;
    hd_train_rhythm rhythm;
    hd_task *task;
    hd_session session;
    hd_progress_point at;       /* steps and samples done */
    int64_t saved_step;         /* of the newest checkpoint; -1: none */
    FILE *metrics;
    double peak;                /* the machine's FLOP/s at this precision */
    double start, last_report;  /* hd_time */
    int64_t start_step, last_report_step;
    double loss, grad_norm;
    series train_loss, eval_loss;
    hd_evaluation evaluation;
    hd_progress bar;
    hd_tracing tracing;
    double took[PREDICTED_STEPS]; int timed; /* seconds of the first steps */
    uint64_t before;            /* bytes of this process before the session's */
} run;

/* ---- starting ---- */

static bool is_network(const char *path)
{
    json_error_t e;
    json_t *j = json_load_file(path, 0, &e);
    bool yes = j && json_object_get(j, "heddle_network");
    json_decref(j);
    return yes;
}

static int make_task(run *r, hd_error *err)
{
    const hd_train_config *c = r->c;
    if (!hd_file_exists(c->model)) return hd_fail(err, HD_EINVAL, "--model %s: there is no such file or directory", c->model);
    bool network = !hd_is_dir(c->model) && is_network(c->model);
    r->task = network ? hd_network_task_new(c, r->rank, err) : hd_lm_task_new(c, r->rank, err);
    return r->task ? 0 : err->code;
}

static int make_session(run *r, hd_error *err)
{
    hd_graph *train = NULL, *eval = NULL;
    int rc = r->task->graphs(r->task, &train, &eval, err);
    if (!rc && r->c->eval_only) {
        hd_graph_free(train);
        train = NULL;
    }
    r->before = hd_memory_resident();
    r->options.sequence = strcmp(r->task->unit, "tokens") ? 0 : r->c->sequence;
    if (!rc) rc = hd_session_init(&r->session, train, eval, &r->options, err);
    if (rc) return rc;
    char need[24], have[24];
    hd_format_bytes(need, (double)r->session.predicted_bytes);
    hd_format_bytes(have, (double)hd_memory_available());
    if (!r->c->quiet) hd_log("memory: %s predicted at the peak, %s available", need, have);
    return hd_session_start(&r->session, &r->options, err);
}

/* The newest checkpoint that the first rank finds under --out. */
typedef struct resume_point {
    bool found;
    hd_progress_point at;
    char dir[PATH_SIZE];
} resume_point;

static int find_checkpoint(run *r, resume_point *p, hd_error *err)
{
    int rc = 0;
    *p = (resume_point){0};
    if (r->first && r->c->out && r->c->resume) p->found = hd_checkpoint_newest(r->c->out, p->dir, sizeof p->dir);
    if (p->found) rc = hd_checkpoint_open(p->dir, &p->at, NULL, err);
    return rc ? rc : hd_ranks_tell(r->rank, 0, p, sizeof *p, err);
}

/* The newest checkpoint under --out if there is one, else the model given. */
static int load_weights(run *r, hd_error *err)
{
    resume_point p;
    hd_store *store = r->session.store;
    int rc = find_checkpoint(r, &p, err);
    if (rc || !p.found) return rc ? rc : r->task->load(r->task, store, NULL, err);
    if (p.at.seed != r->at.seed)
        return hd_fail(err, HD_EINVAL, "%s was made with --seed %llu: use that seed, another --out, or --no-resume", p.dir, (unsigned long long)p.at.seed);
    r->at = p.at;
    rc = r->task->load(r->task, store, p.dir, err);
    if (!rc) rc = hd_checkpoint_load_state(p.dir, store, err);
    if (!rc && !r->c->quiet) hd_log("going on from %s", p.dir);
    r->saved_step = r->at.step;
    return rc;
}

static int open_metrics(run *r, hd_error *err)
{
    char path[PATH_SIZE];
    if (r->c->out && hd_make_dirs(r->c->out, err)) return err->code;
    if (!r->first || (!r->c->metrics && !r->c->out)) return 0;
    if (r->c->metrics) snprintf(path, sizeof path, "%s", r->c->metrics);
    else if (hd_path_join(path, sizeof path, r->c->out, "metrics.jsonl", err)) return err->code;
    r->metrics = fopen(path, r->at.step ? "a" : "w");
    return r->metrics ? 0 : hd_fail_errno(err, "%s", path);
}

/* ---- reporting ---- */

static void series_add(series *s, double x, double y)
{
    if (hd_grow(&s->x, &s->cap_x, s->n + 1, sizeof *s->x) || hd_grow(&s->y, &s->cap_y, s->n + 1, sizeof *s->y)) return;
    s->x[s->n] = x;
    s->y[s->n++] = y;
}

static double units_per_step(const run *r)
{
    return r->task->units_per_sample * (double)(r->c->batch * r->options.plan.micro_batches);
}

static void report_step(run *r, double lr)
{
    char detail[200], memory[24];
    double now = hd_time(), steps = (double)(r->at.step - r->last_report_step), seconds = now - r->last_report;
    double speed = steps * units_per_step(r) / seconds, peak = steps * r->session.flops[HD_TRAIN_PROGRAM] / seconds / r->peak;
    if (r->metrics) {
        fprintf(r->metrics, "{\"step\": %lld, \"loss\": %.9g, \"learning_rate\": %.9g, ", (long long)r->at.step, r->loss, lr);
        if (!isnan(r->grad_norm)) fprintf(r->metrics, "\"grad_norm\": %.9g, ", r->grad_norm);
        fprintf(r->metrics, "\"%s_per_second\": %.6g, \"fraction_of_peak\": %.4g, \"seconds\": %.3f}\n", r->task->unit, speed, peak, now - r->start);
        fflush(r->metrics);
    }
    hd_format_bytes(memory, (double)hd_memory_resident());
    snprintf(detail, sizeof detail, "loss %.4f | %.0f %s/s | %.0f %% of peak | %s", r->loss, speed, r->task->unit, 100 * peak, memory);
    hd_progress_update(&r->bar, (double)r->at.step, detail);
    r->last_report = now;
    r->last_report_step = r->at.step;
}

/* Runs the program once more, to find the path of the first value that is not finite. Of several ranks' the first's. */
static void first_nonfinite(const run *r, hd_exec *e, const hd_exec_hooks *hooks, char *path, size_t n)
{
    hd_error ignored = {0};
    *path = 0;
    if (hd_exec_find_nonfinite(e, hooks, path, n, &ignored)) *path = 0;
    int64_t ranks = hd_session_ranks(&r->options), finder = *path && r->rank ? ranks - r->rank->rank : 0;
    if (!ignored.code && !hd_ranks_max(r->rank, &finder, 1, &ignored) && finder) hd_ranks_tell(r->rank, (int)(ranks - finder), path, (int64_t)n, &ignored);
    if (!*path) snprintf(path, n, "a value that could not be found");
}

static void print_evaluation(run *r, const hd_evaluation *e)
{
    if (!e->n || !r->first) return;
    if (r->metrics) fprintf(r->metrics, "{\"step\": %lld", (long long)r->at.step);
    printf("step %lld, held out (%lld %s):", (long long)r->at.step, (long long)e->units, r->task->unit);
    for (int i = 0; i < e->n; i++) {
        printf(" %s %.4f", e->metric[i].name, e->metric[i].value);
        if (r->metrics && isfinite(e->metric[i].value)) fprintf(r->metrics, ", \"eval_%s\": %.9g", e->metric[i].name, e->metric[i].value);
        else if (r->metrics) fprintf(r->metrics, ", \"eval_%s\": null", e->metric[i].name); /* a perplexity can be too large; JSON has no infinity */
    }
    printf("\n");
    fflush(stdout);
    if (r->metrics) fprintf(r->metrics, "}\n"), fflush(r->metrics);
}

static int evaluate(run *r, hd_error *err)
{
    hd_exec *e = r->session.exec[HD_EVAL_PROGRAM];
    if (!e) return 0;
    double before = hd_time();
    int rc = r->task->evaluate(r->task, e, r->rhythm.eval_batches, &r->evaluation, err);
    if (rc) return rc;
    if (r->evaluation.n && !isfinite(r->evaluation.metric[0].value)) {
        char path[300];
        first_nonfinite(r, e, NULL, path, sizeof path);
        return hd_fail(err, HD_ENUMERIC, "step %lld: the loss on held-out data is %g; the first value that is not a number is %s", (long long)r->at.step,
                       r->evaluation.metric[0].value, path);
    }
    if (r->evaluation.n) series_add(&r->eval_loss, (double)r->at.step, r->evaluation.metric[0].value);
    hd_progress_hide(&r->bar);
    print_evaluation(r, &r->evaluation);
    r->last_report += hd_time() - before; /* not the steps' time */
    return 0;
}

/* ---- one step ---- */

static int before_call(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    run *r = arg;
    if (kind != HD_SEGMENT_FORWARD || call->slice) return 0; /* a micro-batch is filled whole, for all of its slices */
    return r->task->fill(r->task, e, r->at.samples + call->micro * r->c->batch, err);
}

static double scalar_output(hd_exec *e, const char *name)
{
    hd_tensor t;
    hd_error ignored = {0};
    if (hd_program_output(hd_exec_program(e), name) < 0 || hd_exec_output(e, name, &t, &ignored)) return NAN;
    return hd_load_f64(t.data, t.dtype, 0);
}

/* HEDDLE_FAULT=RANK:STEP:KIND:FILE makes that rank crash, hang or fail before that step, once: if it can create FILE; "-": every time.
 * For tests of what follows. */
static int inject_fault(const run *r, hd_error *err)
{
    int rank = 0, at = 0;
    char kind[16], path[1024];
    const char *text = getenv("HEDDLE_FAULT");
    if (!text || sscanf(text, "%d:%d:%15[a-z]:%1023s", &rank, &at, kind, path) != 4) return 0;
    if (at != r->at.step + 1 || rank != (r->rank ? r->rank->rank : 0)) return 0;
    int fd = strcmp(path, "-") ? open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666) : -1;
    if (fd < 0 && strcmp(path, "-")) return 0;
    if (fd >= 0) close(fd);
    if (!strcmp(kind, "crash")) raise(SIGSEGV);
    while (!strcmp(kind, "hang")) pause();
    if (!strcmp(kind, "stop")) raise(SIGSTOP);
    if (!strcmp(kind, "kill")) raise(SIGKILL);
    return hd_fail(err, HD_EIO, "step %d fails because HEDDLE_FAULT says so", at);
}

/* The update was skipped: the step runs again, unchanged, to see where it went wrong. */
static int explain_nonfinite(run *r, hd_exec *e, const hd_exec_hooks *hooks, hd_error *err)
{
    char path[300];
    first_nonfinite(r, e, hooks, path, sizeof path);
    return hd_fail(err, HD_ENUMERIC, "step %lld: the loss is %g; the first value that is not a number is %s; nothing was saved after step %lld",
                   (long long)r->at.step + 1, r->loss, path, (long long)(r->saved_step < 0 ? 0 : r->saved_step));
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_step(run *r)
{
    qsort(r->took, (size_t)r->timed, sizeof *r->took, by_value);
    return (r->took[(r->timed - 1) / 2] + r->took[r->timed / 2]) / 2;
}

/* Of a plan that was searched for: what was said of it, and what is. Memory: what the process has grown by, over its ranks. */
static void compare_prediction(run *r)
{
    char said[24], had[24];
    int ranks = hd_session_is_rank(&r->options) && !strcmp(r->c->transport, "local") ? hd_session_ranks(&r->options) : 1;
    uint64_t peak = hd_memory_peak();
    double bytes = peak > r->before ? (double)(peak - r->before) / ranks : 0, median;
    if (!r->timed || r->c->predicted_step <= 0 || !r->first) return;
    median = median_step(r);
    if (!r->c->quiet) {
        hd_progress_hide(&r->bar);
        hd_log("predicted %.3g ms a step, %s a rank; measured %.3g ms, %s", 1e3 * r->c->predicted_step, hd_format_bytes(said, (double)r->c->predicted_rank), 1e3 * median,
               hd_format_bytes(had, bytes));
    }
    if (!r->metrics) return;
    fprintf(r->metrics, "{\"step\": %lld, \"predicted_step_seconds\": %.6g, \"measured_step_seconds\": %.6g, \"predicted_rank_bytes\": %lld, \"measured_rank_bytes\": %.0f}\n",
            (long long)r->at.step, r->c->predicted_step, median, (long long)r->c->predicted_rank, bytes);
    fflush(r->metrics);
}

static void time_step(run *r, double seconds)
{
    if (r->timed == PREDICTED_STEPS) return;
    r->took[r->timed++] = seconds;
    if (r->timed == PREDICTED_STEPS) compare_prediction(r);
}

static int one_step(run *r, hd_error *err)
{
    double begun = hd_time();
    hd_exec *e = r->session.exec[HD_TRAIN_PROGRAM];
    double lr = hd_lr_at(&r->lr, r->at.step + 1);
    hd_exec_hooks hooks = {.arg = r, .before = before_call};
    int rc = inject_fault(r, err);
    if (!rc) rc = hd_task_set_scalar(e, "lr", lr, err);
    if (!rc) rc = hd_task_set_scalar(e, "step", (double)(r->at.step + 1), err);
    if (!rc) rc = r->task->begin_step(r->task, e, r->at.samples, r->at.step, err);
    if (!rc) rc = hd_exec_step(e, &hooks, err);
    if (rc) return rc;
    r->loss = scalar_output(e, "loss");
    r->grad_norm = scalar_output(e, "grad_norm");
    if (scalar_output(e, "ok") == 0) return explain_nonfinite(r, e, &hooks, err);
    r->at.step++;
    r->at.samples += r->c->batch * r->options.plan.micro_batches;
    series_add(&r->train_loss, (double)r->at.step, r->loss);
    report_step(r, lr);
    time_step(r, hd_time() - begun);
    return 0;
}

/* ---- saving ---- */

static int write_model(void *arg, const char *dir, hd_share *share, hd_error *err)
{
    run *r = arg;
    return r->task->write_model(r->task, r->session.store, dir, share, err);
}

static json_t *describe_settings(const run *r)
{
    const hd_train_config *c = r->c;
    return json_pack("{s:s,s:I,s:I,s:I,s:s,s:s}", "model", c->model, "batch", (json_int_t)c->batch, "micro_batches",
                     (json_int_t)r->options.plan.micro_batches, "sequence", (json_int_t)c->sequence, "optimizer", c->optimizer, "precision",
                     hd_dtype_name(r->options.plan.precision));
}

static bool all_finite(const hd_store_tensor *t)
{
    uint32_t worst = 0;
    int64_t n = hd_shape_count(&t->type.shape);
    if (t->type.dtype != HD_F32) return true; /* masters and the optimizer's state are f32 */
    for (int64_t i = 0; i < n; i++) {
        uint32_t exponent = ((const uint32_t *)t->data)[i] & 0x7f800000u;
        worst = exponent > worst ? exponent : worst;
    }
    return worst < 0x7f800000u;
}

/* Without clipping, a gradient can overflow where the loss did not: then the next loss would show it, after the save. */
static int check_finite(const run *r, hd_error *err)
{
    const hd_store *s = r->session.store;
    for (size_t i = 0; i < s->n_tensors; i++)
        if (!all_finite(s->tensors[i]))
            return hd_fail(err, HD_ENUMERIC, "step %lld: the first value that is not a number is %s; nothing was saved after step %lld", (long long)r->at.step,
                           s->tensors[i]->path, (long long)(r->saved_step < 0 ? 0 : r->saved_step));
    return 0;
}

static int save(run *r, hd_error *err)
{
    if (!r->c->out || r->saved_step == r->at.step) return 0;
    double before = hd_time();
    if (check_finite(r, err)) return err->code;
    json_t *settings = describe_settings(r);
    hd_saving saving = {.out = r->c->out, .at = r->at, .model = {write_model, r}, .store = r->session.store};
    int rc = hd_checkpoint_save(&saving, settings, r->rhythm.keep, r->rank, err);
    json_decref(settings);
    if (!rc) r->saved_step = r->at.step;
    r->last_report += hd_time() - before;
    return rc;
}

/* ---- the run ---- */

static bool due(int64_t every, int64_t step)
{
    return every > 0 && step % every == 0;
}

/* Whether some rank was asked to stop: all of them end after the same step. */
static int agree_to_stop(const run *r, bool *stop, hd_error *err)
{
    int64_t asked = hd_stop_asked();
    int rc = hd_ranks_max(r->rank, &asked, 1, err);
    *stop = asked;
    return rc;
}

static int loop(run *r, hd_error *err)
{
    bool stop;
    int rc = agree_to_stop(r, &stop, err);
    hd_progress_begin(&r->bar, "training", (double)r->c->steps, r->c->quiet);
    r->bar.first = (double)r->at.step;
    while (!rc && r->at.step < r->c->steps && !stop) {
        rc = hd_tracing_before(&r->tracing, err);
        if (!rc) rc = one_step(r, err);
        if (!rc) rc = hd_tracing_after(&r->tracing, err);
        bool last = r->at.step == r->c->steps;
        if (!rc && !last && due(r->rhythm.eval_every, r->at.step)) rc = evaluate(r, err);
        if (!rc && (last || due(r->rhythm.save_every, r->at.step))) rc = save(r, err);
        if (!rc) rc = agree_to_stop(r, &stop, err);
    }
    if (rc) hd_progress_hide(&r->bar);
    else hd_progress_end(&r->bar, NULL);
    if (!rc && r->timed < PREDICTED_STEPS) compare_prediction(r);
    if (rc || !stop) return rc;
    rc = save(r, err);
    return rc ? rc : hd_fail(err, HD_EINTR, "stopped after step %lld%s", (long long)r->at.step, r->c->out ? ", which is saved" : "; there is no --out to save to");
}

static int draw_curves(run *r, hd_error *err)
{
    char path[PATH_SIZE];
    if (!r->first) return 0;
    hd_curve curves[] = {{"training", r->train_loss.x, r->train_loss.y, (int64_t)r->train_loss.n},
                         {"held out", r->eval_loss.x, r->eval_loss.y, (int64_t)r->eval_loss.n}};
    hd_str line;
    hd_str_init(&line);
    hd_curve_sparkline(&curves[0], 60, &line);
    if (r->train_loss.n) printf("loss %.3f %s %.3f\n", r->train_loss.y[0], line.data, r->train_loss.y[r->train_loss.n - 1]);
    hd_str_free(&line);
    if (!r->c->out) return 0;
    int rc = hd_path_join(path, sizeof path, r->c->out, "loss.svg", err);
    return rc ? rc : hd_curve_svg(path, "Loss", "step", "loss (nats)", curves, 2, err);
}

static void print_summary(const run *r)
{
    char predicted[24], measured[24], time[24];
    double seconds = hd_time() - r->start, steps = (double)(r->at.step - r->start_step);
    uint64_t peak = hd_memory_peak();
    if (!r->first) return;
    hd_format_bytes(predicted, (double)r->session.predicted_bytes);
    hd_format_bytes(measured, (double)peak);
    if (r->metrics)
        fprintf(r->metrics, "{\"step\": %lld, \"predicted_bytes\": %lld, \"peak_bytes\": %llu}\n", (long long)r->at.step, (long long)r->session.predicted_bytes,
                (unsigned long long)peak);
    printf("%lld steps in %s; memory at the peak: %s predicted, %s measured\n", (long long)steps, hd_format_seconds(time, seconds), predicted, measured);
}

/* The adapted weights, merged, as a model of their own. */
static int write_merged(run *r, hd_error *err)
{
    char dir[PATH_SIZE];
    if (!r->options.lora || !r->c->out) return 0;
    int rc = hd_session_merge_lora(&r->session, &r->options, err);
    if (!rc) rc = hd_path_join(dir, sizeof dir, r->c->out, "merged", err);
    if (!rc) rc = hd_make_dirs(dir, err);
    if (!rc) rc = r->task->write_model(r->task, r->session.store, dir, NULL, err);
    if (!rc) printf("the merged model is in %s\n", dir);
    return rc;
}

static int run_all(run *r, hd_error *err)
{
    int rc = make_task(r, err);
    if (!rc) rc = make_session(r, err);
    if (!rc) rc = load_weights(r, err);
    if (!rc && r->c->eval_only) return evaluate(r, err);
    if (!rc) rc = open_metrics(r, err);
    if (!rc) rc = hd_tracing_begin(&r->tracing, r->c->trace, r->rank, r->session.exec[HD_TRAIN_PROGRAM], r->c->steps - r->at.step, err);
    if (rc) return rc;
    r->peak = hd_measure(r->options.plan.precision == HD_BF16 ? HD_BOUND_BF16 : HD_BOUND_F32, r->session.team, hd_isa_detect(), 5, NULL);
    r->start = r->last_report = hd_time();
    r->start_step = r->last_report_step = r->at.step;
    if (r->at.step >= r->c->steps && r->first) hd_log("all %lld steps are done already", (long long)r->c->steps);
    if (!r->rank) hd_stop_catch(HD_STOP_ANYONE); /* of many ranks, job.c has */
    rc = loop(r, err);
    if (!r->rank) hd_stop_ignore();
    if (!rc) rc = evaluate(r, err);
    if (!rc) rc = draw_curves(r, err);
    if (!rc) print_summary(r);
    return rc ? rc : write_merged(r, err);
}

int hd_train_rank(const hd_train_config *config, const hd_rank *rank, hd_error *err)
{
    hd_train_config c = *config;
    run r = {.c = &c, .rank = rank, .first = hd_rank_is_first(rank), .saved_step = -1, .at = {.seed = (uint64_t)c.seed}};
    if (!r.first) c.quiet = true;
    int rc = hd_train_config_check(&c, &r.options, &r.lora, &r.lr, err);
    if (!rc) c.micro_batches = r.options.plan.micro_batches, c.precision = hd_dtype_name(r.options.plan.precision); /* as a plan says that is replayed */
    if (!rc) rc = hd_train_config_rhythm(&c, &r.rhythm, err);
    r.options.share_arena = true;
    if (rank) r.options.rank = *rank;
    if (!rc) rc = run_all(&r, err);
    if (r.metrics) fclose(r.metrics);
    hd_tracing_free(&r.tracing);
    hd_session_free(&r.session);
    if (r.task) r.task->free(r.task);
    hd_free(r.train_loss.x);
    hd_free(r.train_loss.y);
    hd_free(r.eval_loss.x);
    hd_free(r.eval_loss.y);
    return rc;
}
