/* serve.c: heddle serve: a model behind OpenAI's API. Listens at once, loads on a thread of its own, which then is the engine's. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/term.h"
#include "cli/cli.h"
#include "serve/lm_ranks.h"
#include "serve/lm_runner.h"
#include "serve/server.h"
#include "tensor/dtype.h"
#include "train/config.h"

typedef struct config {
    const char *host, *api_key_file, *tls_cert, *tls_key, *cors, *served_name, *kv_bytes, *kv_type, *kv_policy, *precision, *preemption, *swap, *speculate,
        *draft_model, *parallel, *weight_cache,
        *chat_template, *metrics_compat, *max_body;
    hd_setting_list api_keys;
    int64_t port, context, block, threads, max_sequences, token_budget, draft_tokens, max_queued, per_key, max_connections;
    double header_timeout, request_timeout, ping;
    bool prefix_cache, chunked_prefill, priority, keep_blocks, page, log;
} config;

#define AT(field) offsetof(config, field)
static const hd_setting settings[] = {
    {"host", HD_SET_STRING, AT(host), "127.0.0.1", 0, 0, "ADDRESS", "where to listen; 0.0.0.0: on every interface"},
    {"port", HD_SET_INT, AT(port), "8080", 0, 65535, "N", "0: any that is free"},
    {"api_key", HD_SET_LIST, AT(api_keys), NULL, 0, 0, "KEY",
     "clients must send this key; may be given more than once. Better in --api-key-file: others can see flags"},
    {"api_key_file", HD_SET_STRING, AT(api_key_file), NULL, 0, 0, "FILE", "keys, one a line; # begins a comment"},
    {"tls_cert", HD_SET_STRING, AT(tls_cert), NULL, 0, 0, "FILE", "certificate chain in PEM: serves https"},
    {"tls_key", HD_SET_STRING, AT(tls_key), NULL, 0, 0, "FILE", "its private key"},
    {"cors", HD_SET_STRING, AT(cors), NULL, 0, 0, "ORIGIN", "web pages of this origin (\"https://example.org\", or * for all) may use the server"},
    {"served_name", HD_SET_STRING, AT(served_name), NULL, 0, 0, "NAME", "the model's name in the API; without it, the last part of its path"},
    {"context", HD_SET_INT, AT(context), "0", 0, 1e7, "N", "most tokens of prompt and answer together; 0: what the model was made for, at most 8192"},
    {"kv_bytes", HD_SET_STRING, AT(kv_bytes), NULL, 0, 0, "SIZE",
     "memory for keys and values: 4G, or 40% of what is free; without it, what --max-sequences full contexts need, at most 60 % of what is free"},
    {"kv_type", HD_SET_STRING, AT(kv_type), "auto", 0, 0, "auto|f32|bf16|f16|i8", "element type of keys and values"},
    {"kv_policy", HD_SET_STRING, AT(kv_policy), "paged", 0, 0, "paged|reserve", "reserve: each sequence gets its whole context at once, to compare with"},
    {"block", HD_SET_INT, AT(block), "16", 1, 1024, "N", "tokens in a block of keys and values"},
    {"precision", HD_SET_STRING, AT(precision), "auto", 0, 0, "auto|f32|bf16", "of arithmetic between products"},
    {"keep_blocks", HD_SET_BOOL, AT(keep_blocks), "true", 0, 0, NULL, "weights stay in a GGUF file's own block types; otherwise they become --precision"},
    {"weight_cache", HD_SET_STRING, AT(weight_cache), NULL, 0, 0, "DIR",
     "keep weights there as this machine's kernels take them: later starts map them, and processes share them"},
    {"threads", HD_SET_INT, AT(threads), "0", 0, 256, "N", "0: one per core; those of all ranks together"},
    {"parallel", HD_SET_STRING, AT(parallel), NULL, 0, 0, "FORM",
     "tp=N: heads, hidden features and vocabulary in pieces over N ranks; pp=N: layers in N stages, with as many batches under way; tp=N,pp=N. Ranks are "
     "threads of this process, or the processes that mpirun starts"},
    {"max_sequences", HD_SET_INT, AT(max_sequences), "64", 1, 4096, "N", "sequences that run at once"},
    {"token_budget", HD_SET_INT, AT(token_budget), "512", 1, 65536, "N", "tokens of one step: more make prompts faster and answers beside them less even"},
    {"prefix_cache", HD_SET_BOOL, AT(prefix_cache), "true", 0, 0, NULL, "share the blocks of equal beginnings, within one API key"},
    {"chunked_prefill", HD_SET_BOOL, AT(chunked_prefill), "true", 0, 0, NULL, "long prompts are computed beside the answers of others, piece by piece"},
    {"preemption", HD_SET_STRING, AT(preemption), "recompute", 0, 0, "recompute|swap", "what becomes of a sequence that must give its blocks back"},
    {"swap", HD_SET_STRING, AT(swap), "1G", 0, 0, "SIZE", "memory that blocks are swapped to"},
    {"priority", HD_SET_BOOL, AT(priority), NULL, 0, 0, NULL, "smaller \"priority\" of a request first; otherwise first come, first served"},
    {"speculate", HD_SET_STRING, AT(speculate), "none", 0, 0, "HOW",
     "none; ngram:N: up to N tokens guessed from the text so far; draft: by --draft-model. Answers stay the same"},
    {"draft_model", HD_SET_STRING, AT(draft_model), NULL, 0, 0, "MODEL", "a small model of the same vocabulary"},
    {"draft_tokens", HD_SET_INT, AT(draft_tokens), "4", 1, 64, "N", "tokens that it guesses at once"},
    {"max_queued", HD_SET_INT, AT(max_queued), "256", 1, 1e6, "N", "requests that wait; more are answered with 429"},
    {"per_key", HD_SET_INT, AT(per_key), "0", 0, 1e6, "N", "requests of one API key at once; 0: no limit"},
    {"max_connections", HD_SET_INT, AT(max_connections), "4096", 1, 1e6, "N", "open connections"},
    {"max_body", HD_SET_STRING, AT(max_body), "8M", 0, 0, "SIZE", "the largest request"},
    {"header_timeout", HD_SET_NUMBER, AT(header_timeout), "10", 0.1, 3600, "S", "seconds in which a request's head, and then its body, must come"},
    {"request_timeout", HD_SET_NUMBER, AT(request_timeout), "600", 0.1, 1e6, "S", "seconds after which an answer ends"},
    {"ping", HD_SET_NUMBER, AT(ping), "15", 0.1, 3600, "S", "seconds of silence after which a stream gets a comment line"},
    {"chat_template", HD_SET_STRING, AT(chat_template), NULL, 0, 0, "FILE", "a Jinja template instead of the model's own"},
    {"metrics_compat", HD_SET_STRING, AT(metrics_compat), "none", 0, 0, "none|vllm", "/metrics also under these names"},
    {"page", HD_SET_BOOL, AT(page), "true", 0, 0, NULL, "the chat page at /"},
    {"log", HD_SET_BOOL, AT(log), "true", 0, 0, NULL, "one line of JSON on standard error for each request"},
    {0},
};
_Static_assert(sizeof settings / sizeof settings[0] <= 41, "at most 40 settings");

typedef struct job {
    const config *c;
    const char *path;
    hd_server *server;
    hd_runner *runner, *draft;
    hd_lm_runner_info info;
    hd_engine *_Atomic engine;
    hd_chat_template *template;
    hd_vocabulary *vocabulary;
    hd_served served;
    int32_t eos[HD_MAX_EOS + 1];
    char name[256];
    int64_t ngram, kv_bytes, swap_bytes, max_body;
    bool use_draft, mpi; /* mpi: one of an MPI job's processes, number `process` */
    int process;
    atomic_bool stop;
    hd_error failure; /* of loading */
} job;

