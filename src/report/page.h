/* page.h: plan.html, as the build embeds it (cmake/embed.cmake); NUL at its end. */
#ifndef HD_REPORT_PAGE_H
#define HD_REPORT_PAGE_H

#include <stddef.h>

extern const unsigned char hd_plan_page[];
extern const size_t hd_plan_page_size;

#endif
