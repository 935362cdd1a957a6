/* text_int.h: the words of a program's text, shared by dump.c and parse.c. */
#ifndef HD_PROGRAM_TEXT_INT_H
#define HD_PROGRAM_TEXT_INT_H

#include "program/program.h"

extern const char *const hd_tier_names[HD_TIER_COUNT];
extern const char *const hd_format_names[2];
extern const char *const hd_micro_names[3];               /* by hd_time_layout */
extern const char *const hd_opcode_names[HD_OPCODE_COUNT]; /* "" for KERNEL and COMM: the op's name stands there */
extern const char *const hd_axis_role_names[3];            /* by hd_axis_role */

#endif
