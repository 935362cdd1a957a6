#!/bin/sh
# The demo: trains a small language model on English text from a Debian package, measures it on documents it has not seen, and lets it write.
#
#   tools/demo.sh BUILD_DIR [STEPS]
#
# Everything it makes lies in BUILD_DIR/demo. Fails when the model does worse on held-out documents than gzip -9 on the same text.
set -eu
build=$1
steps=${2:-600}
heddle=$build/heddle
here=$(cd "$(dirname "$0")/.." && pwd)
out=$build/demo
export HEDDLE_CLUSTER=none # the demo is the same on every machine: this one is not calibrated for it
start=$(date +%s)
say() { printf '\n== %s (%s s)\n' "$1" "$(($(date +%s) - start))"; }

rm -rf "$out/run" && mkdir -p "$out"
say "English text from a Debian package"
[ -s "$out/text.jsonl" ] || "$here/tools/demo-corpus.sh" "$out/text.jsonl"

# Every 20th document is kept from tokenizer and model.
awk -v train="$out/train.jsonl" -v held="$out/held.jsonl" '{ print > (NR % 20 == 0 ? held : train) }' "$out/text.jsonl"
plain() { sed -e 's/^{"text": "//' -e 's/"}$//' -e 's/\\n/\n/g' -e 's/\\t/\t/g' -e 's/\\"/"/g' -e 's/\\\\/\\/g' "$1"; }
plain "$out/held.jsonl" > "$out/held.txt"

say "a tokenizer of 4096 tokens from that text, and the text as tokens"
"$heddle" data --train-tokenizer "$out/tokenizer.json" --vocab-size 4096 --out "$out/train" "$out/train.jsonl"
"$heddle" data --tokenizer "$out/tokenizer.json" --out "$out/held" "$out/held.jsonl"

say "training a Llama-style model"
# bf16 where the processor computes with it, f32 elsewhere
precision=f32
"$heddle" --version | grep -q 'instruction set: bf16' && precision=bf16
cp "$here/examples/demo/config.json" "$out/config.json"
"$heddle" train "$out/config.json" --data "$out/train" --out "$out/run" --steps "$steps" --batch 8 --sequence 256 --precision $precision \
    --learning-rate 0.003 --least-learning-rate 0.0003 --warmup 40 --validation 0.01 --eval-every 200 --save-every 0:1
model=$out/run/step-$steps

say "held-out documents: bits for each byte of text"
"$heddle" train "$model" --data "$out/held" --eval-only --validation 1 --batch 8 --sequence 256 --quiet > "$out/eval.txt"
ours=$(sed -n 's/.*bits_per_byte \([0-9.]*\).*/\1/p' "$out/eval.txt")
bytes=$(wc -c < "$out/held.txt")
gzip=$(gzip -9 -c "$out/held.txt" | wc -c | awk -v n="$bytes" '{ printf "%.3f", 8 * $1 / n }')
echo "heddle   $ours"
echo "gzip -9  $gzip   ($bytes bytes)"

say "the model goes on from \"An operating system is\""
"$heddle" generate "$model" --prompt "An operating system is" --max-tokens 120 --temperature 0.7 --top-p 0.95 --repetition-penalty 1.1 --seed 1
say "the same model behind OpenAI's API: 16 requests, 8 at a time"
"$heddle" serve "$model" --port 0 --no-log > "$out/serve.log" 2>&1 &
server=$!
trap 'kill $server 2> /dev/null || true' EXIT
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do grep -q ready "$out/serve.log" && break; sleep 0.5; done
url=$(sed -n 's/.*ready: \(http[^ ]*\).*/\1/p' "$out/serve.log")
"$heddle" bench serve --url "$url" --requests 16 --concurrency 8 --dataset fixed --own-tokens 32 --output-tokens 32 2> /dev/null
kill $server && wait $server

say "how would 39 billion parameters be trained on 64 GPUs of 16 GB?"
"$heddle" plan "$here/examples/planning/gpt-39b/config.json" --cluster p3.16xlarge:64 --batch 1024 --sequence 1024 --precision bf16 | sed -n '1,/^step/p'
say "done: the model is in $model, its loss curve in $out/run/loss.svg"
awk -v a="$ours" -v b="$gzip" 'BEGIN { exit !(a > 0 && a < b) }' || { echo "demo: the model does not beat gzip -9" >&2; exit 1; }
