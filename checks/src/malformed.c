/* malformed.c: GGUF, safetensors and tokenizer files that are none: cut at every byte, with sizes that wrap, tensors that overlap,
    types that there aren't. Each is
 * refused with one clear line: by the loaders in this process, and the made ones by the program too.
 *
 *   check_malformed HEDDLE FOLDER */
#include "data/tokenizer_gguf.h"
#include "models/gguf.h"
#include "wire.h"

typedef struct job {
    const char *heddle, *folder;
    int64_t parsed, taken, unclear;       /* in this process: all, wrongly taken, with no clear line */
    int64_t run, wrong;                   /* by the program */
    wire_tally tally;
} job;

/* ---- a small GGUF file by hand; `spoil` names the one thing that is wrong with it ---- */

static void put(hd_str *o, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) hd_str_putc(o, (char)(v >> (8 * i)));
}

static void put_text(hd_str *o, const char *text)
{
    put(o, strlen(text), 8);
    hd_str_puts(o, text);
}

typedef enum spoil {
    FINE, MAGIC, VERSION_0, VERSION_1, VERSION_4, SWAPPED_ORDER, TENSORS_WRAP, TENSORS_MANY, TENSORS_NEGATIVE, KEYS_WRAP, KEYS_MANY, KEY_LENGTH_WRAP,
        KEY_LENGTH_LONG, KEY_NUL, KEY_TWICE, KEY_EMPTY,
    KIND_13, KIND_MANY, TEXT_WRAP, TEXT_LONG, ARRAY_WRAP, ARRAY_LONG, ARRAY_KIND, ARRAY_NESTED, ALIGN_0, ALIGN_3, ALIGN_TYPE, ALIGN_HUGE, RANK_5, RANK_MANY,
        DIM_WRAP, DIM_PRODUCT_WRAP,
    DIM_NEGATIVE, DIM_UNBLOCKED, TYPE_4, TYPE_99, TYPE_MANY, OFFSET_ODD, OFFSET_PAST, OFFSET_WRAP, OVERLAP, NAME_TWICE, NAME_WRAP, NAME_EMPTY, NAME_NUL,
        DATA_SHORT, DATA_NONE, SPOILS
} spoil;

static void put_key(hd_str *o, const char *key, uint32_t kind)
{
    put_text(o, key);
    put(o, kind, 4);
}

static void put_metadata(hd_str *o, spoil s)
{
    if (s == KEY_LENGTH_WRAP || s == KEY_LENGTH_LONG) {
        put(o, s == KEY_LENGTH_WRAP ? UINT64_MAX : 1u << 30, 8);
        hd_str_puts(o, "general.architecture");
        put(o, 8, 4);
    } else if (s == KEY_NUL) {
        put(o, 3, 8);
        hd_str_add(o, "a\0b", 3);
        put(o, 8, 4);
    } else put_key(o, s == KEY_EMPTY ? "" : "general.architecture", s == KIND_13 ? 13 : s == KIND_MANY ? UINT32_MAX : 8);
    if (s == TEXT_WRAP || s == TEXT_LONG) put(o, s == TEXT_WRAP ? UINT64_MAX - 4 : 1u << 30, 8);
    put_text(o, "llama");
    put_key(o, s == KEY_TWICE ? "general.architecture" : "general.name", 8);
    put_text(o, "x");
    put_key(o, "general.alignment", s == ALIGN_TYPE ? 8 : 4);
    if (s == ALIGN_TYPE) put_text(o, "32");
    else put(o, s == ALIGN_0 ? 0 : s == ALIGN_3 ? 3 : s == ALIGN_HUGE ? 1u << 31 : 32, 4);
    put_key(o, "some.numbers", 9);
    put(o, s == ARRAY_KIND ? 77 : s == ARRAY_NESTED ? 9 : 4, 4);
    put(o, s == ARRAY_WRAP ? (UINT64_MAX >> 2) + 2 : s == ARRAY_LONG ? 1u << 30 : 3, 8);
    for (uint32_t i = 0; i < 3; i++) put(o, i, 4);
}

