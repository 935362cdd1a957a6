/* train.c: heddle train: train or fine-tune. */
#include "cli/cli.h"
#include "train/trainer.h"

static int run(const void *config, const char *const *words, int n_words, hd_error *err)
{
    (void)words, (void)n_words;
    return hd_train(config, err);
}

const hd_command hd_cmd_train = {
    .name = "train",
    .usage = "--model PATH [--data PATH] [--out DIR] [flags]",
    .summary = "train or fine-tune a model",
    .details = "A language model (a Hugging Face directory to train further, or a config.json for a new one) learns from text: shards made by `heddle data`, or\n"
               "a .jsonl or text file. Any other network is a network file (docs/network-files.md), which names its data itself. Checkpoints are Hugging Face\n"
               "directories with the optimizer's state beside the weights; a run goes on from the newest under --out, exactly as if it had never stopped.",
    .settings = hd_train_settings,
    .config_size = sizeof(hd_train_config),
    .max_words = 0,
    .run = run,
};
