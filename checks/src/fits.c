/* fits.c: what fits into memory: the rows of Narayanan et al. 2021, table 1, with and without recomputation; ZeRO's states; sizes for budgets.
 *
 *   check_fits TABLE.tsv
 * Lines "key value" for the script. */
#include "megatron_rows.h"

static int failed;

static void fits(const megatron_row *row, bool keep)
{
    megatron_row r = *row;
    hd_error err = {0}, full = {0};
    hd_sim_result s;
    int64_t most = 0;
    r.job.keep = keep;
    if (megatron_predict(&r, &s, &err)) {
        printf("failed: %s\n", err.message);
        failed++;
        return;
    }
    for (int i = 0; i < s.n_ranks; i++)
        if (s.rank[i].peak > most) most = s.rank[i].peak;
    int rc = hd_sim_check_memory(&s, &full);
    printf("  %7s B %s: %.1f of %.1f GB%s%s\n", r.billions, keep ? "all kept  " : "recomputed", (double)most / 1e9, (double)s.rank[0].capacity / 1e9, rc ? ": " : "", full.message);
    printf("%s_%s %d\n", keep ? "kept" : "recomputed", r.billions, rc == 0);
    fflush(stdout);
    hd_sim_result_free(&s);
}

/* 7.5 B on 64 ranks: the paper's 16 bytes a parameter by formula; and what the Programs hold, whose gradients are f32: 18. */
static void zero_states(void)
{
    for (int stage = 0; stage < 4; stage++) {
        cluster_job j = {.layers = 36, .width = 4096, .heads = 32, .tp = 1, .pp = 1, .dp = 64, .chunks = 1, .zero = stage, .batch = 128, .micro_batch = 1};
        hd_programs p;
        hd_error err = {0};
        hd_memory m;
        hd_lm_config c;
        cluster_model(&j, &c);
        double n = (double)hd_lm_config_parameters(&c);
        int rc = cluster_lower(&j, &p, &err);
        if (!rc) rc = hd_program_memory(p.stage[0], &m, &err);
        if (rc) printf("failed: %s\n", err.message), failed++;
        else {
            double held = (double)(m.role[HD_ROLE_PARAMETER] + m.role[HD_ROLE_GRADIENT] + m.role[HD_ROLE_OPTIMIZER]);
            printf("  ZeRO %d: %.1f GB by formula; f32 parameters %.1f, gradients %.1f, optimizer %.1f GB in the Program\n", stage, hd_size_states(7.5e9, 2, stage, 64) / 1e9,
                   (double)m.role[HD_ROLE_PARAMETER] / 1e9, (double)m.role[HD_ROLE_GRADIENT] / 1e9, (double)m.role[HD_ROLE_OPTIMIZER] / 1e9);
            printf("zero_%d %.1f\n", stage, hd_size_states(7.5e9, 2, stage, 64) / 1e9);
            double expected = n * (4.0 / (stage >= 3 ? 64 : 1) + 4.0 / (stage >= 2 ? 64 : 1) + 8.0 / (stage >= 1 ? 64 : 1));
            printf("zero_program_%d %.4f\n", stage, held / expected);
            hd_programs_free(&p);
        }
        fflush(stdout);
    }
}

static void sizes(void)
{
    cluster_job j = {.layers = 96, .width = 12288, .heads = 96};
    hd_lm_config c;
    hd_size s;
    cluster_model(&j, &c);
    double n = (double)hd_lm_config_parameters(&c);
    printf("gpt3_flops %.4g\ngpt3_states %.4g\n", hd_size_flops(n, 300e9), hd_size_states(n, 2, 0, 1));
    hd_size_for_flops(HD_SIZE_CHINCHILLA, 5.76e23, &s); /* Gopher's budget (Hoffmann et al. 2022) */
    printf("chinchilla_parameters %.4g\nchinchilla_tokens %.4g\n", s.parameters, s.tokens);
}

int main(int argc, char **argv)
{
    static megatron_row rows[MEGATRON_ROWS];
    hd_error err = {0};
    int n = argc > 1 ? megatron_read(argv[1], rows, &err) : 0;
    if (n < 1) return printf("failed: %s\n", err.message), 1;
    for (int keep = 0; keep < 2; keep++)
        for (int i = 0; i < n; i++) fits(&rows[i], keep);
    zero_states();
    sizes();
    return failed > 0;
}