static void put_tensor(hd_str *o, const char *name, spoil s, int which)
{
    bool here = which == 1;
    if (here && s == NAME_WRAP) put(o, UINT64_MAX, 8);
    if (here && s == NAME_NUL) {
        put(o, 3, 8);
        hd_str_add(o, "a\0b", 3);
    } else put_text(o, here && s == NAME_TWICE ? "first" : here && s == NAME_EMPTY ? "" : name);
    uint32_t rank = !here ? 2 : s == RANK_5 ? 5 : s == RANK_MANY ? UINT32_MAX : 2;
    put(o, rank, 4);
    uint64_t width = !here ? 32 : s == DIM_WRAP ? UINT64_MAX : s == DIM_PRODUCT_WRAP ? 1ull << 34 : s == DIM_NEGATIVE ? 1ull << 63 : s == DIM_UNBLOCKED ? 33
        : 32;
    uint64_t height = here && s == DIM_PRODUCT_WRAP ? 1ull << 34 : 2;
    for (uint32_t i = 0; i < rank && i < 5; i++) put(o, i ? height : width, 8);
    put(o, !here ? 0 : s == TYPE_4 ? 4 : s == TYPE_99 ? 99 : s == TYPE_MANY ? UINT32_MAX : s == DIM_UNBLOCKED ? 8 : 0, 4);
    uint64_t offset = which ? 256 : 0;
    if (here && s == OFFSET_ODD) offset = 257;
    if (here && s == OFFSET_PAST) offset = 1u << 20;
    if (here && s == OFFSET_WRAP) offset = UINT64_MAX - 31;
    if (here && s == OVERLAP) offset = 128;
    put(o, offset, 8);
}

static void make_gguf(hd_str *o, spoil s)
{
    hd_str_clear(o);
    hd_str_puts(o, s == MAGIC ? "GGUX" : "GGUF");
    put(o, s == VERSION_0 ? 0 : s == VERSION_1 ? 1 : s == VERSION_4 ? 4 : s == SWAPPED_ORDER ? 3u << 24 : 3, 4);
    put(o, s == TENSORS_WRAP ? UINT64_MAX : s == TENSORS_MANY ? 1ull << 40 : s == TENSORS_NEGATIVE ? 1ull << 63 : 2, 8);
    put(o, s == KEYS_WRAP ? UINT64_MAX : s == KEYS_MANY ? 1ull << 40 : 4, 8);
    put_metadata(o, s);
    put_tensor(o, "first", s, 0);
    put_tensor(o, "second", s, 1);
    if (s == DATA_NONE) return;
    while (o->len % 32) hd_str_putc(o, 0);
    for (int i = 0; i < (s == DATA_SHORT ? 511 : 512); i++) hd_str_putc(o, (char)i);
}

/* ---- safetensors by hand: a header and 24 bytes of data ---- */

static const char *const headers[] = {
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}, \"b\": {\"dtype\": \"F32\", \"shape\": [2, 2], \"data_offsets\": [8, 24]}}",
    /* sound */
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}, \"b\": {\"dtype\": \"F32\", \"shape\": [2, 2], \"data_offsets\": [4, 20]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [6], \"data_offsets\": [0, 24]}, \"b\": {\"dtype\": \"F32\", \"shape\": [6], \"data_offsets\": [0, 24]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 4]}}", "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [8, 0]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [-8, 0]}}", "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [24, 32]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [-2], \"data_offsets\": [0, 8]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [9223372036854775807, 4], \"data_offsets\": [0, 8]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [4294967296, 4294967296], \"data_offsets\": [0, 0]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [2.0], \"data_offsets\": [0, 8]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": \"2\", \"data_offsets\": [0, 8]}}", "{\"a\": {\"dtype\": \"F33\", \"shape\": [2], \"data_offsets\": [0, 8]}}",
    "{\"a\": {\"dtype\": 1, \"shape\": [2], \"data_offsets\": [0, 8]}}", "{\"a\": {\"shape\": [2], \"data_offsets\": [0, 8]}}",
    "{\"a\": {\"dtype\": \"F32\", \"data_offsets\": [0, 8]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [2]}}", "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8, 16]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 18446744073709551615]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [\"0\", \"8\"]}}", "{\"a\": 1}",
    "{\"a\": []}", "[]", "1", "{", "", "{\"a\": {\"dtype\": \"F32\", \"shape\": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2], \"data_offsets\": [0, 8]}}",
    "{\"__metadata__\": 1}",
    "{\"__metadata__\": {\"a\": 1}, \"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}",
    "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}, \"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [8, 24]}}",
    "\xff\xfe", "{\"\xc3\": 1}",
};
enum { HEADERS = sizeof headers / sizeof headers[0] };

static void make_safetensors(hd_str *o, const char *header, int64_t said)
{
    hd_str_clear(o);
    put(o, said == -2 ? strlen(header) : (uint64_t)said, 8);
    hd_str_puts(o, header);
    for (int i = 0; i < 24; i++) hd_str_putc(o, (char)i);
}

/* ---- tokenizer.json by hand ---- */

static const char sound_tokenizer[] =
    "{\"version\": \"1.0\", \"added_tokens\": [{\"id\": 5, \"content\": \"<e>\", \"single_word\": false, "
    "\"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": true}], "
    "\"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, "
    "\"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\"}, "
    "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"ab\": 3, \"abc\": 4}, \"merges\": [\"a b\", \"ab c\"]}}";

