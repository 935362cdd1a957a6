/* alike.c: which ranks do the same at the same time, so that one can stand for all of them.
 *
 * Ranks are coloured, and the colours refined until they don't change: at first by stage, by the extents of their pieces, by what kernels take whose
 * parameters follow from the piece, and by what transfers take where their groups lie; then by the colours of those that they talk to. Ranks of one colour
 * then meet the same colours at the same places of their program, so all that they do begins and ends at the same times (a coarsest stable partition:
 * Paige and Tarjan 1987). Colours are 64-bit hashes: among 65,536 ranks two that differ get the same one with a chance of 1e-10. */
#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"
#include "sim/sim_int.h"

/* What a stage's program says about who differs. */
typedef struct stage_look {
    struct { const hd_dim_layout *dim; int64_t extent; } *cut; size_t n_cuts, cap_cuts; /* distinct ways in which dimensions are cut */
    const hd_instr **localised; size_t n_localised, cap_localised; /* kernels whose parameters follow from the piece */
    int *axes; size_t n_axes, cap_axes;    /* of its collectives */
    int *rings; size_t n_rings, cap_rings; /* of those that go round */
    const hd_instr **pipes; size_t n_pipes, cap_pipes; /* sends and receives; of one mesh one for each other stage */
} stage_look;

typedef struct alike {
    sim *s;
    stage_look *look;       /* [stages] */
    uint64_t *color, *next; /* [world] */
    int *ranks;             /* [world] room for a group */
    sim_end *ends;          /* [world] */
    int rc;                 /* of what went wrong on the way */
} alike;

/* splitmix64's finish (Steele, Lea and Flood 2014). */
static uint64_t mix(uint64_t h, uint64_t x)
{
    h ^= x + 0x9e3779b97f4a7c15u + (h << 6) + (h >> 2);
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    return h ^ (h >> 31);
}

static uint64_t mix_double(uint64_t h, double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return mix(h, bits);
}

/* ---- looking at a program ---- */

static int add_cut(alike *a, stage_look *l, const hd_program *p, const hd_dim_layout *d, int64_t extent)
{
    for (size_t i = 0; i < l->n_cuts; i++)
        if (l->cut[i].extent == extent && hd_dim_layout_equal(&p->mesh, l->cut[i].dim, d, extent)) return 0;
    if (hd_grow(&l->cut, &l->cap_cuts, l->n_cuts + 1, sizeof *l->cut)) return sim_no_memory(a->s);
    l->cut[l->n_cuts].dim = d;
    l->cut[l->n_cuts++].extent = extent;
    return 0;
}

static int look_at_buffers(alike *a, stage_look *l, const hd_program *p)
{
    for (int b = 0; b < p->n_buffers; b++) {
        const hd_buffer *x = &p->buffers[b];
        for (int d = 0; x->layout && d < x->whole.rank; d++)
            if (x->layout->dim[d].n && add_cut(a, l, p, &x->layout->dim[d], x->whole.dim[d])) return HD_ENOMEM;
    }
    return 0;
}

static int add_number(alike *a, int **list, size_t *n, size_t *cap, int number)
{
    for (size_t i = 0; i < *n; i++)
        if ((*list)[i] == number) return 0;
    if (hd_grow(list, cap, *n + 1, sizeof **list)) return sim_no_memory(a->s);
    (*list)[(*n)++] = number;
    return 0;
}

static int add_pipe(alike *a, stage_look *l, const hd_instr *x)
{
    for (size_t i = 0; i < l->n_pipes && !a->s->meshes; i++)
        if (sim_other_stage(a->s, l->pipes[i]) == sim_other_stage(a->s, x)) return 0;
    if (hd_grow(&l->pipes, &l->cap_pipes, l->n_pipes + 1, sizeof *l->pipes)) return sim_no_memory(a->s);
    l->pipes[l->n_pipes++] = x;
    return 0;
}

static int look_at_instr(alike *a, stage_look *l, int stage, const hd_instr *x)
{
    if (x->opcode == HD_KERNEL && x->n_splits && x->op->localise) {
        if (hd_grow(&l->localised, &l->cap_localised, l->n_localised + 1, sizeof *l->localised)) return sim_no_memory(a->s);
        l->localised[l->n_localised++] = x;
    }
    if (sim_is_pipe(x)) return add_pipe(a, l, x);
    if (!sim_is_collective(x)) return 0;
    int axes = sim_find_axes(a->s, stage, ((const hd_comm_attrs *)x->attrs)->axes);
    if (axes < 0) return axes;
    if (x->op == &hd_op_permute && add_number(a, &l->rings, &l->n_rings, &l->cap_rings, axes)) return HD_ENOMEM;
    return add_number(a, &l->axes, &l->n_axes, &l->cap_axes, axes);
}

