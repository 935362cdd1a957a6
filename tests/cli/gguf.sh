#!/usr/bin/env bash
# GGUF files on the command line: convert there and back, inspect, generate; and files that are none.
. "$(dirname "$0")/lib.sh"
make_corpus
llama > model.json
ok train --steps 2 --out run
model=run/step-2

# There and back keeps every number, the tokenizer, and what the model writes.
ok "$heddle" convert "$model" --out model.gguf --dtype f32
has '^model.gguf: LlamaForCausalLM, 17376 parameters in f32$'
ok "$heddle" convert "$model" again.gguf --dtype f32 --quiet
cmp -s model.gguf again.gguf || fail "the same model became another file"
ok "$heddle" convert model.gguf back
ok "$heddle" convert back --out third.gguf --quiet
cmp -s model.gguf third.gguf || fail "the model is another one after going through a directory"
for prompt in "ta" "the e" ""; do
    ok "$heddle" generate "$model" --prompt "x $prompt" --max-tokens 12 --seed 3 --threads 1 --precision f32 --quiet
    mv out from-directory
    ok "$heddle" generate model.gguf --prompt "x $prompt" --max-tokens 12 --seed 3 --threads 1 --precision f32 --quiet
    cmp -s out from-directory || fail "from a GGUF file another text goes on from \"x $prompt\""
done

# Other element types.
for type in f16 bf16 q8_0 q4_0; do
    ok "$heddle" convert "$model" --out "$type.gguf" --dtype $type
    ok "$heddle" generate "$type.gguf" --prompt ta --max-tokens 3 --threads 1 --quiet
    ok "$heddle" inspect "$type.gguf"
    has "^types: .*$(tr a-z A-Z <<< $type) [0-9]+"
    has '^  blk.0.attn_norm.weight  *F32  \[32\]  128$'
done
has '^  blk.0.attn_q.weight  *Q4_0  \[32, 32\]  576$'
has '^  token_embd.weight  *Q8_0  \[300, 32\]  10200$'

# From one GGUF file to another, with a tokenizer that no directory can have.
mixed=$root/tests/data/gguf/llama-mixed.gguf
ok "$heddle" convert "$mixed" --out plain.gguf --dtype f32
for file in "$mixed" plain.gguf; do
    ok "$heddle" generate "$file" --prompt "The License" --max-tokens 8 --temperature 0 --threads 1 --precision f32 --quiet
    mv out "from-$(basename "$file")"
done
printf 'The\nLicense \377\n' | "$heddle" generate "$mixed" --chat --max-tokens 2 --temperature 0 --threads 1 > out 2> err || fail "chat: $(cat err)"
[ "$(grep -c 'prompt .* tokens' err)" = 2 ] || fail "two turns get two answers: $(cat err)"
cmp -s from-llama-mixed.gguf from-plain.gguf || fail "the same numbers in F32 write another text"
refuses 'SentencePiece' "$heddle" convert "$mixed" directory

# Inspection: the documented keys.
ok "$heddle" inspect model.gguf --json
has '"kind": "gguf"'
has '"version": 3'
has '"key": "general.architecture"'
has '"architecture": "LlamaForCausalLM"'
has '"parameters": 17376'
ok "$heddle" inspect graph model.gguf --mode generate
ok "$heddle" inspect "$mixed"
for type in Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL Q5_1 BF16; do has "^  $type: "; done

# every command that reads a model refuses the file.
all_refuse() { # PATTERN FILE
    refuses "$1" "$heddle" generate "$2" --prompt a --max-tokens 1 --threads 1
    refuses "$1" "$heddle" convert "$2" converted
    refuses "$1" "$heddle" convert "$2" converted.gguf
    [ ! -e converted ] && [ ! -e converted.gguf ] && [ ! -e converted.gguf.partial ] || fail "convert left something behind for $2"
}
size=$(stat -c %s model.gguf)
for bytes in 4 8 24 100 2000 $((size / 2)) $((size - 100)); do
    head -c "$bytes" model.gguf > bad.gguf
    all_refuse 'bad.gguf: .*(truncated|not a GGUF file)' bad.gguf
    refuses 'bad.gguf: ' "$heddle" inspect bad.gguf
done
spoil() { # OFFSET BYTES
    cp model.gguf bad.gguf
    printf "$2" | dd of=bad.gguf bs=1 seek="$1" conv=notrunc status=none
}
spoil 4 '\001'
all_refuse 'version 1 is not supported' bad.gguf
spoil 8 '\377\377\377\377\377\377\377\377'
all_refuse 'tensors go beyond' bad.gguf
spoil 16 '\377\377\377\377\377\377\377\177'
all_refuse 'pieces of metadata go beyond' bad.gguf
sed 's/blk.0.ffn_up.weight/blk.0.ffn_op.weight/' model.gguf > bad.gguf
all_refuse 'there is no tensor blk.0.ffn_up.weight' bad.gguf
sed 's/llama.block_count/llama.block_kount/' model.gguf > bad.gguf
all_refuse '"llama.block_count" is missing' bad.gguf
ok "$heddle" inspect bad.gguf
has '^unsupported: .*"llama.block_count" is missing$'
sed 's/tokenizer.ggml.pre/tokenizer.ggml.pra/' model.gguf > bad.gguf
refuses '"tokenizer.ggml.pre" is missing' "$heddle" generate bad.gguf --prompt a --max-tokens 1
: > empty.gguf
refuses 'empty.gguf' "$heddle" inspect empty.gguf

# What cannot be written.
refuses 'model.gguf is there already' "$heddle" convert "$model" model.gguf
refuses 'GGUF' "$heddle" convert "$model" --out quantized --dtype q4_0
refuses 'cannot say this activation' "$heddle" convert "$models/logits/mistral-window" --out gelu.gguf
refuses 'name the model to read and the one to write' "$heddle" convert "$model"
refuses 'dtype' "$heddle" convert "$model" --out x.gguf --dtype q9
refuses 'no/such/folder' "$heddle" convert "$model" --out no/such/folder/x.gguf
finish
