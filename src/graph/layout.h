/* layout.h: how a value lies over a mesh of ranks. Converting one layout to another is the collective.
 *
 * A mesh is a named grid of ranks; ranks are numbered row-major, the last axis fastest. For each dimension of a value a layout gives an
 * ordered list of mesh axes, each cutting what the one before left; every other axis holds the value whole (Replicate) or as an addend
 * (Partial). One rule cuts: a piece of `extent` over `size` coordinates is cut in units, the first ones getting one unit more (hd_split); the
 * last unit may be short, and a piece may be empty. Coordinate 0 therefore always has the largest piece: shapes at coordinate 0 are the
 * maxima that memory is placed for (a shift is left out for that: hd_layout_largest). */
#ifndef HD_GRAPH_LAYOUT_H
#define HD_GRAPH_LAYOUT_H

#include "base/mem.h"
#include "base/str.h"
#include "graph/shape.h"

#define HD_MAX_AXES 8   /* of a mesh */
#define HD_MAX_SPLITS 4 /* axes over one dimension */
#define HD_MAX_RANKS 65536

/* What an axis is for: conversions over a DATA axis move parameters and gradients rather than activations, those over a MODEL axis
 * activations rather than parameters. The pipeline's axis cuts the graph, never a value. */
typedef enum hd_axis_role { HD_AXIS_DATA, HD_AXIS_MODEL, HD_AXIS_PIPELINE } hd_axis_role;

typedef struct hd_mesh_axis { char name[12]; int size; hd_axis_role role; } hd_mesh_axis;

typedef struct hd_mesh {
    int n; /* 0: a single rank */
    hd_mesh_axis axis[HD_MAX_AXES];
} hd_mesh;

int hd_mesh_size(const hd_mesh *m);
int hd_mesh_find(const hd_mesh *m, const char *name);           /* axis, or -1 */
int hd_mesh_coordinate(const hd_mesh *m, int rank, int axis);
/* Index of rank among those that differ from it in these axes only, counted with the first axis slowest; *count (may be NULL): how many. */
int hd_mesh_index(const hd_mesh *m, int rank, const int8_t *axes, int n, int *count);
/* The ranks of that group, in order of index; ranks has room for hd_mesh_size. Returns how many. */
int hd_mesh_group(const hd_mesh *m, int rank, const int8_t *axes, int n, int *ranks);
/* "tp" or "dp.tp" to axes and back. Returns how many, or -1 for an unknown name. */
int hd_mesh_parse_axes(const hd_mesh *m, const char *text, int8_t *axes);
void hd_mesh_print_axes(const hd_mesh *m, const int8_t *axes, int n, char *out, size_t size);

/* The stages of a pipeline where they are of different meshes. Each mesh has the pipeline's axis "pp" of size 1 first; ranks of the job are numbered stage
 * after stage, those of one stage as its mesh numbers them. n = 0: all stages are of one mesh, in which the pipeline's axis counts them. */
typedef struct hd_stages {
    int n;
    const hd_mesh *mesh; /* [n] */
    const int *first;    /* [n + 1] first rank of each stage; first[n]: how many ranks there are */
} hd_stages;

int hd_stages_ranks(const hd_stages *s);
int hd_stages_of_rank(const hd_stages *s, int rank); /* the stage that a rank of the job is in */
int hd_stages_copy(hd_stages *to, const hd_stages *from, hd_arena *memory); /* 0 or HD_ENOMEM */

/* ---- layouts ---- */

typedef struct hd_dim_layout {
    int8_t n; /* 0: whole */
    int8_t axis[HD_MAX_SPLITS];
    int64_t unit[HD_MAX_SPLITS]; /* elements; pieces of that axis begin at multiples of it (from where the piece being cut begins) */
    int16_t shift[HD_MAX_SPLITS]; /* coordinate c has the piece of coordinate (c + shift) mod size: what goes round a ring. 0 <= shift < size */
} hd_dim_layout;