static int look_at(alike *a, int stage)
{
    const hd_program *p = a->s->programs[stage];
    stage_look *l = &a->look[stage];
    int rc = look_at_buffers(a, l, p);
    for (int s = 0; s < p->n_segments; s++) {
        hd_instr_iter it = hd_segment_instrs(p, s);
        for (const hd_instr *x; !rc && (x = hd_instr_next(&it));) rc = look_at_instr(a, l, stage, x);
    }
    return rc;
}

/* ---- first colours ---- */

/* Whether groups that lie differently take as long is asked at these sizes, from latencies to bandwidths. */
static const int64_t probes[] = {1 << 10, 1 << 18, 1 << 28};
enum { PROBES = sizeof probes / sizeof *probes };

static uint64_t mix_move(const sim *s, uint64_t h, hd_move kind, const int *ranks, int n)
{
    for (int i = 0; i < PROBES; i++) {
        hd_move_cost m = {0};
        hd_cost_move(s->cluster, kind, ranks, n, s->world, probes[i], HD_F32, &m);
        h = mix_double(h, m.seconds);
        for (int l = 0; l < s->cluster->n_levels; l++) h = mix_double(h, m.bytes[l]);
    }
    return h;
}

/* Every member of a group gets its first member's answer. */
static void color_groups(alike *a, const stage_look *l, int first, int last)
{
    for (size_t i = 0; i < l->n_axes; i++)
        for (int r = first; r < last; r++) {
            int n = sim_group(a->s, l->axes[i], r, a->ranks), owner = r;
            for (int k = 0; k < n; k++)
                if (a->ranks[k] < owner && a->ranks[k] >= first) owner = a->ranks[k];
            uint64_t h = owner < r ? a->next[owner] : mix_move(a->s, mix_move(a->s, 1, HD_MOVE_ALL_REDUCE, a->ranks, n), HD_MOVE_ALL_TO_ALL, a->ranks, n);
            a->next[r] = h;
            a->color[r] = mix(a->color[r], h);
        }
}

/* What goes round a ring goes from each to its neighbour. */
static void color_rings(alike *a, const stage_look *l, int rank)
{
    for (size_t i = 0; i < l->n_rings; i++) {
        int n = sim_group(a->s, l->rings[i], rank, a->ranks), own = 0;
        while (a->ranks[own] != rank) own++;
        a->color[rank] = mix_move(a->s, a->color[rank], HD_MOVE_SEND, (int[]){rank, a->ranks[(own + 1) % n]}, 2);
    }
}

/* What it is to the rank to be each end's other end; by: adds what is known of the ends. */
static uint64_t mix_ends(alike *a, uint64_t h, const hd_program *p, const hd_instr *x, int rank, const uint64_t *color)
{
    uint64_t sum = 0; /* in any order */
    int n = sim_ends(a->s, p, x, rank, a->ends);
    if (n < 0) a->rc = n;
    for (int i = 0; i < n; i++) {
        const sim_end *e = &a->ends[i];
        uint64_t one = mix(4, (uint64_t)e->bytes);
        if (color) one = mix(one, color[e->rank]);
        else one = mix_move(a->s, mix_move(a->s, one, HD_MOVE_SEND, (int[]){rank, e->rank}, 2), HD_MOVE_SEND, (int[]){e->rank, rank}, 2);
        sum += one;
    }
    return mix(h, sum);
}

static void color_pipes(alike *a, const stage_look *l, int stage, int rank)
{
    for (size_t i = 0; i < l->n_pipes; i++) a->color[rank] = mix_ends(a, a->color[rank], a->s->programs[stage], l->pipes[i], rank, NULL);
}

static void color_pieces(alike *a, const stage_look *l, int stage, int rank)
{
    const hd_program *p = a->s->programs[stage];
    uint64_t h = mix(1, (uint64_t)stage);
    for (size_t i = 0; i < l->n_cuts; i++) {
        int64_t begin, end;
        hd_dim_piece(&p->mesh, l->cut[i].dim, l->cut[i].extent, hd_program_place(p, rank), &begin, &end);
        h = mix(h, (uint64_t)(end - begin));
    }
    for (size_t i = 0; i < l->n_localised; i++) {
        hd_kernel_cost c = {0};
        sim_kernel_cost(a->s, p, l->localised[i], rank, NULL, &c);
        h = mix_double(mix_double(h, c.seconds), c.flops);
    }
    a->color[rank] = h;
}

static void color_stage(alike *a, int stage)
{
    const stage_look *l = &a->look[stage];
    int first = sim_first_rank(a->s, stage), last = sim_first_rank(a->s, stage + 1);
    for (int r = first; r < last; r++) color_pieces(a, l, stage, r);
    color_groups(a, l, first, last);
    for (int r = first; r < last; r++) color_rings(a, l, r), color_pipes(a, l, stage, r);
}

