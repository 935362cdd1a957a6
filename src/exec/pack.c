/* pack.c: makes packed constants out of plain ones, a team at a time on each. */
#include "exec/pack.h"

hd_type hd_buffer_piece_type(const hd_program *p, int b, int place)
{
    const hd_buffer *x = &p->buffers[b];
    hd_type type = x->type;
    if (x->layout) type.shape = hd_layout_shape(&p->mesh, x->layout, &x->whole, place);
    type.shape.sym = x->type.shape.sym;
    return type;
}

/* The first instruction that reads buffer b as operand 1. */
static const hd_instr *packed_reader(const hd_program *p, int b)
{
    for (int s = 0; s < p->n_segments; s++) {
        hd_instr_iter it = hd_segment_instrs(p, s);
        for (const hd_instr *x; (x = hd_instr_next(&it));)
            if (x->opcode == HD_KERNEL && x->n_in > 1 && x->in[1] == b) return x;
    }
    return NULL;
}

typedef struct packing { const hd_packer *packer; const hd_instr *instr; const void *plain; void *packed; } packing;

static void run_packing(void *arg, int tid)
{
    const packing *job = arg;
    const hd_packer *k = job->packer;
    hd_tensor in[HD_MAX_OPERANDS];
    for (int i = 0; i < job->instr->n_in; i++) in[i] = hd_buffer_piece(k->program, job->instr->in[i], k->place, NULL);
    hd_kernel_args a = {.in = in, .n_in = job->instr->n_in, .code = job->instr->op->code, .attrs = job->instr->attrs, .team = k->team,
                        .tid = tid, .threads = hd_team_size(k->team)};
    k->backend->pack(k->backend, job->instr->op, &a, 1, job->plain, job->packed);
}

int hd_pack_constant(const hd_packer *k, hd_store *s, int b, hd_error *err)
{
    const hd_buffer *x = &k->program->buffers[b];
    const char *suffix = strstr(x->path, ".packed(");
    packing job = {.packer = k, .instr = packed_reader(k->program, b)};
    if (!suffix || !job.instr || !k->backend->pack) return hd_fail(err, HD_EUNSUPPORTED, "%s: the back end %s packs no operands", x->path, k->backend->name);
    char *plain = hd_arena_printf(&s->memory, "%.*s", (int)(suffix - x->path), x->path);
    if (!plain) return hd_fail_memory(err, 0, x->path);
    hd_type type = hd_buffer_piece_type(k->program, b, k->place);
    hd_store_tensor *from = hd_store_bind(s, plain, &type, HD_PLAIN, err), *to;
    if (!from) return err->code;
    int rc = hd_store_add(s, x->path, &type, HD_PACKED, HD_PARAM, x->bytes, &to, err);
    if (rc) return rc;
    job.plain = from->data;
    job.packed = to->data;
    hd_team_run(k->team, run_packing, &job);
    return 0;
}