/* ---- signals: the first drains, the second cuts off, the third doesn't wait for anything ---- */

static hd_server *_Atomic serving;
static atomic_int signals;

static void on_signal(int sig)
{
    (void)sig;
    hd_server *s = atomic_load(&serving);
    if (atomic_fetch_add(&signals, 1) >= 2) _exit(130);
    if (s) hd_server_drain(s);
}

static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGUSR1, &a, NULL); /* mpirun passes it on */
    signal(SIGPIPE, SIG_IGN);
}

/* ---- settings as the parts want them ---- */

static hd_dtype dtype_of(const char *name)
{
    hd_dtype t = HD_DTYPE_COUNT;
    if (strcmp(name, "auto")) hd_dtype_parse(name, &t);
    return t;
}

static int size_of(const char *text, const char *flag, int64_t *out, hd_error *err)
{
    char *end;
    double share = text ? strtod(text, &end) : 0;
    *out = 0;
    if (!text) return 0;
    if (end > text && !strcmp(end, "%")) {
        if (!(share > 0 && share <= 100)) return hd_fail(err, HD_EINVAL, "%s must be from 0%% to 100%% of what is free, not \"%s\"", flag, text);
        *out = (int64_t)((double)hd_memory_available() * share / 100);
        return 0;
    }
    if (!hd_train_config_size(text, out, NULL)) return 0;
    return hd_fail(err, HD_EINVAL, "%s must be a size such as 512M or 1.5G, not \"%s\"", flag, text);
}

