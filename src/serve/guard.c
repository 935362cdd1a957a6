/* guard.c: who may come in, and TLS. */
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <openssl/ssl.h>
#include <string.h>
#include "serve/server_int.h"

typedef struct digest { unsigned char byte[SHA256_DIGEST_LENGTH]; } digest;

struct hd_guard {
    digest *keys;
    int n;
    SSL_CTX *tls;
};

static digest digest_of(const char *p, size_t n)
{
    digest d;
    SHA256((const unsigned char *)p, n, d.byte);
    return d;
}

static int tls_error(hd_error *err, const char *what, const char *path)
{
    unsigned long e = ERR_get_error();
    const char *reason = e ? ERR_reason_error_string(e) : NULL;
    ERR_clear_error();
    return hd_fail(err, HD_EINVAL, "%s %s: %s", what, path, reason ? reason : "cannot be used");
}

static int open_tls(hd_guard *g, const hd_server_options *o, hd_error *err)
{
    if (!o->tls_cert && !o->tls_key) return 0;
    if (!o->tls_cert || !o->tls_key) return hd_fail(err, HD_EINVAL, "TLS needs both a certificate and its key");
    g->tls = SSL_CTX_new(TLS_server_method());
    if (!g->tls) return tls_error(err, "TLS", "context");
    SSL_CTX_set_min_proto_version(g->tls, TLS1_2_VERSION);
    SSL_CTX_set_options(g->tls, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(g->tls, SSL_MODE_RELEASE_BUFFERS); /* idle connections keep no 34 KiB of buffers */
    if (SSL_CTX_use_certificate_chain_file(g->tls, o->tls_cert) != 1) return tls_error(err, "certificate", o->tls_cert);
    if (SSL_CTX_use_PrivateKey_file(g->tls, o->tls_key, SSL_FILETYPE_PEM) != 1) return tls_error(err, "key", o->tls_key);
    if (SSL_CTX_check_private_key(g->tls) != 1) return tls_error(err, "key", o->tls_key);
    return 0;
}

static int take_keys(hd_guard *g, const hd_server_options *o, hd_error *err)
{
    g->keys = hd_calloc((size_t)o->n_api_keys + 1, sizeof *g->keys);
    if (!g->keys) return hd_fail_memory(err, sizeof *g->keys, "API keys");
    for (int i = 0; i < o->n_api_keys; i++) {
        if (!o->api_keys[i] || !*o->api_keys[i]) return hd_fail(err, HD_EINVAL, "an API key is empty");
        g->keys[g->n++] = digest_of(o->api_keys[i], strlen(o->api_keys[i]));
    }
    return 0;
}

hd_guard *hd_guard_new(const hd_server_options *o, hd_error *err)
{
    hd_guard *g = hd_calloc(1, sizeof *g);
    if (!g) return hd_fail_memory(err, sizeof *g, "API keys"), NULL;
    int rc = take_keys(g, o, err);
    if (!rc) rc = open_tls(g, o, err);
    if (!rc) return g;
    hd_guard_free(g);
    return NULL;
}

void hd_guard_free(hd_guard *g)
{
    if (!g) return;
    SSL_CTX_free(g->tls);
    hd_free(g->keys);
    hd_free(g);
}

static uint64_t salt_of(const digest *d)
{
    uint64_t salt;
    memcpy(&salt, d->byte, sizeof salt);
    return salt;
}

int hd_guard_key(const hd_guard *g, hd_http_text a, uint64_t *salt)
{
    *salt = 0;
    if (!g->n) return 0;
    bool bearer = a.n > 7 && !strncasecmp(a.p, "Bearer ", 7);
    while (bearer && a.n > 8 && a.p[7] == ' ') a.p++, a.n--;
    digest d = bearer ? digest_of(a.p + 7, a.n - 7) : (digest){{0}};
    int found = -1;
    for (int i = 0; i < g->n; i++) {
        int same = CRYPTO_memcmp(d.byte, g->keys[i].byte, sizeof d.byte) == 0; /* of hashes: lengths don't tell either */
        found = same ? i : found;
    }
    if (found >= 0) *salt = salt_of(&d);
    return found;
}

void *hd_guard_tls(const hd_guard *g, hd_error *err)
{
    if (!g->tls) return NULL;
    SSL *s = SSL_new(g->tls);
    if (!s) hd_fail_memory(err, 0, "a TLS connection");
    return s;
}

uint64_t hd_guard_salt(uint64_t salt, const char *more)
{
    digest d = digest_of(more, strlen(more));
    return hd_hash_mix(salt, salt_of(&d));
}

uint64_t hd_guard_random(void)
{
    uint64_t r = 0;
    if (RAND_bytes((unsigned char *)&r, sizeof r) != 1) r = (uint64_t)(size_t)&r;
    return r;
}
