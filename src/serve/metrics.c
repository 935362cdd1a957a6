/* metrics.c: /metrics in Prometheus' text format; with vllm_metrics also under vLLM's names. */
#include <string.h>
#include "base/term.h"
#include "serve/server_int.h"

static void put_head(hd_str *o, const char *name, const char *type, const char *help)
{
    hd_str_printf(o, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

typedef struct figure { const char *name, *vllm, *type, *help; double value; } figure;

static void put_figure(hd_str *o, const char *name, const char *label, const figure *f)
{
    put_head(o, name, f->type, f->help);
    hd_str_printf(o, "%s%s %.17g\n", name, label, f->value);
}

static void put_histogram(hd_str *o, const char *name, const char *label, const char *help, const hd_histogram *h)
{
    uint64_t total = 0;
    put_head(o, name, "histogram", help);
    for (int i = 0; i < HD_HISTOGRAM_BUCKETS; i++) {
        total += h->bucket[i];
        hd_str_printf(o, "%s_bucket{%s%sle=\"%.9g\"} %llu\n", name, label, *label ? "," : "", h->bound[i], (unsigned long long)total);
    }
    hd_str_printf(o, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, label, *label ? "," : "", (unsigned long long)h->count);
    hd_str_printf(o, "%s_sum%s%s%s %.9g\n", name, *label ? "{" : "", label, *label ? "}" : "", h->sum);
    hd_str_printf(o, "%s_count%s%s%s %llu\n", name, *label ? "{" : "", label, *label ? "}" : "", (unsigned long long)h->count);
}

static void put_figures(const hd_server *s, const hd_engine_stats *e, const char *vllm_label, hd_str *o)
{
    double used = e->blocks ? (double)e->blocks_used / (double)e->blocks : 0, hits = e->prompt_tokens ? (double)e->cached_tokens / (double)e->prompt_tokens : 0;
    const hd_counts *n = &s->counts;
    const figure figures[] = {
        {"heddle_requests_running", "vllm:num_requests_running", "gauge", "Requests in the batch.", (double)e->running},
        {"heddle_requests_waiting", "vllm:num_requests_waiting", "gauge", "Requests waiting to run.", (double)e->waiting},
        {"heddle_requests_swapped", "vllm:num_requests_swapped", "gauge", "Requests whose blocks are in host memory.", (double)e->swapped},
        {"heddle_kv_blocks", NULL, "gauge", "Blocks of keys and values.", (double)e->blocks},
        {"heddle_kv_blocks_used", NULL, "gauge", "Blocks held by sequences.", (double)e->blocks_used},
        {"heddle_kv_blocks_cached", NULL, "gauge", "Blocks that no sequence holds, kept for their prefixes.", (double)e->blocks_cached},
        {"heddle_kv_usage", "vllm:kv_cache_usage_perc", "gauge", "Blocks held over all blocks, 0 to 1.", used},
        {"heddle_prefix_hit_ratio", NULL, "gauge", "Prompt tokens found in the prefix cache over all, since the start.", hits},
        {"heddle_steps_total", NULL, "counter", "Steps of the engine.", (double)e->steps},
        {"heddle_prompt_tokens_total", "vllm:prompt_tokens_total", "counter", "Prompt tokens.", (double)e->prompt_tokens},
        {"heddle_prefix_hit_tokens_total", "vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.", (double)e->cached_tokens},
        {"heddle_generated_tokens_total", "vllm:generation_tokens_total", "counter", "Generated tokens.", (double)e->generated_tokens},
        {"heddle_preemptions_total", "vllm:num_preemptions_total", "counter", "Sequences that had to give their blocks back.", (double)e->preemptions},
        {"heddle_block_swaps_out_total", NULL, "counter", "Blocks moved to host memory.", (double)e->swaps_out},
        {"heddle_block_swaps_in_total", NULL, "counter", "Blocks moved back.", (double)e->swaps_in},
        {"heddle_block_copies_total", NULL, "counter", "Blocks copied on write.", (double)e->copies},
        {"heddle_speculated_tokens_total", "vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens proposed.", (double)e->proposed},
        {"heddle_speculated_accepted_total", "vllm:spec_decode_num_accepted_tokens_total", "counter", "Proposed tokens that were right.", (double)e->accepted},
        {"heddle_http_requests_total", NULL, "counter", "HTTP requests that ended.", (double)n->requests},
        {"heddle_http_connections", NULL, "gauge", "Open connections.", (double)s->n_conns},
        {"heddle_http_connections_total", NULL, "counter", "Connections since the start.", (double)n->connections},
        {"heddle_http_connections_refused_total", NULL, "counter", "Connections over the limit.", (double)n->too_many},
        {"heddle_http_hang_ups_total", NULL, "counter", "Clients that left before their answer.", (double)n->hang_ups},
        {"heddle_http_timeouts_total", NULL, "counter", "Heads and bodies that took too long.", (double)n->cut_off},
        {"heddle_http_refused_full_total", NULL, "counter", "Requests refused because the queue was full.", (double)n->refused_full},
        {"heddle_http_refused_key_total", NULL, "counter", "Requests refused because a key had too many.", (double)n->refused_key},
        {"process_resident_memory_bytes", NULL, "gauge", "Resident memory.", (double)hd_memory_resident()},
        {"process_start_time_seconds", NULL, "gauge", "When the server started, in seconds since 1970.", (double)s->started},
    };
    for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++) {
        put_figure(o, figures[i].name, "", &figures[i]);
        if (*vllm_label && figures[i].vllm) put_figure(o, figures[i].vllm, vllm_label, &figures[i]);
    }
}

static void put_finished(const hd_engine_stats *e, const char *vllm_label, hd_str *o)
{
    static const struct { hd_finish finish; const char *reason; } reasons[] = {
        {HD_FINISH_LENGTH, "length"}, {HD_FINISH_EOS, "eos"}, {HD_FINISH_STOP, "stop"}, {HD_FINISH_CANCELLED, "cancelled"}, {HD_FINISH_DEADLINE, "deadline"},
            {HD_FINISH_ERROR, "error"},
    };
    if (*vllm_label) {
        int n = (int)strlen(vllm_label) - 1; /* without the brace: a label follows */
        put_head(o, "vllm:request_success_total", "counter", "Continuations that ended by themselves, by why.");
        hd_str_printf(o, "vllm:request_success_total%.*s,finished_reason=\"stop\"} %llu\n", n, vllm_label,
                      (unsigned long long)(e->finished[HD_FINISH_EOS] + e->finished[HD_FINISH_STOP]));
        hd_str_printf(o, "vllm:request_success_total%.*s,finished_reason=\"length\"} %llu\n", n, vllm_label, (unsigned long long)e->finished[HD_FINISH_LENGTH]);
    }
    put_head(o, "heddle_choices_total", "counter", "Continuations that ended, by why.");
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
        hd_str_printf(o, "heddle_choices_total{reason=\"%s\"} %llu\n", reasons[i].reason, (unsigned long long)e->finished[reasons[i].finish]);
}

static void put_statuses(const hd_server *s, hd_str *o)
{
    put_head(o, "heddle_http_responses_total", "counter", "Responses by class of status.");
    for (int i = 1; i < 6; i++) hd_str_printf(o, "heddle_http_responses_total{status=\"%dxx\"} %llu\n", i, (unsigned long long)s->counts.by_status[i]);
}

void hd_metrics_write(hd_server *s, hd_str *o)
{
    hd_engine_stats e;
    hd_str label;
    hd_engine_stats_read(s->model->engine, &e);
    const struct { const char *name, *vllm, *help; const hd_histogram *h; } histograms[] = {
        {"heddle_time_to_first_token_seconds", "vllm:time_to_first_token_seconds", "From a request's arrival to its first token.", &e.first_token},
        {"heddle_inter_token_seconds", "vllm:time_per_output_token_seconds", "Between the tokens of a sequence.", &e.inter_token},
        {"heddle_queue_seconds", "vllm:request_queue_time_seconds", "From a request's arrival to when it first runs.", &e.queue},
        {"heddle_request_seconds", "vllm:e2e_request_latency_seconds", "From a request's arrival to its end.", &e.whole},
    };
    hd_str_init(&label);
    if (s->options.vllm_metrics) {
        hd_str_puts(&label, "{model_name=");
        hd_out_text(&label, s->model->name);
        hd_str_putc(&label, '}');
    }
    put_figures(s, &e, label.data, o);
    put_finished(&e, label.data, o);
    put_statuses(s, o);
    for (size_t i = 0; i < sizeof histograms / sizeof histograms[0]; i++) put_histogram(o, histograms[i].name, "", histograms[i].help, histograms[i].h);
    if (label.len) label.data[--label.len] = 0; /* without the brace: `le` follows */
    for (size_t i = 0; i < sizeof histograms / sizeof histograms[0] && label.len; i++)
        put_histogram(o, histograms[i].vllm, label.data + 1, histograms[i].help, histograms[i].h);
    hd_str_free(&label);
}
