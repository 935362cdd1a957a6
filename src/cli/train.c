/* train.c: heddle train: train or fine-tune. */
#include "base/file.h"
#include "cli/cli.h"
#include "train/trainer.h"

/* The model is --model's, or the word. */
static const char *model_of(const hd_train_config *c, const char *const *words, int n_words)
{
    return n_words ? words[0] : c->model;
}

static int run(const void *config, const char *const *words, int n_words, hd_error *err)
{
    hd_train_config c = *(const hd_train_config *)config;
    if (n_words && c.model) return hd_fail(err, HD_EINVAL, "\"%s\" and --model %s: name one model", words[0], c.model);
    c.model = model_of(&c, words, n_words);
    return hd_train(&c, err);
}

/* The "train" section of a network file: how that network is best trained. */
static json_t *brought(const void *config, const char *const *words, int n_words, hd_error *err)
{
    const char *model = model_of(config, words, n_words);
    json_error_t e;
    (void)err; /* what is wrong with the file is said when it is read for real */
    if (!model || hd_is_dir(model)) return NULL;
    json_t *j = json_load_file(model, 0, &e), *section = json_object_get(j, "heddle_network") ? json_object_get(j, "train") : NULL;
    json_incref(section);
    json_decref(j);
    return section;
}

const hd_command hd_cmd_train = {
    .name = "train",
    .usage = "MODEL [--data PATH] [--out DIR] [flags]",
    .summary = "train or fine-tune a model",
    .details = "A language model (a Hugging Face directory to train further, or a config.json for a new one) learns from text: shards made by `heddle data`, or\n"
               "a .jsonl or text file. Any other network is a network file (docs/network-files.md), which names its data itself. Checkpoints are Hugging Face\n"
               "directories with the optimizer's state beside the weights; a run goes on from the newest under --out, exactly as if it had never stopped.\n"
               "How the work is split over this machine's cores is searched for where neither --parallel nor --plan says it: on the machine's calibration, which a job of\n"
               "several minutes makes once and keeps in the user's cache (heddle/cluster-HOST.json; HEDDLE_CLUSTER=FILE: this one instead; none: nobody plans\n"
               "unasked); a shorter job without it runs on one rank. What is found divides --batch x --micro-batches sequences of a step in its own way.",
    .settings = hd_train_settings,
    .config_size = sizeof(hd_train_config),
    .max_words = 1,
    .brought = brought,
    .run = run,
};
