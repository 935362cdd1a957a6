/* error.h: how errors travel: a negative code returned, one sentence left in the caller's hd_error. */
#ifndef HD_BASE_ERROR_H
#define HD_BASE_ERROR_H

#include "heddle/heddle.h"

#define HD_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* Records code and message in err (may be NULL) unless it holds an earlier error already. Returns code. */
int hd_fail(hd_error *err, int code, const char *fmt, ...) HD_PRINTF(3, 4);

/* As hd_fail with HD_EIO and ": " strerror(errno) appended. */
int hd_fail_errno(hd_error *err, const char *fmt, ...) HD_PRINTF(2, 3);

/* Records HD_ENOMEM, naming what was wanted. Returns HD_ENOMEM. */
int hd_fail_memory(hd_error *err, size_t bytes, const char *what);

/* Puts "context: " in front of the message that err holds already. Returns err->code. */
int hd_error_context(hd_error *err, const char *fmt, ...) HD_PRINTF(2, 3);

/* A short name for a code: "out of memory", "bad input", ... Never NULL. */
const char *hd_error_name(int code);

#endif
