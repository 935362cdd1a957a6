/* sanitized.h: a sanitizer makes a test ten times slower, and looks for other faults than wrong numbers. There a loop over many cases of the same kind
 * takes every so many of them. */
#ifndef SANITIZED_H
#define SANITIZED_H

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

#endif
