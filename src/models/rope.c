/* rope.c: rotary embedding: what config.json says of its scaling, read, checked and written; and the frequencies that come of it. */
#include "models/rope.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

static const char *const rope_names[HD_ROPE_COUNT] = { "default", "linear", "llama3", "yarn", "longrope", "factors" };
#define MAX_POSITIONS ((int64_t)1 << 27)

/* ---- reading ---- */

static int read_rope_kind(const json_t *r, hd_rope_kind *kind, const char *name, hd_error *err)
{
    const char *text = NULL;
    int rc = hd_json_string(r, "rope_type", &text, name, err);
    if (!rc && !text) rc = hd_json_string(r, "type", &text, name, err);
    if (rc) return rc;
    if (!text) return hd_fail(err, HD_EFORMAT, "%s: rope_scaling has no \"rope_type\"", name);
    bool phi = json_object_get(r, "short_factor"); /* whose "yarn" came to be "longrope" as well */
    if (!strcmp(text, "su") || (phi && !strcmp(text, "yarn"))) text = rope_names[HD_ROPE_LONG];
    for (int i = 0; i < HD_ROPE_FACTORS; i++) /* factors have no such name */
        if (!strcmp(text, rope_names[i])) {
            *kind = (hd_rope_kind)i;
            return HD_OK;
        }
    return hd_fail(err, HD_EUNSUPPORTED, "%s: rope_scaling of type \"%.80s\" is not supported (default, linear, llama3, yarn, longrope)", name, text);
}

/* Numbers that each kind must have. */
static int need_rope(const json_t *r, hd_rope_kind kind, const char *where, hd_error *err)
{
    static const char *const needed[HD_ROPE_COUNT][5] = {
        [HD_ROPE_LINEAR] = { "factor" },
        [HD_ROPE_LLAMA3] = { "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings" },
        [HD_ROPE_YARN] = { "factor" },
        [HD_ROPE_LONG] = { "short_factor", "long_factor" },
    };
    int rc = HD_OK;
    for (int i = 0; !rc && needed[kind][i]; i++) rc = hd_json_need(r, needed[kind][i], where, err);
    static const char *const unknown[] = { "mscale", "mscale_all_dim" };
    for (size_t i = 0; !rc && i < sizeof unknown / sizeof *unknown; i++) {
        const json_t *v = json_object_get(r, unknown[i]);
        if (v && !json_is_null(v) && json_number_value(v) != 1.0) /* 1 changes nothing */
            rc = hd_fail(err, HD_EUNSUPPORTED, "%s: \"%s\" is not supported", where, unknown[i]);
    }
    return rc;
}

/* How many of a head's features are turned, as transformers rounds it. */
static int read_part(const json_t *j, hd_lm_config *c, const char *where, hd_error *err)
{
    double part = -1;
    int rc = hd_json_number(j, "partial_rotary_factor", 0, 1, &part, where, err);
    if (rc || part < 0) return rc;
    c->rotary_dim = (int64_t)((double)c->head_dim * part);
    if (c->rotary_dim >= 2 && c->rotary_dim % 2 == 0) return HD_OK;
    return hd_fail(err, HD_EFORMAT, "%s: \"partial_rotary_factor\" makes %lld of %lld features, which cannot be rotated in pairs", where,
                   (long long)c->rotary_dim, (long long)c->head_dim);
}

static int read_pair_factors(const json_t *r, const char *key, int64_t n, float *out, const char *where, hd_error *err)
{
    const json_t *list = json_object_get(r, key);
    if (n > HD_MAX_ROPE_FACTORS)
        return hd_fail(err, HD_EUNSUPPORTED, "%s: rotary factors for heads of %lld features are not supported", where, (long long)(2 * n));
    if (!json_is_array(list) || json_array_size(list) != (size_t)n)
        return hd_fail(err, HD_EFORMAT, "%s: \"%s\" must be a list of %lld numbers", where, key, (long long)n);
    for (int64_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, (size_t)i);
        out[i] = (float)json_number_value(v);
        if (!json_is_number(v) || !(out[i] > 1e-6f && out[i] < 1e6f))
            return hd_fail(err, HD_EFORMAT, "%s: \"%s\"[%lld] is no sensible factor", where, key, (long long)i);
    }
    return HD_OK;
}

