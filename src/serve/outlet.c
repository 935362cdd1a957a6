#include "serve/outlet.h"

#include <string.h>

void hd_outlet_init(hd_outlet *o, const char *const *stop, int n_stop)
{
    *o = (hd_outlet){.stop = stop, .n_stop = n_stop};
    hd_str_init(&o->held);
}

void hd_outlet_free(hd_outlet *o) { hd_str_free(&o->held); }

/* Where the first stop string stands whole, or the length. */
static size_t find_stop(const hd_outlet *o)
{
    size_t at = o->held.len;
    for (int i = 0; i < o->n_stop; i++) {
        const char *hit = memmem(o->held.data + o->ready, o->held.len - o->ready, o->stop[i], strlen(o->stop[i]));
        if (hit && (size_t)(hit - o->held.data) < at) at = (size_t)(hit - o->held.data);
    }
    return at;
}

/* How many bytes at the end could be the beginning of a stop string. */
static size_t possible_stop(const hd_outlet *o)
{
    size_t most = 0;
    for (int i = 0; i < o->n_stop; i++) {
        size_t n = strlen(o->stop[i]);
        for (size_t k = n ? n - 1 : 0; k > most; k--)
            if (k <= o->held.len - o->ready && !memcmp(o->held.data + o->held.len - k, o->stop[i], k)) most = k;
    }
    return most;
}

void hd_outlet_look(hd_outlet *o, bool all)
{
    if (o->stopped || o->held.len == o->ready) return;
    size_t at = find_stop(o);
    o->stopped = at < o->held.len;
    o->ready = o->stopped || all ? at : o->held.len - possible_stop(o);
}

void hd_outlet_pass(hd_outlet *o)
{
    if (!o->stopped) o->ready = o->held.len;
}

void hd_outlet_drop(hd_outlet *o)
{
    if (!o->ready) return;
    memmove(o->held.data, o->held.data + o->ready, o->held.len - o->ready);
    o->held.len -= o->ready;
    o->held.data[o->held.len] = 0;
    o->ready = 0;
}
