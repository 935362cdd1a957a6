/* libFuzzer target: any bytes as a program's text; one that is accepted has a text that is accepted again and the same. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "program/program.h"

static void ask(const hd_program *p)
{
    hd_error err = {0};
    hd_memory m;
    if (hd_program_verify(p, &err)) abort(); /* what was accepted is sound */
    if (hd_program_memory(p, &m, &err) && !err.message[0]) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hd_error err = {0};
    hd_program *p = NULL, *again = NULL;
    hd_str text, repeated;
    int rc = hd_program_parse((const char *)data, size, "input", &p, &err);
    if ((rc != 0) != (err.code != 0) || (rc && !err.message[0])) abort();
    if (rc) return 0;
    ask(p);
    hd_str_init(&text);
    hd_str_init(&repeated);
    hd_program_dump(p, &text);
    if (hd_program_parse(text.data, text.len, "dump", &again, &err)) abort();
    hd_program_dump(again, &repeated);
    if (text.len != repeated.len || memcmp(text.data, repeated.data, text.len)) abort();
    hd_str_free(&text);
    hd_str_free(&repeated);
    hd_program_free(again);
    hd_program_free(p);
    return 0;
}
