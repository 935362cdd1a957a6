/* predict_megatron.c: achieved FLOP/s of Narayanan et al. 2021, table 1, published beside predicted; parameter counts.
 *
 *   check_predict_megatron TABLE.tsv [first last]
 * Lines "row BILLIONS PRINTED PUBLISHED PREDICTED" for the script; PRINTED: the parameters of the Graph in billions, to the digits of the table. */
#include "megatron_rows.h"

static void print_row(const megatron_row *r, const hd_sim_result *s)
{
    double rate = cluster_rate(&r->job, s->step) / 1e12;
    printf("  %7s B %5d GPUs   published %4.0f   predicted %6.1f   %+5.1f %%   step %6.2f s:", r->billions, r->gpus, r->published, rate, 100 * (rate / r->published - 1),
           s->step);
    for (int k = 0; k < HD_SIM_PARTS; k++)
        if (s->part[k] > 0.0005 * s->step) printf(" %s %.1f%%", hd_sim_part_name((hd_sim_part)k), 100 * s->part[k] / s->step);
    printf("\n");
}

/* All parameters of the forward graph. */
static double count_parameters(const cluster_job *j, hd_error *err)
{
    cluster_job small = *j;
    double n = 0;
    small.dp = small.micro_batch = 1;
    hd_graph *g = cluster_graph(&small, err);
    for (size_t v = 0; g && v < g->n_values; v++)
        if (g->values[v].kind == HD_PARAM) n += (double)hd_shape_count(&g->values[v].type.shape);
    hd_graph_free(g);
    return n;
}

static int predict(const megatron_row *r, hd_error *err)
{
    hd_sim_result s;
    double n = count_parameters(&r->job, err);
    int rc = n > 0 ? megatron_predict(r, &s, err) : err->code;
    if (rc) return rc;
    print_row(r, &s);
    printf("row %s %.1f %.0f %.3f\n", r->billions, n / 1e9, r->published, cluster_rate(&r->job, s.step) / 1e12);
    fflush(stdout);
    hd_sim_result_free(&s);
    return 0;
}

int main(int argc, char **argv)
{
    static megatron_row rows[MEGATRON_ROWS];
    hd_error err = {0};
    int n = argc > 1 ? megatron_read(argv[1], rows, &err) : 0;
    int first = argc > 2 ? atoi(argv[2]) : 1, last = argc > 3 ? atoi(argv[3]) : argc > 2 ? first : n;
    for (int i = first - 1; i < last && i < n && !err.code; i++) predict(&rows[i], &err);
    if (err.code) printf("failed: %s\n", err.message);
    return err.code || n < 1;
}
