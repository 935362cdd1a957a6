#include "train/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "planners/planner.h"

#define AT(field) offsetof(hd_train_config, field)
const hd_setting hd_train_settings[] = {
    {"model", HD_SET_STRING, AT(model), NULL, 0, 0, "PATH", "the same as MODEL: a Hugging Face directory (its weights are trained further), a config.json (a new model), or a network file"},
    {"data", HD_SET_STRING, AT(data), NULL, 0, 0, "PATH", "text: shards made by heddle data (PREFIX of .bin and .idx), or a .jsonl or text file"},
    {"instruct", HD_SET_STRING, AT(instruct), NULL, 0, 0, "FILE", "jsonl of {\"prompt\", \"answer\"}: only answers are learnt"},
    {"tokenizer", HD_SET_STRING, AT(tokenizer), NULL, 0, 0, "FILE", "tokenizer.json; without it, the one beside the model"},
    {"out", HD_SET_STRING, AT(out), NULL, 0, 0, "DIR", "where checkpoints (DIR/step-N), metrics and the loss curve go"},
    {"steps", HD_SET_INT, AT(steps), "1000", 1, 1e12, "N", "updates of the parameters in the whole run"},
    {"batch", HD_SET_INT, AT(batch), "8", 1, 1e6, "N", "sequences (samples) in one micro-batch"},
    {"micro_batches", HD_SET_INT, AT(micro_batches), "1", 1, 1e6, "N", "micro-batches summed up before each update"},
    {"sequence", HD_SET_INT, AT(sequence), "256", 1, 1e7, "N", "tokens in a sequence"},
    {"optimizer", HD_SET_STRING, AT(optimizer), "adamw", 0, 0, "NAME", "adamw, or sgd:X with momentum X (sgd: 0.9; sgd:0 keeps no momentum)"},
    {"learning_rate", HD_SET_NUMBER, AT(learning_rate), "0.0003", 0, 1e6, "X", "after warm-up"},
    {"least_learning_rate", HD_SET_NUMBER, AT(least_learning_rate), "0", 0, 1e6, "X", "at the end of the schedule"},
    {"schedule", HD_SET_STRING, AT(schedule), "cosine", 0, 0, "SHAPE", "of the learning rate: constant, cosine, linear, or wsd:N, constant and then linear over the last N steps (wsd: a tenth of all)"},
    {"warmup", HD_SET_INT, AT(warmup), "0", 0, 1e12, "N", "steps of linear rise at the start"},
    {"adam", HD_SET_STRING, AT(adam), "0.9,0.95,1e-8", 0, 0, "B1,B2,EPS", "adamw: decay of the mean of gradients and of their squares, and what is added to the root of that"},
    {"weight_decay", HD_SET_NUMBER, AT(weight_decay), "0.1", 0, 1e3, "X", "decoupled; not applied to norms and biases"},
    {"clip", HD_SET_NUMBER, AT(clip), "1", 0, 1e9, "X", "largest global norm of the gradient; 0: no clipping"},
    {"precision", HD_SET_STRING, AT(precision), "f32", 0, 0, "f32|bf16", "of products and activations; master weights are f32"},
    {"dropout", HD_SET_NUMBER, AT(dropout), "-1", -1, 0.99, "P", "instead of what the model's config says; -1: as it says"},
    {"lora_rank", HD_SET_INT, AT(lora_rank), "0", 0, 4096, "N", "train adapters of this rank instead of the weights; 0: the weights"},
    {"lora_alpha", HD_SET_NUMBER, AT(lora_alpha), "16", 0, 1e6, "X", "adapters' scale is alpha / rank"},
    {"lora_targets", HD_SET_LIST, AT(lora_targets), NULL, 0, 0, "GLOB", "parameters to adapt, such as layers.*.attn.q; without it, those of attention and feed-forward"},
    {"validation", HD_SET_NUMBER, AT(validation), "0.01", 0, 1, "FRACTION", "of the documents, kept out of training"},
    {"eval_every", HD_SET_STRING, AT(eval_every), "0", 0, 0, "N[:BATCHES]", "evaluate every N steps (0: at the end only), on so many batches (0, or left out: all there are)"},
    {"eval_only", HD_SET_BOOL, AT(eval_only), NULL, 0, 0, NULL, "evaluate the model and leave: prints loss and perplexity"},
    {"save_every", HD_SET_STRING, AT(save_every), "0:3", 0, 0, "N[:KEEP]", "save a checkpoint every N steps (0: at the end only), and keep the last KEEP of them (left out: 3; 0: all)"},
    {"resume", HD_SET_BOOL, AT(resume), "true", 0, 0, NULL, "go on from the newest checkpoint under --out, if there is one"},
    {"metrics", HD_SET_STRING, AT(metrics), NULL, 0, 0, "FILE", "JSON lines; without it, OUT/metrics.jsonl"},
    {"trace", HD_SET_STRING, AT(trace), NULL, 0, 0, "FILE", "write what every rank did in steps 3 to 5 as Chrome trace JSON, for ui.perfetto.dev and heddle plan --measured"},
    {"plan", HD_SET_STRING, AT(plan), NULL, 0, 0, "FILE", "replay a plan (JSON)"},
    {"parallel", HD_SET_STRING, AT(parallel), NULL, 0, 0, "TEXT", "how to split the work, such as dp=2,tp=2,pp=2: also cp, sp, zero, v, schedule, layers, recompute, slices, scatter, attention, order, tables; with auto, or more --ranks than that makes, the rest is searched for; stages of different meshes parted by |: \"dp=2|tp=2\""},
    {"ranks", HD_SET_INT, AT(ranks), "0", 0, HD_MAX_RANKS, "N", "at most so many, when the plan is searched for; else how many there must be. 0: one for each core; as many as --parallel or the plan says"},
    {"planner", HD_SET_STRING, AT(planner), NULL, 0, 0, "NAME", "who searches for what --parallel leaves open: search, exhaustive, megatron, zero, data-parallel, flexflow; given: nobody"},
    {"transport", HD_SET_STRING, AT(transport), "local", 0, 0, "local|mpi", "between ranks: threads of one process, or MPI processes"},
    {"restarts", HD_SET_INT, AT(restarts), "0", 0, 1e6, "N", "times to go on from the last checkpoint under --out after a failure"},
    {"seed", HD_SET_INT, AT(seed), "0", 0, 9e15, "N", "of initial values, dropout and the order of the data"},
    {"threads", HD_SET_INT, AT(threads), "0", 0, 256, "N", "0: one per core"},
    {"memory", HD_SET_NUMBER, AT(memory), "0", 0, 1e6, "GIB", "most memory to use; 0: what the machine has available"},
    {"device_memory", HD_SET_STRING, AT(device_memory), NULL, 0, 0, "SIZE", "most memory of one rank for what it computes on and keeps: bytes, or 512M, 1.5G"},
    {"quiet", HD_SET_BOOL, AT(quiet), NULL, 0, 0, NULL, "no progress bar"},
    {0},
};

