#!/usr/bin/env bash
# What can go wrong while training: no data, a full disk, numbers that stop being numbers, damaged checkpoints, signals. The last good checkpoint
# stays as it is, and training goes on from it.
. "$(dirname "$0")/lib.sh"
make_corpus
llama > model.json

# Data.
: > empty.jsonl
: > empty.txt
printf '\n\n\n' > blank.txt
refuses 'corpus is empty.*empty.jsonl' "$heddle" data --tokenizer tokenizer.json --out x empty.jsonl
refuses 'corpus is empty.*empty.txt' "$heddle" data --tokenizer tokenizer.json --out x empty.txt
refuses 'corpus is empty.*blank.txt' "$heddle" data --tokenizer tokenizer.json --out x blank.txt
refuses 'corpus is empty.*empty.jsonl' train --data empty.jsonl --steps 1
refuses 'nowhere' train --data nowhere --steps 1
printf '{"text": "a"}\n{"text": 5}\n' > bad.jsonl
refuses 'bad.jsonl.*2' "$heddle" data --tokenizer tokenizer.json --out x bad.jsonl
refuses 'bad.jsonl.*2' "$heddle" data --train-tokenizer t.json bad.jsonl
[ ! -e x.bin ] && [ ! -e x.idx ] && [ ! -e t.json ] || fail "refused data left files behind"
cp corpus.bin short.bin
cp corpus.idx short.idx
truncate -s 100 short.bin
refuses 'short' train --data short --steps 1
cp corpus.bin short.bin
truncate -s 60 short.idx
refuses 'short' train --data short --steps 1
llama vocab_size=100 > small.json
refuses 'tokens' train --model small.json --steps 1
refuses 'sequence|row|long' train --sequence 100000 --steps 1
refuses 'needs [0-9]+ bytes' train --memory 0.001 --steps 1

# Two micro-batches of one row are one of two rows, in bf16 too, where tied weights are read both as they are and rounded: losses, step by step.
for way in "1 2" "2 1"; do
    ok train --precision bf16 --micro-batches ${way% *} --batch ${way#* } --optimizer sgd:0 --clip 0 --learning-rate 0.5 --schedule constant \
        --steps 6 --metrics "micro-${way% *}"
    sed -n 's/.*"loss": \([^,]*\).*/\1/p' "micro-${way% *}" > "loss-${way% *}"
done
paste loss-1 loss-2 | awk '{d = $1 > $2 ? $1 - $2 : $2 - $1; if (!(d <= 2e-3 * $1)) bad = 1} NR == 1 {first = $1} END {exit !(NR == 6 && !bad && $1 < first - 0.1)}' ||
    fail "micro-batches change the losses: $(paste loss-1 loss-2 | tr '\n' ';')"

# A good checkpoint to keep.
ok train --optimizer sgd --learning-rate 0.01 --schedule constant --steps 2 --out run
saved=$(sum_of run/step-2)
untouched() {
    same "$1: the last good checkpoint" "$(sum_of run/step-2)" "$saved"
    same "$1: checkpoints" "$(cd run && echo step-* .step-*)" "step-2 .step-*"
}

# A full disk during a save: files may not grow above 16 KiB, and where mounting is allowed, a real one.
limited() { (ulimit -f 16 && train "$@"); }
refuses 'saving step 4: .*(File too large|No space)' limited --optimizer sgd --schedule constant --steps 4 --out run
untouched "full disk"
if [ "$(id -u)" = 0 ] && mkdir disk && mount -t tmpfs -o size=400k tmpfs disk 2> /dev/null; then
    trap 'umount "$work/disk"; rm -rf "$work"' EXIT
    cp -r run disk/run 2> /dev/null
    head -c 500000 /dev/zero > disk/full 2> /dev/null
    refuses 'No space left' train --optimizer sgd --schedule constant --steps 4 --out disk/run
    same "tmpfs: the last good checkpoint" "$(cd disk && sum_of run/step-2)" "$saved"
    same "tmpfs: checkpoints" "$(cd disk/run && echo step-* .step-*)" "step-2 .step-*"
    refuses 'No space left' "$heddle" data --tokenizer tokenizer.json --out disk/corpus text.jsonl --quiet
    refuses 'No space left' "$heddle" convert run/step-2 disk/converted
    [ ! -e disk/converted ] && [ ! -e disk/converted.partial ] || fail "convert left something on the full disk"
    umount disk && trap 'rm -rf "$work"' EXIT
fi

# A loss that is no number: by steps that are too long, and by weights that hold NaN.
refuses 'step [0-9]+: the loss is .*the first value that is not a number is [a-z].*after step 2$' \
    train --optimizer sgd --learning-rate 1e6 --clip 0 --schedule constant --steps 40 --out run
untouched "too long steps"
refuses 'step [0-9]+: .*the first value that is not a number is [a-z].*after step [0-9]+$' \
    train --optimizer sgd --learning-rate 1e6 --clip 0 --schedule constant --steps 40 --out unclipped --save-every 1:1
ok "$heddle" inspect unclipped/step-* # one is there, and it is whole
cp -r run/step-2 poisoned
rm poisoned/manifest.json poisoned/state.safetensors
printf '\000\000\300\177' | dd of=poisoned/model.safetensors bs=1 seek=$(($(stat -c %s poisoned/model.safetensors) - 4)) conv=notrunc status=none
refuses 'step 1: the loss is -?nan; the first value that is not a number is [a-z0-9._]+;' train --model poisoned --steps 2 --out other
[ -z "$(ls -d other/step-* 2> /dev/null)" ] || fail "a step with NaN was saved"

# Checkpoints that do not fit what is asked, or are damaged.
refuses 'seed' train --optimizer sgd --seed 5 --steps 4 --out run
refuses 'optimizer' train --optimizer adamw --steps 4 --out run
untouched "another run"
ok train --optimizer sgd --learning-rate 0.01 --schedule constant --steps 4 --out run
printf 'x' | dd of=run/step-4/model.safetensors bs=1 seek=3000 conv=notrunc status=none
refuses 'model.safetensors is damaged' "$heddle" inspect run/step-4
ok "$heddle" train --model model.json --data corpus --tokenizer tokenizer.json --batch 2 --sequence 16 --validation 0 --threads 1 --optimizer sgd \
    --learning-rate 0.01 --schedule constant --steps 5 --out run
has 'passing over a checkpoint' err
has 'going on from run/step-2' err
ok "$heddle" inspect run/step-5

# SIGTERM saves and leaves with 130.
(exec "$heddle" train --model model.json --data corpus --tokenizer tokenizer.json --batch 2 --sequence 16 --validation 0 --threads 1 --quiet --steps 1000000 \
    --out signalled > out 2> err) &
child=$!
for _ in $(seq 100); do [ -s signalled/metrics.jsonl ] && break || sleep 0.1; done
kill -TERM $child
wait $child
same "status after SIGTERM" "$?" 130
has 'stopped after step [0-9]+, which is saved' err
ok "$heddle" inspect signalled/step-*
finish
