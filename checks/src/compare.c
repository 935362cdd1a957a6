/* compare.c: what checks of checkpoints ask.
 *
 *   check_compare newest OUT    the step of the newest checkpoint under OUT by name (0: none); fails when it is not whole
 *   check_compare tensors A B   the largest |a - b| over all tensors of two safetensors files, over the largest |a| of its tensor;
 *                               fails when they do not hold the same tensors, or a value is not finite */
#include <dirent.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "tensor/safetensors.h"
#include "train/checkpoint.h"

static int64_t newest_by_name(const char *out)
{
    DIR *d = opendir(out);
    int64_t newest = 0, step;
    char end;
    for (struct dirent *e; d && (e = readdir(d));)
        if (sscanf(e->d_name, "step-%" SCNd64 "%c", &step, &end) == 1 && step > newest) newest = step;
    if (d) closedir(d);
    return newest;
}

static int newest(const char *out, hd_error *err)
{
    char path[4096];
    hd_progress_point at;
    int64_t step = newest_by_name(out);
    snprintf(path, sizeof path, "%s/step-%" PRId64, out, step);
    if (step && hd_checkpoint_open(path, &at, NULL, err)) return err->code;
    if (step && at.step != step) return hd_fail(err, HD_EFORMAT, "%s says that it is of step %" PRId64, path, at.step);
    printf("%" PRId64 "\n", step);
    return 0;
}

/* Infinity where a value is not finite. */
static int difference(const hd_weight *a, const hd_weight *b, double *worst, hd_error *err)
{
    int64_t n = (int64_t)(a->bytes / hd_dtype_size(a->dtype));
    double *x = malloc((size_t)n * sizeof *x + 1), *y = malloc((size_t)n * sizeof *y + 1), most = 0, apart = 0;
    int rc = x && y ? hd_weight_need_shape(b, a->rank, a->dim, err) : hd_fail_memory(err, (size_t)n, a->name);
    for (int64_t i = 0; !rc && i < n; i += 4096) {
        int64_t k = n - i < 4096 ? n - i : 4096;
        hd_weight_load(a, i, k, x + i, HD_F64);
        hd_weight_load(b, i, k, y + i, HD_F64);
    }
    for (int64_t i = 0; !rc && i < n; i++) {
        double d = fabs(x[i] - y[i]);
        most = fmax(most, fabs(x[i]));
        if (!(d <= apart)) apart = isfinite(d) ? d : INFINITY;
    }
    if (apart > 0) apart /= most;
    if (!(apart <= *worst)) *worst = apart;
    free(x);
    free(y);
    return rc;
}

static int tensors(const char *one, const char *other, hd_error *err)
{
    hd_safetensors a = {0}, b = {0};
    double worst = 0;
    int rc = hd_safetensors_open(&a, one, err);
    if (!rc) rc = hd_safetensors_open(&b, other, err);
    if (!rc && (a.count != b.count || !a.count)) rc = hd_fail(err, HD_EFORMAT, "%zu tensors in %s, %zu in %s", a.count, one, b.count, other);
    for (size_t i = 0; !rc && i < a.count; i++) {
        const hd_weight *w = hd_safetensors_find(&b, a.tensors[i].name);
        rc = w ? difference(&a.tensors[i], w, &worst, err) : hd_fail(err, HD_EFORMAT, "%s has no tensor %s", other, a.tensors[i].name);
    }
    if (!rc) printf("%.3g\n", worst);
    hd_safetensors_close(&a);
    hd_safetensors_close(&b);
    return rc;
}

int main(int argc, char **argv)
{
    hd_error err = {0};
    int rc = HD_EINVAL;
    if (argc == 3 && !strcmp(argv[1], "newest")) rc = newest(argv[2], &err);
    else if (argc == 4 && !strcmp(argv[1], "tensors")) rc = tensors(argv[2], argv[3], &err);
    else hd_fail(&err, HD_EINVAL, "usage: check_compare newest OUT | tensors A B");
    if (rc) fprintf(stderr, "check_compare: %s\n", err.message);
    return rc != 0;
}
