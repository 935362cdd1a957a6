/* libFuzzer target: any bytes as what a connection sends: heads and bodies until they can't be read. How the bytes are cut into pieces must not matter. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "serve/http.h"

enum { BODY_MOST = 4096 };

/* A head that was judged stays so, whatever follows. */
static void check_prefixes(const char *p, size_t n, int rc, size_t used)
{
    hd_http_head h;
    size_t at = 0;
    size_t step = n / 16 + 1;
    for (size_t k = 0; k <= n; k += step) {
        int early = hd_http_parse_head(p, k, &h, &at);
        if (early && early != rc) abort();
        if (early == 1 && at != used) abort();
        if (!early && rc == 1 && k >= used) abort();
    }
}

static int feed(const hd_http_head *h, const char *p, size_t n, size_t step, size_t *taken, hd_str *out)
{
    hd_http_body b;
    size_t used;
    int rc = 0;
    hd_http_body_begin(&b, h, BODY_MOST);
    for (*taken = 0; !rc && *taken < n; *taken += used) {
        size_t piece = n - *taken < step ? n - *taken : step;
        rc = hd_http_body_feed(&b, p + *taken, piece, &used, out);
        if (used > piece || (!rc && !used)) abort();
    }
    if (out->len > BODY_MOST) abort();
    return rc;
}

static size_t read_body(const hd_http_head *h, const char *p, size_t n, int *rc)
{
    hd_str whole, pieces;
    size_t a, b;
    hd_str_init(&whole);
    hd_str_init(&pieces);
    *rc = feed(h, p, n, n ? n : 1, &a, &whole);
    int again = feed(h, p, n, 3, &b, &pieces);
    if (again != *rc || (*rc == 1 && (a != b || whole.len != pieces.len || memcmp(whole.data, pieces.data, whole.len)))) abort();
    hd_str_free(&whole);
    hd_str_free(&pieces);
    return a;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *copy = malloc(size + 1); /* of its own, so that a read past its end is seen */
    if (!copy) return 0;
    memcpy(copy, data, size);
    const char *p = copy;
    for (int rc = 1; rc == 1 && size;) {
        hd_http_head h;
        size_t used = 0;
        rc = hd_http_parse_head(p, size, &h, &used);
        check_prefixes(p, size, rc, used);
        if (rc != 1) break;
        if (used > size || !h.path.p || !h.path.n || (h.chunked && h.length >= 0)) abort();
        p += used, size -= used;
        if (h.chunked || h.length > 0) {
            used = read_body(&h, p, size, &rc);
            p += used, size -= used;
        }
    }
    free(copy);
    return 0;
}
