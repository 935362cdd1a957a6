/* engine_int.h: what the engine's files share. engine.c takes requests and steps; request.c makes them; schedule.c picks what a step computes; sequence.c holds
 * blocks; draw.c turns logits into tokens and events; beam.c, speculate.c and swap.c do what they are called.
 *
 * Life of a request: incoming (hd_engine.incoming, lock) -> waiting -> running <-> waiting (preempted, perhaps swapped) -> ended -> freed at the step's end.
 *
 * A sequence is its tokens, of which the first `computed` are in its blocks. What is drawn is appended; what isn't computed yet is fed. So a prompt, the
 * rest of a prompt, one drawn token and a preempted answer that is computed again are the same thing, of different lengths.
 *
 * A runner of several stages is given as many batches before the first of them is finished (batches): each of other requests, so that drawing never waits for
 * what is under way. A request that is preempted or ends meanwhile gives its blocks back at once: what is under way is computed before whatever comes to be
 * in them; its results are dropped, and its memory stays until then.
 *
 * Fields marked [lock] are guarded by hd_engine.lock; all others belong to the engine's thread. */
#ifndef HD_SERVE_ENGINE_INT_H
#define HD_SERVE_ENGINE_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include "base/mem.h"
#include "base/term.h"
#include "serve/engine.h"
#include "serve/kv.h"
#include "serve/outlet.h"

typedef struct hd_work hd_work; /* a request, being worked on */

typedef enum hd_seq_state {
    HD_SEQ_UNUSED, /* a choice that begins once the prompt is computed; a free place for a beam */
    HD_SEQ_BEHIND, /* preempted: begins again once another of the request has computed the prompt's full blocks */
    HD_SEQ_LIVE,
    HD_SEQ_DONE
} hd_seq_state;

typedef struct hd_seq {
    hd_work *w;
    hd_seq_state state;
    int32_t *tokens;          /* [capacity]: the prompt and the answer; proposals stand behind them during a step */
    int64_t n_tokens, computed;
    int32_t *table;           /* [capacity / block]: blocks; slots of the swap memory while the request is swapped */
    int64_t n_table;
    int64_t known;            /* so many of its first blocks are findable */
    hd_token_sampler *sampler;
    hd_constraint_state *constraint;
    hd_token_stream stream;
    hd_outlet outlet;
    hd_token_logprob *logprobs, *top; /* [limit], [limit][top_n]; NULL: not asked for */
    double score;             /* sum of logprobs */
    int64_t scored;
    int64_t sent;             /* answer tokens that events have carried */
    double last_time;         /* of its last token */
    hd_finish finish;
    const char *error;
    int64_t proposed;         /* tokens behind n_tokens that may come next */
    int32_t *draft_table;     /* [capacity / draft block] */
    int64_t n_draft_table, draft_computed;
    int64_t row;              /* beams: its row of logits in this step; -1: none */
    bool ahead; int32_t token; /* the next token has been drawn already, and is this */
} hd_seq;

/* A finished beam. */
typedef struct hd_hypothesis {
    double score;
    int32_t *tokens;
    int64_t n;
    hd_token_logprob *logprobs, *top;
    hd_finish finish;
} hd_hypothesis;

typedef struct hd_beam_candidate { double score; float logprob; int32_t token; int seq; } hd_beam_candidate;

typedef struct hd_beams {
    int per_beam;             /* candidates taken of each beam */
    int n;                    /* hypotheses, best first */
    hd_hypothesis *best;      /* [beams + 1] */
    hd_beam_candidate *candidates; /* [beams * per_beam] */
    hd_beam_candidate *chosen;     /* [beams] */
    hd_scored_token *top;          /* [per_beam] */
    bool *kept;               /* [beams] */
} hd_beams;

