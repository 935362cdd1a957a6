/* lm_orders.h: what the first of a served model's processes tells the others to do, so that all do the same: one broadcast, and a second one where it is about
 * a batch. Every process calls these in the same order. */
#ifndef HD_SERVE_LM_ORDERS_H
#define HD_SERVE_LM_ORDERS_H

#include "exec/exec.h"
#include "serve/runner.h"

typedef enum hd_lm_order_kind {
    HD_LM_ORDER_STEP,    /* the batch */
    HD_LM_ORDER_COPY,    /* block `from` to block `to` */
    HD_LM_ORDER_SAVE, HD_LM_ORDER_RESTORE, /* block `from`, to and from the first process */
    HD_LM_ORDER_CLOSE    /* nothing comes after it */
} hd_lm_order_kind;

typedef struct hd_lm_order {
    hd_lm_order_kind kind;
    int32_t from, to;
    hd_batch batch; /* kept in the hd_lm_orders that tell or hear of it */
} hd_lm_order;

typedef struct hd_lm_orders {
    const hd_rank *rank;
    int64_t block;        /* tokens in a block */
    int32_t *words; int64_t room, n_words; /* the batch */
    hd_batch_part *parts; /* [most_parts] */
    int64_t most_parts;
} hd_lm_orders;

/* For batches as large as r takes; rank (NULL: nobody is told anything) must outlive *o. */
int hd_lm_orders_init(hd_lm_orders *o, const hd_rank *rank, const hd_runner *r, hd_error *err);
void hd_lm_orders_free(hd_lm_orders *o);

/* b until the next one, in arrays of *o. */
hd_batch hd_lm_orders_keep(hd_lm_orders *o, const hd_batch *b);
int hd_lm_orders_tell(hd_lm_orders *o, const hd_lm_order *order, hd_error *err); /* the first process, of a batch that *o keeps */
int hd_lm_orders_hear(hd_lm_orders *o, hd_lm_order *order, hd_error *err);       /* the others */

#endif
