#include "serve/http.h"

#include <string.h>
#include <strings.h>

bool hd_http_text_is(hd_http_text t, const char *word)
{
    return t.p && t.n == strlen(word) && !strncasecmp(t.p, word, t.n);
}

const char *hd_http_reason(int status)
{
    static const struct { int status; const char *reason; } table[] = {
        {200, "OK"}, {204, "No Content"}, {400, "Bad Request"}, {401, "Unauthorized"}, {403, "Forbidden"}, {404, "Not Found"}, {405, "Method Not Allowed"},
        {408, "Request Timeout"}, {411, "Length Required"}, {413, "Content Too Large"}, {414, "URI Too Long"}, {415, "Unsupported Media Type"},
        {417, "Expectation Failed"}, {429, "Too Many Requests"}, {431, "Request Header Fields Too Large"}, {499, "Client Closed Request"},
        {500, "Internal Server Error"}, {501, "Not Implemented"}, {503, "Service Unavailable"}, {504, "Gateway Timeout"}, {505, "HTTP Version Not Supported"},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (table[i].status == status) return table[i].reason;
    return "Error";
}

/* RFC 9110, section 5.6.2. */
static bool is_token_char(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c && strchr("!#$%&'*+-.^_`|~", c));
}

/* ---- the request line ---- */

static hd_http_method method_of(hd_http_text t)
{
    static const char *const names[] = {"GET", "HEAD", "POST", "OPTIONS"}; /* case matters (RFC 9110, section 9.1) */
    for (int i = 0; i < 4; i++)
        if (t.n == strlen(names[i]) && !memcmp(t.p, names[i], t.n)) return (hd_http_method)i;
    return HD_HTTP_OTHER;
}

static int parse_version(hd_http_text t, hd_http_head *h)
{
    if (t.n != 8 || memcmp(t.p, "HTTP/", 5) || t.p[6] != '.' || t.p[5] < '0' || t.p[5] > '9' || t.p[7] < '0' || t.p[7] > '9') return 400;
    if (t.p[5] != '1') return 505;
    h->minor = t.p[7] != '0';
    h->keep_alive = h->minor == 1;
    return 1;
}

/* "/path?query", or "http://host/path": the path of it. */
static int parse_target(hd_http_text t, hd_http_head *h)
{
    if (t.n > HD_HTTP_TARGET_MAX) return 414;
    for (size_t i = 0; i < t.n; i++)
        if ((unsigned char)t.p[i] <= ' ' || (unsigned char)t.p[i] >= 127) return 400;
    if (t.n > 7 && !strncasecmp(t.p, "http://", 7)) {
        const char *slash = memchr(t.p + 7, '/', t.n - 7);
        if (!slash) return 400;
        t.n -= (size_t)(slash - t.p);
        t.p = slash;
    }
    bool star = t.n == 1 && t.p[0] == '*' && h->method == HD_HTTP_OPTIONS;
    if (!t.n || (t.p[0] != '/' && !star)) return 400;
    const char *query = memchr(t.p, '?', t.n);
    h->path = (hd_http_text){t.p, query ? (size_t)(query - t.p) : t.n};
    return 1;
}

static int parse_request_line(const char *p, size_t n, hd_http_head *h)
{
    const char *a = memchr(p, ' ', n);
    if (!a || a == p) return 400;
    for (const char *c = p; c < a; c++)
        if (!is_token_char((unsigned char)*c)) return 400;
    const char *target = a + 1, *b = memchr(target, ' ', n - (size_t)(target - p));
    if (!b || b == target) return 400;
    h->method = method_of((hd_http_text){p, (size_t)(a - p)});
    int rc = parse_version((hd_http_text){b + 1, n - (size_t)(b + 1 - p)}, h);
    return rc == 1 ? parse_target((hd_http_text){target, (size_t)(b - target)}, h) : rc;
}

/* ---- fields ---- */

static int take_length(hd_http_head *h, hd_http_text v)
{
    if (h->length >= 0 || !v.n || v.n > 18) return 400; /* two of them, even equal ones, are refused */
    h->length = 0;
    for (size_t i = 0; i < v.n; i++) {
        if (v.p[i] < '0' || v.p[i] > '9') return 400;
        h->length = h->length * 10 + (v.p[i] - '0');
    }
    return 1;
}

