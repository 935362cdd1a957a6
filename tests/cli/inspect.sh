#!/usr/bin/env bash
# `heddle inspect --json`: every key that docs/inspect.md names is there, for every kind of thing.
. "$(dirname "$0")/lib.sh"
make_corpus
llama > model.json
ok train --steps 1 --out run
ok train --steps 7 --out traced --trace run.json
ok "$heddle" convert run/step-1 sharded --shard-size 20000
echo '{"version": 1, "fingerprint": "0", "micro_batches": 2, "precision": "f32"}' > plan.json
ok "$heddle" inspect program sharded --sequence 8
mv out program.txt

# describes KIND PATH...: the kind, and the documented keys, in what is said of the paths together.
kinds=0
describes() {
    local kind=$1 row key
    shift
    : > all
    for path in "$@"; do
        ok "$heddle" inspect $path --json
        has "^  \"kind\": \"$kind\",$"
        cat out >> all
    done
    row=$(grep "^| \`$kind\` |" "$root/docs/inspect.md") || fail "docs/inspect.md doesn't name $kind"
    # what stands in parentheses explains a key; "as `network`" and the like refer to other rows
    for key in kind path $(sed -E "s/^\| [^|]*\|//; s/\([^)]*\)//g; s/as \`[a-z]*\`//g" <<< "$row" | grep -o '`[a-z_]*`' | tr -d '`'); do
        grep -q "\"$key\":" all || fail "inspect $* --json has no key \"$key\""
    done
    kinds=$((kinds + 1))
}
describes model sharded
describes config sharded/config.json model.json
describes weights run/step-1/model.safetensors sharded/model.safetensors.index.json
describes tokenizer tokenizer.json
describes corpus corpus corpus.idx corpus.bin
describes network "$root/examples/mlp.json"
describes graph "graph $root/examples/convnet.json" "graph model.json"
describes program program.txt "program model.json --mode generate"
describes checkpoint run/step-1 run/step-1/manifest.json
describes plan plan.json
describes trace run.json
ok "$heddle" convert run/step-1 --out model.gguf
sed 's/llama.block_count/llama.block_kount/' model.gguf > strange.gguf
describes gguf model.gguf strange.gguf
same "kinds in docs/inspect.md, but \"all\"" "$(grep -c '^| `' "$root/docs/inspect.md")" "$kinds"

# Numbers that are known: 300 rows of 32, a layer, the last norm.
ok "$heddle" inspect sharded/config.json --json
has "\"parameters\": $((300 * 32 + 32 * 32 * 2 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32 + 32)),"
ok "$heddle" inspect run/step-1/model.safetensors
has '^parameters: 17376$'
has '^bytes: 69504$'
has '^  model.embed_tokens.weight  *f32  \[300, 32\]  38400$'
ok "$heddle" inspect corpus --json
has "\"bytes\": $(($(stat -c %s corpus.bin) + $(stat -c %s corpus.idx)))"

# Any stage of a plan: read back as it is printed, and what a rank of it sends.
llama num_hidden_layers=2 > deep.json
ok "$heddle" inspect program deep.json --parallel dp=2,tp=2,pp=2 --rank 5 --batch 2 --micro-batches 2
cp out stage.txt
has '^program .*stage=1/2 mesh=pp:2:pipeline,dp:2:data,tp:2:model$'
ok "$heddle" inspect program stage.txt
cmp -s out stage.txt || fail "a stage's program is not read back as it was"
ok "$heddle" inspect program stage.txt --count
has '^all_reduce  *tp '
has '^send  *pp '
ok "$heddle" inspect program deep.json --parallel 'dp=3|tp=2' --rank 4 --batch 3 --micro-batches 2
cp out stage.txt
has '^program .*stage=1/2 mesh=pp:1:pipeline,tp:2:model$'
has '^stage 1 first=3 mesh=pp:1:pipeline,tp:2:model$'
has '^  %[0-9]* = recv\(\) from=0 to=1 .* there=dp\*[0-9]*,- ;'
ok "$heddle" inspect program stage.txt
cmp -s out stage.txt || fail "a program of a stage of its own mesh is not read back as it was"
refuses 'there are 5 ranks, from 0' "$heddle" inspect program deep.json --parallel 'dp=3|tp=2' --rank 5 --batch 3 --micro-batches 2
refuses 'there are 2 ranks, from 0' "$heddle" inspect program model.json --parallel dp=2 --rank 2
refuses 'there is no "qq"' "$heddle" inspect program model.json --parallel qq=2
finish
