/* serve_stubs.c: weak stand-ins for functions of serve/constrain.h, for as long as the library lacks them. */
#include "serve/constrain.h"

#define WEAK __attribute__((weak))

WEAK hd_constraint *hd_constraint_retain(const hd_constraint *c) { return (hd_constraint *)c; }
WEAK void hd_constraint_release(const hd_constraint *c) { (void)c; }
WEAK hd_constraint_state *hd_constraint_begin(const hd_constraint *c, hd_error *err) { return (void)c, hd_fail(err, HD_EUNSUPPORTED, "no constraints"), NULL; }
WEAK void hd_constraint_end(hd_constraint_state *s) { (void)s; }
WEAK int hd_constraint_mask(hd_constraint_state *s, uint64_t *allowed, hd_error *err) { return (void)s, (void)allowed, hd_fail(err, HD_EUNSUPPORTED, "no constraints"); }
WEAK int hd_constraint_advance(hd_constraint_state *s, int32_t t, hd_error *err) { return (void)s, (void)t, hd_fail(err, HD_EUNSUPPORTED, "no constraints"); }
WEAK bool hd_constraint_complete(const hd_constraint_state *s) { return (void)s, true; }
