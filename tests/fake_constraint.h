/* fake_constraint.h: in place of the library's constraints: the ith token of an answer must be i modulo some number, and eos must come after so many. Counts
 * what is there. */
#ifndef FAKE_CONSTRAINT_H
#define FAKE_CONSTRAINT_H

#include "serve/constrain.h"

struct hd_constraint {
    int64_t vocab, length;
    int32_t modulus, eos;
    int64_t fail_after; /* the state that fails, by its tokens; 0: none */
    int holds, states;  /* to be 0 at the end */
};

#endif
