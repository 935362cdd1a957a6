#include "program/programs.h"

#include "base/mem.h"

void hd_programs_free(hd_programs *p)
{
    for (int i = 0; p->stage && i < p->n; i++) hd_program_free(p->stage[i]);
    hd_free(p->stage);
    hd_graph_free(p->graph);
    *p = (hd_programs){0};
}
