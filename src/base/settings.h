/* settings.h: a command's settings as one table: defaults, a JSON file, command-line flags and the help text all come from it.
 *
 * A setting named "learning_rate" is the key "learning_rate" in the file and the flag --learning-rate VALUE (or =VALUE) on the command line;
 * a bool is --name or --no-name. What comes later wins: defaults, then --config FILE, then flags. */
#ifndef HD_BASE_SETTINGS_H
#define HD_BASE_SETTINGS_H

#include <jansson.h>
#include "base/error.h"
#include "base/str.h"

typedef enum hd_setting_type { HD_SET_INT, HD_SET_NUMBER, HD_SET_BOOL, HD_SET_STRING, HD_SET_LIST } hd_setting_type;

typedef struct hd_setting {
    const char *name;     /* NULL ends the table; lower case with underscores */
    hd_setting_type type; /* the member: int64_t, double, bool, const char *, hd_setting_list */
    size_t offset;        /* of the member in the command's struct */
    const char *preset;   /* default as text; NULL: 0, false, no string */
    double lo, hi;        /* allowed range of numbers */
    const char *value;    /* how the help names the value: "N", "FILE", "f32|bf16" (choices parted by | are enforced), ... */
    const char *help;
} hd_setting;

/* A flag that may be given more than once. */
typedef struct hd_setting_list { const char **item; int n; } hd_setting_list;

/* Strings live as long as the process' argv, or in this. Zero-initialise. */
typedef struct hd_settings_memory { struct hd_settings_piece *head; } hd_settings_memory;
void hd_settings_free(hd_settings_memory *m);

/* Writes every default into the struct at `into`. */
int hd_settings_preset(const hd_setting *table, void *into, hd_settings_memory *m, hd_error *err);
/* Sets what a JSON object says; a key that is no setting is HD_EINVAL. */
int hd_settings_apply(const hd_setting *table, void *into, const json_t *object, hd_settings_memory *m, hd_error *err);
/* Reads flags argv[1..argc-1]. --config FILE (a JSON object) is read first, wherever it stands. Up to max_words words that are no flags go
 * to words (their number to *n_words); one more is an error. */
int hd_settings_parse(const hd_setting *table, void *into, int argc, char **argv, const char **words, int max_words, int *n_words,
                      hd_settings_memory *m, hd_error *err);
/* "  --learning-rate X   what it does [0.001]" lines, wrapped. */
void hd_settings_help(const hd_setting *table, hd_str *out);

#endif
