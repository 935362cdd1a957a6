#include "train/schedule.h"

#include <math.h>
#include <string.h>

/* Each shape gives the part of (peak - least) that is left when `done` of the `total` steps after warm-up are done. */
static double shape_constant(const hd_lr_schedule *s, double done, double total) { return (void)s, (void)done, (void)total, 1; }
static double shape_cosine(const hd_lr_schedule *s, double done, double total) { return (void)s, 0.5 * (1 + cos(M_PI * done / total)); }
static double shape_linear(const hd_lr_schedule *s, double done, double total) { return (void)s, 1 - done / total; }

static double shape_wsd(const hd_lr_schedule *s, double done, double total)
{
    double fall = s->decay < total ? (double)s->decay : total, into = done - (total - fall);
    return into <= 0 ? 1 : 1 - into / fall;
}

static const struct {
    const char *name;
    double (*left)(const hd_lr_schedule *s, double done, double total);
} shapes[HD_LR_COUNT] = {
    [HD_LR_CONSTANT] = {"constant", shape_constant},
    [HD_LR_COSINE] = {"cosine", shape_cosine},
    [HD_LR_LINEAR] = {"linear", shape_linear},
    [HD_LR_WSD] = {"wsd", shape_wsd},
};

int hd_lr_shape_parse(const char *name, hd_lr_shape *out)
{
    for (int i = 0; i < HD_LR_COUNT; i++)
        if (!strcmp(name, shapes[i].name)) return *out = (hd_lr_shape)i, 0;
    return HD_EINVAL;
}

double hd_lr_at(const hd_lr_schedule *s, int64_t step)
{
    if (step <= s->warmup) return s->peak * (double)step / (double)s->warmup;
    double total = (double)(s->steps - s->warmup), done = (double)(step - s->warmup);
    if (s->shape == HD_LR_CONSTANT || total <= 0) return s->peak;
    if (done > total) done = total;
    return s->least + (s->peak - s->least) * shapes[s->shape].left(s, done, total);
}