/* The length trained on, beside rope_scaling (Phi-3) or in it, and how far it was stretched: what max_position_embeddings says before `factor` does. */
static int read_long(const json_t *j, const json_t *r, hd_lm_config *c, const char *name, const char *where, hd_error *err)
{
    hd_rope_config *o = &c->rope;
    int64_t beside = 0, pairs = hd_lm_rotary_dim(c) / 2;
    int rc = hd_json_int(j, "original_max_position_embeddings", 2, MAX_POSITIONS, &beside, name, err);
    if (!rc) rc = read_pair_factors(r, "short_factor", pairs, o->pair_factor, where, err);
    if (!rc) rc = read_pair_factors(r, "long_factor", pairs, o->long_factor, where, err);
    if (rc) return rc;
    if (beside || (c->arch == HD_ARCH_PHI3 && !o->original_positions)) o->original_positions = beside ? beside : 4096; /* its default */
    else if (json_is_number(json_object_get(r, "factor"))) return HD_OK;
    if (!o->original_positions) return hd_fail(err, HD_EFORMAT, "%s: neither \"factor\" nor \"original_max_position_embeddings\" is there", where);
    o->factor = fmax(1, (double)c->max_positions / (double)o->original_positions);
    return HD_OK;
}

/* rope_scaling, or rope_parameters (its name from transformers 5 on, which holds rope_theta too). */
int hd_rope_read(const json_t *j, hd_lm_config *c, const char *name, hd_error *err)
{
    const char *key = "rope_scaling";
    const json_t *r = json_object_get(j, key);
    int rc = read_part(j, c, name, err);
    if (rc) return rc;
    if (!r || json_is_null(r)) r = json_object_get(j, key = "rope_parameters");
    if (!r || json_is_null(r)) return HD_OK;
    if (!json_is_object(r)) return hd_fail(err, HD_EFORMAT, "%s: \"%s\" must be an object", name, key);
    char where[512];
    snprintf(where, sizeof where, "%s: %s", name, key);
    hd_rope_config *o = &c->rope;
    rc = read_part(r, c, where, err);
    if (!rc) rc = read_rope_kind(r, &o->kind, name, err);
    if (!rc) rc = hd_json_number(r, "rope_theta", 1.0001, 1e12, &o->theta, where, err);
    if (rc || o->kind == HD_ROPE_PLAIN) return rc;
    if (o->kind == HD_ROPE_YARN) o->beta_fast = 32, o->beta_slow = 1;
    rc = need_rope(r, o->kind, where, err);
    if (!rc) rc = hd_json_number(r, "factor", 1, 1e6, &o->factor, where, err);
    if (!rc) rc = hd_json_number(r, "low_freq_factor", 1e-3, 1e6, &o->low_freq, where, err);
    if (!rc) rc = hd_json_number(r, "high_freq_factor", 1e-3, 1e6, &o->high_freq, where, err);
    if (!rc) rc = hd_json_number(r, "beta_fast", 1e-3, 1e6, &o->beta_fast, where, err);
    if (!rc) rc = hd_json_number(r, "beta_slow", 1e-3, 1e6, &o->beta_slow, where, err);
    if (!rc) rc = hd_json_number(r, "attention_factor", 1e-3, 1e3, &o->attention_factor, where, err);
    if (!rc) rc = hd_json_int(r, "original_max_position_embeddings", 1, MAX_POSITIONS, &o->original_positions, where, err);
    return rc || o->kind != HD_ROPE_LONG ? rc : read_long(j, r, c, name, where, err);
}

/* ---- checking ---- */