/* ---- refining ---- */

static uint64_t refined(alike *a, int rank)
{
    int stage = sim_stage_of(a->s, rank);
    const stage_look *l = &a->look[stage];
    uint64_t h = mix(2, a->color[rank]);
    for (size_t i = 0; i < l->n_axes; i++) {
        uint64_t sum = 0; /* in any order */
        int n = sim_group(a->s, l->axes[i], rank, a->ranks);
        for (int k = 0; k < n; k++) sum += mix(3, a->color[a->ranks[k]]);
        h = mix(h, sum);
    }
    for (size_t i = 0; i < l->n_pipes; i++) h = mix_ends(a, h, a->s->programs[stage], l->pipes[i], rank, a->color);
    return h;
}

static int compare_colors(const void *x, const void *y)
{
    uint64_t a = *(const uint64_t *)x, b = *(const uint64_t *)y;
    return (a > b) - (a < b);
}

static int count_colors(const uint64_t *color, uint64_t *room, int n)
{
    int count = 0;
    memcpy(room, color, (size_t)n * sizeof *room);
    qsort(room, (size_t)n, sizeof *room, compare_colors);
    for (int i = 0; i < n; i++) count += !i || room[i] != room[i - 1];
    return count;
}

static void refine(alike *a)
{
    int world = a->s->world, before = 0;
    for (int now = count_colors(a->color, a->next, world); now > before && now < world; now = count_colors(a->color, a->next, world)) {
        before = now;
        for (int r = 0; r < world; r++) a->next[r] = refined(a, r);
        uint64_t *t = a->color;
        a->color = a->next;
        a->next = t;
    }
}

/* ---- classes ---- */

typedef struct colored { uint64_t color; int rank; } colored;

static int compare_colored(const void *x, const void *y)
{
    const colored *a = x, *b = y;
    return a->color != b->color ? (a->color > b->color) - (a->color < b->color) : a->rank - b->rank;
}

/* The lowest rank of a colour stands for it; actors are in order of their ranks. */
static int make_actors(alike *a)
{
    sim *s = a->s;
    colored *all = hd_malloc((size_t)s->world * sizeof *all);
    if (!all) return sim_no_memory(s);
    for (int r = 0; r < s->world; r++) all[r] = (colored){a->color[r], r};
    qsort(all, (size_t)s->world, sizeof *all, compare_colored);
    for (int i = 0, first = 0; i < s->world; i++) {
        if (all[i].color != all[first].color) first = i;
        s->class_of[all[i].rank] = all[first].rank;
    }
    hd_free(all);
    for (int r = 0; r < s->world; r++) s->n_actors += s->class_of[r] == r;
    s->actors = hd_arena_alloc(&s->memory, (size_t)s->n_actors * sizeof *s->actors);
    if (!s->actors) return sim_no_memory(s);
    for (int r = 0, n = 0; r < s->world; r++) {
        bool own = s->class_of[r] == r;
        s->class_of[r] = own ? n : s->class_of[s->class_of[r]];
        sim_actor *x = &s->actors[s->class_of[r]];
        if (own) *x = (sim_actor){.rank = r, .stage = sim_stage_of(s, r), .program = s->programs[sim_stage_of(s, r)]}, n++;
        x->alike++;
    }
    return 0;
}

static int color_all(alike *a)
{
    sim *s = a->s;
    for (int r = 0; s->options->no_merge && r < s->world; r++) a->color[r] = (uint64_t)r;
    if (s->options->no_merge) return 0;
    for (int i = 0; i < s->stages; i++) {
        int rc = look_at(a, i);
        if (rc) return rc;
        color_stage(a, i);
    }
    refine(a);
    return a->rc;
}

int sim_find_alike(sim *s)
{
    size_t world = (size_t)s->world, stages = (size_t)s->stages;
    alike a = {.s = s, .look = hd_calloc(stages, sizeof *a.look), .color = hd_calloc(world, sizeof *a.color), .next = hd_calloc(world, sizeof *a.next),
               .ranks = hd_calloc(world, sizeof *a.ranks), .ends = hd_calloc(world, sizeof *a.ends)};
    s->class_of = hd_arena_alloc(&s->memory, world * sizeof *s->class_of);
    int rc = a.look && a.color && a.next && a.ranks && a.ends && s->class_of ? color_all(&a) : sim_no_memory(s);
    if (!rc) rc = make_actors(&a);
    for (size_t i = 0; a.look && i < stages; i++) {
        hd_free(a.look[i].cut);
        hd_free(a.look[i].localised);
        hd_free(a.look[i].axes);
        hd_free(a.look[i].rings);
        hd_free(a.look[i].pipes);
    }
    hd_free(a.look);
    hd_free(a.color);
    hd_free(a.next);
    hd_free(a.ranks);
    hd_free(a.ends);
    return rc;
}
