/* synthetic.h: data drawn by the program, for examples and checks that need no download. The same (seed, test, index) gives the same sample
 * whatever else is drawn; training and test samples come from different streams. */
#ifndef HD_DATA_SYNTHETIC_H
#define HD_DATA_SYNTHETIC_H

#include "data/dataset.h"

typedef struct hd_synthetic {
    int64_t count; /* samples */
    uint64_t seed;
    bool test;     /* draw the held-out samples */
    int64_t size;  /* digits: pixels of a side, 8 to 64 */
    double noise;  /* digits: standard deviation on every pixel, where ink is about 1 */
    int64_t users, items; /* clicks */
} hd_synthetic;

/* Columns image f32 [size, size] and label i32, 0 to 9. A digit is drawn with strokes whose points tremble, then bent, sheared, turned by up
 * to 20 degrees, scaled, and shifted; strokes differ in thickness and strength; a stray stroke may cross the picture; noise lies over all. */
int hd_synthetic_digits(hd_dataset *d, const hd_synthetic *o, hd_error *err);

/* Columns user i32, item i32 and click i32, 0 or 1. Users and items have hidden tastes of 6 factors and a liking of their own, the same in
 * training and test; a user clicks with probability sigmoid(taste . taste + likings). Popular items are shown more often. */
int hd_synthetic_clicks(hd_dataset *d, const hd_synthetic *o, hd_error *err);

#endif
