/* relax.h: what is said of a job for which no plan fits: the tightest constraint, and the cheapest that would have to go. Within src/planners. */
#ifndef HD_PLANNERS_RELAX_H
#define HD_PLANNERS_RELAX_H

#include "planners/forms.h"

/* Of the forms that were lowered whole, the one that lacks least. */
typedef struct hd_least {
    size_t forms;            /* that keep to what the job pins and forbids */
    bool known, fits;        /* known: at least one could be lowered; the rest is of the one that needs least of what it has */
    hd_form form;
    int64_t peak, capacity;  /* bytes */
    char refused[256];       /* why the network could not be split so, of the first form that it could not be */
} hd_least;

/* search.c: lowers at most so many of the job's forms, from the one that is estimated to need least memory on. HD_ENOMEM; errors of hd_forms_list. */
int hd_search_least(const hd_planner_job *job, int most, hd_least *out, hd_error *err);

/* One line about a job that nothing fits, from what was tried of it; looks at the job without each of its constraints in turn. HD_ENOMEM. */
int hd_relax_explain(const hd_planner_job *job, const hd_least *least, char *why, size_t size, hd_error *err);

#endif
