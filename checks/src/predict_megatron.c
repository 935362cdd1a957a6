/* predict_megatron.c: achieved FLOP/s of Narayanan et al. 2021, table 1, predicted.
 *
 *   check_predict_megatron TABLE.tsv [first last]
 * Prints one line a row: published beside predicted. */
#include "base/file.h"
#include "cluster_run.h"

enum { MOST_ROWS = 16 };

typedef struct row { cluster_job job; double billions, published; int gpus; } row;

static int read_rows(const char *path, row *rows, hd_error *err)
{
    hd_str text;
    int n = 0;
    hd_str_init(&text);
    if (hd_file_read(&text, path, 1 << 20, err)) return err->code;
    for (char *line = strtok(text.data, "\n"); line && n < MOST_ROWS; line = strtok(NULL, "\n")) {
        row *r = &rows[n];
        long heads, width, layers, tp, pp, dp, gpus, batch, micro, chunks;
        if (*line == '#' || sscanf(line, "%lf %ld %ld %ld %ld %ld %ld %ld %ld %ld %ld %lf", &r->billions, &heads, &width, &layers, &tp, &pp, &dp, &gpus, &batch,
                                   &micro, &chunks, &r->published) != 12) continue;
        r->gpus = (int)gpus;
        r->job = (cluster_job){.layers = layers, .width = width, .heads = heads, .tp = tp, .pp = pp, .dp = dp, .chunks = chunks, .batch = batch, .micro_batch = micro};
        n++;
    }
    hd_str_free(&text);
    return n;
}

static void tweak(hd_cluster *c)
{
    const char *text = getenv("TWEAK");
    double v;
    char key[32];
    int used;
    for (; text && sscanf(text, "%31[a-z_]=%lf%n", key, &v, &used) == 2; text += used + (text[used] == ',')) {
        hd_efficiency *e = &c->device.efficiency;
        double *at = !strcmp(key, "product") ? &e->product : !strcmp(key, "half") ? &e->product_half : !strcmp(key, "depth") ? &e->depth_half : !strcmp(key, "memory") ? &e->memory
                   : !strcmp(key, "ib") ? &c->level[1].efficiency : !strcmp(key, "nv") ? &c->level[0].efficiency : !strcmp(key, "launch") ? &c->device.launch
                   : !strcmp(key, "ibbw") ? &c->level[1].bandwidth : !strcmp(key, "iblat") ? &c->level[1].latency : NULL;
        if (at) *at = v; else printf("? %s\n", key);
    }
}

static int predict(const row *r, hd_error *err)
{
    cluster_programs p;
    hd_cluster c;
    char name[64];
    hd_sim_result result;
    snprintf(name, sizeof name, "dgx-a100-80:%d", r->gpus);
    int rc = hd_cluster_find(name, &c, err);
    tweak(&c);
    if (!rc) rc = cluster_lower(&r->job, &p, err);
    if (rc) return rc;
    double begin = hd_time();
    rc = hd_program_verify_world((const hd_program *const *)p.program, p.n, err);
    if (rc) printf("world: "), err->code = 0, rc = 0;
    rc = cluster_simulate(&p, &c, &result, err);
    if (!rc) {
        double rate = cluster_rate(&r->job, result.step) / 1e12;
        printf("%7.1f B  %5d GPUs  published %5.0f  predicted %6.1f  %+6.1f %%   step %.2f s:", r->billions, r->gpus, r->published, rate,
               100 * (rate / r->published - 1), result.step);
        for (int k = 0; k < HD_SIM_PARTS; k++) printf(" %s %.1f%%", hd_sim_part_name((hd_sim_part)k), 100 * result.part[k] / result.step);
        printf("   peak %.1f GB   lowered in %.1f s, simulated in %.1f s\n", (double)result.rank[0].peak / 1e9, p.seconds, hd_time() - begin);
        fflush(stdout);
        hd_sim_result_free(&result);
    }
    cluster_programs_free(&p);
    return rc;
}

int main(int argc, char **argv)
{
    static row rows[MOST_ROWS];
    hd_error err = {0};
    int n = argc > 1 ? read_rows(argv[1], rows, &err) : 0;
    int first = argc > 2 ? atoi(argv[2]) : 1, last = argc > 3 ? atoi(argv[3]) : argc > 2 ? first : n;
    for (int i = first - 1; i < last && i < n && !err.code; i++) predict(&rows[i], &err);
    if (err.code) printf("failed: %s\n", err.message);
    return err.code || n < 1;
}
