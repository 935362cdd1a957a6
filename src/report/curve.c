#include "report/curve.h"

#include <math.h>
#include "base/file.h"

/* ---- terminal ---- */

typedef struct range { double lo, hi; } range;

static void widen(range *r, double v)
{
    if (!isfinite(v)) return;
    if (!(v >= r->lo)) r->lo = v;
    if (!(v <= r->hi)) r->hi = v;
}

static double mean_between(const hd_curve *c, int64_t from, int64_t to)
{
    double sum = 0, n = 0;
    for (int64_t i = from; i < to && i < c->n; i++)
        if (isfinite(c->y[i])) sum += c->y[i], n++;
    return sum / n;
}

void hd_curve_sparkline(const hd_curve *c, int width, hd_str *out)
{
    range r = {NAN, NAN};
    if (c->n < 1) return;
    if (width > c->n) width = (int)c->n;
    for (int i = 0; i < width; i++) widen(&r, mean_between(c, c->n * i / width, c->n * (i + 1) / width));
    for (int i = 0; i < width; i++) {
        double v = mean_between(c, c->n * i / width, c->n * (i + 1) / width), part = r.hi > r.lo ? (v - r.lo) / (r.hi - r.lo) : 0;
        int block = isfinite(v) ? 1 + (int)(part * 7 + 0.5) : 0;
        if (block) hd_str_printf(out, "\xe2\x96%c", 0x80 + block);
        else hd_str_putc(out, ' ');
    }
}

/* ---- SVG ---- */

enum { WIDTH = 800, HEIGHT = 450, LEFT = 70, RIGHT = 20, TOP = 40, BOTTOM = 50 };

typedef struct frame { range x, y; } frame;

static double px(const frame *f, double x) { return LEFT + (x - f->x.lo) / (f->x.hi - f->x.lo) * (WIDTH - LEFT - RIGHT); }
static double py(const frame *f, double y) { return HEIGHT - BOTTOM - (y - f->y.lo) / (f->y.hi - f->y.lo) * (HEIGHT - TOP - BOTTOM); }

/* 1, 2 or 5 times a power of ten, so that about eight ticks fit. */
static double tick_step(range r)
{
    double raw = (r.hi - r.lo) / 8, power = pow(10, floor(log10(raw))), lead = raw / power;
    return power * (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10);
}

static void draw_grid(const frame *f, hd_str *s)
{
    double step = tick_step(f->x);
    for (double x = ceil(f->x.lo / step) * step; x <= f->x.hi + step * 1e-9; x += step)
        hd_str_printf(s, "<line x1='%.1f' x2='%.1f' y1='%d' y2='%d' stroke='#e4e4e4'/><text x='%.1f' y='%d' text-anchor='middle'>%g</text>\n", px(f, x),
                      px(f, x), TOP, HEIGHT - BOTTOM, px(f, x), HEIGHT - BOTTOM + 18, x);
    step = tick_step(f->y);
    for (double y = ceil(f->y.lo / step) * step; y <= f->y.hi + step * 1e-9; y += step)
        hd_str_printf(s, "<line x1='%d' x2='%d' y1='%.1f' y2='%.1f' stroke='#e4e4e4'/><text x='%d' y='%.1f' text-anchor='end'>%g</text>\n", LEFT,
                      WIDTH - RIGHT, py(f, y), py(f, y), LEFT - 8, py(f, y) + 4, y);
}

static void draw_curve(const frame *f, const hd_curve *c, int index, hd_str *s)
{
    static const char *const colours[] = {"#3465a4", "#cc4b37", "#4e9a06", "#75507b"};
    const char *colour = colours[index % 4];
    hd_str_printf(s, "<polyline fill='none' stroke='%s' stroke-width='1.6' points='", colour);
    for (int64_t i = 0; i < c->n; i++)
        if (isfinite(c->x[i]) && isfinite(c->y[i])) hd_str_printf(s, "%.1f,%.1f ", px(f, c->x[i]), py(f, c->y[i]));
    hd_str_printf(s, "'/>\n<text x='%d' y='%d' text-anchor='end' fill='%s'>%s</text>\n", WIDTH - RIGHT - 6, TOP + 16 + 16 * index, colour, c->name);
}

int hd_curve_svg(const char *path, const char *title, const char *x_label, const char *y_label, const hd_curve *curves, int n, hd_error *err)
{
    frame f = {{NAN, NAN}, {NAN, NAN}};
    for (int k = 0; k < n; k++)
        for (int64_t i = 0; i < curves[k].n; i++) widen(&f.x, curves[k].x[i]), widen(&f.y, curves[k].y[i]);
    if (!(f.x.hi > f.x.lo)) f.x = (range){isfinite(f.x.lo) ? f.x.lo - 1 : 0, isfinite(f.x.lo) ? f.x.lo + 1 : 1};
    if (!(f.y.hi > f.y.lo)) f.y = (range){isfinite(f.y.lo) ? f.y.lo - 1 : 0, isfinite(f.y.lo) ? f.y.lo + 1 : 1};
    hd_str s;
    hd_str_init(&s);
    hd_str_printf(&s, "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %d %d' font-family='sans-serif' font-size='12'>\n", WIDTH, HEIGHT);
    hd_str_printf(&s, "<rect width='100%%' height='100%%' fill='white'/>\n<text x='%d' y='24' font-size='16'>%s</text>\n", LEFT, title);
    draw_grid(&f, &s);
    for (int k = 0; k < n; k++) draw_curve(&f, &curves[k], k, &s);
    hd_str_printf(&s, "<text x='%d' y='%d' text-anchor='middle'>%s</text>\n", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label);
    hd_str_printf(&s, "<text transform='translate(18 %d) rotate(-90)' text-anchor='middle'>%s</text>\n</svg>\n", (TOP + HEIGHT - BOTTOM) / 2, y_label);
    int rc = s.failed ? hd_fail_memory(err, s.len, "a drawing") : hd_file_write_atomic(path, s.data, s.len, err);
    hd_str_free(&s);
    return rc;
}
