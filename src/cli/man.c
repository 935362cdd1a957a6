/* man.c: the man page, out of the commands' own tables: docs/heddle.1 is what `heddle --man` prints, and a test compares the two. */
#include "cli/cli.h"

#include <ctype.h>
#include <string.h>

/* Text of a man page: backslashes, minus signs and quotes are troff's own, as is a dot that begins a line. */
static void put(hd_str *out, const char *text)
{
    bool start = !out->len || out->data[out->len - 1] == '\n';
    for (; *text; text++) {
        if (start && (*text == '.' || *text == '\'')) hd_str_puts(out, "\\&");
        if (*text == '\\') hd_str_puts(out, "\\e");
        else if (*text == '-') hd_str_puts(out, "\\-");
        else if (*text == '\'') hd_str_puts(out, "\\(aq");
        else if (*text == '^') hd_str_puts(out, "\\(ha");
        else if (*text == '~') hd_str_puts(out, "\\(ti");
        else hd_str_putc(out, *text);
        start = *text == '\n';
    }
}

static void put_flag(hd_str *out, const hd_setting *s)
{
    char flag[64];
    size_t n = strlen(s->name);
    for (size_t i = 0; i <= n && i < sizeof flag; i++) flag[i] = s->name[i] == '_' ? '-' : s->name[i];
    flag[sizeof flag - 1] = 0;
    bool turns_off = s->type == HD_SET_BOOL && s->preset && !strcmp(s->preset, "true");
    hd_str_puts(out, ".TP\n.B \\-\\-");
    if (turns_off) hd_str_puts(out, "no\\-");
    put(out, flag);
    if (s->type != HD_SET_BOOL) {
        hd_str_puts(out, " \\fI");
        put(out, s->value ? s->value : "X");
        hd_str_puts(out, "\\fR");
    }
    hd_str_putc(out, '\n');
    if (turns_off) put(out, "Not: ");
    put(out, s->help);
    if (s->preset && s->type != HD_SET_BOOL) {
        put(out, *s->preset ? ". Default: " : "");
        put(out, s->preset);
    }
    hd_str_puts(out, ".\n");
}

static void put_command(hd_str *out, const hd_command *c)
{
    hd_str_puts(out, ".SS heddle ");
    put(out, c->name);
    hd_str_puts(out, "\n.B heddle ");
    put(out, c->name);
    hd_str_puts(out, "\n");
    put(out, c->usage);
    hd_str_puts(out, "\n.PP\n");
    char first[2] = {(char)toupper((unsigned char)c->summary[0]), 0};
    put(out, first);
    put(out, c->summary + 1);
    hd_str_puts(out, ".\n");
    if (c->details) {
        hd_str_puts(out, ".PP\n");
        put(out, c->details);
        hd_str_putc(out, '\n');
    }
    for (const hd_setting *s = c->settings; s->name; s++) put_flag(out, s);
}

/* Sections that are the same for every command; written in troff. */
static const char intro[] =
    ".TH HEDDLE 1 \"\" \"heddle " HEDDLE_VERSION "\" \"User Commands\"\n"
    ".SH NAME\n"
    "heddle \\- trains neural networks and generates text from them\n"
    ".SH SYNOPSIS\n";

static const char description[] =
    ".SH DESCRIPTION\n"
    "Heddle trains neural networks and generates text with them, from one program without further parts. Language models are\n"
    "Hugging Face directories (GPT\\-2, Llama, Mistral and Qwen2 styles); any other network is a JSON file that names\n"
    "its ops, parameters, inputs and loss.\n"
    ".PP\n"
    "Every flag is also a key of the JSON file that\n.B \\-\\-config\n.I FILE\nnames\n"
    "(\\-\\-learning\\-rate is \"learning_rate\"). Flags win over the file,\n"
    "the file over what a network file brings along, that over the defaults. A flag that is on or off is switched off by \\-\\-no\\-NAME.\n"
    ".TP\n.B \\-\\-help\nAfter a command: all about it; alone: the list of commands.\n"
    ".TP\n.B \\-\\-version\nThe version, and what this build has and this machine can do.\n"
    ".TP\n.B \\-\\-man\nThis page, as troff.\n"
    ".SH COMMANDS\n";

static const char closing[] =
    ".SH EXIT STATUS\n"
    ".TP\n.B 0\nAll went well.\n"
    ".TP\n.B 1\nSomething failed: a file could not be read or written, memory ran out or would have, the loss became no number.\n"
    ".TP\n.B 2\nA flag, value or file is not what it should be.\n"
    ".TP\n.B 3\nNo plan fits, or none keeps to what is pinned.\n"
    ".TP\n.B 130\nStopped by SIGINT or SIGTERM, after saving. A second signal ends the program at once.\n"
    ".PP\n"
    "What went wrong is said in one line on standard error. A save that fails leaves the checkpoints that are there as they are.\n"
    ".SH FILES\n"
    ".TP\n.IR DIR /step\\-N\nA checkpoint: a Hugging Face directory, the optimizer\\(aqs state\n"
    "(state.safetensors) and manifest.json with the size and checksum of every file.\n"
    ".TP\n.IR DIR /metrics.jsonl\nOne JSON object for each logged step (step, loss, learning_rate, grad_norm, tokens_per_second or\n"
    "samples_per_second, fraction_of_peak, seconds) and for each evaluation (step, eval_loss, eval_perplexity, ...).\n"
    ".TP\n.IR DIR /loss.svg\nThe loss curve.\n"
    ".TP\n.IR PREFIX .bin ,\\  PREFIX .idx\nTokenized documents, in Megatron\\(aqs format.\n"
    ".SH ENVIRONMENT\n"
    ".TP\n.B HEDDLE_ISA\nThe most that the kernels may use of the processor: portable, avx2, avx512, vnni or bf16.\n"
    ".TP\n.B HEDDLE_PROFILE\n1: where the time of each op went, on standard error at the end.\n"
    ".TP\n.B TMPDIR\nWhere shards of text that is given as it is are put while they are used, when there is no \\-\\-out.\n"
    ".SH EXAMPLES\n"
    ".EX\n"
    "heddle data \\-\\-train\\-tokenizer tokenizer.json \\-\\-vocab\\-size 8192 \\-\\-out corpus books.jsonl\n"
    "heddle train \\-\\-model config.json \\-\\-tokenizer tokenizer.json \\-\\-data corpus \\-\\-out run \\-\\-steps 2000\n"
    "heddle generate run/step\\-2000 \\-\\-prompt \"It was\"\n"
    "heddle inspect run/step\\-2000\n"
    "heddle convert run/step\\-2000 small \\-\\-dtype bf16\n"
    ".EE\n"
    ".SH SEE ALSO\n"
    "docs/network\\-files.md on network files, docs/inspect.md on the keys of\n.BR \"heddle inspect \\-\\-json\" .\n";

void hd_cli_man(const hd_command *const *commands, size_t n, hd_str *out)
{
    hd_str_puts(out, intro);
    for (size_t i = 0; i < n; i++) {
        hd_str_puts(out, ".B heddle ");
        put(out, commands[i]->name);
        hd_str_putc(out, '\n');
        put(out, commands[i]->usage);
        hd_str_puts(out, "\n.br\n");
    }
    hd_str_puts(out, description);
    for (size_t i = 0; i < n; i++) put_command(out, commands[i]);
    hd_str_puts(out, closing);
}