/* "N" or "N:COUNT". */
static int read_every(const char *name, const char *text, int64_t preset, int64_t *every, int64_t *count, hd_error *err)
{
    char *end;
    *count = preset;
    *every = *text >= '0' && *text <= '9' ? strtoll(text, &end, 10) : -1;
    bool ok = *every >= 0 && *every <= (int64_t)1e12;
    if (ok && *end == ':') *count = end[1] >= '0' && end[1] <= '9' ? strtoll(end + 1, &end, 10) : -1;
    if (ok && !*end && *count >= 0 && *count <= (int64_t)1e12) return 0;
    return hd_fail(err, HD_EINVAL, "--%s must be a number of steps N, or N:%s, not \"%s\"", name, strcmp(name, "save-every") ? "BATCHES" : "KEEP", text);
}

int hd_train_config_rhythm(const hd_train_config *c, hd_train_rhythm *out, hd_error *err)
{
    int rc = read_every("eval-every", c->eval_every, 0, &out->eval_every, &out->eval_batches, err);
    return rc ? rc : read_every("save-every", c->save_every, 3, &out->save_every, &out->keep, err);
}

int hd_train_config_size(const char *text, int64_t *bytes, hd_error *err)
{
    char *end = "";
    double n = text ? strtod(text, &end) : 0;
    const char *unit = *end ? strchr("KMGT", *end) : NULL;
    if (unit) n *= (double)((int64_t)1024 << (10 * (unit - "KMGT"))), end++;
    *bytes = n > 0 && n < 1e18 ? (int64_t)n : 0;
    if (!text || (*bytes >= 1 && !*end && *text >= '0' && *text <= '9')) return 0;
    return hd_fail(err, HD_EINVAL, "--device-memory must be a number of bytes, or one with K, M, G or T such as 512M, not \"%s\"", text);
}

