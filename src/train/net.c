/* net.c: the public interface to networks (heddle/heddle.h): a task, a session and a schedule, stepped by the caller. */
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "train/task.h"

struct hd_net {
    hd_train_config config;
    hd_settings_memory memory;
    hd_session_options options;
    hd_lora_options lora;
    hd_lr_schedule lr;
    hd_task *task;
    hd_session session;
    int64_t step, samples; /* done; drawn from the file's data */
};

/* ---- life cycle ---- */

/* Table, then the file's "train" section, then what the caller says. */
static int fill_config(hd_net *n, const char *network, const char *settings, hd_error *err)
{
    int rc = hd_settings_preset(hd_train_settings, &n->config, &n->memory, err);
    json_t *file = rc ? NULL : hd_json_load(network, err), *said = NULL;
    if (!rc && !file) rc = err->code;
    const json_t *brought = json_object_get(file, "train");
    if (!rc && brought) rc = hd_settings_apply(hd_train_settings, &n->config, brought, &n->memory, err);
    if (!rc && settings && !(said = hd_json_parse(settings, strlen(settings), "settings", err))) rc = err->code;
    if (!rc && said) rc = hd_settings_apply(hd_train_settings, &n->config, said, &n->memory, err);
    json_decref(file);
    json_decref(said);
    n->config.model = network;
    n->config.quiet = true;
    return rc ? rc : hd_train_config_check(&n->config, &n->options, &n->lora, &n->lr, err);
}

hd_net *hd_net_open(const char *network, const char *settings, hd_error *err)
{
    hd_graph *train = NULL, *eval = NULL;
    hd_net *n = hd_calloc(1, sizeof *n);
    if (!n) return hd_fail_memory(err, sizeof *n, "a network"), NULL;
    int rc = fill_config(n, network, settings, err);
    if (!rc && n->options.plan.micro_batches != 1) rc = hd_fail(err, HD_EINVAL, "micro_batches must be 1 here");
    if (!rc && (hd_session_is_rank(&n->options) || n->config.ranks > 1)) rc = hd_fail(err, HD_EUNSUPPORTED, "a plan for many ranks can only be run by heddle train");
    if (!rc && !(n->task = hd_network_task_new(&n->config, NULL, err))) rc = err->code;
    if (!rc) rc = n->task->graphs(n->task, &train, &eval, err);
    if (!rc) rc = hd_session_init(&n->session, train, eval, &n->options, err);
    if (!rc) rc = hd_session_start(&n->session, &n->options, err);
    if (!rc) return n;
    hd_net_close(n);
    return NULL;
}

void hd_net_close(hd_net *n)
{
    if (!n) return;
    hd_session_free(&n->session);
    if (n->task) n->task->free(n->task);
    hd_settings_free(&n->memory);
    hd_free(n);
}

/* ---- inputs ---- */

int hd_net_input(hd_net *n, const char *name, const void *data, size_t bytes, hd_error *err)
{
    bool found = false;
    for (int i = 0; i < HD_SESSION_PROGRAMS; i++) {
        hd_tensor t;
        if (hd_program_input(n->session.program[i], name) < 0) continue;
        int rc = hd_exec_input(n->session.exec[i], name, &t, err);
        if (rc) return rc;
        if (hd_tensor_bytes(&t) != bytes) return hd_fail(err, HD_EINVAL, "a batch of input \"%s\" is %zu bytes, not %zu", name, hd_tensor_bytes(&t), bytes);
        memcpy(t.data, data, bytes);
        found = true;
    }
    return found ? 0 : hd_fail(err, HD_EINVAL, "the network has no input \"%s\"", name);
}

int hd_net_next_batch(hd_net *n, hd_error *err)
{
    for (int i = 0; i < HD_SESSION_PROGRAMS; i++) {
        int rc = n->task->fill(n->task, n->session.exec[i], n->samples, err);
        if (rc) return rc;
    }
    n->samples += n->config.batch;
    return 0;
}

/* ---- running ---- */

int hd_net_step(hd_net *n, double *loss, hd_error *err)
{
    hd_exec *e = n->session.exec[HD_TRAIN_PROGRAM];
    hd_tensor out, ok;
    int rc = n->task->begin_step(n->task, e, n->samples, n->step, err);
    if (!rc) rc = hd_task_set_scalar(e, "lr", hd_lr_at(&n->lr, n->step + 1), err);
    if (!rc) rc = hd_task_set_scalar(e, "step", (double)(n->step + 1), err);
    if (!rc) rc = hd_exec_step(e, NULL, err);
    if (!rc) rc = hd_exec_output(e, "loss", &out, err);
    if (!rc) rc = hd_exec_output(e, "ok", &ok, err);
    if (rc) return rc;
    double value = hd_load_f64(out.data, out.dtype, 0);
    if (hd_load_f64(ok.data, ok.dtype, 0) == 0) return hd_fail(err, HD_ENUMERIC, "step %lld: the loss is %g; nothing was updated", (long long)n->step + 1, value);
    if (loss) *loss = value;
    n->step++;
    return 0;
}

int hd_net_run(hd_net *n, hd_error *err)
{
    int rc = hd_task_set_scalar(n->session.exec[HD_EVAL_PROGRAM], "inv_divisor", 1.0 / (double)n->config.batch, err);
    return rc ? rc : hd_exec_step(n->session.exec[HD_EVAL_PROGRAM], NULL, err);
}

int hd_net_output(hd_net *n, const char *name, float *out, size_t count, hd_error *err)
{
    hd_tensor t;
    int rc = hd_exec_output(n->session.exec[HD_EVAL_PROGRAM], name, &t, err);
    if (!rc && (size_t)hd_tensor_count(&t) != count)
        rc = hd_fail(err, HD_EINVAL, "output \"%s\" has %lld elements, not %zu", name, (long long)hd_tensor_count(&t), count);
    if (!rc) hd_convert(out, HD_F32, t.data, t.dtype, (int64_t)count);
    return rc;
}

int hd_net_evaluate(hd_net *n, double *loss, double *metric, hd_error *err)
{
    hd_evaluation e;
    int rc = n->task->evaluate(n->task, n->session.exec[HD_EVAL_PROGRAM], 0, &e, err);
    if (!rc && e.n < (metric ? 2 : 1)) rc = hd_fail(err, HD_EINVAL, "%s names no %s", n->config.model, e.n ? "metric" : "held-out data");
    if (!rc && loss) *loss = e.metric[0].value;
    if (!rc && metric) *metric = e.metric[1].value;
    return rc;
}

int hd_net_save(hd_net *n, const char *dir, hd_error *err)
{
    int rc = hd_make_dirs(dir, err);
    return rc ? rc : n->task->write_model(n->task, n->session.store, dir, NULL, err);
}

int hd_net_load(hd_net *n, const char *dir, hd_error *err)
{
    return n->task->load(n->task, n->session.store, dir, err);
}
