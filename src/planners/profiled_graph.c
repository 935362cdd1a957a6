/* profiled_graph.c: reads PipeDream's profiles (pipedream.h). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "planners/pipedream.h"

enum { MAX_LINE = 4096 };

typedef struct reader {
    hd_profiled_graph *g;
    const char *name;
    int line;
    size_t room, edge_room;
} reader;

static int wrong(const reader *r, hd_error *err, const char *what, const char *text)
{
    return hd_fail(err, HD_EFORMAT, "%s:%d: %s \"%.80s\"", r->name, r->line, what, text);
}

static int find_node(const hd_profiled_graph *g, const char *name)
{
    for (int i = 0; i < g->n; i++)
        if (!strcmp(g->nodes[i].name, name)) return i;
    return -1;
}

/* "1.5" or "[1.5; 2]", summed. */
static bool parse_sizes(const char *text, double *out)
{
    char *end;
    bool list = *text == '[';
    *out = 0;
    if (list) text++;
    for (;;) {
        double v = strtod(text, &end);
        if (end == text || !(v >= 0) || !isfinite(v)) return false;
        *out += v;
        text = end + strspn(end, " ");
        if (!list || *text != ';') break;
        text++;
    }
    return list ? !strcmp(text, "]") : !*text;
}

static const char *const keys[] = {"forward_compute_time=", "backward_compute_time=", "activation_size=", "parameter_size="};

static int parse_figures(const reader *r, char *text, double *v, hd_error *err)
{
    unsigned seen = 0;
    char *rest;
    for (char *part = strtok_r(text, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
        part += strspn(part, " ");
        part[strcspn(part, "\r")] = 0;
        int k = 0;
        while (k < 4 && strncmp(part, keys[k], strlen(keys[k]))) k++;
        if (k == 4) return wrong(r, err, "unknown figure", part);
        if (!parse_sizes(part + strlen(keys[k]), &v[k])) return wrong(r, err, "not a number from 0:", part);
        if (seen >> k & 1) return wrong(r, err, "twice on a line:", keys[k]);
        seen |= 1u << k;
    }
    for (int k = 0; k < 4; k++)
        if (!(seen >> k & 1)) return wrong(r, err, "a node without", keys[k]);
    return 0;
}

/* "node1 -- what -- figures[ -- stage_id=2]": what stands between the first separator and the one before the figures. */
static int add_node(reader *r, char *line, hd_error *err)
{
    double v[4] = {0};
    char *what = strstr(line, " -- "), *figures = what ? strstr(what + 4, " -- forward_compute_time=") : NULL;
    if (!figures) return wrong(r, err, "expected \"NODE -- WHAT -- forward_compute_time=..., ...\", found", line);
    *what = *figures = 0;
    what += 4, figures += 4;
    char *stage = strstr(figures, " -- ");
    if (stage) *stage = 0;
    if (!*line || find_node(r->g, line) >= 0) return wrong(r, err, *line ? "there are two nodes called" : "a node without a name before", *line ? line : what);
    int rc = parse_figures(r, figures, v, err);
    if (rc) return rc;
    if (hd_grow(&r->g->nodes, &r->room, (size_t)r->g->n + 1, sizeof *r->g->nodes)) return hd_fail_memory(err, 0, r->name);
    hd_profiled_node *n = &r->g->nodes[r->g->n++];
    *n = (hd_profiled_node){hd_arena_strdup(&r->g->memory, line), hd_arena_strdup(&r->g->memory, what), v[0], v[1], v[2], v[3]};
    return n->name && n->what ? 0 : hd_fail_memory(err, 0, r->name);
}

static int add_edge(reader *r, char *line, hd_error *err)
{
    hd_profiled_graph *g = r->g;
    char *to = strstr(line, " -- ");
    if (!to) return wrong(r, err, "expected an edge \"NODE -- NODE\", found", line);
    *to = 0;
    to += 4;
    to[strcspn(to, " \t\r")] = 0;
    int a = find_node(g, line), b = find_node(g, to);
    if (a < 0 || b < 0) return wrong(r, err, "an edge of an unknown node", a < 0 ? line : to);
    if (hd_grow(&g->edges, &r->edge_room, (size_t)g->n_edges + 1, sizeof *g->edges)) return hd_fail_memory(err, 0, r->name);
    g->edges[g->n_edges][0] = a;
    g->edges[g->n_edges++][1] = b;
    return 0;
}

/* Nodes in an order in which predecessors come first, else as in the file. */
static int sort_nodes(reader *r, hd_error *err)
{
    hd_profiled_graph *g = r->g;
    hd_profiled_node *sorted = hd_calloc((size_t)g->n, sizeof *sorted);
    int *at = hd_calloc((size_t)g->n, sizeof *at), n = 0, rc = sorted && at ? 0 : hd_fail_memory(err, 0, r->name);
    for (int i = 0; !rc && i < g->n; i++) at[i] = -1;
    for (bool moved = true; !rc && moved && n < g->n;) {
        moved = false;
        for (int i = 0; i < g->n; i++) {
            bool ready = at[i] < 0;
            for (int e = 0; ready && e < g->n_edges; e++) ready = g->edges[e][1] != i || at[g->edges[e][0]] >= 0;
            if (ready) sorted[at[i] = n++] = g->nodes[i], moved = true;
        }
    }
    for (int i = 0; !rc && n < g->n && i < g->n; i++)
        if (at[i] < 0) rc = hd_fail(err, HD_EFORMAT, "%s: the edges lead in a circle to %s", r->name, g->nodes[i].name);
    if (!rc) memcpy(g->nodes, sorted, (size_t)g->n * sizeof *sorted);
    for (int e = 0; !rc && e < g->n_edges; e++) g->edges[e][0] = at[g->edges[e][0]], g->edges[e][1] = at[g->edges[e][1]];
    hd_free(sorted);
    hd_free(at);
    return rc;
}

static int read_line(reader *r, const char *at, size_t n, hd_error *err)
{
    char line[MAX_LINE];
    if (n >= sizeof line || memchr(at, 0, n)) return hd_fail(err, HD_EFORMAT, "%s:%d: a line of over %d bytes, or with a zero byte", r->name, r->line, MAX_LINE - 1);
    memcpy(line, at, n);
    line[n] = 0;
    size_t blank = strspn(line, " \t\r");
    if (!line[blank] || line[blank] == '#') return 0;
    return line[0] == '\t' ? add_edge(r, line + blank, err) : add_node(r, line, err);
}

int hd_profiled_graph_parse(const char *text, size_t n, const char *name, hd_profiled_graph *out, hd_error *err)
{
    reader r = {.g = out, .name = name};
    const char *end = text + n;
    int rc = 0;
    *out = (hd_profiled_graph){0};
    for (r.line = 1; !rc && text < end; r.line++) {
        const char *newline = memchr(text, '\n', (size_t)(end - text)), *stop = newline ? newline : end;
        rc = read_line(&r, text, (size_t)(stop - text), err);
        text = stop + 1;
    }
    if (!rc && !out->n) rc = hd_fail(err, HD_EFORMAT, "%s: no nodes", name);
    if (!rc) rc = sort_nodes(&r, err);
    if (rc) hd_profiled_graph_free(out);
    return rc;
}

void hd_profiled_graph_free(hd_profiled_graph *g)
{
    hd_free(g->nodes);
    hd_free(g->edges);
    hd_arena_free(&g->memory);
    *g = (hd_profiled_graph){0};
}
