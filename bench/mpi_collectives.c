/* mpi_collectives.c: MPI_Allreduce and MPI_Allgather of the MPI that this was built with, for bench_comm's figures to stand beside.
 *
 *   mpirun -n 2 mpi_collectives [MB [SECONDS]]
 * MB of f32 on each rank once a collective has ended (64), seconds of measuring for each (4). Prints one JSON line: bytes as in
 * bench_comm.c, medians. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_ROUNDS = 256, REPEATS = 4 };

typedef struct job { float *in, *out; int count, ranks; } job;

static void all_reduce(const job *j) { MPI_Allreduce(j->in, j->out, j->count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); }

static void all_gather(const job *j)
{
    int piece = j->count / j->ranks;
    MPI_Allgather(j->in, piece, MPI_FLOAT, j->out, piece, MPI_FLOAT, MPI_COMM_WORLD);
}

/* Seconds of one, on the slowest rank. */
static double time_of(const job *j, void (*what)(const job *))
{
    double seconds, most;
    MPI_Barrier(MPI_COMM_WORLD);
    seconds = -MPI_Wtime();
    for (int i = 0; i < REPEATS; i++) what(j);
    seconds = (seconds + MPI_Wtime()) / REPEATS;
    MPI_Allreduce(&seconds, &most, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return most;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_of(const job *j, void (*what)(const job *), double limit)
{
    double seconds[MAX_ROUNDS], spent = REPEATS * time_of(j, what);
    int n = 0;
    for (spent = 0; n < MAX_ROUNDS && (n < 3 || spent < limit); n++) spent += REPEATS * (seconds[n] = time_of(j, what));
    qsort(seconds, (size_t)n, sizeof *seconds, by_value);
    return seconds[n / 2];
}

int main(int argc, char **argv)
{
    int rank, length, mb = argc > 1 ? atoi(argv[1]) : 64;
    double limit = argc > 2 ? atof(argv[2]) : 4;
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    job j;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &j.ranks);
    MPI_Get_library_version(version, &length);
    for (int i = 0; i < length; i++)
        if (version[i] == ',' || version[i] == '\n') version[i] = 0;
    size_t bytes = (size_t)(mb < 1 || mb > 1024 ? 64 : mb) << 20;
    j.count = (int)(bytes / sizeof(float));
    j.in = malloc(bytes);
    j.out = malloc(bytes);
    if (!j.in || !j.out) MPI_Abort(MPI_COMM_WORLD, 1);
    for (int i = 0; i < j.count; i++) j.in[i] = (float)(i % 1000), j.out[i] = 0;
    double n = j.ranks, reduce = median_of(&j, all_reduce, limit), gather = median_of(&j, all_gather, limit);
    if (rank == 0)
        printf("{\"mpi\": \"%s\", \"all_reduce_gbs\": %.2f, \"all_gather_gbs\": %.2f}\n", version, 2e-9 * n * (double)bytes / reduce,
               1e-9 * (1 + n) * (double)bytes / gather);
    free(j.in);
    free(j.out);
    MPI_Finalize();
    return 0;
}
