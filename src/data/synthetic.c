#include "data/synthetic.h"

#include <math.h>

#include "base/mem.h"
#include "base/rng.h"

/* ---- digits: control points of each stroke in the unit square, y downward; a point with x < 0 ends a stroke ---- */

typedef struct point { double x, y; } point;
#define END {-1, 0}
#define MAX_POINTS 20

static const struct { bool round; point p[MAX_POINTS]; } glyphs[10] = {
    {true, {{.5, .08}, {.3, .18}, {.23, .5}, {.3, .82}, {.5, .92}, {.7, .82}, {.77, .5}, {.7, .18}, {.5, .08}, END}},
    {false, {{.34, .26}, {.53, .09}, {.53, .91}, END}},
    {true, {{.25, .28}, {.33, .13}, {.5, .08}, {.68, .14}, {.73, .31}, {.62, .5}, {.42, .7}, {.24, .9}, END, {.24, .9}, {.5, .9}, {.78, .9}, END}},
    {true, {{.26, .16}, {.45, .08}, {.68, .14}, {.71, .31}, {.6, .44}, {.44, .48}, {.64, .53}, {.76, .69}, {.67, .86}, {.45, .92}, {.24, .83}, END}},
    {false, {{.62, .92}, {.62, .08}, {.2, .64}, {.82, .64}, END}},
    {true, {{.72, .09}, {.5, .09}, {.31, .09}, END, {.31, .09}, {.28, .27}, {.27, .45}, END, {.27, .45}, {.5, .39}, {.69, .48}, {.75, .67}, {.64, .85},
            {.44, .92}, {.24, .85}, END}},
    {true, {{.67, .1}, {.46, .2}, {.31, .4}, {.25, .64}, {.32, .84}, {.5, .92}, {.68, .85}, {.74, .69}, {.67, .54}, {.49, .5}, {.31, .59}, END}},
    {false, {{.22, .1}, {.77, .1}, {.56, .5}, {.42, .92}, END}},
    {true, {{.5, .49}, {.33, .39}, {.31, .2}, {.5, .08}, {.69, .2}, {.67, .39}, {.5, .49}, {.29, .62}, {.27, .81}, {.5, .92}, {.73, .81}, {.71, .62}, {.5, .49},
            END}},
    {true, {{.7, .41}, {.52, .5}, {.34, .45}, {.26, .3}, {.34, .14}, {.52, .08}, {.68, .15}, {.74, .35}, {.7, .6}, {.6, .79}, {.42, .92}, END}},
};

/* How one picture is distorted. */
typedef struct pen {
    double a, b, c, d, dx, dy;   /* linear map about the centre, then shift */
    double bend[4];              /* amplitudes and phases of a slow wave in x and y */
    double width, strength;      /* half thickness (of the unit square), ink */
    double tremble;              /* standard deviation of the control points */
} pen;

static double between(hd_rng *r, double lo, double hi) { return lo + (hi - lo) * hd_rng_uniform(r); }

static pen pen_draw(hd_rng *r)
{
    double turn = between(r, -20, 20) * M_PI / 180, shear = between(r, -.2, .2), sx = between(r, .65, .95), sy = between(r, .7, .95);
    pen p = {.a = sx * cos(turn), .b = sx * (shear * cos(turn) - sin(turn)), .c = sy * sin(turn), .d = sy * (shear * sin(turn) + cos(turn))};
    p.dx = between(r, -.1, .1);
    p.dy = between(r, -.1, .1);
    for (int i = 0; i < 4; i++) p.bend[i] = i < 2 ? between(r, 0, .03) : between(r, 0, 2 * M_PI);
    p.width = between(r, .025, .06);
    p.strength = between(r, .6, 1);
    p.tremble = between(r, .005, .025);
    return p;
}

static point distort(const pen *p, point q)
{
    double x = q.x - .5 + p->bend[0] * sin(2 * M_PI * q.y + p->bend[2]), y = q.y - .5 + p->bend[1] * sin(2 * M_PI * q.x + p->bend[3]);
    return (point){p->a * x + p->b * y + .5 + p->dx, p->c * x + p->d * y + .5 + p->dy};
}

static double distance(point q, point a, point b)
{
    double vx = b.x - a.x, vy = b.y - a.y, length = vx * vx + vy * vy;
    double t = length > 0 ? fmin(fmax(((q.x - a.x) * vx + (q.y - a.y) * vy) / length, 0), 1) : 0;
    return hypot(q.x - a.x - t * vx, q.y - a.y - t * vy);
}

/* Inks every pixel near a segment, one pixel of softness at the edge. Strokes that cross don't add up. */
static void draw_segment(float *image, int64_t size, const pen *p, point a, point b)
{
    double reach = p->width + 1.0 / (double)size;
    int64_t x0 = (int64_t)fmax(floor((fmin(a.x, b.x) - reach) * (double)size), 0), x1 = (int64_t)fmin(ceil((fmax(a.x, b.x) + reach) * (double)size), (double)size);
    int64_t y0 = (int64_t)fmax(floor((fmin(a.y, b.y) - reach) * (double)size), 0), y1 = (int64_t)fmin(ceil((fmax(a.y, b.y) + reach) * (double)size), (double)size);
    for (int64_t y = y0; y < y1; y++)
        for (int64_t x = x0; x < x1; x++) {
            point q = {((double)x + .5) / (double)size, ((double)y + .5) / (double)size};
            double ink = fmin(fmax((p->width - distance(q, a, b)) * (double)size + .5, 0), 1) * p->strength;
            float *pixel = &image[y * size + x];
            if (ink > *pixel) *pixel = (float)ink;
        }
}

