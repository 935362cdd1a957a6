#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MESSAGE_SIZE sizeof(((hd_error *)0)->message)

/* One line only: whatever control characters a file name or a file's content smuggled in become '?'. */
static void make_one_line(char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f) *s = '?';
}

static int record(hd_error *err, int code, const char *tail, const char *fmt, va_list args)
{
    if (!err || err->code) return code;
    int n = vsnprintf(err->message, MESSAGE_SIZE, fmt, args);
    if (n < 0) n = 0;
    if (tail && (size_t)n < MESSAGE_SIZE) snprintf(err->message + n, MESSAGE_SIZE - (size_t)n, ": %s", tail);
    make_one_line(err->message);
    err->code = code;
    return code;
}

int hd_fail(hd_error *err, int code, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    record(err, code, NULL, fmt, args);
    va_end(args);
    return code;
}

int hd_fail_errno(hd_error *err, const char *fmt, ...)
{
    char buffer[128];
    const char *text = strerror_r(errno, buffer, sizeof buffer);
    va_list args;
    va_start(args, fmt);
    record(err, HD_EIO, text, fmt, args);
    va_end(args);
    return HD_EIO;
}

int hd_fail_memory(hd_error *err, size_t bytes, const char *what)
{
    return hd_fail(err, HD_ENOMEM, "out of memory: %zu bytes for %s", bytes, what);
}

int hd_error_context(hd_error *err, const char *fmt, ...)
{
    if (!err || !err->code) return err ? err->code : HD_OK;
    char old[MESSAGE_SIZE];
    memcpy(old, err->message, MESSAGE_SIZE);
    int code = err->code;
    err->code = 0;
    va_list args;
    va_start(args, fmt);
    record(err, code, old, fmt, args);
    va_end(args);
    return code;
}

const char *hd_error_name(int code)
{
    static const char *const names[] = {
        [-HD_OK] = "no error", [-HD_ENOMEM] = "out of memory", [-HD_EINVAL] = "bad argument", [-HD_EIO] = "input or output failed",
        [-HD_EFORMAT] = "bad input", [-HD_EUNSUPPORTED] = "not supported", [-HD_ENUMERIC] = "not a finite number",
        [-HD_EINTR] = "interrupted", [-HD_EMEMCAP] = "over the memory limit", [-HD_ECOMM] = "communication failed", [-HD_ENOPLAN] = "no plan",
    };
    int count = (int)(sizeof names / sizeof *names);
    return code <= 0 && code > -count ? names[-code] : "unknown error";
}
