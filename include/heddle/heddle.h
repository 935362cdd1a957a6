/* heddle.h: the public interface of libheddle, and the only stable one.
 *
 * Every fallible function returns 0 or a negative HD_E* code and, where it takes an hd_error, leaves one sentence for the
 * person there. No function exits, aborts on bad input, or keeps global state: any number of models live side by side. */
#ifndef HEDDLE_H
#define HEDDLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default) /* the library hides everything that is not declared here */

#define HEDDLE_VERSION "0.1.0"

/* ---- errors ------------------------------------------------------------------------------------------------------ */

enum {
    HD_OK = 0,
    HD_ENOMEM = -1,  /* memory could not be had */
    HD_EINVAL = -2,  /* an argument, flag or value that makes no sense */
    HD_EIO = -3,     /* reading or writing failed (disk full, no such file, ...) */
    HD_EFORMAT = -4, /* a file is not what it should be: corrupt, truncated, of another kind */
    HD_EUNSUPPORTED = -5, /* valid, but this build or version cannot do it */
    HD_ENUMERIC = -6,     /* a value became NaN or infinite */
    HD_EINTR = -7,        /* stopped by the person */
    HD_EMEMCAP = -8,      /* would need more memory than there is or was allowed */
};

/* Where a function leaves its message. Zero-initialise; the first error wins, later ones do not overwrite it. */
typedef struct hd_error {
    int code;          /* 0 while nothing went wrong */
    char message[480]; /* one line, no trailing newline or full stop */
} hd_error;

/* ---- element types ----------------------------------------------------------------------------------------------- */

typedef enum hd_dtype {
    HD_F64, HD_F32, HD_BF16, HD_F16, HD_I64, HD_I32, HD_I8, HD_U8,
    HD_DTYPE_COUNT
} hd_dtype;

#define HD_MAX_RANK 8

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
