/* chat.h: how a conversation's turns are written for a model. Chosen by the special tokens that its tokenizer has. */
#ifndef HD_SERVE_CHAT_H
#define HD_SERVE_CHAT_H

#include "data/tokenizer.h"

typedef struct hd_chat_format {
    const char *name;
    const char *marker;   /* a special token that tells this format; NULL: always fits */
    const char *begin;    /* before the first turn */
    const char *before, *after; /* around what the person says; `after` opens the answer */
    const char *end;      /* after an answer, before the next turn */
    const char *stop;     /* text that ends an answer; NULL: only the end-of-text token does */
} hd_chat_format;

const hd_chat_format *hd_chat_format_of(const hd_tokenizer *t); /* never NULL */

/* Appends the ids of one turn, up to where the answer begins. ids empty: it is the first. */
int hd_chat_add_turn(const hd_chat_format *f, const hd_tokenizer *t, const char *text, hd_ids *ids, hd_error *err);

#endif
