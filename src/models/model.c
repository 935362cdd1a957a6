/* model.c: finds out what a path is, and builds its graph. */
#include "models/model.h"

#include "base/file.h"
#include "base/json.h"
#include "models/gguf.h"

enum { PATH_SIZE = 4096, MOST_BYTES = 16 << 20, BLOCK = 16 /* of keys and values, as the generator's (serve/generator.c) */ };

static bool is_network(const char *path)
{
    json_t *j = json_load_file(path, 0, NULL);
    bool yes = json_object_get(j, "heddle_network");
    json_decref(j);
    return yes;
}

static int open_network(hd_model *m, const char *path, hd_error *err)
{
    m->is_network = true;
    m->network = hd_network_load(path, err);
    return m->network ? 0 : err->code;
}

static int read_config(hd_model *m, const char *path, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    int rc = hd_file_read(&text, path, MOST_BYTES, err);
    if (!rc) rc = hd_lm_config_parse(&m->config, text.data, text.len, path, err);
    hd_str_free(&text);
    return rc;
}

int hd_model_open(hd_model *m, const char *path, hd_error *err)
{
    char inside[PATH_SIZE];
    *m = (hd_model){0};
    if (!hd_file_exists(path)) return hd_fail(err, HD_EINVAL, "%s: there is no such file or directory", path);
    if (hd_gguf_is(path)) return hd_lm_config_open(&m->config, path, err);
    if (!hd_is_dir(path)) return is_network(path) ? open_network(m, path, err) : read_config(m, path, err);
    if (!hd_path_join(inside, sizeof inside, path, "network.json", err) && hd_file_exists(inside)) return open_network(m, inside, err);
    return hd_lm_config_load(&m->config, path, err);
}

void hd_model_close(hd_model *m)
{
    hd_network_free(m->network);
    *m = (hd_model){0};
}

static hd_graph *language_graph(const hd_model *m, const hd_model_options *o, hd_error *err)
{
    int64_t longest = o->mode == HD_LM_SERVE ? o->context : o->sequence;
    if (m->config.family == HD_FAMILY_GPT2 && longest > m->config.max_positions) {
        hd_fail(err, HD_EINVAL, "sequences of %lld tokens, and the model has learned %lld positions: at most that many", (long long)longest, (long long)m->config.max_positions);
        return NULL;
    }
    hd_lm_options lm = {.mode = o->mode, .compute = o->precision, .param = HD_F32, .tokens = o->batch * o->sequence, .sequence = o->sequence,
                        .attention = o->attention, .half_stream = o->half_stream};
    if (o->mode == HD_LM_SERVE) {
        lm.param = lm.kv = o->precision;
        lm.tokens = o->sequence < o->context ? o->sequence : o->context;
        lm.sequence = 0;
        lm.context = o->context;
        lm.rows = lm.sequences = 1;
        lm.block = BLOCK;
        lm.blocks = (o->context + BLOCK - 1) / BLOCK;
    }
    return hd_lm_graph(&m->config, &lm, err);
}

hd_graph *hd_model_graph(const hd_model *m, const hd_model_options *o, hd_error *err)
{
    if (!m->is_network) return language_graph(m, o, err);
    if (o->mode != HD_LM_SERVE) return hd_network_graph(m->network, &(hd_network_options){.batch = o->batch, .train = o->mode == HD_LM_TRAIN}, err);
    hd_fail(err, HD_EINVAL, "%s is a network file: generating is for language models", hd_network_name(m->network));
    return NULL;
}
