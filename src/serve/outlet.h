/* outlet.h: an answer's text on its way out: what could still become a stop string waits.
 *
 * Text is appended to `held`; after each piece hd_outlet_look says how much of its front may go. Text that has gone is dropped with hd_outlet_drop. */
#ifndef HD_SERVE_OUTLET_H
#define HD_SERVE_OUTLET_H

#include "base/str.h"

typedef struct hd_outlet {
    const char *const *stop; /* [n_stop] not owned */
    int n_stop;
    hd_str held;
    size_t ready;            /* bytes at the front of `held` that may go out */
    bool stopped;            /* a stop string came: `ready` ends before it */
} hd_outlet;

void hd_outlet_init(hd_outlet *o, const char *const *stop, int n_stop);
void hd_outlet_free(hd_outlet *o);
/* Looks at what was appended. all: nothing follows, so that nothing waits any more. */
void hd_outlet_look(hd_outlet *o, bool all);
void hd_outlet_pass(hd_outlet *o); /* lets everything go, stop strings too */
void hd_outlet_drop(hd_outlet *o); /* forgets what is ready */

#endif