/* Catmull-Rom through the points i-1 .. i+2 of a stroke, at t in [0, 1] between i and i+1. */
static point spline(const point *p, int n, int i, double t)
{
    point a = p[i > 0 ? i - 1 : 0], b = p[i], c = p[i + 1], d = p[i + 2 < n ? i + 2 : n - 1];
    double wa = t * (-1 + t * (2 - t)) / 2, wb = (2 + t * t * (-5 + 3 * t)) / 2, wc = t * (1 + t * (4 - 3 * t)) / 2, wd = t * t * (t - 1) / 2;
    return (point){wa * a.x + wb * b.x + wc * c.x + wd * d.x, wa * a.y + wb * b.y + wc * c.y + wd * d.y};
}

static void draw_stroke(float *image, int64_t size, const pen *p, const point *points, int n, bool round)
{
    int steps = round ? 3 : 1;
    for (int i = 0; i + 1 < n; i++) {
        point from = distort(p, points[i]);
        for (int k = 1; k <= steps; k++) {
            point to = distort(p, spline(points, n, i, (double)k / steps));
            draw_segment(image, size, p, from, to);
            from = to;
        }
    }
}

static void draw_glyph(float *image, int64_t size, const pen *p, int digit, hd_rng *r)
{
    point points[MAX_POINTS];
    int n = 0;
    for (int i = 0; i < MAX_POINTS && (glyphs[digit].p[i].x != 0 || glyphs[digit].p[i].y != 0); i++) {
        point q = glyphs[digit].p[i];
        if (q.x < 0) {
            draw_stroke(image, size, p, points, n, glyphs[digit].round);
            n = 0;
            continue;
        }
        points[n++] = (point){q.x + p->tremble * hd_rng_normal(r), q.y + p->tremble * hd_rng_normal(r)};
    }
}

static void draw_stray(float *image, int64_t size, pen p, hd_rng *r)
{
    point a = {hd_rng_uniform(r), hd_rng_uniform(r)}, b = {a.x + between(r, -.3, .3), a.y + between(r, -.3, .3)};
    p.width = .02;
    draw_segment(image, size, &p, a, b);
}

/* The stream of one sample. */
static hd_rng stream(const hd_synthetic *o, int64_t i)
{
    return hd_rng_new(hd_hash_mix(hd_hash_mix(hd_hash_mix(o->seed, hd_hash_string("samples")), o->test), (uint64_t)i));
}

int hd_synthetic_digits(hd_dataset *d, const hd_synthetic *o, hd_error *err)
{
    d->count = o->count;
    hd_column *image = hd_dataset_add(d, "image", HD_F32, o->size * o->size, err);
    hd_column *label = image ? hd_dataset_add(d, "label", HD_I32, 1, err) : NULL;
    if (!label) return err ? err->code : HD_ENOMEM;
    for (int64_t i = 0; i < o->count; i++) {
        hd_rng r = stream(o, i);
        float *pixels = (float *)image->data + i * o->size * o->size;
        int digit = (int)hd_rng_below(&r, 10);
        pen p = pen_draw(&r);
        draw_glyph(pixels, o->size, &p, digit, &r);
        if (hd_rng_uniform(&r) < .2) draw_stray(pixels, o->size, p, &r);
        for (int64_t k = 0; k < o->size * o->size; k++) pixels[k] += (float)(o->noise * hd_rng_normal(&r));
        ((int32_t *)label->data)[i] = digit;
    }
    return 0;
}

/* ---- clicks ---- */

enum { FACTORS = 6 };

/* Tastes of `count` users or items: FACTORS numbers and a liking each. */
static double *draw_tastes(const hd_synthetic *o, const char *who, int64_t count)
{
    double *taste = hd_malloc((size_t)count * (FACTORS + 1) * sizeof *taste);
    hd_rng r = hd_rng_new(hd_hash_mix(o->seed, hd_hash_string(who)));
    for (int64_t i = 0; taste && i < count * (FACTORS + 1); i++) taste[i] = hd_rng_normal(&r);
    return taste;
}

static double log_odds(const double *user, const double *item)
{
    double dot = 0;
    for (int f = 0; f < FACTORS; f++) dot += user[f] * item[f];
    return 0.8 * dot + 0.3 * user[FACTORS] + 0.5 * item[FACTORS] - 1;
}

int hd_synthetic_clicks(hd_dataset *d, const hd_synthetic *o, hd_error *err)
{
    static const char *const names[] = {"user", "item", "click"};
    d->count = o->count;
    for (int i = 0; i < 3; i++)
        if (!hd_dataset_add(d, names[i], HD_I32, 1, err)) return err ? err->code : HD_ENOMEM;
    int32_t *user = d->column[0].data, *item = d->column[1].data, *click = d->column[2].data;
    double *users = draw_tastes(o, "users", o->users), *items = draw_tastes(o, "items", o->items);
    bool ok = users && items;
    for (int64_t i = 0; ok && i < o->count; i++) {
        hd_rng r = stream(o, i);
        double u = hd_rng_uniform(&r);
        user[i] = (int32_t)hd_rng_below(&r, (uint64_t)o->users);
        item[i] = (int32_t)(u * u * (double)o->items); /* density falls as 1/sqrt(index) */
        double p = 1 / (1 + exp(-log_odds(users + (FACTORS + 1) * user[i], items + (FACTORS + 1) * item[i])));
        click[i] = hd_rng_uniform(&r) < p;
    }
    hd_free(users);
    hd_free(items);
    return ok ? 0 : hd_fail_memory(err, (size_t)(o->users + o->items) * sizeof(double) * (FACTORS + 1), "the clicks");
}
