#!/usr/bin/env bash
# Plans that heddle train finds by itself: on the calibration that is kept in the user's cache or a guess, within what --parallel, --ranks and --device-memory
# leave open; what is said of them; plans that are replayed or refused.
. "$(dirname "$0")/lib.sh"

make_corpus
llama > model.json
llama num_hidden_layers=4 > deep.json

# cluster NAME=VALUE...: this machine as a calibration would describe it, but for the first of these fields of each line.
cluster() {
    local text
    text=$(printf '{"version": 1, "device": {"name": "%s", "cores": %d, "memory": %d, "reserved": 1000000, "bandwidth": 2e10, "launch": 1e-6, "flops": {"f32": 1e11},
"efficiency": {"product": 0.8, "product_half": 1e6, "depth_half": 16, "memory": 0.8}}, "levels": [{"name": "memory", "fanout": %d, "latency": 1e-6, "bandwidth": 1e10, "efficiency": 0.8, "ports": 1}],
"name": "kept"}\n' \
        "$(sed -n '/^model name/{s/^[^:]*: //p;q}' /proc/cpuinfo | cut -c1-47)" "$(nproc)" $(($(getconf _PHYS_PAGES) * $(getconf PAGESIZE))) "$(nproc)")
    for member in "$@"; do text=$(sed -E "s/(\"${member%%=*}\": )[^,}]*/\1${member#*=}/" <<< "$text"); done
    printf '%s\n' "$text"
}
kept=$XDG_CACHE_HOME/heddle/cluster-$(hostname).json
mkdir -p "$(dirname "$kept")"
# job FLAGS...: twelve steps of eight sequences, talking.
job() { "$heddle" train model.json --data corpus --batch 8 --sequence 16 --validation 0 --steps 12 "$@"; }
losses() { sed -n 's/^{"step": \([0-9]*\), "loss": \([^,]*\),.*}$/\1 \2/p' "$1/metrics.jsonl"; }
# close A B: the same steps' losses.
close() {
    join <(losses "$1" | sort) <(losses "$2" | sort) | awk -v want="$(losses "$1" | wc -l)" '{ d = $2 > $3 ? $2 - $3 : $3 - $2; if (!(d <= 1e-4)) bad = 1; n++ } END { exit bad || n != want || !n }' ||
        fail "other losses in $2 than in $1"
}

# Nobody asks for a plan, and the job is short: one rank, and a line that says so. The cache stays empty.
ok job --planner given --out given
[ "$(grep -c plan err)" = 0 ] || fail "a plan though nobody is to search for one"
if [ "$(nproc)" -gt 1 ]; then
    HEDDLE_CLUSTER='' ok job
    has '^heddle: one rank: the job takes it some .*, too little for calibrating .*--planner search searches' err
    HEDDLE_CLUSTER='' ok job --quiet
    [ ! -s err ] || fail "--quiet is not"
fi
[ ! -e "$kept" ] || fail "something was kept"

# Asked for: on a guess. The losses are those of one rank; what was predicted stands beside what was measured.
ok job --ranks 2 --planner megatron --out asked
has '^heddle: plan: .*: 2 ranks of [0-9]+ threads?, [0-9]+ micro-batch.* of [0-9]+; predicted .* a step and .* a rank; .*% of a step is .*next best, .*not calibrated' err
has '^heddle: predicted .* ms a step, .* a rank; measured .* ms, ' err
has '"predicted_step_seconds": .*"measured_step_seconds": .*"predicted_rank_bytes": .*"measured_rank_bytes": ' asked/metrics.jsonl
close given asked
ok job --ranks 2 --steps 3 --planner data-parallel
has '^heddle: predicted .* measured ' err
ok job --ranks 2 --planner data-parallel --quiet
[ ! -s err ] || fail "--quiet is not"
for name in search zero flexflow; do
    ok job --ranks 2 --planner $name --out "by-$name"
    close given "by-$name"
done

# What is kept is taken; what is of another machine is not.
cluster > "$kept"
for ranks in 0 2; do
    HEDDLE_CLUSTER='' ok job --ranks $ranks --out "kept-$ranks"
    has '^heddle: plan: .*\(kept\)$' err
    close given "kept-$ranks"
done
for other in "cores=$(($(nproc) + 1))" 'name="another chip"' 'memory=123456789012'; do
    cluster "$other" > "$kept"
    HEDDLE_CLUSTER='' ok job --ranks 2 --planner data-parallel
    has '^heddle: plan: .*not calibrated' err
done
echo '{' > "$kept"
HEDDLE_CLUSTER='' ok job --ranks 2 --planner data-parallel
has '^heddle: plan: .*not calibrated' err
cluster > named.json
HEDDLE_CLUSTER=named.json ok job --planner data-parallel
has '^heddle: plan: ' err
HEDDLE_CLUSTER=nowhere.json refuses 'nowhere.json' job --planner data-parallel