int hd_rope_check(const hd_lm_config *c, const char *name, hd_error *err)
{
    const hd_rope_config *r = &c->rope;
    int64_t n = hd_lm_rotary_dim(c);
    bool factors = r->kind == HD_ROPE_FACTORS || r->kind == HD_ROPE_LONG;
    if (n % 2) return hd_fail(err, HD_EFORMAT, "%s: heads of %lld features cannot be rotated in pairs", name, (long long)n);
    if (n < 2 || n > c->head_dim)
        return hd_fail(err, HD_EFORMAT, "%s: %lld features of a head's %lld cannot be rotated", name, (long long)n, (long long)c->head_dim);
    if (r->kind == HD_ROPE_LONG && (r->original_positions == 1 || (!r->original_positions && c->max_positions < 2)))
        return hd_fail(err, HD_EFORMAT, "%s: rope_scaling: original_max_position_embeddings must be at least 2", name);
    if (r->kind == HD_ROPE_LLAMA3 && !(r->low_freq < r->high_freq))
        return hd_fail(err, HD_EFORMAT, "%s: rope_scaling: low_freq_factor must be below high_freq_factor", name);
    if (factors && n > 2 * HD_MAX_ROPE_FACTORS)
        return hd_fail(err, HD_EUNSUPPORTED, "%s: rotary factors for heads of %lld features are not supported", name, (long long)n);
    if (r->kind == HD_ROPE_YARN && !(r->beta_slow < r->beta_fast))
        return hd_fail(err, HD_EFORMAT, "%s: rope_scaling: beta_slow must be below beta_fast", name);
    return HD_OK;
}

/* ---- writing ---- */

/* Steals v; out of memory shows as a NULL v and makes the whole object fail. */
static void put(json_t *j, const char *key, json_t *v, bool *failed)
{
    if (json_object_set_new(j, key, v)) *failed = true;
}

static void put_pair_factors(json_t *j, const char *key, const float *factors, int64_t n, bool *failed)
{
    char text[40];
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++) {
        snprintf(text, sizeof text, "%.9g", factors[i]); /* as many digits as tell floats apart */
        if (json_array_append_new(list, json_real(strtod(text, NULL)))) *failed = true;
    }
    put(j, key, list, failed);
}

static bool follows_from_lengths(const hd_lm_config *c)
{
    const hd_rope_config *r = &c->rope;
    return r->original_positions && r->factor == fmax(1, (double)c->max_positions / (double)r->original_positions);
}

/* Phi-3's has three members, by its name for the first, and transformers 4 takes no others. */
static json_t *long_object(const hd_lm_config *c, bool *failed)
{
    const hd_rope_config *r = &c->rope;
    bool phi = c->arch == HD_ARCH_PHI3;
    int64_t pairs = hd_lm_rotary_dim(c) / 2;
    json_t *o = json_object();
    put(o, phi ? "type" : "rope_type", json_string(rope_names[r->kind]), failed);
    put_pair_factors(o, "short_factor", r->pair_factor, pairs, failed);
    put_pair_factors(o, "long_factor", r->long_factor, pairs, failed);
    if (r->attention_factor > 0) put(o, "attention_factor", json_real(r->attention_factor), failed);
    if (phi && follows_from_lengths(c)) return o;
    put(o, "factor", json_real(r->factor), failed);
    if (r->original_positions) put(o, "original_max_position_embeddings", json_integer(r->original_positions), failed);
    return o;
}

static json_t *scaling_object(const hd_lm_config *c, bool *failed)
{
    const hd_rope_config *r = &c->rope;
    if (r->kind == HD_ROPE_PLAIN) return json_null();
    if (r->kind == HD_ROPE_LONG) return long_object(c, failed);
    json_t *o = json_object();
    put(o, "rope_type", json_string(rope_names[r->kind]), failed);
    put(o, "factor", json_real(r->factor), failed);
    if (r->kind == HD_ROPE_LLAMA3) {
        put(o, "low_freq_factor", json_real(r->low_freq), failed);
        put(o, "high_freq_factor", json_real(r->high_freq), failed);
    }
    if (r->kind == HD_ROPE_YARN) {
        put(o, "beta_fast", json_real(r->beta_fast), failed);
        put(o, "beta_slow", json_real(r->beta_slow), failed);
        if (r->attention_factor > 0) put(o, "attention_factor", json_real(r->attention_factor), failed);
    }
    if (r->original_positions) put(o, "original_max_position_embeddings", json_integer(r->original_positions), failed);
    return o;
}

