/* libFuzzer target: any bytes as a network file, built for training and for evaluation. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "models/network.h"

static void build(const hd_network *n, bool train)
{
    hd_error err = {0};
    hd_graph *g = hd_network_graph(n, &(hd_network_options){.batch = 3, .train = train}, &err);
    if (!g != (err.code != 0) || (!g && !err.message[0])) abort();
    hd_graph_free(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hd_error err = {0};
    hd_network *n = hd_network_parse((const char *)data, size, "input", &err);
    if (!n != (err.code != 0)) abort();
    if (!n) return 0;
    build(n, true);
    build(n, false);
    hd_network_free(n);
    return 0;
}