static int read_speculation(job *j, hd_error *err)
{
    const char *how = j->c->speculate;
    char rest;
    long long n;
    j->use_draft = !strcmp(how, "draft");
    if (j->use_draft != (j->c->draft_model != NULL)) return hd_fail(err, HD_EINVAL, "--speculate draft and --draft-model MODEL go together");
    if (j->use_draft || !strcmp(how, "none")) return 0;
    if (sscanf(how, "ngram:%lld%c", &n, &rest) != 1 || n < 1 || n > 64)
        return hd_fail(err, HD_EINVAL, "--speculate must be none, draft, or ngram:N with N from 1 to 64, not \"%s\"", how);
    j->ngram = n;
    return 0;
}

static void name_model(job *j)
{
    const char *name = j->c->served_name, *end = j->path + strlen(j->path);
    while (end > j->path + 1 && end[-1] == '/') end--;
    const char *begin = end;
    while (begin > j->path && begin[-1] != '/') begin--;
    if (name) snprintf(j->name, sizeof j->name, "%s", name);
    else snprintf(j->name, sizeof j->name, "%.*s", (int)(end - begin), begin);
}

/* Keys of the flags and of the file, as one list. */
typedef struct keys { const char **key; int n; char *text; } keys;

static int read_keys(const config *c, keys *k, hd_error *err)
{
    hd_str file;
    int lines = 0;
    hd_str_init(&file);
    if (c->api_key_file && hd_file_read(&file, c->api_key_file, 1 << 20, err)) return err->code;
    for (size_t i = 0; i < file.len; i++) lines += file.data[i] == '\n';
    k->text = hd_strdup(file.data);
    hd_str_free(&file);
    k->key = hd_calloc((size_t)(c->api_keys.n + lines + 1), sizeof *k->key);
    if (!k->key || !k->text) return hd_fail_memory(err, 0, "API keys");
    for (int i = 0; i < c->api_keys.n; i++) k->key[k->n++] = c->api_keys.item[i];
    char *rest = k->text;
    for (char *line; (line = strsep(&rest, "\r\n"));) {
        line[strcspn(line, "#")] = 0;
        size_t n = strlen(line);
        while (n && (line[n - 1] == ' ' || line[n - 1] == '\t')) line[--n] = 0;
        line += strspn(line, " \t");
        if (*line) k->key[k->n++] = line;
    }
    if (c->api_key_file && !k->n) return hd_fail(err, HD_EINVAL, "%s has no key", c->api_key_file);
    return 0;
}

static hd_lm_runner_options runner_options(const job *j)
{
    const config *c = j->c;
    hd_lm_runner_options o = hd_lm_runner_options_default();
    o.precision = dtype_of(c->precision);
    o.kv = dtype_of(c->kv_type);
    o.threads = (int)c->threads;
    o.context = c->context;
    o.max_tokens = c->token_budget;
    o.max_parts = c->max_sequences;
    o.block = c->block;
    o.kv_bytes = j->kv_bytes;
    o.keep_blocks = c->keep_blocks;
    o.weight_cache = c->weight_cache;
    return o;
}

static hd_engine_options engine_options(const job *j)
{
    const config *c = j->c;
    hd_engine_options o = hd_engine_options_default();
    o.max_sequences = c->max_sequences;
    o.token_budget = c->token_budget;
    o.kv_policy = strcmp(c->kv_policy, "reserve") ? HD_KV_PAGED : HD_KV_RESERVE;
    o.prefix_cache = c->prefix_cache;
    o.chunked_prefill = c->chunked_prefill;
    o.preemption = strcmp(c->preemption, "swap") ? HD_PREEMPT_RECOMPUTE : HD_PREEMPT_SWAP;
    o.swap_bytes = j->swap_bytes;
    o.by_priority = c->priority;
    o.max_queued = c->max_queued;
    o.ngram = j->ngram;
    o.draft = j->draft;
    o.draft_tokens = j->use_draft ? c->draft_tokens : 0;
    return o;
}

