/* http.h: HTTP/1.1 off the wire, strictly: one request's head, then its body. Pure functions over bytes; connections are conn.c's.
 *
 * What two readers could frame differently is refused (RFC 9112, sections 2.2, 5, 6 and 11.2): bare CR or LF, folded lines, space before a colon, two
 * lengths, a
 * length beside a transfer coding, any coding but chunked. A status instead of an error code says what to answer. */
#ifndef HD_SERVE_HTTP_H
#define HD_SERVE_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/str.h"

enum { HD_HTTP_HEAD_MAX = 16384, HD_HTTP_TARGET_MAX = 4096, HD_HTTP_FIELDS_MAX = 100 };

typedef enum hd_http_method { HD_HTTP_GET, HD_HTTP_HEAD, HD_HTTP_POST, HD_HTTP_OPTIONS, HD_HTTP_OTHER } hd_http_method;

typedef struct hd_http_text { const char *p; size_t n; } hd_http_text; /* p NULL: absent. Points into the head's bytes */

typedef struct hd_http_head {
    hd_http_method method;
    hd_http_text path;      /* without query */
    int minor;              /* HTTP/1.minor */
    bool keep_alive, chunked, expect_continue;
    int64_t length;         /* Content-Length; -1: none */
    hd_http_text host, authorization, origin, content_type;
} hd_http_head;

/* Reads the head at p[0..n). 0: not whole yet; 1: it is, of *used bytes; else the status to answer with (400, 414, 417, 431, 501, 505). */
int hd_http_parse_head(const char *p, size_t n, hd_http_head *h, size_t *used);

/* ---- bodies ---- */

typedef struct hd_http_body {
    bool chunked;
    int state;              /* where in a chunk's framing */
    int64_t left;           /* bytes of this chunk, or of the body */
    int64_t max;            /* bytes that a body may have */
    int line;               /* bytes of the present framing line or of the trailers */
} hd_http_body;

void hd_http_body_begin(hd_http_body *b, const hd_http_head *h, int64_t max);
/* Takes from p[0..n), *used bytes, and appends what is body to out. 0: more must come; 1: done; else a status (400, 413). */
int hd_http_body_feed(hd_http_body *b, const char *p, size_t n, size_t *used, hd_str *out);

const char *hd_http_reason(int status);
bool hd_http_text_is(hd_http_text t, const char *word); /* letters of either case */

#endif
