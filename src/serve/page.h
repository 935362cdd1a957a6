/* page.h: page.html, the chat page, as the build embeds it (cmake/embed.cmake); NUL at its end. */
#ifndef HD_SERVE_PAGE_H
#define HD_SERVE_PAGE_H

#include <stddef.h>

extern const unsigned char hd_chat_page[];
extern const size_t hd_chat_page_size;

#endif
