/* plan_html.h: a plan and what is predicted of it, as one HTML file for somebody who was not there: no request goes to any network,
 * everything is in the file.
 *
 * It draws the plan (stages on devices, what is split how), each stage's timeline, memory over time against the device's limit, where
 * the time goes, and, where a trace of a real run is given, what was measured beside what was predicted. The page itself is plan.html;
 * what it draws stands in it as one JSON object. Ranks that do the same are drawn once: beyond 64 ranks, the first of each stage. */
#ifndef HD_REPORT_PLAN_HTML_H
#define HD_REPORT_PLAN_HTML_H

#include "sim/sim.h"

typedef struct hd_report_fact { const char *label, *value, *note; } hd_report_fact; /* note: may be NULL */

/* All borrowed. Of the pointers only plan, programs and predicted are needed. */
typedef struct hd_report {
    const char *title;      /* "GPT-2 124M on 2 ranks of this machine" */
    const char *command;    /* that made it */
    const hd_plan *plan;
    const hd_program *const *programs; int n_programs; /* one of each stage */
    const hd_cluster *cluster;
    const hd_sim_result *sim;
    const hd_trace *predicted, *measured; /* measured NULL: there was no run */
    double tokens;          /* in one step; 0: the model has none */
    double samples;         /* in one step; 0: not said */
    const hd_report_fact *facts; int n_facts; /* to stand behind those that follow from the above */
} hd_report;

int hd_report_html(const hd_report *r, const char *path, hd_error *err);

#endif
