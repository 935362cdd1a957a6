/* own_layouts.h: layouts of a form's values found by search (layouts.h) in place of those that the form stands for. Within src/planners. */
#ifndef HD_PLANNERS_OWN_LAYOUTS_H
#define HD_PLANNERS_OWN_LAYOUTS_H

#include "planners/forms.h"

/* Layouts over the form's mesh (dp, tp) at least time by the cost model, within `memory` bytes of a rank (negative: endless), as pins[HD_MESH_PINS]. *n 0: none were
 * found in the time that such a search is given, or there are too many to be named. HD_ENOMEM. */
int hd_own_layouts(const hd_planner_job *job, const hd_form *f, int64_t memory, hd_pin *pins, int *n, hd_error *err);

#endif
