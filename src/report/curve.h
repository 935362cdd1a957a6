/* curve.h: a curve for people: as a line of blocks in a terminal, and as an SVG file. */
#ifndef HD_REPORT_CURVE_H
#define HD_REPORT_CURVE_H

#include "base/error.h"
#include "base/str.h"

typedef struct hd_curve {
    const char *name;      /* for the legend */
    const double *x, *y;   /* [n], x ascending; points that are no numbers are left out */
    int64_t n;
} hd_curve;

/* Appends `width` characters (U+2581 .. U+2588), each the mean of its part of the curve, from its lowest to its highest. */
void hd_curve_sparkline(const hd_curve *c, int width, hd_str *out);

/* Writes an SVG with axes, grid, labels and a legend. */
int hd_curve_svg(const char *path, const char *title, const char *x_label, const char *y_label, const hd_curve *curves, int n, hd_error *err);

#endif