static int take_coding(hd_http_head *h, hd_http_text v)
{
    if (h->chunked || !h->minor) return 400;
    if (!hd_http_text_is(v, "chunked")) return 501;
    h->chunked = true;
    return 1;
}

static int take_connection(hd_http_head *h, hd_http_text v)
{
    for (size_t i = 0; i < v.n;) {
        size_t end = i;
        while (end < v.n && v.p[end] != ',') end++;
        hd_http_text word = {v.p + i, end - i};
        while (word.n && (*word.p == ' ' || *word.p == '\t')) word.p++, word.n--;
        while (word.n && (word.p[word.n - 1] == ' ' || word.p[word.n - 1] == '\t')) word.n--;
        if (hd_http_text_is(word, "close")) h->keep_alive = false;
        else if (hd_http_text_is(word, "keep-alive") && !h->minor) h->keep_alive = true;
        i = end + 1;
    }
    return 1;
}

static int take_expect(hd_http_head *h, hd_http_text v)
{
    if (!hd_http_text_is(v, "100-continue")) return 417;
    h->expect_continue = h->minor == 1;
    return 1;
}

static int take_once(hd_http_text *into, hd_http_text v)
{
    if (into->p) return 400;
    *into = v;
    return 1;
}

static int take_host(hd_http_head *h, hd_http_text v) { return take_once(&h->host, v); }
static int take_authorization(hd_http_head *h, hd_http_text v) { return take_once(&h->authorization, v); }
static int take_origin(hd_http_head *h, hd_http_text v) { return take_once(&h->origin, v); }
static int take_type(hd_http_head *h, hd_http_text v) { return take_once(&h->content_type, v); }

static const struct { const char *name; int (*take)(hd_http_head *h, hd_http_text v); } fields[] = {
    {"content-length", take_length}, {"transfer-encoding", take_coding}, {"connection", take_connection}, {"expect", take_expect}, {"host", take_host},
    {"authorization", take_authorization}, {"origin", take_origin}, {"content-type", take_type},
};

static int parse_field(const char *p, size_t n, hd_http_head *h)
{
    const char *colon = memchr(p, ':', n);
    if (!colon || colon == p) return 400;
    for (const char *c = p; c < colon; c++)
        if (!is_token_char((unsigned char)*c)) return 400; /* a fold or a space before the colon too */
    hd_http_text name = {p, (size_t)(colon - p)}, v = {colon + 1, n - (size_t)(colon + 1 - p)};
    for (size_t i = 0; i < v.n; i++)
        if (((unsigned char)v.p[i] < ' ' && v.p[i] != '\t') || v.p[i] == 127) return 400;
    while (v.n && (*v.p == ' ' || *v.p == '\t')) v.p++, v.n--;
    while (v.n && (v.p[v.n - 1] == ' ' || v.p[v.n - 1] == '\t')) v.n--;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (hd_http_text_is(name, fields[i].name)) return fields[i].take(h, v);
    return 1;
}

/* The line at p: its bytes without CRLF in *n. 0: no end in sight; 400: a CR or LF alone. */
static int find_line(const char *p, size_t room, size_t *n)
{
    for (size_t i = 0; i < room; i++) {
        if (p[i] == '\n' || !p[i]) return 400;
        if (p[i] != '\r') continue;
        if (i + 1 == room) return 0;
        *n = i;
        return p[i + 1] == '\n' ? 1 : 400;
    }
    return 0;
}

/* What must hold between the fields. */
static int check_head(const hd_http_head *h)
{
    if (h->minor && !h->host.p) return 400;
    if (h->chunked && h->length >= 0) return 400;
    return 1;
}

static int unfinished(size_t n, int line)
{
    if (n < HD_HTTP_HEAD_MAX) return 0;
    return line ? 431 : 414;
}

