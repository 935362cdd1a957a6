/* memory_promise.c: random training jobs with a limit of memory near what the leanest plan needs: that need by lowering every form of the space, and what the planner
 * says of the job under the limit.
 *
 *   check_memory_promise ROOT DIR JOBS CLUSTER [FIRST]
 * Writes models to DIR; FIRST: the number of the first job, else 0. Lines of tabs for the script: "job", number, accepted or rejected, the need and the
 * limit in bytes, forms that could be lowered, the plan or why there is none, the flags of heddle train. "hint": what is said of the job under the limit
 * that the refusal proposes. */
#include <inttypes.h>

#include "base/mem.h"
#include "base/rng.h"
#include "plan_case.h"
#include "planners/forms.h"
#include "train/config.h"

enum { WORDS = 40, MOST_TEXT = 1024 };

typedef struct promise_job {
    char model[256], flags[MOST_TEXT];
    hd_train_config config;
    hd_settings_memory memory;
    hd_session_options session;
    plan_run run;
    int64_t need, forms;
} promise_job;

static int failed;

static int64_t pick(hd_rng *r, const int64_t *list, int n) { return list[hd_rng_below(r, (uint64_t)n)]; }
#define PICK(r, ...) pick(r, (const int64_t[]){__VA_ARGS__}, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)))

/* ---- jobs ---- */

static void write_language_model(hd_rng *r, const char *path, bool llama)
{
    FILE *f = fopen(path, "w");
    int64_t heads = PICK(r, 2, 3, 4, 6), width = heads * PICK(r, 6, 8, 10, 16), layers = PICK(r, 2, 3, 4, 5), vocab = PICK(r, 300, 307, 512, 1201);
    int64_t kv = heads % 2 ? heads : PICK(r, 1, 2) * heads / 2, mlp = width * PICK(r, 5, 8, 11) / 4;
    if (!f) return;
    if (llama)
        fprintf(f, "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"num_hidden_layers\": %" PRId64 ", \"hidden_size\": %" PRId64
                   ", \"num_attention_heads\": %" PRId64 ", \"num_key_value_heads\": %" PRId64 ", \"intermediate_size\": %" PRId64 ", \"vocab_size\": %" PRId64
                   ", \"max_position_embeddings\": 64, \"hidden_act\": \"silu\", \"tie_word_embeddings\": %s}\n",
                layers, width, heads, kv, mlp, vocab, hd_rng_below(r, 2) ? "true" : "false");
    else
        fprintf(f, "{\"architectures\": [\"GPT2LMHeadModel\"], \"model_type\": \"gpt2\", \"n_layer\": %" PRId64 ", \"n_embd\": %" PRId64 ", \"n_head\": %" PRId64
                   ", \"vocab_size\": %" PRId64 ", \"n_positions\": 64, \"activation_function\": \"gelu_new\", \"resid_pdrop\": %s, \"embd_pdrop\": 0.0,"
                   " \"attn_pdrop\": 0.0}\n",
                layers, width, heads, vocab, hd_rng_below(r, 2) ? "0.1" : "0.0");
    fclose(f);
}

/* The corpus that the script made lies in DIR. */
static void make_flags(promise_job *j, hd_rng *r, const char *root, const char *dir, int number)
{
    static const char *const networks[] = {"mlp", "convnet", "two_tower"};
    static const char *const optimizers[] = {"adamw", "adamw", "sgd", "sgd:0.9"};
    int kind = (int)hd_rng_below(r, 8);
    bool language = kind < 6;
    int64_t ranks = PICK(r, 1, 2, 2, 3, 4), batch = language ? PICK(r, 1, 2, 3, 4, 6) : PICK(r, 4, 6, 10, 16), micro = PICK(r, 1, 1, 2, 3);
    char data[300] = "";
    if (language) {
        snprintf(j->model, sizeof j->model, "%s/job-%d.json", dir, number);
        write_language_model(r, j->model, kind & 1);
        snprintf(data, sizeof data, " --data %s/corpus --sequence %" PRId64 " --validation %s", dir, PICK(r, 7, 16, 21, 33), hd_rng_below(r, 3) ? "0" : "0.1");
    } else snprintf(j->model, sizeof j->model, "%s/examples/%s.json", root, networks[hd_rng_below(r, 3)]);
    const char *optimizer = optimizers[hd_rng_below(r, 4)];
    const char *clip = hd_rng_below(r, 3) ? "1" : "0", *precision = hd_rng_below(r, 5) ? "f32" : "bf16";
    snprintf(j->flags, sizeof j->flags, "--model %s%s --batch %" PRId64 " --micro-batches %" PRId64 " --ranks %" PRId64
             " --optimizer %s --clip %s --precision %s --planner search", j->model, data, batch, micro, ranks, optimizer, clip, precision);
}