/* What is adapted when the person names nothing. */
static const char *const default_targets[] = {"layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v", "layers.*.attn.o",
                                              "layers.*.mlp.gate", "layers.*.mlp.up", "layers.*.mlp.down"};

static int fill_plan(const hd_train_config *c, hd_plan *plan, hd_error *err)
{
    *plan = hd_plan_default();
    if (c->plan) return hd_plan_load(c->plan, plan, err);
    plan->micro_batches = c->micro_batches;
    plan->precision = strcmp(c->precision, "bf16") ? HD_F32 : HD_BF16;
    plan->threads = (int)c->threads;
    return 0;
}

bool hd_train_config_is_open(const hd_train_config *c, const hd_parallel *p)
{
    bool closed = c->plan || c->eval_only || c->lora_rank || (c->planner && !strcmp(c->planner, "given"));
    return !closed && (!p->dp || p->open || c->ranks > hd_parallel_ranks(p));
}

int hd_train_config_ranks(const hd_train_config *c, const hd_plan *plan, int *ranks, hd_error *err)
{
    hd_parallel p = {0};
    *ranks = hd_plan_ranks(plan);
    if (c->parallel && !c->plan) {
        int rc = hd_parallel_parse(c->parallel, &p, err);
        if (rc) return rc;
        *ranks = (int)hd_parallel_ranks(&p);
    }
    if (!c->ranks || c->ranks == *ranks || (c->ranks > *ranks && hd_train_config_is_open(c, &p))) return 0;
    if (c->lora_rank && !c->parallel && !c->plan) return hd_fail(err, HD_EUNSUPPORTED, "adapters (--lora-rank) are trained on one rank only, and --ranks is %d", (int)c->ranks);
    if (c->parallel && !c->plan) return hd_fail(err, HD_EINVAL, "--ranks %d and --parallel %s, which is %d ranks", (int)c->ranks, c->parallel, *ranks);
    if (c->plan) return hd_fail(err, HD_EINVAL, "--ranks %d and --plan %s, which is for %d ranks", (int)c->ranks, c->plan, *ranks);
    return hd_fail(err, HD_EINVAL, "--ranks %d: say how to split the work over them, such as --parallel dp=%d", (int)c->ranks, (int)c->ranks);
}

static int fill_ranks(const hd_train_config *c, hd_session_options *o, hd_error *err)
{
    int ranks;
    int rc = c->parallel && !c->plan ? hd_parallel_parse(c->parallel, &o->parallel, err) : 0; /* beside a plan it is "" */
    if (rc) return rc;
    if (c->restarts && !c->out) return hd_fail(err, HD_EINVAL, "--restarts needs --out: it goes on from the last checkpoint there");
    return hd_train_config_ranks(c, &o->plan, &ranks, err);
}

static int check_planner(const hd_train_config *c, hd_error *err)
{
    char known[256] = "";
    if (!c->planner || !strcmp(c->planner, "given") || hd_planner_find(c->planner)) return 0;
    for (int i = 0; hd_planner_name(i); i++) snprintf(known + strlen(known), sizeof known - strlen(known), "%s, ", hd_planner_name(i));
    return hd_fail(err, HD_EINVAL, "--planner must be one of %sor given, not \"%s\"", known, c->planner);
}

static int read_adam(const hd_train_config *c, hd_step_options *o, hd_error *err)
{
    double *const to[] = {&o->beta1, &o->beta2, &o->eps};
    const char *at = c->adam;
    for (int i = 0; i < 3; i++) {
        char *end;
        *to[i] = strtod(at, &end);
        bool ok = end != at && *to[i] >= 0 && *to[i] < 1 && *end == (i < 2 ? ',' : 0);
        if (!ok) return hd_fail(err, HD_EINVAL, "--adam must be three numbers of at least 0 and below 1, such as 0.9,0.95,1e-8, not \"%s\"", c->adam);
        at = end + 1;
    }
    return 0;
}