int hd_http_parse_head(const char *p, size_t n, hd_http_head *h, size_t *used)
{
    *h = (hd_http_head){.length = -1};
    size_t at = 0, line_bytes = 0;
    if (n > HD_HTTP_HEAD_MAX) n = HD_HTTP_HEAD_MAX;
    while (at + 1 < n && at < 8 && p[at] == '\r' && p[at + 1] == '\n') at += 2; /* an empty line before a request is allowed (RFC 9112, section 2.2) */
    if (at < n && p[at] != '\r' && !is_token_char((unsigned char)p[at])) return 400; /* nothing that may begin a request: TLS, say */
    for (int line = 0;; line++) {
        int rc = find_line(p + at, n - at, &line_bytes);
        if (rc == 0) return unfinished(n, line);
        if (rc != 1) return rc;
        if (line && !line_bytes) break;
        if (line > HD_HTTP_FIELDS_MAX) return 431;
        rc = line ? parse_field(p + at, line_bytes, h) : parse_request_line(p + at, line_bytes, h);
        if (rc != 1) return rc;
        at += line_bytes + 2;
    }
    *used = at + 2;
    return check_head(h);
}

/* ---- bodies ---- */

enum { AT_SIZE, AT_EXTENSION, AT_SIZE_END, AT_DATA, AT_DATA_CR, AT_DATA_LF, AT_TRAILER, AT_TRAILER_LINE, AT_TRAILER_LF, AT_LAST_LF };
enum { LINE_MAX_BYTES = 256, TRAILER_MAX_BYTES = 4096 };

void hd_http_body_begin(hd_http_body *b, const hd_http_head *h, int64_t max)
{
    *b = (hd_http_body){.chunked = h->chunked, .left = h->chunked || h->length < 0 ? 0 : h->length, .max = max};
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One byte of a chunk's size line. */
static int feed_size(hd_http_body *b, char c)
{
    int digit = hex_digit(c);
    if (digit >= 0) {
        if (++b->line > 15) return 400;
        b->left = b->left * 16 + digit;
        return 0;
    }
    if (!b->line) return 400;
    b->state = c == '\r' ? AT_SIZE_END : AT_EXTENSION;
    return c == '\r' || c == ';' ? 0 : 400;
}

/* One byte of framing; the byte of data is the caller's. */
static int feed_framing(hd_http_body *b, char c)
{
    switch (b->state) {
    case AT_SIZE: return feed_size(b, c);
    case AT_EXTENSION:
        if (c == '\r') b->state = AT_SIZE_END;
        else if (++b->line > LINE_MAX_BYTES || c == '\n' || !c) return 400;
        return 0;
    case AT_SIZE_END:
        b->state = b->left ? AT_DATA : AT_TRAILER;
        b->line = 0;
        return c == '\n' ? 0 : 400;
    case AT_DATA_CR:
        b->state = AT_DATA_LF;
        return c == '\r' ? 0 : 400;
    case AT_DATA_LF:
        b->state = AT_SIZE;
        return c == '\n' ? 0 : 400;
    case AT_TRAILER: /* at the start of a trailer's line, or of the empty one that ends all */
        b->state = c == '\r' ? AT_LAST_LF : AT_TRAILER_LINE;
        return c == '\n' || ++b->line > TRAILER_MAX_BYTES ? 400 : 0;
    case AT_TRAILER_LINE:
        if (c == '\r') b->state = AT_TRAILER_LF;
        return c == '\n' || !c || ++b->line > TRAILER_MAX_BYTES ? 400 : 0;
    case AT_TRAILER_LF:
        b->state = AT_TRAILER;
        return c == '\n' ? 0 : 400;
    default: return c == '\n' ? 1 : 400;
    }
}

static size_t take_data(hd_http_body *b, const char *p, size_t n, hd_str *out)
{
    size_t take = (int64_t)n < b->left ? n : (size_t)b->left;
    hd_str_add(out, p, take);
    b->left -= (int64_t)take;
    return take;
}

int hd_http_body_feed(hd_http_body *b, const char *p, size_t n, size_t *used, hd_str *out)
{
    *used = 0;
    if (!b->chunked) {
        if (b->left > b->max) return 413;
        *used = take_data(b, p, n, out);
        return b->left == 0;
    }
    while (*used < n) {
        if (b->state == AT_DATA) {
            *used += take_data(b, p + *used, n - *used, out);
            if (!b->left) b->state = AT_DATA_CR;
            continue;
        }
        int rc = feed_framing(b, p[(*used)++]);
        if (rc) return rc;
        if (b->state == AT_DATA && b->left > b->max - (int64_t)out->len) return 413;
    }
    return 0;
}
