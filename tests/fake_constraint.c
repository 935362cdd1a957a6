/* Weak, so that a test that links the library's own gets those. */
#include "fake_constraint.h"

#include <string.h>
#include "base/mem.h"

#define WEAK __attribute__((weak))

struct hd_constraint_state { hd_constraint *c; int64_t n; };

WEAK hd_constraint *hd_constraint_retain(const hd_constraint *c)
{
    ((hd_constraint *)c)->holds++;
    return (hd_constraint *)c;
}

WEAK void hd_constraint_release(const hd_constraint *c) { ((hd_constraint *)c)->holds--; }

WEAK hd_constraint_state *hd_constraint_begin(const hd_constraint *c, hd_error *err)
{
    hd_constraint_state *s = hd_calloc(1, sizeof *s);
    if (!s) return hd_fail_memory(err, sizeof *s, "a constraint's state"), NULL;
    s->c = (hd_constraint *)c;
    s->c->states++;
    return s;
}

WEAK void hd_constraint_end(hd_constraint_state *s)
{
    if (s) s->c->states--;
    hd_free(s);
}

static bool may_follow(const hd_constraint_state *s, int64_t token)
{
    if (s->n >= s->c->length) return token == s->c->eos;
    return token != s->c->eos && token % s->c->modulus == s->n % s->c->modulus;
}

WEAK int hd_constraint_mask(hd_constraint_state *s, uint64_t *allowed, hd_error *err)
{
    if (s->c->fail_after && s->n >= s->c->fail_after) return hd_fail(err, HD_ENOMEM, "the fake constraint fails, as asked for");
    memset(allowed, 0, (size_t)(s->c->vocab + 63) / 64 * sizeof *allowed);
    for (int64_t t = 0; t < s->c->vocab; t++)
        if (may_follow(s, t)) allowed[t / 64] |= UINT64_C(1) << (t % 64);
    return 0;
}

WEAK int hd_constraint_advance(hd_constraint_state *s, int32_t token, hd_error *err)
{
    if (!may_follow(s, token)) return hd_fail(err, HD_EINVAL, "token %d is not allowed", token);
    s->n++;
    return 0;
}

WEAK bool hd_constraint_complete(const hd_constraint_state *s) { return s->n >= s->c->length; }
