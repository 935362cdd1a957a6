/* mpi.c: the jobs of a table on ranks of one transport, each rank writing what it computed, to the bit, to a file of its own.
 *
 *   check_mpi ranks TABLE ROOT                    every job's line, with the number of its ranks before it
 *   check_mpi local TABLE ROOT N FOLDER           all jobs of TABLE, which need N ranks each, on N threads: FOLDER/rank-0, ...
 *   mpirun -n N check_mpi mpi TABLE ROOT N FOLDER the same on N processes */
#include "base/term.h"
#include "ranks_run.h"

static FILE *open_trace(const char *folder, int rank)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/rank-%d", folder, rank);
    FILE *f = fopen(path, "w");
    if (!f) perror(path);
    return f;
}

static bool next_job(FILE *table, const char *root, char *line, size_t size, run_job *j)
{
    char copy[512];
    while (fgets(line, (int)size, table)) {
        if (line[0] == '#' || line[0] == '\n') continue;
        snprintf(copy, sizeof copy, "%s", line);
        if (run_read_job(copy, root, j)) return true;
        fprintf(stderr, "not a job: %s", line);
    }
    return false;
}

static int print_ranks(FILE *table, const char *root)
{
    char line[512];
    hd_error err = {0};
    hd_plan *plan = malloc(sizeof *plan);
    for (run_job j; next_job(table, root, line, sizeof line, &j);) {
        if (run_plan(&j, plan, &err)) return fprintf(stderr, "%s", err.message), 1;
        printf("%d\t%s", hd_plan_ranks(plan), line);
    }
    free(plan);
    return 0;
}

static int run_threads(FILE *table, const char *root, int n, const char *folder)
{
    char line[512];
    hd_error err = {0};
    FILE *trace[RUN_MAX_RANKS];
    int rc = 0;
    for (int r = 0; r < n; r++)
        if (!(trace[r] = open_trace(folder, r))) return 1;
    for (run_job j; !rc && next_job(table, root, line, sizeof line, &j);) {
        run_result result;
        for (int r = 0; r < n; r++) fputs(line, trace[r]);
        rc = run_all_ranks_traced(&j, &result, trace, &err);
        run_result_free(&result);
    }
    for (int r = 0; r < n; r++) fclose(trace[r]);
    return rc ? fprintf(stderr, "%s: %s\n", line, err.message), 1 : 0;
}

static int run_process(FILE *table, const char *root, const char *folder)
{
    char line[512];
    hd_error err = {0};
    hd_comm *c = NULL;
    int rc = hd_comm_mpi(120, &c, &err);
    FILE *trace = rc ? NULL : open_trace(folder, hd_comm_rank(c));
    if (!rc && !trace) rc = hd_fail(&err, HD_EIO, "%s cannot be written to", folder);
    for (run_job j; !rc && next_job(table, root, line, sizeof line, &j);) {
        fputs(line, trace);
        rc = run_process_rank(&j, c, trace, &err);
    }
    if (trace) fclose(trace);
    if (rc) fprintf(stderr, "%s\n", err.message);
    if (rc && c) hd_comm_abort(c, err.message);
    hd_comm_free(c);
    return rc ? 1 : 0;
}

int main(int argc, char **argv)
{
    FILE *table = argc >= 4 ? fopen(argv[2], "r") : NULL;
    int n = argc >= 5 ? atoi(argv[4]) : 0, status = 2;
    if (!table || (strcmp(argv[1], "ranks") && (argc < 6 || n < 1 || n > RUN_MAX_RANKS)))
        return fprintf(stderr, "check_mpi ranks TABLE ROOT | local|mpi TABLE ROOT N FOLDER\n"), 2;
    if (!strcmp(argv[1], "ranks")) status = print_ranks(table, argv[3]);
    else if (!strcmp(argv[1], "local")) status = run_threads(table, argv[3], n, argv[5]);
    else if (!strcmp(argv[1], "mpi")) status = run_process(table, argv[3], argv[5]);
    fclose(table);
    return status;
}