/* What is there, and what stands there instead. */
static const char *const swaps[][2] = {
    {"\"BPE\"", "\"XYZ\""}, {"\"BPE\"", "1"}, {"\"a b\"", "\"a x\""}, {"\"a b\"", "\"ab\""}, {"\"a b\"", "7"}, {"\"a b\"", "[\"a\"]"},
    {"\"a b\"", "[\"a\", 1]"}, {"\"ab c\"", "\"b c\""}, {"\"a\": 0", "\"a\": -1"},
    {"\"a\": 0", "\"a\": \"0\""}, {"\"a\": 0", "\"a\": 1"}, {"\"a\": 0", "\"a\": 4294967296"}, {"\"a\": 0", "\"a\": 99999999999999999999"},
    {"\"a\": 0", "\"a\": 1.5"}, {"\"id\": 5", "\"id\": -5"},
    {"\"id\": 5", "\"id\": \"5\""}, {"\"id\": 5", "\"id\": 2147483648"}, {"\"content\": \"<e>\"", "\"content\": 1"},
    {"\"added_tokens\": [", "\"added_tokens\": [1, "},
    {"\"normalizer\": null", "\"normalizer\": {\"type\": \"Rot13\"}"}, {"\"normalizer\": null", "\"normalizer\": 1"},
    {"\"ByteLevel\", \"add", "\"Unheard\", \"add"}, {"\"pre_tokenizer\": {",
    "\"pre_tokenizer\": {\"pattern\": {\"Regex\": \"(\"}, \"behavior\": \"Isolated\", \"type\": \"Split\", \"z\": {}}, \"w\": {"},
    {"\"decoder\": {\"type\": \"ByteLevel\"}", "\"decoder\": {\"type\": \"None such\"}"},
    {"\"post_processor\": null", "\"post_processor\": {\"type\": \"Guess\"}"}, {"\"model\": {", "\"model\": {\"vocab\": 1}, \"m\": {"},
    {"\"merges\": [", "\"merges\": {}, \"m\": ["}, {"\"vocab\": {", "\"vocab\": [], \"v\": {"}, {"\"version\"", "\xff"}, {"{\"version\"", "[\"version\""},
    {"\"merges\": [\"a b\"", "\"merges\": [\"a b\", \"\xc3\""},
};
enum { SWAPS = sizeof swaps / sizeof swaps[0] };

static void make_tokenizer(hd_str *o, int which)
{
    hd_str_clear(o);
    const char *at = which < 0 ? NULL : strstr(sound_tokenizer, swaps[which][0]);
    if (!at) {
        hd_str_puts(o, sound_tokenizer);
        return;
    }
    hd_str_add(o, sound_tokenizer, (size_t)(at - sound_tokenizer));
    hd_str_puts(o, swaps[which][1]);
    hd_str_puts(o, at + strlen(swaps[which][0]));
}

/* ---- in this process ---- */

typedef enum form { GGUF, SAFETENSORS, TOKENIZER } form;

static int load(form f, const hd_str *o, hd_error *err)
{
    int rc;
    if (f == TOKENIZER) {
        hd_tokenizer *t = hd_tokenizer_parse(o->data, o->len, "tokenizer.json", err);
        hd_tokenizer_free(t);
        return t ? 0 : err->code;
    }
    if (f == SAFETENSORS) {
        hd_safetensors s = {0};
        rc = hd_safetensors_parse(&s, o->data, o->len, "file", err);
        hd_safetensors_close(&s);
        return rc;
    }
    hd_gguf g = {0};
    rc = hd_gguf_parse(&g, o->data, o->len, "file", err);
    hd_gguf_close(&g);
    return rc;
}

/* A copy with nothing behind it, so that a read past the end is seen. */
static void must_fail(job *j, form f, const char *bytes, size_t n, const char *what, int which)
{
    hd_error err = {0};
    hd_str exact = {.data = malloc(n ? n : 1), .len = n};
    if (!exact.data) abort();
    memcpy(exact.data, bytes, n);
    int rc = load(f, &exact, &err);
    j->parsed++;
    if (!rc) j->taken++, printf("    taken: %s %d\n", what, which);
    else if (rc > 0 || !err.message[0] || strchr(err.message, '\n') || strlen(err.message) > 400) j->unclear++,
        printf("    unclear: %s %d: %s\n", what, which, err.message);
    free(exact.data);
}