static hd_server_options server_options(const job *j, const keys *k)
{
    const config *c = j->c;
    hd_server_options o = hd_server_options_default();
    o.host = c->host, o.port = (int)c->port;
    o.api_keys = k->key, o.n_api_keys = k->n;
    o.tls_cert = c->tls_cert, o.tls_key = c->tls_key, o.cors = c->cors;
    o.max_body = j->max_body, o.max_connections = c->max_connections, o.max_queued = c->max_queued, o.per_key = c->per_key;
    o.header_seconds = c->header_timeout, o.request_seconds = c->request_timeout, o.ping_seconds = c->ping;
    o.vllm_metrics = !strcmp(c->metrics_compat, "vllm");
    o.page = c->page;
    o.log = c->log;
    return o;
}

/* Before anything is opened. */
static int read_parallel(job *j, hd_error *err)
{
    hd_parallel p;
    int size = 1, rc = hd_lm_parallel_parse(j->c->parallel, &p, err);
    if (rc || !hd_comm_mpi_launched(&j->process, &size) || size == 1) return rc;
    j->mpi = true;
    if (p.tp * p.pp == size) return 0;
    return hd_fail(err, HD_EINVAL, "mpirun started %d processes: give --parallel tp=%d, or tp=N,pp=N with as many ranks, for one model over all of them", size, size);
}

/* ---- loading ---- */

static int open_runner(hd_runner **r, const char *path, const hd_lm_runner_options *o, hd_lm_runner_info *info, hd_error *err)
{
    int rc = hd_lm_runner_open(r, path, o, info, err);
    if (!rc && !info->tokenizer) return hd_fail(err, HD_EINVAL, "%s has no tokenizer", path);
    return rc;
}

static int open_template(job *j, hd_error *err)
{
    hd_str text;
    if (!j->c->chat_template) {
        j->template = hd_chat_template_open(j->path, j->info.tokenizer, err);
        return j->template ? 0 : err->code;
    }
    hd_str_init(&text);
    int rc = hd_file_read(&text, j->c->chat_template, 1 << 20, err);
    if (!rc) j->template = hd_chat_template_parse(text.data, text.len, j->c->chat_template, j->info.tokenizer, err);
    hd_str_free(&text);
    return j->template ? 0 : err->code;
}

/* The tokens that end an answer: the model's, and the one that ends a turn of its template. */
static void list_eos(job *j)
{
    const hd_lm_config *m = j->info.config;
    const char *stop = hd_chat_template_stop(j->template);
    int n = 0;
    for (int i = 0; i < m->n_eos; i++) j->eos[n++] = (int32_t)m->eos[i];
    int32_t id = stop ? hd_tokenizer_id(j->info.tokenizer, stop) : -1;
    for (int i = 0; i < n; i++)
        if (j->eos[i] == id) id = -1;
    if (id >= 0) j->eos[n++] = id;
    j->served.eos = j->eos;
    j->served.n_eos = n;
}

/* What a model's makers recommend, where they do; else OpenAI's temperature 1. */
static int read_sampling(job *j, hd_error *err)
{
    char path[4096];
    hd_sampling *s = &j->served.sampling;
    *s = hd_sampling_default();
    s->temperature = 1;
    if (!hd_is_dir(j->path) || hd_path_join(path, sizeof path, j->path, "generation_config.json", NULL) || !hd_file_exists(path)) return 0;
    json_t *g = hd_json_load(path, err);
    int rc = g ? 0 : err->code;
    if (!rc) rc = hd_json_number(g, "temperature", 0, 2, &s->temperature, path, err);
    if (!rc) rc = hd_json_int(g, "top_k", 0, INT32_MAX, &s->top_k, path, err);
    if (!rc) rc = hd_json_number(g, "top_p", 1e-6, 1, &s->top_p, path, err);
    if (!rc) rc = hd_json_number(g, "min_p", 0, 1, &s->min_p, path, err);
    if (!rc) rc = hd_json_number(g, "typical_p", 1e-6, 1, &s->typical_p, path, err);
    if (!rc) rc = hd_json_number(g, "repetition_penalty", 0.01, 100, &s->repetition_penalty, path, err);
    json_decref(g);
    return rc;
}

