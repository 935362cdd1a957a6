/* orderings.c: what Narayanan et al. 2021 found best, found best by prediction: tensor against pipeline parallelism (figure 13), the micro-batch (figure 16),
 * interleaving (figure 12), and ZeRO-3 against both (table 2). DGX A100-80, the constants of checks/predict-megatron.
 *
 *   check_orderings
 * Lines "key value" for the script. */
#include "cluster_run.h"

static int failed;

static double rate_of(const cluster_job *j)
{
    hd_error err = {0};
    hd_cluster c;
    hd_programs p;
    hd_sim_result r;
    char name[64];
    double rate = NAN;
    snprintf(name, sizeof name, "dgx-a100-80:%d", (int)(j->tp * j->pp * j->dp));
    int rc = hd_cluster_find(name, &c, &err);
    if (!rc) rc = cluster_lower(j, &p, &err);
    if (!rc) {
        rc = cluster_simulate(&p, &c, &r, &err);
        if (!rc) rate = cluster_rate(j, r.step) / 1e12, hd_sim_result_free(&r);
        hd_programs_free(&p);
    }
    if (rc) printf("failed: %s\n", err.message), failed++;
    return rate;
}

/* 162 B on 64 GPUs: the best tensor-parallel degree. */
static void tensor_or_pipeline(int64_t batch)
{
    int64_t best = 0;
    double most = 0;
    printf("  162 B, 64 GPUs, micro-batch 1, batch %d, TFLOP/s:", (int)batch);
    for (int64_t tp = 2; tp <= 32; tp *= 2) {
        cluster_job j = {.layers = 32, .width = 20480, .heads = 128, .tp = tp, .pp = 64 / tp, .dp = 1, .chunks = 1, .batch = batch, .micro_batch = 1};
        double rate = rate_of(&j);
        printf("  TP %d x PP %d: %.0f", (int)tp, (int)j.pp, rate);
        if (rate > most) most = rate, best = tp;
    }
    printf("\ntp_batch_%d %d\n", (int)batch, (int)best);
}

static void micro_batch(void)
{
    int64_t best = 0;
    double most = 0;
    printf("  91 B, TP 8 x PP 8, batch 512, TFLOP/s:");
    for (int64_t b = 1; b <= 8; b *= 2) {
        cluster_job j = {.layers = 32, .width = 15360, .heads = 128, .tp = 8, .pp = 8, .dp = 1, .chunks = 1, .batch = 512, .micro_batch = b};
        double rate = rate_of(&j);
        printf("  micro-batch %d: %.1f", (int)b, rate);
        if (rate > most) most = rate, best = b;
    }
    printf("\nmicro_batch %d\n", (int)best);
}

/* How much two chunks a stage gain over one, in per cent. */
static void interleaving(void)
{
    printf("  175 B, 96 GPUs, TP 8 x PP 12, TFLOP/s without and with interleaving:");
    double gain[5];
    for (int i = 0; i < 5; i++) {
        cluster_job j = {.layers = 96, .width = 12288, .heads = 96, .tp = 8, .pp = 12, .dp = 1, .chunks = 1, .batch = 12 * (i + 1), .micro_batch = 1};
        double plain = rate_of(&j);
        j.chunks = 2;
        double both = rate_of(&j);
        gain[i] = 100 * (both / plain - 1);
        printf("  batch %d: %.0f, %.0f", (int)j.batch, plain, both);
    }
    printf("\n");
    for (int i = 0; i < 5; i++) printf("gain_%d %.2f\n", 12 * (i + 1), gain[i]);
}

/* ZeRO-3's rate over that of TP 8 x PP 12. */
static void sharded(void)
{
    printf("  175 B, batch 1536, TFLOP/s of ZeRO-3 and of TP 8 x PP 12:");
    double share[3];
    for (int i = 0; i < 3; i++) {
        int64_t gpus = 384 << i;
        cluster_job z = {.layers = 96, .width = 12288, .heads = 96, .tp = 1, .pp = 1, .dp = gpus, .chunks = 1, .zero = 3, .batch = 1536, .micro_batch = 1536 / gpus};
        cluster_job m = {.layers = 96, .width = 12288, .heads = 96, .tp = 8, .pp = 12, .dp = gpus / 96, .chunks = 1, .batch = 1536, .micro_batch = 1};
        double a = rate_of(&z), b = rate_of(&m);
        share[i] = a / b;
        printf("  %d GPUs: %.0f, %.0f", (int)gpus, a, b);
    }
    printf("\n");
    for (int i = 0; i < 3; i++) printf("share_%d %.3f\n", 384 << i, share[i]);
}

int main(void)
{
    tensor_or_pipeline(32);
    tensor_or_pipeline(128);
    micro_batch();
    interleaving();
    sharded();
    return failed > 0;
}
