/* dump.c: a program as text. Grammar, one thing a line, "; path" behind buffers and instructions:
 *
 *     program threads=2 arena=4096 bound=4032 [repeat=1..2] [stage=0/2] [mesh=pp:2:pipeline,dp:4:data,tp:2:model]
 *     stage 0 first=0 mesh=pp:1:pipeline,dp:2:data    one such line for each stage where they are of different meshes; mesh= above is then this stage's
 *     symbol tokens<=512
 *     buffer %0 input f32[$0<=512, 64] plain inputs device micro=split arena=0 copies=1 offset=0 bytes=131072 [view=%3] [whole=[1024, 64] layout={dp,-}]
 *            [data=00ff..] ; x
 *     output loss %12
 *     segment forward [chunk=1]
 *       %12, - = layer_norm(%3, %4, -) eps=1e-05 dtype=f32 [@later] [@workspace=%13] [@split=0:{dp}] [@stream=1] [@wait=4] [@signal=5] ; layers.0.norm1
 *       %5 += contract(%1, %2) ...      adds to what %5 holds (with @later: only from the second micro-batch on)
 *       %5 = .zero()   %5 = .copy(%6)   %5 = .view(%6)
 *       %8 = all_gather(%7) axes=tp dim=0 extent=64 ...      between ranks; with @stream=1 @signal=5 only started, until somebody has @wait=5
 *       %8, %9 = all_reduce(%6, %7) axes=dp ...              a list: one transfer; with dim=-1 each cuts its own dimension
 *       %8 = all_reduce(%8) ... @last @stream=1 @signal=6    in the last micro-batch only
 *       () = .wait() @wait=5                                 nothing but that
 *     call forward [chunk=1] micro=0 slice=0 [$0=17]
 */
#include <stdio.h>

#include "program/text_int.h"

const char *const hd_tier_names[HD_TIER_COUNT] = {"device", "host", "disk"};
const char *const hd_format_names[2] = {"plain", "packed"};
const char *const hd_micro_names[3] = {"replicate", "split", "partial"};
const char *const hd_opcode_names[HD_OPCODE_COUNT] = {"", ".view", ".zero", ".copy", "", ".wait"};
const char *const hd_axis_role_names[3] = {"data", "model", "pipeline"};

static void dump_data(const hd_buffer *b, hd_str *out)
{
    const unsigned char *p = b->data;
    hd_str_puts(out, " data=");
    for (int64_t i = 0; i < b->bytes; i++) {
        hd_str_putc(out, "0123456789abcdef"[p[i] >> 4]);
        hd_str_putc(out, "0123456789abcdef"[p[i] & 15]);
    }
}

static void dump_buffer(const hd_program *p, int i, hd_str *out)
{
    char type[256];
    const hd_buffer *b = &p->buffers[i];
    hd_str_printf(out, "buffer %%%d %s %s %s %s %s", i, hd_buffer_class_name(b->class), hd_type_format(type, sizeof type, &b->type, NULL),
                  hd_format_names[b->format], hd_role_name(b->role), hd_tier_names[b->tier]);
    hd_str_printf(out, " micro=%s arena=%d copies=%d offset=%lld bytes=%lld", hd_micro_names[b->micro], b->arena, b->copies, (long long)b->offset,
                  (long long)b->bytes);
    if (b->view_of >= 0) hd_str_printf(out, " view=%%%d", b->view_of);
    if (b->layout) {
        hd_str_puts(out, " whole=[");
        for (int d = 0; d < b->whole.rank; d++) hd_str_printf(out, "%s%lld", d ? ", " : "", (long long)b->whole.dim[d]);
        hd_str_puts(out, "] layout={");
        hd_layout_print(&p->mesh, b->layout, b->whole.rank, out);
        hd_str_putc(out, '}');
    }
    if (b->data) dump_data(b, out);
    hd_str_printf(out, " ; %s\n", b->path);
}

static void dump_list(const int *buffers, int n, hd_str *out)
{
    for (int i = 0; i < n; i++) {
        hd_str_puts(out, i ? ", " : "");
        if (buffers[i] < 0) hd_str_putc(out, '-');
        else hd_str_printf(out, "%%%d", buffers[i]);
    }
}

static void dump_split(const hd_program *p, const hd_loop_split *s, hd_str *out)
{
    hd_layout one = {.dim = {s->over}};
    hd_str_printf(out, " @split=%d:{", s->loop);
    hd_layout_print(&p->mesh, &one, 1, out);
    hd_str_putc(out, '}');
}