static int load(job *j, hd_error *err)
{
    hd_lm_runner_options o = runner_options(j);
    hd_lm_runner_info draft;
    o.parallel = j->c->parallel;
    o.mpi = j->mpi;
    int rc = open_runner(&j->runner, j->path, &o, &j->info, err);
    o.context = j->runner && !rc ? j->runner->max_context : 0;
    o.parallel = NULL; /* a draft model is too small to be worth it */
    o.mpi = false;
    if (!rc && j->use_draft) rc = open_runner(&j->draft, j->c->draft_model, &o, &draft, err);
    if (!rc) rc = open_template(j, err);
    if (!rc) list_eos(j);
    if (!rc) rc = read_sampling(j, err);
    if (!rc && !(j->vocabulary = hd_vocabulary_new(j->info.tokenizer, j->eos, j->served.n_eos, err))) rc = err->code;
    hd_engine_options e = engine_options(j);
    hd_engine *engine = rc ? NULL : hd_engine_new(j->runner, j->info.tokenizer, &e, err);
    atomic_store(&j->engine, engine);
    return rc ? rc : engine ? 0 : err->code;
}

static void tell(const job *j, double seconds)
{
    char weights[24], kv[24], arena[24], rank[24], ranks[40] = "", each[48] = "";
    const hd_runner *r = j->runner;
    hd_format_bytes(weights, (double)j->info.weight_bytes);
    hd_format_bytes(kv, (double)j->info.kv_bytes);
    hd_format_bytes(arena, (double)j->info.arena_bytes);
    if (j->info.ranks > 1) {
        snprintf(ranks, sizeof ranks, " on each of %d ranks", j->info.ranks);
        snprintf(each, sizeof each, " (%s on each rank)", hd_format_bytes(rank, (double)j->info.kv_rank_bytes));
    }
    hd_log("%s, loaded in %.1f s: weights %s (%s), arithmetic %s, %d threads%s", j->name, seconds, weights, j->info.weights ? j->info.weights : "?",
           hd_dtype_name(j->info.precision), j->info.threads, ranks);
    if (j->info.mapped_bytes)
        hd_log("weights of %s mapped from %s, %d packed before, %d packed now", hd_format_bytes(weights, (double)j->info.mapped_bytes), j->c->weight_cache,
               j->info.mapped, j->info.packed);
    hd_log("keys and values %s%s in %s: %lld blocks of %lld tokens; scratch %s", kv, each, hd_dtype_name(j->info.kv), (long long)r->blocks, (long long)r->block,
           arena);
    hd_log("context %lld tokens, up to %lld sequences at once, %lld tokens in a step", (long long)r->max_context,
           (long long)(j->c->max_sequences < r->max_parts ? j->c->max_sequences : r->max_parts), (long long)(j->c->token_budget < r->max_tokens
               ? j->c->token_budget : r->max_tokens));
    bool v6 = strchr(j->c->host, ':') != NULL;
    hd_log("ready: %s://%s%s%s:%d", j->c->tls_cert ? "https" : "http", v6 ? "[" : "", j->c->host, v6 ? "]" : "", hd_server_port(j->server));
}

static void *load_and_run(void *arg)
{
    job *j = arg;
    hd_error err = {0};
    double start = hd_time();
    int rc = load(j, &j->failure);
    if (rc) hd_server_fail(j->server, j->failure.message);
    if (rc || atomic_load(&j->stop)) return NULL;
    j->served.name = j->name;
    j->served.engine = j->engine;
    j->served.tokenizer = j->info.tokenizer;
    j->served.template = j->template;
    j->served.vocabulary = j->vocabulary;
    j->served.context = j->runner->max_context;
    j->served.width = j->runner->width;
    tell(j, hd_time() - start);
    hd_server_serve(j->server, &j->served);
    /* An error is the model's: its requests have ended with it. The engine goes on, so that those that are cancelled are let go. */
    while (!atomic_load(&j->stop) && hd_engine_run(j->engine, &err)) {
        hd_log("%s", err.message);
        err = (hd_error){0};
    }
    return NULL;
}

