#!/usr/bin/env bash
# Model directories, tokenizers and network files that are not what they should be: one line each, from whatever command reads them.
. "$(dirname "$0")/lib.sh"
make_corpus
llama > model.json
ok train --steps 1 --out run
good=run/step-1

# copy_of NAME: a copy of the good model to spoil.
copy_of() {
    rm -rf "$1"
    cp -r "$good" "$1"
    rm "$1/manifest.json"
}

# every COMMAND that reads weights refuses the model.
all_refuse() { # PATTERN MODEL
    refuses "$1" "$heddle" generate "$2" --prompt a --max-tokens 1 --threads 1
    refuses "$1" "$heddle" convert "$2" converted
    refuses "$1" "$heddle" train --model "$2" --data corpus --batch 1 --sequence 8 --steps 1 --validation 0 --threads 1 --quiet
    [ ! -e converted ] || fail "convert left something behind for $2"
}

ok "$heddle" generate "$good" --prompt ab --max-tokens 3 --temperature 0 --threads 1 --quiet

# safetensors: truncated at every kind of place, and spoiled.
size=$(stat -c %s "$good/model.safetensors")
for bytes in 0 4 8 100 $((size - 1)); do
    copy_of bad
    truncate -s "$bytes" bad/model.safetensors
    all_refuse 'model.safetensors' bad
    refuses 'model.safetensors' "$heddle" inspect bad
done
copy_of bad
printf '\377\377\377\377\377\377\377\177' | dd of=bad/model.safetensors conv=notrunc status=none
all_refuse 'model.safetensors' bad
copy_of bad
printf 'x' | dd of=bad/model.safetensors bs=1 seek=8 conv=notrunc status=none
all_refuse 'model.safetensors' bad
copy_of bad
sed -i 's/"F32"/"F99"/' bad/model.safetensors
all_refuse 'model.safetensors' bad
rm bad/model.safetensors
all_refuse 'model.safetensors' bad

# A tensor that is missing, one too many by its name, one of another shape.
copy_of bad
sed -i 's/model.norm.weight/model.nurm.weight/' bad/model.safetensors
all_refuse 'model.norm.weight' bad
copy_of bad
llama hidden_size=64 > bad/config.json
all_refuse 'model.safetensors: .* is \[.*\], config.json says \[' bad
copy_of bad
llama num_hidden_layers=2 > bad/config.json
all_refuse 'there is no tensor model.layers.1' bad

# An index of shards.
ok "$heddle" convert "$good" sharded --shard-size 20000
ok "$heddle" generate sharded --prompt ab --max-tokens 1 --threads 1 --quiet
shard=$(cd sharded && echo model-00002-of-*.safetensors)
cp -r sharded bad-index
rm "bad-index/$shard"
all_refuse "names \"$shard\", which is missing" bad-index
cp "sharded/$shard" elsewhere.safetensors
sed -i "s/$shard/..\/elsewhere.safetensors/" bad-index/model.safetensors.index.json
all_refuse 'names "../elsewhere.safetensors", which is outside the directory' bad-index
sed -i "s#\"../elsewhere.safetensors\"#\"$work/elsewhere.safetensors\"#" bad-index/model.safetensors.index.json
all_refuse 'outside the directory' bad-index
echo '{"weight_map": {}}' > bad-index/model.safetensors.index.json
all_refuse 'weight_map' bad-index
echo '{"weight_map": ' > bad-index/model.safetensors.index.json
all_refuse 'index.json' bad-index

# config.json.
copy_of bad
llama architectures='["MambaForCausalLM"]' model_type='"mamba"' > bad/config.json
all_refuse 'Mamba' bad
refuses 'Mamba' "$heddle" inspect bad
llama num_attention_heads=5 > bad/config.json
all_refuse 'config.json' bad
llama vocab_size=-3 > bad/config.json
all_refuse 'config.json.*vocab_size' bad
llama hidden_size=1e300 > bad/config.json
all_refuse 'config.json.*hidden_size' bad
llama hidden_act='"warp"' > bad/config.json
all_refuse 'config.json.*warp' bad
echo '{' > bad/config.json
all_refuse 'config.json' bad
rm bad/config.json
all_refuse 'config.json' bad

# tokenizer.json.
copy_of bad
sed -i 's/"pre_tokenizer": *{[^}]*}/"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(unclosed"},"behavior":"Isolated","invert":false}/' bad/tokenizer.json
cmp -s bad/tokenizer.json "$good/tokenizer.json" && fail "the tokenizer was not spoiled"
refuses 'tokenizer.json.*\(unclosed' "$heddle" generate bad --prompt a
refuses 'tokenizer.json.*\(unclosed' "$heddle" inspect bad
refuses 'tokenizer.json.*\(unclosed' "$heddle" data --tokenizer bad/tokenizer.json --out x text.jsonl
head -c 500 "$good/tokenizer.json" > bad/tokenizer.json
refuses 'tokenizer.json' "$heddle" generate bad --prompt a
rm bad/tokenizer.json
refuses 'tokenizer.json' "$heddle" generate bad --prompt a

# Network files.
sed 's/"op": "relu"/"op": "rellu"/' "$root/examples/mlp.json" > network.json
refuses 'network.json.*rellu' "$heddle" train --model network.json --steps 1 --quiet
refuses 'network.json.*rellu' "$heddle" inspect network.json
head -c 700 "$root/examples/mlp.json" > network.json
refuses 'network.json' "$heddle" train --model network.json --steps 1 --quiet

# What is no model at all.
refuses 'nothing that heddle knows' "$heddle" inspect "$heddle"
refuses 'no such file' "$heddle" inspect nowhere
mkdir nothing
refuses 'neither a model nor a checkpoint' "$heddle" inspect nothing
echo 'program threads=zwei' > program.txt
refuses 'program.txt:1' "$heddle" inspect program program.txt
finish