static void dump_instr(const hd_program *p, const hd_instr *x, hd_str *out)
{
    hd_str_puts(out, "  ");
    if (x->n_out == 0) hd_str_puts(out, "()"); /* send */
    dump_list(x->out, x->n_out, out);
    hd_str_puts(out, x->accumulate ? " += " : " = ");
    hd_str_puts(out, x->op ? x->op->name : hd_opcode_names[x->opcode]);
    hd_str_putc(out, '(');
    dump_list(x->in, x->n_in, out);
    hd_str_putc(out, ')');
    if (x->op && x->op->attrs) {
        hd_str_putc(out, ' ');
        hd_attrs_print(x->op, x->attrs, out);
    }
    if (x->accumulate == HD_ACCUMULATE_LATER) hd_str_puts(out, " @later");
    if (x->workspace >= 0) hd_str_printf(out, " @workspace=%%%d", x->workspace);
    for (int i = 0; i < x->n_splits; i++) dump_split(p, &x->splits[i], out);
    if (x->last) hd_str_puts(out, " @last");
    if (x->stream) hd_str_printf(out, " @stream=%d", x->stream);
    for (int i = 0; i < x->n_waits; i++) hd_str_printf(out, " @wait=%d", x->waits[i]);
    if (x->signal >= 0) hd_str_printf(out, " @signal=%d", x->signal);
    hd_str_printf(out, " ; %s\n", x->path);
}

static void dump_call(const hd_program *p, const hd_call *c, hd_str *out)
{
    const hd_segment *s = &p->segments[c->segment];
    hd_str_printf(out, "call %s", hd_segment_name(s->kind));
    if (s->chunk) hd_str_printf(out, " chunk=%d", s->chunk);
    hd_str_printf(out, " micro=%d slice=%d", c->micro, c->slice);
    for (int i = 0; i < p->n_symbols; i++)
        if (c->binding[i] >= 0) hd_str_printf(out, " $%d=%lld", i, (long long)c->binding[i]);
    hd_str_putc(out, '\n');
}

static void dump_mesh(const hd_mesh *m, hd_str *out)
{
    for (int a = 0; a < m->n; a++)
        hd_str_printf(out, "%s%s:%d:%s", a ? "," : " mesh=", m->axis[a].name, m->axis[a].size, hd_axis_role_names[m->axis[a].role]);
    hd_str_putc(out, '\n');
}

static void dump_stages(const hd_stages *s, hd_str *out)
{
    for (int i = 0; i < s->n; i++) {
        hd_str_printf(out, "stage %d first=%d", i, s->first[i]);
        dump_mesh(&s->mesh[i], out);
    }
}

void hd_program_dump(const hd_program *p, hd_str *out)
{
    hd_str_printf(out, "program threads=%d arena=%lld bound=%lld", p->threads, (long long)p->arena_bytes, (long long)p->arena_bound);
    if (p->repeat_first >= 0) hd_str_printf(out, " repeat=%d..%d", p->repeat_first, p->repeat_last);
    if (p->stages > 1) hd_str_printf(out, " stage=%d/%d", p->stage, p->stages);
    dump_mesh(&p->mesh, out);
    dump_stages(&p->meshes, out);
    for (int i = 0; i < p->n_symbols; i++) hd_str_printf(out, "symbol %s<=%lld\n", p->symbols[i].name, (long long)p->symbols[i].max);
    for (int i = 0; i < p->n_buffers; i++) dump_buffer(p, i, out);
    for (int i = 0; i < p->n_outputs; i++) hd_str_printf(out, "output %s %%%d\n", p->outputs[i].name, p->outputs[i].buffer);
    for (int s = 0; s < p->n_segments; s++) {
        hd_str_printf(out, "segment %s", hd_segment_name(p->segments[s].kind));
        if (p->segments[s].chunk) hd_str_printf(out, " chunk=%d", p->segments[s].chunk);
        hd_str_putc(out, '\n');
        hd_instr_iter it = hd_segment_instrs(p, s);
        for (const hd_instr *x; (x = hd_instr_next(&it));) dump_instr(p, x, out);
    }
    hd_call_iter calls = hd_program_calls(p);
    for (hd_call c; hd_call_next(&calls, &c);) dump_call(p, &c, out);
}