static void cut_everywhere(job *j, form f, const hd_str *whole, size_t until, const char *what)
{
    hd_error err = {0};
    if (load(f, whole, &err)) j->unclear++, printf("    the sound %s is refused: %s\n", what, err.message);
    for (size_t n = 0; n < until; n++) must_fail(j, f, whole->data, n, what, (int)n);
}

/* ---- by the program ---- */

static void run_program(const job *j, const char *const *argv, const char *err)
{
    int fd = open(err, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), null = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(fd, 2);
    dup2(null, 1);
    dup2(null, 0);
    execv(j->heddle, (char *const *)(uintptr_t)argv);
    _exit(127);
}

static void program_must_fail(job *j, const char *command, const char *name, const hd_str *o, int which)
{
    char path[400], err[400], line[2][600] = {"", ""};
    int status = -1;
    snprintf(path, sizeof path, "%s/%s", j->folder, name);
    snprintf(err, sizeof err, "%s/stderr", j->folder);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(o->data, 1, o->len, f) != o->len) abort();
    fclose(f);
    const char *argv[] = {j->heddle, command, path, NULL};
    pid_t pid = fork();
    if (!pid) run_program(j, argv, err);
    waitpid(pid, &status, 0);
    if ((f = fopen(err, "r"))) {
        for (int i = 0; i < 2 && fgets(line[i], sizeof line[i], f); i++) continue;
        fclose(f);
    }
    bool fine = WIFEXITED(status) && WEXITSTATUS(status) >= 1 && WEXITSTATUS(status) <= 3 && line[0][0] && !line[1][0] && !strncmp(line[0], "heddle ", 7);
    j->run++;
    if (!fine) j->wrong++, printf("    %s %d: status %d: %s%s", name, which, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), line[0],
        line[0][0] ? "" : "nothing\n");
}

int main(int argc, char **argv)
{
    if (argc != 3) return fprintf(stderr, "usage: check_malformed HEDDLE FOLDER\n"), 2;
    static job j;
    hd_str o, part;
    j.heddle = argv[1], j.folder = argv[2];
    hd_str_init(&o);
    hd_str_init(&part);
    make_gguf(&o, FINE);
    cut_everywhere(&j, GGUF, &o, o.len, "GGUF cut at");
    for (size_t n = 0; n < o.len; n += o.len / 48) {
        part = (hd_str){.data = o.data, .len = n};
        program_must_fail(&j, "inspect", "cut.gguf", &part, (int)n);
    }
    for (int s = FINE + 1; s < SPOILS; s++) {
        make_gguf(&o, (spoil)s);
        must_fail(&j, GGUF, o.data, o.len, "GGUF spoiled", s);
        program_must_fail(&j, "inspect", "spoiled.gguf", &o, s);
    }
    make_safetensors(&o, headers[0], -2);
    cut_everywhere(&j, SAFETENSORS, &o, o.len, "safetensors cut at");
    static const int64_t said[] = {0, 1, 7, 1000, INT64_MAX, INT64_MIN, -1, INT64_MIN + 100};
    for (size_t i = 0; i < sizeof said / sizeof said[0]; i++) {
        make_safetensors(&o, headers[0], said[i]);
        must_fail(&j, SAFETENSORS, o.data, o.len, "safetensors length", (int)i);
        program_must_fail(&j, "inspect", "length.safetensors", &o, (int)i);
    }
    for (int i = 1; i < HEADERS; i++) {
        make_safetensors(&o, headers[i], -2);
        must_fail(&j, SAFETENSORS, o.data, o.len, "safetensors header", i);
        program_must_fail(&j, "inspect", "header.safetensors", &o, i);
    }
    make_tokenizer(&o, -1);
    cut_everywhere(&j, TOKENIZER, &o, o.len, "tokenizer cut at");
    for (size_t n = 0; n < o.len; n += o.len / 32) {
        part = (hd_str){.data = o.data, .len = n};
        program_must_fail(&j, "inspect", "tokenizer.json", &part, (int)n);
    }
    for (int i = 0; i < SWAPS; i++) {
        make_tokenizer(&o, i);
        must_fail(&j, TOKENIZER, o.data, o.len, "tokenizer changed", i);
        program_must_fail(&j, "inspect", "tokenizer.json", &o, i);
    }
    hd_str_free(&o);
    wire_report(&j.tally, "malformed files read in this process", (double)j.parsed, ">=", 500, true);
    wire_report(&j.tally, "taken all the same", (double)j.taken, "==", 0, true);
    wire_report(&j.tally, "refused without one clear line", (double)j.unclear, "==", 0, true);
    wire_report(&j.tally, "malformed files given to the program", (double)j.run, ">=", 200, true);
    wire_report(&j.tally, "not refused with one line and a status from 1 to 3", (double)j.wrong, "==", 0, true);
    return j.tally.failed != 0;
}
