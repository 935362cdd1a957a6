/* libFuzzer target: any bytes as a config.json; of one that is accepted, the questions asked before any memory is spent on the model. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "models/lm.h"

/* Small enough to build its graph here. */
static int is_small(const hd_lm_config *c) { return c->layers <= 4 && c->heads <= 64; }

static void build(const hd_lm_config *c)
{
    hd_error err = {0};
    hd_lm_options o = {.mode = HD_LM_SERVE, .compute = HD_BF16, .param = HD_F32, .tokens = 8, .context = 16, .kv = HD_I8, .block = 8, .blocks = 4, .sequences = 2};
    hd_graph *g = hd_lm_graph(c, &o, &err);
    if (!g && !err.message[0]) abort();
    if (g && hd_graph_verify(g, &err)) abort();
    hd_graph_free(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hd_lm_config c, again;
    hd_error err = {0};
    int rc = hd_lm_config_parse(&c, (const char *)data, size, "config.json", &err);
    if ((rc != 0) != (err.code != 0) || (rc && !err.message[0])) abort();
    if (rc) return 0;
    again = c;
    if (hd_lm_config_check(&again, "config.json", &err)) abort(); /* what was accepted is sound */
    if (hd_lm_config_parameters(&c) <= 0) abort();
    if (is_small(&c)) build(&c);
    return 0;
}