# What --parallel says stays so, with auto or with more --ranks.
ok job --parallel tp=2,auto --planner megatron --ranks 2
has '^heddle: plan: .*tp=2' err
ok job --parallel tp=2 --planner megatron --ranks 4 --out pinned
has '^heddle: plan: .*tp=2' err
close given pinned
ok job --parallel dp=2 --planner zero --quiet --out by-hand # all is said
[ ! -s err ] || fail "a plan that is given was searched for"
refuses 'which is 4 ranks' job --parallel tp=2,pp=2 --ranks 3
refuses '--planner must be one of search, ' job --planner best
refuses 'one rank only' job --ranks 2 --lora-rank 2
ok job --lora-rank 2 --quiet

# As many samples of a step, however many micro-batches; evaluations of as many sequences.
ok job --batch 2 --micro-batches 4 --ranks 2 --planner data-parallel --out divided
has ' of [0-9]+; predicted' err
close given divided
ok "$heddle" train "$root/examples/convnet.json" --batch 4 --micro-batches 2 --steps 2 --ranks 2 --planner data-parallel
has ', 2 micro-batches of 4; predicted' err

# The limit of a rank, by hand or searched for.
refuses 'over the memory limit: rank 0 needs [0-9]+ bytes .* allows 409600 .*recompute=full' job --device-memory 400K --parallel dp=2 --quiet
refuses 'over the memory limit: rank [01] needs [0-9]+ bytes .* allows 104857 ' job --device-memory 0.1M --planner given --quiet
ok job --device-memory 600K --planner zero --ranks 2 --out capped
close given capped
refuses 'no plan: ' job --device-memory 20K --planner zero --ranks 2 --quiet
refuses 'over the memory limit: rank [01] ' job --device-memory 300K --parallel 'tp=2' --quiet

# Plans in files: replayed, or refused with what differs.
ok "$heddle" plan model.json --parallel dp=2 --batch 4 --micro-batches 2 --sequence 16 --cluster cpu:2 --out plan.json
ok job --batch 4 --plan plan.json --out replayed
close given replayed
refuses 'made for micro-batches of 64 tokens, these have 128: give the --batch' job --plan plan.json --quiet
refuses 'made for another network, optimizer or precision' job --batch 4 --plan plan.json --optimizer sgd --quiet
refuses '--ranks 3 and --plan' job --batch 4 --plan plan.json --ranks 3
ok "$heddle" plan model.json --batch 4 --sequence 16 --cluster cpu:1 --out one.json
refuses 'made for micro-batches of 64 tokens, these have 128' job --plan one.json --quiet

# A plan that no text names: in a file under --out, or one that is gone in the end.
printf '%s\n' '{"version": 1, "name": "slow", "device": {"name": "x", "cores": 2, "memory": 20000000000, "bandwidth": 2e10, "launch": 1e-6, "flops": {"f32": 1e10},
"efficiency": {"product": 0.8, "product_half": 1e3, "depth_half": 1, "memory": 0.8}}, "levels": [{"name": "memory", "fanout": 2, "latency": 1e-6, "bandwidth": 3e7, "efficiency": 0.8, "ports": 1}]}' > slow.json
sed 's/"train": 20000/"train": 200/; s/"test": 4000/"test": 40/' "$root/examples/mlp.json" > few.json
layers() { HEDDLE_CLUSTER=slow.json TMPDIR=$work "$heddle" train few.json --steps 2 --batch 16 --planner flexflow "$@"; }
ok layers --planner given --out layers-one
ok layers --parallel auto --out layers-two
has '^heddle: plan: .* with layouts of its own: 2 ranks' err
[ -s layers-two/plan.json ] || fail "the plan is not under --out"
close layers-one layers-two
ok layers --parallel auto
[ -z "$(ls heddle-plan-* 2> /dev/null)" ] || fail "a plan is left over"

# A checkpoint goes on under another plan.
HEDDLE_FAULT=0:7:fail:- refuses 'HEDDLE_FAULT' job --save-every 6 --planner given --quiet --out moved
ok job --ranks 2 --planner zero --out moved
close given moved

# The same over MPI, where there is one: its ranks are told.
if command -v mpirun > /dev/null && train --steps 1 --parallel dp=2 --transport mpi > /dev/null 2>&1; then
    ok job --ranks 2 --batch 2 --micro-batches 4 --planner data-parallel --transport mpi --out mpi
    has '^heddle: predicted .* measured ' err
    close given mpi
    ok layers --parallel auto --transport mpi --out layers-mpi
    close layers-one layers-mpi
    if mpirun --version | grep -q 'Open MPI'; then
        refuses_launched() { mpirun --allow-run-as-root --oversubscribe -n 2 "$@" > out 2> err && fail "was taken: $*"; has 'mpirun started 2 processes: say how to split' err; }
        refuses_launched "$heddle" train model.json --data corpus --batch 8 --sequence 16 --validation 0 --steps 2 --transport mpi
    fi
fi
finish
