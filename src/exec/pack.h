/* pack.h: packed constants: weights repacked once for the back end's kernels. A Program reads them as "PATH.packed(NOTATION)"; a Store that has not got one
 * gets it from PATH. packed_file.h keeps them on disk. */
#ifndef HD_EXEC_PACK_H
#define HD_EXEC_PACK_H

#include "base/thread.h"
#include "exec/backend.h"
#include "exec/store.h"

/* Of what packing writes. Raise it whenever that changes for equal files of weights, be it in a kernel's panels or in what loading puts into a parameter: files
 * of packed weights made before are then made anew. tests/test_packed.c notices. */
#define HD_PACK_VERSION 2

/* Who packs. */
typedef struct hd_packer {
    const hd_program *program;
    const hd_backend *backend;
    hd_team *team;
    int place; /* of the rank in the program's mesh; 0: the only one */
} hd_packer;

static inline bool hd_buffer_is_packed(const hd_program *p, int b) { return p->buffers[b].format == HD_PACKED && p->buffers[b].view_of < 0; }

/* The type of the piece of buffer b that the rank at `place` has. */
hd_type hd_buffer_piece_type(const hd_program *p, int b, int place);

/* Adds packed constant b to the store, out of the plain one there. HD_EUNSUPPORTED: the back end packs nothing. */
int hd_pack_constant(const hd_packer *k, hd_store *s, int b, hd_error *err);

#endif
