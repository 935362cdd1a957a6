/* constrain.h: what an answer's text must be (a regular expression, a JSON schema, any JSON, a grammar), as a set of allowed tokens at each place.
 *
 * Compiling is done outside of the engine's thread, with limits on size and time; what can't be enforced exactly is refused with its name, never ignored.
 * A *vocabulary* is made once for a tokenizer; a *constraint* is read-only and counted; a *state* belongs to one sequence. */
#ifndef HD_SERVE_CONSTRAIN_H
#define HD_SERVE_CONSTRAIN_H

#include <jansson.h>
#include "base/error.h"
#include "data/tokenizer.h"

/* The tokens' bytes as a tree. eos: [n_eos] ids that end an answer. The tokenizer must outlive it. NULL on failure. */
typedef struct hd_vocabulary hd_vocabulary;
hd_vocabulary *hd_vocabulary_new(const hd_tokenizer *t, const int32_t *eos, int n_eos, hd_error *err);
void hd_vocabulary_free(hd_vocabulary *v);
int64_t hd_vocabulary_size(const hd_vocabulary *v); /* ids; a mask has (size + 63) / 64 words */

/* ---- compiling: HD_EINVAL (not well formed), HD_EUNSUPPORTED (a construct that isn't there, named with its place), HD_EMEMCAP (past a limit) ---- */

typedef struct hd_constraint hd_constraint;
typedef struct hd_constraint_limits {
    int64_t states;  /* of automata and rules; 0: 200,000 */
    int64_t bytes;   /* of the source text; 0: 64 KiB */
    int depth;       /* of nesting; 0: 64 */
} hd_constraint_limits;

/* The whole answer matches the expression (RE2-like: no back references, no look-around). */
hd_constraint *hd_constraint_regex(const hd_vocabulary *v, const char *pattern, size_t n, const hd_constraint_limits *l, hd_error *err);
/* Any JSON value whose outermost is an object. */
hd_constraint *hd_constraint_json_object(const hd_vocabulary *v, const hd_constraint_limits *l, hd_error *err);
/* JSON that validates against a schema (draft 2020-12's: type, properties, required, additionalProperties, items, prefixItems, minItems, maxItems, enum, const, anyOf,
 * oneOf with disjoint parts, allOf of objects, $ref to $defs, string lengths, pattern, the common formats, integer bounds, ...). Properties come in the schema's order. */
hd_constraint *hd_constraint_json_schema(const hd_vocabulary *v, const json_t *schema, const hd_constraint_limits *l, hd_error *err);
/* A context-free grammar in the notation of llama.cpp's GBNF files; its first rule is `root`. */
hd_constraint *hd_constraint_grammar(const hd_vocabulary *v, const char *text, size_t n, const hd_constraint_limits *l, hd_error *err);
hd_constraint *hd_constraint_retain(const hd_constraint *c); /* may be called from any thread */
void hd_constraint_release(const hd_constraint *c);

/* ---- following an answer ---- */

typedef struct hd_constraint_state hd_constraint_state;
hd_constraint_state *hd_constraint_begin(const hd_constraint *c, hd_error *err);
hd_constraint_state *hd_constraint_fork(const hd_constraint_state *s, hd_error *err);
void hd_constraint_end(hd_constraint_state *s);

/* Sets the bits of the tokens that may come next: at least one; those of eos where the answer may end here. */
int hd_constraint_mask(hd_constraint_state *s, uint64_t *allowed, hd_error *err);
/* Goes on by a token; HD_EINVAL, and nothing changes, if it isn't allowed. */
int hd_constraint_advance(hd_constraint_state *s, int32_t token, hd_error *err);
bool hd_constraint_complete(const hd_constraint_state *s); /* nothing but eos may follow */

#endif