void hd_rope_write(json_t *j, const hd_lm_config *c, bool *failed)
{
    double part = (double)hd_lm_rotary_dim(c) / (double)c->head_dim;
    if ((int64_t)((double)c->head_dim * part) < hd_lm_rotary_dim(c)) part = nextafter(part, 1);
    put(j, "rope_scaling", scaling_object(c, failed), failed);
    if (part != 1) put(j, "partial_rotary_factor", json_real(part), failed);
    if (c->rope.kind == HD_ROPE_LONG && follows_from_lengths(c))
        put(j, "original_max_position_embeddings", json_integer(c->rope.original_positions), failed);
}

/* ---- frequencies ---- */

/* Llama 3.1: frequencies slower than the training length / low_freq_factor are divided by factor, those faster than
 * length / high_freq_factor are kept, and between the two a line is drawn (transformers, modeling_rope_utils.py). */
static double scale_llama3(const hd_rope_config *r, double length, double f)
{
    double turns = length * f / (2 * M_PI); /* over the training length */
    if (turns < r->low_freq) return f / r->factor;
    if (turns > r->high_freq) return f;
    double smooth = (turns - r->low_freq) / (r->high_freq - r->low_freq);
    return (1 - smooth) * f / r->factor + smooth * f;
}

/* YaRN (Peng et al. 2023, section 3.2): pair i is interpolated, kept, or between, as it turns less than beta_slow times over the
 * training length, more than beta_fast times, or between. */
static double yarn_pair(const hd_rope_config *r, double length, double features, double turns)
{
    return features * log(length / (turns * 2 * M_PI)) / (2 * log(r->theta));
}

static double scale_yarn(const hd_rope_config *r, double length, int64_t features, int64_t i, double f)
{
    double low = fmax(floor(yarn_pair(r, length, (double)features, r->beta_fast)), 0);
    double high = fmin(ceil(yarn_pair(r, length, (double)features, r->beta_slow)), (double)features - 1);
    if (low == high) high += 0.001;
    double ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
    return f / r->factor * ramp + f * (1 - ramp);
}

/* YaRN, section 3.4, and LongRoPE (Ding et al. 2024) as Phi-3 has it. */
static double rotated_scale(const hd_rope_config *r, double original)
{
    if (r->kind != HD_ROPE_YARN && r->kind != HD_ROPE_LONG) return 1;
    if (r->attention_factor > 0) return r->attention_factor;
    return r->kind == HD_ROPE_YARN ? 0.1 * log(r->factor) + 1 : sqrt(1 + log(r->factor) / log(original));
}

double hd_lm_rope_frequencies(const hd_lm_config *c, int64_t length, float *out)
{
    const hd_rope_config *r = &c->rope;
    int64_t features = hd_lm_rotary_dim(c);
    double original = (double)(r->original_positions ? r->original_positions : c->max_positions);
    const float *factors = (double)length > original ? r->long_factor : r->pair_factor;
    for (int64_t i = 0; i < features / 2; i++) {
        double f = pow(r->theta, -2 * (double)i / (double)features);
        if (r->kind == HD_ROPE_LINEAR) f /= r->factor;
        if (r->kind == HD_ROPE_LLAMA3) f = scale_llama3(r, original, f);
        if (r->kind == HD_ROPE_YARN) f = scale_yarn(r, original, features, i, f);
        if (r->kind == HD_ROPE_FACTORS) f /= r->pair_factor[i];
        if (r->kind == HD_ROPE_LONG) f /= factors[i];
        out[i] = (float)f;
    }
    return rotated_scale(r, original);
}
