// What llama.cpp makes of a GGUF file, for make_gguf_fixtures.py, which says how to build it.
//   gguf_reference logits MODEL TOKEN...      f32 logits of every token, to standard output
//   gguf_reference greedy MODEL N TOKEN...    N likeliest tokens and how far each is ahead of the next
//   gguf_reference tokens MODEL 0|1           ids of the strings of standard input, each ended by a NUL, a line each; 1: with what goes around a text
#include "llama.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
#include <iostream>
static void quiet(ggml_log_level, const char *, void *) {}
int main(int argc, char **argv) {
    llama_log_set(quiet, nullptr);
    llama_backend_init();
    auto mp = llama_model_default_params();
    bool tok = !strcmp(argv[1], "tokens");
    mp.vocab_only = tok;
    llama_model *m = llama_model_load_from_file(argv[2], mp);
    if (!m) { fprintf(stderr, "load failed\n"); return 1; }
    const llama_vocab *v = llama_model_get_vocab(m);
    if (tok) {
        bool add = atoi(argv[3]);
        std::string all((std::istreambuf_iterator<char>(std::cin)), {});
        size_t at = 0;
        while (at < all.size()) {
            size_t e = all.find('\0', at);
            std::vector<llama_token> t(e - at + 16);
            int n = llama_tokenize(v, all.data() + at, (int)(e - at), t.data(), (int)t.size(), add, true);
            for (int i = 0; i < n; i++) printf("%s%d", i ? " " : "", t[i]);
            printf("\n");
            at = e + 1;
        }
        return 0;
    }
    std::vector<llama_token> t;
    bool greedy = !strcmp(argv[1], "greedy");
    int extra = greedy ? atoi(argv[3]) : 0;
    for (int i = greedy ? 4 : 3; i < argc; i++) t.push_back(atoi(argv[i]));
    auto cp = llama_context_default_params();
    cp.n_ctx = 512; cp.n_batch = 512; cp.n_ubatch = 512; cp.n_threads = cp.n_threads_batch = 2;
    cp.type_k = cp.type_v = GGML_TYPE_F32;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context *c = llama_init_from_model(m, cp);
    if (!c) { fprintf(stderr, "ctx failed\n"); return 1; }
    int V = llama_vocab_n_tokens(v);
    size_t done = 0;
    for (int step = 0; step <= extra; step++) {
        llama_batch b = llama_batch_init(512, 0, 1);
        for (size_t i = done; i < t.size(); i++) { b.token[b.n_tokens] = t[i]; b.pos[b.n_tokens] = i; b.n_seq_id[b.n_tokens] = 1; b.seq_id[b.n_tokens][0] = 0; b.logits[b.n_tokens] = 1; b.n_tokens++; }
        if (llama_decode(c, b)) { fprintf(stderr, "decode failed\n"); return 1; }
        for (int i = 0; i < b.n_tokens; i++) if (!greedy) fwrite(llama_get_logits_ith(c, i), 4, V, stdout);
        done = t.size();
        const float *l = llama_get_logits_ith(c, b.n_tokens - 1);
        int best = 0; for (int i = 1; i < V; i++) if (l[i] > l[best]) best = i;
        float second = -1e30; for (int i = 0; i < V; i++) if (i != best && l[i] > second) second = l[i];
        if (greedy) printf("%d %.5f\n", best, l[best] - second);
        t.push_back(best);
        llama_batch_free(b);
    }
}
