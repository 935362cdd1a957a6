/* rope.h: the part of a config that is about rotary embedding, for config.c. */
#ifndef HD_MODELS_ROPE_H
#define HD_MODELS_ROPE_H

#include <jansson.h>

#include "models/lm.h"

/* Reads rope_scaling (or rope_parameters), partial_rotary_factor and original_max_position_embeddings of a config.json into *c, whose other fields are read. */
int hd_rope_read(const json_t *j, hd_lm_config *c, const char *name, hd_error *err);
/* Checks what was read or filled in; head_dim and rotary_dim are there. */
int hd_rope_check(const hd_lm_config *c, const char *name, hd_error *err);
/* Adds the same to a config.json; *failed where memory ran out. */
void hd_rope_write(json_t *j, const hd_lm_config *c, bool *failed);

#endif