struct hd_work {
    hd_work *next, *prev;          /* in incoming [lock], waiting or running */
    hd_work *all_next, *all_prev;  /* [lock] */
    uint64_t id;
    atomic_bool cancel;
    hd_request r;             /* its arrays are the arena's */
    hd_arena arena;
    int64_t limit, capacity;  /* answer tokens; all tokens */
    int n_seq;
    hd_seq *seq;
    int open;                 /* choices whose last event is still to come */
    bool running, forked, swapped, ended;
    bool ranked;              /* the answers come at the end, best first */
    bool drew;                /* a token since it was admitted last */
    bool goes;                /* in the step that is being planned, as far as it decodes */
    bool under_way, useless;  /* it is in a step that has begun; of which it can't use anything any more */
    int64_t slots;            /* of swap memory */
    int top_n;
    int64_t prompt_scored;    /* prompt tokens whose logprob is known */
    hd_token_logprob *prompt_logprobs, *prompt_top;
    bool prompt_sent;
    int64_t fed, cached, generated; /* tokens computed before the first was drawn; of the prompt, found; drawn */
    double arrival, scheduled, first;
    hd_beams *beams;
    const char *error;
    char message[sizeof ((hd_error *)0)->message];
};

typedef struct hd_work_list { hd_work *first, *last; int64_t count; } hd_work_list;

typedef struct hd_part { hd_seq *seq; /* NULL: nothing is to be done with it any more */ int64_t row, rows; bool draws; } hd_part;

/* What is computed together. */
typedef struct hd_engine_batch {
    hd_batch_part *parts; hd_part *what; /* [max_sequences] */
    int64_t n_parts, n_tokens, n_rows;
    int64_t n_prompt;         /* tokens of prompts */
    double begun;
} hd_engine_batch;

struct hd_engine {
    hd_runner *r;
    const hd_tokenizer *t;
    hd_engine_options o;

    pthread_mutex_t lock;
    pthread_cond_t wake;
    hd_work_list incoming;    /* [lock] */
    hd_work *all;             /* [lock] */
    int64_t open;             /* [lock] requests that were submitted and have not ended */
    int64_t queued;           /* [lock] those that waited at the end of the last step */
    uint64_t next_id;         /* [lock] */
    bool draining, stopping;  /* [lock] */
    atomic_bool any_cancel;
    hd_engine_stats shown;    /* [lock] */

    hd_work_list waiting, running; /* both in order of precedence */
    hd_engine_stats stats;
    hd_kv kv, draft_kv;
    int64_t reserve_blocks;   /* of a sequence under HD_KV_RESERVE, else 0 */
    int64_t max_sequences, budget;
    hd_engine_batch *batches; /* [r->depth]: batch n is n % depth */
    hd_engine_batch *at;      /* the one that is being planned, or that has been computed */
    uint64_t begun, finished; /* batches */
    double freed;             /* when the last one was finished */
    bool planned;             /* there was something to do in the last step */
    int64_t prompt_left;      /* tokens that prompts may still take of this step */
    bool no_room;             /* for the first that waits, when it was last tried */
    double decode_seconds, prompt_seconds; /* what a step without prompts takes, and a token of a prompt more; 0: not known yet */
    int64_t beside;           /* steps with prompts beside what decodes since the last one without */
    hd_batch_part *draft_parts;  /* [max_sequences] */
    hd_seq **draft_seqs, **draft_fed; /* [max_sequences]: that are to have proposals; that are in the draft's batch */
    uint64_t *mask;           /* [vocab bits] */
    hd_scored_token *top;     /* [HD_MOST_LOGPROBS] */
    char *swap;               /* [slots][block_bytes] */
    int64_t slots, free_slots;
    int32_t *free_slot;       /* [slots] */
    int32_t *holds;           /* [blocks]: for hd_engine_check */
    int32_t *mark;            /* [max(blocks, slots)], -1 between uses */
    hd_str text;              /* of a finished beam */
    double now;               /* seconds, by hd_engine_time */
    int idle_steps;           /* since something was computed */
    bool made;                /* hd_engine_new came to its end */
};

enum { HD_MOST_LOGPROBS = 256 };

