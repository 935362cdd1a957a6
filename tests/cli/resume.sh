#!/usr/bin/env bash
# Runs that are cut in two: by a signal, a damaged checkpoint, a full disk behind standard output, a plan that does not fit. A run that goes on is,
# byte for byte, the one that never stopped.
. "$(dirname "$0")/lib.sh"
make_corpus
llama > model.json

# A whole run, and a part of it that goes on. The learning rate follows a cosine to the same end.
ok train --steps 6 --save-every 3:0 --out whole
last=$(sum_of whole/step-6)
first=$(sum_of whole/step-3)
mkdir part
cp -r whole/step-3 part/
ok train --steps 6 --out part --no-quiet
has 'going on from part/step-3' err
same "the run that was cut in two" "$(cd part && sum_of step-6)" "$(cd whole && sum_of step-6)"
same "its first half" "$(cd part && sum_of step-3)" "$(cd whole && sum_of step-3)"
ok train --steps 6 --out part
has 'all 6 steps are done already' err
ok train --steps 2 --out part
same "a shorter run leaves what is there" "$(cd part && sum_of step-6)" "$(cd whole && sum_of step-6)"

# The newest checkpoint is damaged in every kind of way: the one before is taken, and the end is the same.
# What each kind of damage is called.
declare -A called=([sizes]='state.safetensors has [0-9]+ bytes instead of' [bits]='state.safetensors is damaged' [config]='config.json is damaged'
    [missing]='model.safetensors is missing' [manifest]='manifest.json: line' [no_manifest]='manifest.json: No such file')
spoil_sizes() { truncate -s -1 part/step-6/state.safetensors; }
spoil_bits() { printf 'xyz' | dd of=part/step-6/state.safetensors bs=1 seek=3000 conv=notrunc status=none; }
spoil_config() { sed -i 's/32/48/' part/step-6/config.json; }
spoil_missing() { rm part/step-6/model.safetensors; }
spoil_manifest() { echo '{' > part/step-6/manifest.json; }
spoil_no_manifest() { rm part/step-6/manifest.json; }
for how in sizes bits config missing manifest no_manifest; do
    spoil_$how
    [ $how = no_manifest ] || refuses "${called[$how]}" "$heddle" inspect part/step-6
    ok train --steps 6 --out part --no-quiet
    has "passing over a checkpoint: .*${called[$how]}" err
    has 'going on from part/step-3' err
    same "after damage ($how)" "$(cd part && sum_of step-6)" "$(cd whole && sum_of step-6)"
done
mv part/step-6 part/.step-6.partial
ok train --steps 6 --out part
[ ! -e part/.step-6.partial ] || fail "an unfinished checkpoint stayed"
same "after an unfinished save" "$(cd part && sum_of step-6)" "$(cd whole && sum_of step-6)"

# A run that must not go on starts over.
ok train --steps 6 --save-every 3:0 --no-resume --out part
same "without resuming" "$(cd part && sum_of step-6)" "$(cd whole && sum_of step-6)"

# SIGINT, and SIGTERM twice.
start() { # DIR: a run without end in the background, `child`, that has made its first steps
    "$heddle" train --model model.json --data corpus --tokenizer tokenizer.json --batch 2 --sequence 16 --validation 0 --threads 1 --quiet --steps 1000000 \
        --schedule constant --out "$1" > out 2> err &
    child=$!
    for _ in $(seq 100); do [ -s "$1/metrics.jsonl" ] && break || sleep 0.05; done
}
set -m # a job in the background would ignore SIGINT otherwise
for signal in INT TERM; do
    start stopped-$signal
    kill -$signal $child
    wait $child
    same "status after SIG$signal" "$?" 130
    has 'stopped after step [0-9]+, which is saved' err
    same "lines after SIG$signal" "$(wc -l < err)" 1
    step=$(sed -E 's/.*stopped after step ([0-9]+),.*/\1/' err)
    ok train --steps $((step + 2)) --schedule constant --out stopped-$signal --no-quiet
    has "going on from stopped-$signal/step-$step" err
    ok train --steps $((step + 2)) --schedule constant --out straight-$signal
    same "stopped by SIG$signal, and not" "$(cd stopped-$signal && sum_of step-$((step + 2)))" "$(cd straight-$signal && sum_of step-$((step + 2)))"
done
set +m

# Without clipping, a gradient can overflow where the loss doesn't: what was saved until then are numbers. And what isn't is called so when evaluated.
refuses 'step [0-9]+: .*first value that is not a number is embed.tokens; nothing was saved after step [0-9]+$' \
    train --optimizer sgd --learning-rate 1e6 --clip 0 --schedule constant --steps 40 --save-every 1:0 --out steep
evaluates() { "$heddle" train --model "$1" --data corpus --eval-only --batch 2 --sequence 16 --validation 0.2 --threads 1 --quiet; }
for saved in steep/step-*; do
    ok evaluates "$saved"
    has ' loss [0-9.]+ '
done
cp -r whole/step-6 poisoned
printf '\000\000\300\177' | dd of=poisoned/model.safetensors bs=1 seek=$(($(stat -c %s poisoned/model.safetensors) - 4)) conv=notrunc status=none
refuses 'the loss on held-out data is -?nan; the first value that is not a number is ' evaluates poisoned

# Standard output on a full disk.
full() { "$heddle" "$@" > /dev/full; }
if [ -c /dev/full ]; then
    refuses 'standard output' full inspect whole/step-6
    refuses 'written|standard output' full inspect whole/step-6 --json
    refuses 'standard output' full inspect program whole/step-6
    refuses 'standard output' full generate whole/step-6 --prompt ta --max-tokens 3 --threads 1 --quiet
    refuses 'standard output' full train --model whole/step-6 --data corpus --eval-only --quiet --threads 1 --sequence 16 --batch 1 --eval-every 0:1
fi

# Plans.
plan() { printf '%s' "$1" > plan.json; }
plan '{"version": 1, "micro_batches": 2, "precision": "f32", "threads": 1}'
ok train --plan plan.json --steps 1 --out planned
refuses_plan() { refuses "$1" train --plan plan.json --steps 1 --out other; }
plan '{"version": 1, "micro_batches": 0}'
refuses_plan '"micro_batches" must be an integer from 1'
plan '{"version": 9}'
refuses_plan 'plan.json: the plan is of version 9'
plan '{"version": 1, "mikro_batches": 2}'
refuses_plan 'plan.json: a plan has no key "mikro_batches"'
plan '{"version": 1, "precision": "f8"}'
refuses_plan 'plan.json: "precision" must be'
plan '{"version": 1, "fingerprint": "00000000deadbeef"}'
refuses_plan 'made for another network'
plan '{"version": 1, "backend": "abacus"}'
refuses_plan 'abacus'
plan '{"version": 1,'
refuses_plan 'plan.json: '
plan '[]'
refuses_plan 'plan.json: a plan must be a JSON object'
rm plan.json
refuses_plan 'plan.json: '
[ ! -e other ] || fail "a refused plan left something behind"
finish