/* As the program reads them. */
static int parse(promise_job *j, hd_error *err)
{
    static char text[MOST_TEXT];
    char *argv[WORDS], *save = NULL;
    const char *word[1];
    int argc = 1, n = 0;
    hd_lora_options lora;
    hd_lr_schedule lr;
    snprintf(text, sizeof text, "%s", j->flags);
    argv[0] = "train";
    for (char *at = strtok_r(text, " ", &save); at && argc < WORDS; at = strtok_r(NULL, " ", &save)) argv[argc++] = at;
    int rc = hd_settings_preset(hd_train_settings, &j->config, &j->memory, err);
    if (!rc) rc = hd_settings_parse(hd_train_settings, &j->config, argc, argv, word, 1, &n, &j->memory, err);
    return rc ? rc : hd_train_config_check(&j->config, &j->session, &lora, &lr, err);
}

static int open_job(promise_job *j, const char *cluster, hd_error *err)
{
    plan_run *r = &j->run;
    const hd_train_config *c = &j->config;
    int rc = hd_model_open(&r->model, j->model, err);
    if (!rc) rc = hd_cluster_find(cluster, &r->cluster, err);
    r->planning = (hd_planning){.model = &r->model, .cluster = &r->cluster, .precision = j->session.plan.precision,
                                .step = j->session.step, .samples = c->batch * c->micro_batches, .sequence = c->sequence};
    if (!rc) rc = hd_planning_network(&r->planning, &r->job.network, err);
    r->job.cluster = &r->cluster;
    r->job.ranks = (int)c->ranks;
    r->job.pinned = hd_parallel_default();
    r->job.quiet = true;
    if (r->job.network.whole_batch) r->job.micro_batches = c->micro_batches;
    return rc;
}

/* ---- what the leanest plan needs ---- */

static int enumerate(promise_job *j, hd_error *err)
{
    hd_form_list forms;
    int rc = hd_forms_list(&j->run.job, &forms, err);
    for (size_t i = 0; i < forms.n && !rc; i++) {
        hd_parallel p;
        hd_plan_found found;
        hd_error refused = {0};
        if (forms.list[i].recompute == HD_RECOMPUTE_FIRST) continue; /* between those with every layer made again and none */
        hd_form_write(&j->run.job, &forms.list[i], NULL, NULL, &p);
        if (hd_planner_try(&j->run.job, &p, forms.list[i].micro_batches, &found, &refused)) continue;
        if (!j->forms++ || found.peak < j->need) j->need = found.peak;
        hd_plan_found_free(&found);
    }
    hd_free(forms.list);
    return rc;
}

/* ---- the planner under the limit ---- */

static int judge(promise_job *j, int number, double share, hd_error *err)
{
    hd_planner_answer a;
    char text[2100] = "";
    j->run.job.memory = (int64_t)(share * (double)j->need);
    int rc = hd_planner_search.find(&j->run.job, &a, err);
    if (rc) return rc;
    if (a.n) plan_text(&a.best[0], text, sizeof text);
    printf("job\t%d\t%s\t%" PRId64 "\t%" PRId64 "\t%" PRId64 "\t%s\t%s --device-memory %" PRId64 "\n", number,
           a.n ? "accepted" : "rejected", j->need, j->run.job.memory, j->forms, a.n ? text : a.why, j->flags, j->run.job.memory);
    static const char remedy[] = "what would help: --device-memory ";
    const char *hint = a.n ? NULL : strstr(a.why, remedy);
    if (hint) {
        hd_planner_answer again = {0};
        j->run.job.memory = strtoll(hint + strlen(remedy), NULL, 10);
        rc = hd_planner_search.find(&j->run.job, &again, err);
        printf("hint\t%d\t%s\t%" PRId64 "\t%" PRId64 "\n", number, !rc && again.n ? "accepted" : "rejected", j->need, j->run.job.memory);
        hd_planner_answer_free(&again);
    }
    hd_planner_answer_free(&a);
    fflush(stdout);
    return rc;
}

static void run_job(const char *root, const char *dir, const char *cluster, int number)
{
    static promise_job j;
    hd_error err = {0};
    hd_rng r = hd_rng_new(9000 + (uint64_t)number);
    memset(&j, 0, sizeof j);
    make_flags(&j, &r, root, dir, number);
    int rc = parse(&j, &err);
    if (!rc) rc = open_job(&j, cluster, &err);
    if (!rc) rc = enumerate(&j, &err);
    if (!rc) rc = judge(&j, number, 0.8 + 0.4 * hd_rng_uniform(&r), &err);
    if (rc) printf("failed: job %d: %s: %s\n", number, j.flags, err.message), failed++;
    plan_run_close(&j.run);
    hd_settings_free(&j.memory);
}

int main(int argc, char **argv)
{
    if (argc < 5) return printf("check_memory_promise ROOT DIR JOBS CLUSTER [FIRST]\n"), 2;
    int first = argc > 5 ? atoi(argv[5]) : 0;
    for (int i = 0; i < atoi(argv[3]); i++) run_job(argv[1], argv[2], argv[4], first + i);
    return failed > 0;
}