static inline double hd_engine_time(const hd_engine *e) { return e->o.clock ? *e->o.clock : hd_time(); }
static inline int64_t hd_blocks_for(const hd_engine *e, int64_t tokens) { return (tokens + e->r->block - 1) / e->r->block; }
static inline int64_t hd_answered(const hd_seq *s) { return s->n_tokens - s->w->r.n_prompt; } /* tokens of its answer */
/* Whether its next token is drawn next, as those before: its prompt is done, and all but the last token is in its blocks. */
static inline bool hd_seq_decodes(const hd_seq *s) { return s->state == HD_SEQ_LIVE && s->w->forked && s->n_tokens - s->computed == 1; }

/* request.c */
hd_work *hd_work_new(hd_engine *e, const hd_request *r, hd_error *err); /* checked and copied */
void hd_work_free(hd_work *w);
int hd_work_begin(hd_engine *e, hd_work *w, hd_error *err);            /* samplers and constraint states, when it runs for the first time */

/* sequence.c: all about blocks */
int64_t hd_seq_needs(const hd_engine *e, const hd_seq *s, int64_t upto); /* blocks to take before rows computed .. upto - 1 can be written */
bool hd_seq_reserve(hd_engine *e, hd_seq *s, int64_t upto);              /* takes and copies them; false: there aren't enough, nothing changed */
bool hd_seq_claim(hd_engine *e, hd_seq *s);                              /* HD_KV_RESERVE: all that it can ever need */
bool hd_seq_may_find(const hd_engine *e, const hd_seq *s);               /* whether its next block could be one that is found */
void hd_seq_match(hd_engine *e, hd_seq *s);                              /* goes on by blocks that are found */
void hd_seq_computed(hd_engine *e, hd_seq *s, int64_t computed);         /* so many tokens are in the blocks now; publishes full ones */
void hd_seq_share(hd_engine *e, hd_seq *from, hd_seq *to, int64_t rows); /* `to` gets the first rows of `from` */
void hd_seq_drop(hd_engine *e, hd_seq *s);                               /* releases all blocks */
void hd_work_catch_up(hd_engine *e, hd_work *w);                         /* sequences that wait for the prompt go on where it is there */
int hd_engine_check(hd_engine *e, hd_error *err);                        /* counts every hold on every block again */

/* swap.c */
bool hd_swap_out(hd_engine *e, hd_work *w); /* false: it doesn't fit, nothing changed */
bool hd_swap_in(hd_engine *e, hd_work *w);  /* false: too few blocks, nothing changed */
void hd_swap_drop(hd_engine *e, hd_work *w);

/* schedule.c */
void hd_work_enlist(hd_engine *e, hd_work_list *l, hd_work *w); /* at its place in the order */
void hd_work_delist(hd_work_list *l, hd_work *w);
void hd_engine_plan_step(hd_engine *e);

/* speculate.c */
void hd_propose(hd_engine *e);                 /* sets `proposed` of sequences that decode next */
void hd_draft_drop(hd_engine *e, hd_seq *s);
void hd_draft_keep(hd_seq *s, int64_t tokens); /* only the first `tokens` were right */

/* draw.c */
void hd_draw_ahead(hd_engine *e);             /* draws on all threads what the parts done next would on one, where that is sure */
void hd_part_done(hd_engine *e, int64_t part);
void hd_seq_end(hd_engine *e, hd_seq *s, hd_finish why, const char *error); /* releases its blocks; events follow by hd_seq_send */
void hd_seq_send(hd_engine *e, hd_seq *s);
void hd_work_end(hd_engine *e, hd_work *w, hd_finish why, const char *error); /* every choice that hasn't ended */
void hd_event_send(hd_engine *e, hd_work *w, hd_engine_event *ev); /* fills in what is the request's, counts, calls */
void hd_histogram_add(hd_histogram *h, double seconds, int64_t times);

/* beam.c */
int hd_beams_new(hd_work *w, int64_t vocab, hd_error *err);
void hd_beams_step(hd_engine *e, hd_work *w);
void hd_beams_end(hd_engine *e, hd_work *w, hd_finish why);

#endif