/* "adamw", "sgd" or "sgd:0.95". */
static int read_optimizer(const hd_train_config *c, hd_step_options *o, hd_error *err)
{
    const char *name = c->optimizer;
    char *end = "";
    o->optimizer = strcmp(name, "adamw") ? HD_SGD : HD_ADAMW;
    o->momentum = !strncmp(name, "sgd:", 4) ? strtod(name + 4, &end) : 0.9;
    bool named = !strcmp(name, "adamw") || !strcmp(name, "sgd") || (!strncmp(name, "sgd:", 4) && end != name + 4);
    if (named && !*end && o->momentum >= 0 && o->momentum <= 0.999999) return 0;
    return hd_fail(err, HD_EINVAL, "--optimizer must be adamw, sgd, or sgd:X with a momentum of at least 0 and below 1, not \"%s\"", name);
}

/* "cosine", or "wsd:200". */
static int read_schedule(const hd_train_config *c, hd_lr_schedule *lr, hd_error *err)
{
    char shape[16], *end = NULL;
    size_t n = strcspn(c->schedule, ":");
    long long steps = c->schedule[n] ? strtoll(c->schedule + n + 1, &end, 10) : (c->steps + 9) / 10;
    snprintf(shape, sizeof shape, "%.*s", (int)n, c->schedule);
    bool ok = n < sizeof shape && !hd_lr_shape_parse(shape, &lr->shape) && (!c->schedule[n] || (!strcmp(shape, "wsd") && !*end && end[-1] != ':' && steps >= 1));
    if (!ok) return hd_fail(err, HD_EINVAL, "--schedule must be constant, cosine, linear, wsd or wsd:N, not \"%s\"", c->schedule);
    lr->decay = steps;
    return 0;
}

int hd_train_config_check(const hd_train_config *c, hd_session_options *session, hd_lora_options *lora, hd_lr_schedule *lr, hd_error *err)
{
    if (!c->model) return hd_fail(err, HD_EINVAL, "name a model: a Hugging Face directory, a config.json or a network file");
    if (c->least_learning_rate > c->learning_rate) return hd_fail(err, HD_EINVAL, "--least-learning-rate is above --learning-rate");
    if (c->warmup > c->steps) return hd_fail(err, HD_EINVAL, "--warmup is longer than --steps");
    if (c->parallel && *c->parallel && c->plan) return hd_fail(err, HD_EINVAL, "give --parallel or --plan, not both: a plan says how the work is split");
    if (c->data && c->instruct) return hd_fail(err, HD_EINVAL, "give --data or --instruct, not both");
    if (hd_train_config_rhythm(c, &(hd_train_rhythm){0}, err) || check_planner(c, err)) return HD_EINVAL;
    *lr = (hd_lr_schedule){.peak = c->learning_rate, .least = c->least_learning_rate, .steps = c->steps, .warmup = c->warmup};
    if (read_schedule(c, lr, err)) return HD_EINVAL;
    *session = (hd_session_options){.seed = (uint64_t)c->seed, .memory = (int64_t)(c->memory * 0x1p30)};
    if (hd_train_config_size(c->device_memory, &session->device_memory, err)) return HD_EINVAL;
    session->step = (hd_step_options){.weight_decay = c->weight_decay, .clip = c->clip};
    if (read_optimizer(c, &session->step, err) || read_adam(c, &session->step, err)) return HD_EINVAL;
    if (c->lora_rank) {
        *lora = (hd_lora_options){.pattern = default_targets, .n_patterns = sizeof default_targets / sizeof default_targets[0], .rank = c->lora_rank, .alpha = c->lora_alpha};
        if (c->lora_targets.n) lora->pattern = c->lora_targets.item, lora->n_patterns = c->lora_targets.n;
        session->lora = lora;
    }
    int rc = fill_plan(c, &session->plan, err);
    return rc ? rc : fill_ranks(c, session, err);
}