static void unload(job *j)
{
    hd_engine_free(j->engine);
    hd_vocabulary_free(j->vocabulary);
    hd_chat_template_free(j->template);
    if (j->draft) j->draft->close(j->draft);
    if (j->runner) j->runner->close(j->runner);
}

/* ---- the command ---- */

/* A connection is a file descriptor: as many as the system lets us have. */
static void raise_files(void)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l)) return;
    l.rlim_cur = l.rlim_max;
    setrlimit(RLIMIT_NOFILE, &l);
}

static int serve(job *j, const keys *k, hd_error *err)
{
    hd_server_options o = server_options(j, k);
    pthread_t thread;
    j->server = hd_server_new(&o, err);
    if (!j->server) return err->code;
    atomic_store(&serving, j->server);
    catch_signals();
    hd_log("listening on %s:%d, loading %s", j->c->host, hd_server_port(j->server), j->path);
    if (strcmp(j->c->host, "127.0.0.1") && strcmp(j->c->host, "localhost")
        && !k->n) hd_log("no API key is set: everybody who reaches this address may use the server");
    if (pthread_create(&thread, NULL, load_and_run, j)) {
        hd_server_free(j->server);
        return hd_fail(err, HD_ENOMEM, "no thread could be started");
    }
    hd_error own = {0};
    int rc = hd_server_run(j->server, &own);
    atomic_store(&j->stop, true);
    hd_engine *engine = atomic_load(&j->engine);
    if (engine) hd_engine_stop(engine);
    pthread_join(thread, NULL);
    atomic_store(&serving, NULL);
    hd_server_free(j->server);
    unload(j);
    if (rc == HD_EIO && j->failure.code) own = j->failure; /* with the kind of error that it was */
    return rc ? hd_fail(err, own.code, "%s", own.message) : 0;
}

/* A process that isn't the job's first ends when that one does. */
static int follow(const job *j, hd_error *err)
{
    static const int left_to_first[] = {SIGTERM, SIGINT, SIGUSR1};
    hd_lm_runner_options o = runner_options(j);
    hd_runner *r = NULL;
    for (size_t i = 0; i < sizeof left_to_first / sizeof *left_to_first; i++) signal(left_to_first[i], SIG_IGN);
    o.parallel = j->c->parallel;
    o.mpi = true;
    int rc = hd_lm_runner_open(&r, j->path, &o, NULL, err);
    if (!rc) rc = hd_lm_runner_follow(r, err);
    if (r) r->close(r);
    return rc;
}

static int run(const void *config_, const char *const *words, int n_words, hd_error *err)
{
    const config *c = config_;
    job j = {.c = c};
    keys k = {0};
    if (n_words != 1) return hd_fail(err, HD_EINVAL, "name one model: a directory (with config.json, weights and tokenizer.json) or a GGUF file");
    j.path = words[0];
    name_model(&j);
    int rc = read_speculation(&j, err);
    if (!rc) rc = read_parallel(&j, err);
    if (!rc) rc = size_of(c->kv_bytes, "--kv-bytes", &j.kv_bytes, err);
    if (!rc) rc = size_of(c->swap, "--swap", &j.swap_bytes, err);
    if (!rc) rc = size_of(c->max_body, "--max-body", &j.max_body, err);
    if (!rc && !hd_file_exists(j.path) && !hd_is_dir(j.path)) rc = hd_fail(err, HD_EIO, "%s: no such file or directory", j.path);
    if (!rc) rc = read_keys(c, &k, err);
    raise_files();
    if (!rc) rc = j.process ? follow(&j, err) : serve(&j, &k, err);
    hd_free(k.key);
    hd_free(k.text);
    return rc;
}

const hd_command hd_cmd_serve = {
    .name = "serve",
    .usage = "[flags] MODEL",
    .summary = "a model behind OpenAI's API",
    .details = "MODEL is a Hugging Face model directory or a GGUF file. Chat, completions, embeddings, tokens, metrics and a chat page: docs/serving.md.\n"
               "SIGTERM or Ctrl-C: no more requests are taken, what runs is finished, then it ends with status 0; a second one cuts off what runs.",
    .settings = settings,
    .config_size = sizeof(config),
    .max_words = 1,
    .run = run,
};
