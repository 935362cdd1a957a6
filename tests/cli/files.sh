#!/usr/bin/env bash
# Data, conversion and inspection of what is well: documents through shards, models through element types, programs through their text.
. "$(dirname "$0")/lib.sh"
make_corpus
has '300 tokens'
has '60 documents'

# A tokenizer from plain text, and from the same text in jsonl, line for line.
awk -F'"' '{print $4}' text.jsonl > text.txt
ok "$heddle" data --train-tokenizer plain.json --vocab-size 300 --quiet text.txt
ok "$heddle" data --train-tokenizer qwen.json --vocab-size 300 --pretokenizer qwen2 --quiet text.jsonl
ok "$heddle" inspect qwen.json --json
has '"kind": "tokenizer"'
has '"vocab": 300'
has '"<\|endoftext\|>": 0'

ok "$heddle" inspect corpus --json
has '"kind": "corpus"'
has '"documents": 60'
ok "$heddle" inspect corpus.idx
ok "$heddle" data --tokenizer tokenizer.json --out lines --unit line --quiet text.txt
cmp -s corpus.bin lines.bin || fail "the same documents in jsonl and in lines of text became different tokens"

# Conversion: f16 there and back; bf16 keeps what bf16 holds; shards keep everything.
for model in gpt2 llama3 qwen2; do
    ok "$heddle" convert "$models/logits/$model" "$model-f32" --dtype f32
    ok "$heddle" convert "$model-f32" "$model-shards" --shard-size 20000
    ok "$heddle" convert "$model-shards" "$model-again"
    cmp -s "$model-f32/model.safetensors" "$model-again/model.safetensors" || fail "$model is another one after cutting it into shards"
    ok "$heddle" convert "$model-f32" "$model-bf16" --dtype bf16
    ok "$heddle" convert "$model-bf16" "$model-wide" --dtype f32
    ok "$heddle" convert "$model-wide" "$model-narrow" --dtype bf16
    cmp -s "$model-bf16/model.safetensors" "$model-narrow/model.safetensors" || fail "$model: bf16 is not kept by f32"
    ok "$heddle" inspect "$model-shards" --json
    has '"kind": "model"'
    has '"file": "model-00001-of-'
    has '"dtype": "f32"'
done
[ -e gpt2-shards/model.safetensors.index.json ] || fail "no index"
refuses 'gpt2-f32 is there already' "$heddle" convert "$models/logits/gpt2" gpt2-f32

# Programs and graphs, for every mode, read back to the same text.
for model in "$models/logits/gpt2" "$models/logits/llama3/config.json" "$root/examples/mlp.json" "$root/examples/convnet.json" "$root/examples/two_tower.json"; do
    modes="train eval"
    case $model in *logits*) modes="$modes generate" ;; esac
    for mode in $modes; do
        for precision in f32 bf16; do
            ok "$heddle" inspect program "$model" --mode $mode --precision $precision --batch 2 --micro-batches 2 --threads 2
            mv out program.txt
            has '^call forward' program.txt
            ok "$heddle" inspect program program.txt
            cmp -s out program.txt || fail "the program of $model ($mode, $precision) is another one when read back"
        done
        ok "$heddle" inspect graph "$model" --mode $mode --batch 2
    done
done
ok "$heddle" inspect program.txt --json
for key in kind path threads buffers calls arena_bytes arena_bound segments memory store arena total text; do has "\"$key\":"; done
ok "$heddle" inspect "$root/examples/mlp.json" --json
has '"parameters": 269322'

# A checkpoint, and text from it that is the same each time.
llama > model.json
ok train --steps 3 --out run
ok "$heddle" inspect run/step-3 --json
has '"kind": "checkpoint"'
has '"step": 3'
has '"checksum"'
ok "$heddle" generate run/step-3 --prompt "ta" --max-tokens 8 --seed 3 --threads 1 --quiet
mv out first
ok "$heddle" generate run/step-3 --prompt "ta" --max-tokens 8 --seed 3 --threads 1 --quiet
cmp -s out first || fail "the same seed gave another text"
finish
