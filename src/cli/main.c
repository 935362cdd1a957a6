/* main.c: picks the subcommand, fills its settings, and turns errors into one line and an exit status. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include "base/mem.h"
#include "base/term.h"
#include "cli/cli.h"
#include "kernels/kernel.h"

static const hd_command *const commands[] = {&hd_cmd_train, &hd_cmd_serve, &hd_cmd_generate, &hd_cmd_data, &hd_cmd_convert, &hd_cmd_inspect, &hd_cmd_plan, &hd_cmd_plan_stages,
                                             &hd_cmd_plan_slices, &hd_cmd_plan_pipedream, &hd_cmd_plan_layouts, &hd_cmd_calibrate, &hd_cmd_bench, &hd_cmd_bench_serve};
#define N_COMMANDS (sizeof commands / sizeof commands[0])
#define MAX_WORDS 64

/* What was printed must have arrived: a full disk behind standard output is an error too. */
static int close_output(int rc, hd_error *err)
{
    bool failed = ferror(stdout);
    if (fflush(stdout) && !rc) rc = hd_fail_errno(err, "standard output");
    if (failed && !rc) rc = hd_fail(err, HD_EIO, "standard output could not be written");
    return rc;
}

/* Exit statuses: by kind of error, 1 for those without a number of their own. */
enum { EXIT_BAD_INPUT = 2, EXIT_NO_PLAN = 3, EXIT_INTERRUPTED = 130 };

static void print_usage(FILE *out)
{
    fprintf(out, "heddle %s: trains, plans and serves neural networks\n\nUsage: heddle COMMAND [flags]\n\nCommands:\n", HEDDLE_VERSION);
    for (size_t i = 0; i < N_COMMANDS; i++) fprintf(out, "  %-14s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(out, "\nheddle COMMAND --help tells all about one; heddle --version says what this build can do.\n");
}

static void print_help(const hd_command *c)
{
    hd_str text;
    hd_str_init(&text);
    hd_settings_help(c->settings, &text);
    printf("heddle %s: %s\n\nUsage: heddle %s %s\n", c->name, c->summary, c->name, c->usage);
    if (c->details) printf("\n%s\n", c->details);
    printf("\nFlags (each is also a key of the JSON file that --config FILE names; flags win):\n%s", text.data);
    hd_str_free(&text);
}

#ifdef HEDDLE_HAVE_ONEDNN
#define ONEDNN "built in"
#else
#define ONEDNN "absent"
#endif

static void print_version(void)
{
    printf("heddle %s\ninstruction set: %s (kernels built in:", HEDDLE_VERSION, hd_isa_name(hd_isa_detect()));
    for (int isa = 0; isa < HD_ISA_COUNT; isa++) {
        int n;
        hd_cpu_kernels((hd_isa)isa, &n);
        if (n) printf(" %s", hd_isa_name((hd_isa)isa));
    }
    printf(")\noneDNN (for comparison in bench_gemm only): %s\n", ONEDNN);
}

static void print_man(void)
{
    hd_str text;
    hd_str_init(&text);
    hd_cli_man(commands, N_COMMANDS, &text);
    fputs(text.data, stdout);
    hd_str_free(&text);
}

static bool wants_help(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return true;
    return false;
}

typedef struct words { const char *word[MAX_WORDS]; int n; } words;

static int fill_config(const hd_command *c, int argc, char **argv, const json_t *brought, void *config, words *w, hd_settings_memory *m, hd_error *err)
{
    int rc = hd_settings_preset(c->settings, config, m, err);
    if (!rc && brought) rc = hd_settings_apply(c->settings, config, brought, m, err);
    int most = c->max_words < MAX_WORDS ? c->max_words : MAX_WORDS;
    return rc ? rc : hd_settings_parse(c->settings, config, argc, argv, w->word, most, &w->n, m, err);
}

static int run_command(const hd_command *c, int argc, char **argv, hd_error *err)
{
    words w = {.n = 0};
    hd_settings_memory memory = {0};
    void *config = hd_calloc(1, c->config_size);
    int rc = config ? fill_config(c, argc, argv, NULL, config, &w, &memory, err) : hd_fail_memory(err, c->config_size, "settings");
    json_t *brought = !rc && c->brought ? c->brought(config, w.word, w.n, err) : NULL;
    if (!rc) rc = err->code;
    if (!rc && brought) rc = fill_config(c, argc, argv, brought, config, &w, &memory, err);
    json_decref(brought);
    if (!rc) rc = c->run(config, w.word, w.n, err);
    hd_settings_free(&memory);
    hd_free(config);
    return rc;
}

static int report(const hd_command *c, int rc, const hd_error *err)
{
    if (!rc) return 0;
    fprintf(stderr, "heddle %s: %s: %s\n", c->name, hd_error_name(rc), err->message);
    if (rc == HD_EINTR) return EXIT_INTERRUPTED;
    if (rc == HD_ENOPLAN) return EXIT_NO_PLAN;
    return rc == HD_EINVAL || rc == HD_EFORMAT || rc == HD_EUNSUPPORTED ? EXIT_BAD_INPUT : 1;
}

/* The command that argv[1] names, or argv[1] and argv[2] together; *used: how many words those are. */
static const hd_command *find_command(int argc, char **argv, int *used)
{
    for (*used = argc > 2 ? 2 : 1; *used > 0; --*used)
        for (size_t i = 0; i < N_COMMANDS; i++) {
            char name[64];
            snprintf(name, sizeof name, *used == 2 ? "%s %s" : "%s", argv[1], argv[2]);
            if (!strcmp(name, commands[i]->name)) return commands[i];
        }
    return NULL;
}

int main(int argc, char **argv)
{
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow further is an error of the write, as on a full disk */
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_usage(argc < 2 ? stderr : stdout);
        return argc < 2 ? EXIT_BAD_INPUT : 0;
    }
    if (!strcmp(argv[1], "--version")) {
        print_version();
        return 0;
    }
    if (!strcmp(argv[1], "--man")) {
        print_man();
        return 0;
    }
    int used;
    const hd_command *c = find_command(argc, argv, &used);
    if (!c) {
        fprintf(stderr, "heddle: there is no command \"%s\" (see heddle --help)\n", argv[1]);
        return EXIT_BAD_INPUT;
    }
    if (wants_help(argc - used, argv + used)) {
        print_help(c);
        return 0;
    }
    hd_error err = {0};
    int rc = close_output(run_command(c, argc - used, argv + used, &err), &err);
    return report(c, rc, &err);
}
