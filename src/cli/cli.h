/* cli.h: what a subcommand is. Each stands in one file of this folder; main.c lists them. */
#ifndef HD_CLI_CLI_H
#define HD_CLI_CLI_H

#include "base/error.h"
#include "base/settings.h"

typedef struct hd_command {
    const char *name;           /* one word, or two: "plan stages" goes before "plan" */
    const char *usage;          /* what follows "heddle name": "[flags] DIR" */
    const char *summary;        /* one line */
    const char *details;        /* paragraphs for --help; may be NULL */
    const hd_setting *settings; /* ended by a name of NULL */
    size_t config_size;         /* bytes of the struct that settings fill */
    int max_words;              /* words that are no flags */
    /* (optional) Settings that something named by the flags brings along; they rank between the table's defaults and what the person says.
     * NULL: none, or an error left in err. The caller json_decrefs it. */
    json_t *(*brought)(const void *config, const char *const *words, int n_words, hd_error *err);
    /* config: the filled struct. 0, or an error's code with its message in err. */
    int (*run)(const void *config, const char *const *words, int n_words, hd_error *err);
} hd_command;

/* Appends the man page of n commands, as troff. */
void hd_cli_man(const hd_command *const *commands, size_t n, hd_str *out);

extern const hd_command hd_cmd_train, hd_cmd_generate, hd_cmd_data, hd_cmd_convert, hd_cmd_inspect, hd_cmd_plan, hd_cmd_calibrate, hd_cmd_bench, hd_cmd_serve,
    hd_cmd_bench_serve;
extern const hd_command hd_cmd_plan_stages, hd_cmd_plan_slices, hd_cmd_plan_pipedream, hd_cmd_plan_layouts;

#endif