typedef struct hd_layout {
    hd_dim_layout dim[HD_MAX_RANK];
    uint32_t partial; /* bit a: Partial over axis a */
    bool max;         /* addends combine by max instead of sum */
} hd_layout;

/* The piece [*begin, *end) of a dimension that rank has. */
void hd_dim_piece(const hd_mesh *m, const hd_dim_layout *d, int64_t extent, int rank, int64_t *begin, int64_t *end);
/* Shape of rank's piece of a value of shape `whole` (sym is kept). layout NULL: whole. */
hd_shape hd_layout_shape(const hd_mesh *m, const hd_layout *layout, const hd_shape *whole, int rank);
hd_shape hd_layout_largest(const hd_mesh *m, const hd_layout *layout, const hd_shape *whole); /* of the largest piece */
uint32_t hd_layout_axes(const hd_layout *layout, int rank); /* mask of axes over which a value of that rank is split (not Partial) */
/* The same pieces everywhere, and the same Partial axes: units matter only where they move a border. NULL: whole. */
bool hd_layout_equal(const hd_mesh *m, const hd_layout *a, const hd_layout *b, const hd_shape *whole);
bool hd_dim_layout_equal(const hd_mesh *m, const hd_dim_layout *a, const hd_dim_layout *b, int64_t extent);

/* Text: one entry a dimension, "-" whole, else axes with units where they aren't 1; then Partial axes: "dp*64.tp,-", "-,tp +dp", "+tp max";
 * "cp>1" where the pieces are shifted by one.
 * A scalar that is whole is "". */
void hd_layout_print(const hd_mesh *m, const hd_layout *layout, int rank, hd_str *out);
int hd_layout_parse(const hd_mesh *m, const char *text, int rank, hd_layout *out, hd_error *err);

/* Copies rank's piece of a whole row-major array (elements of `size` bytes) out of it, or into it. NULL layout: all of it. */
void hd_layout_take(const hd_mesh *m, const hd_layout *layout, const hd_shape *whole, int rank, size_t size, const void *from_whole, void *to_piece);
void hd_layout_put(const hd_mesh *m, const hd_layout *layout, const hd_shape *whole, int rank, size_t size, const void *from_piece, void *to_whole);

/* The runs of consecutive elements in which rank's piece lies in the whole row-major array, in order. */
typedef struct hd_run { int64_t whole, piece, count; } hd_run; /* elements: where it begins in the whole and in the piece, how many */
typedef struct hd_run_iter {
    int dims;                                    /* outer dimensions that are walked */
    int64_t count[HD_MAX_RANK], stride[HD_MAX_RANK];
    int64_t first, run, runs, next;              /* of the whole: where the piece begins; elements in a run; how many runs */
} hd_run_iter;
hd_run_iter hd_layout_runs(const hd_mesh *m, const hd_layout *layout, const hd_shape *whole, int rank);
bool hd_run_next(hd_run_iter *it, hd_run *out); /* false behind the last; no run is empty */

/* ---- between stages of different meshes (crossing.c) ---- */

/* Only the outermost dimension of what crosses is cut, at both ends: every message is then one run of rows, in the memory of either. */
bool hd_crossing_fits(const hd_layout *l, int rank);              /* a value of that rank may be sent as it lies */
hd_layout hd_crossing_start(const hd_layout *l, int rank);        /* the nearest layout that fits; addends are scattered */
/* How it arrives on a mesh on which it is wanted as `wanted`: every row on one rank only, as far as HD_MAX_SPLITS axes go; a scalar on all. */
hd_layout hd_crossing_landing(const hd_mesh *m, const hd_layout *wanted, int rank);

typedef struct hd_end { const hd_mesh *mesh; const hd_layout *layout; } hd_end;
/* Rows from *begin on, of the whole, that rank `from` of the sender's mesh sends to rank `to` of the receiver's; 0: none. Of ranks that hold the same rows
 * each answers for an equal share. */
int64_t hd_crossing_rows(const hd_end *sender, int from, const hd_end *receiver, int to, const hd_shape *whole, int64_t *begin);
int64_t hd_row_elements(const hd_shape *whole); /* of one row */

#endif
