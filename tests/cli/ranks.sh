#!/usr/bin/env bash
# Training on many ranks: the losses of one rank, checkpoints that any number of ranks goes on from, and what happens when a rank fails.
. "$(dirname "$0")/lib.sh"
make_corpus
llama num_hidden_layers=2 > model.json
steps() { train --batch 4 --micro-batches 2 --learning-rate 0.01 --schedule constant --clip 1 "$@"; }
losses() { sed -n 's/.*"loss": \([^,]*\).*/\1/p' "$1"; }
close() { # WHAT A B: the losses of two files of metrics
    paste <(losses "$2") <(losses "$3") | awk '{d = $1 > $2 ? $1 - $2 : $2 - $1; if (!(d <= 1e-4)) bad = 1} END {exit !(NR > 0 && !bad)}' ||
        fail "$1: other losses: $(paste <(losses "$2") <(losses "$3") | tr '\n' ';')"
}

# Losses, and files that are written together, are those of one rank.
ok steps --steps 4 --out one
for form in dp=2 tp=2 pp=2 dp=2,zero=3 dp=3 pp=2,v=1,schedule=gpipe dp=2,tp=2,pp=2,sp,zero=1 'dp=3,zero=1|tp=2,sp'; do
    ok steps --steps 4 --parallel "$form" --out "many-$form"
    close "$form" one/metrics.jsonl "many-$form/metrics.jsonl"
    same "$form: files" "$(cd "many-$form/step-4" && ls)" "$(cd one/step-4 && ls)"
done

# Any mesh goes on from any other's checkpoint.
ok steps --steps 6 --out one
for form in dp=1 tp=2 dp=2,zero=3 pp=2; do
    rm -rf again && cp -r "many-dp=2,tp=2,pp=2,sp,zero=1" again
    ok steps --steps 6 --parallel "$form" --out again
    close "on $form" one/metrics.jsonl again/metrics.jsonl
done
for form in tp=2 'dp=1|dp=2,tp=2' 'tp=2|dp=2,zero=3'; do # stages of different meshes, from one another's and on to others
    rm -rf again && cp -r 'many-dp=3,zero=1|tp=2,sp' again
    ok steps --steps 6 --parallel "$form" --out again
    close "on $form" one/metrics.jsonl again/metrics.jsonl
done
rm -rf again && mkdir again && cp -r one/step-6 again/
saved=$(sum_of one/step-6) copied=$(sum_of again/step-6)
ok steps --steps 6 --parallel dp=2,tp=2 --out again # nothing to do
same "a checkpoint that is only read" "$(sum_of again/step-6)" "$copied"
same "one rank's checkpoint" "$(sum_of one/step-6)" "$saved"

# Stages of different meshes from a plan file; each has its own pins.
plan() { # MESHES STAGES PINS
    printf '{"version": 1, "micro_batches": 2, "precision": "f32", "threads": 1, "schedule": "1f1b", "cuts": ["layers.1"], "meshes": [%s], "stages": [%s], "pins": [%s]}' "$@" > plan.json
}
steps_of_plan() { "$heddle" train --model model.json --data corpus --tokenizer tokenizer.json --batch 4 --sequence 16 --validation 0 --quiet --learning-rate 0.01 --schedule constant --clip 1 --plan plan.json "$@"; }
pin() { printf '{"values": "%s", "layout": "%s", "mesh": %d}' "$@"; }
inputs() { for v in tokens targets positions segments; do pin $v 'dp*16' "$1"; [ $v = segments ] || printf ', '; done; }
dp='[{"name": "dp", "size": 2, "role": "data"}]' tp='[{"name": "tp", "size": 3, "role": "model"}]'
plan "$dp, $tp" "0, 1" "$(inputs 0), $(pin 'layers.*.mlp.up' '-,tp' 1)"
ok steps_of_plan --steps 6 --out planned
close "a plan of two meshes" one/metrics.jsonl planned/metrics.jsonl
plan "$dp, []" "0, 0" "$(inputs 0)" # one mesh, as if there were several
ok steps_of_plan --steps 6 --out alike
close "a plan of one mesh twice" one/metrics.jsonl alike/metrics.jsonl
plan "$dp, $tp" "0, 1" "$(inputs 0), $(pin 'layers.*.mlp.upp' '-,tp' 1)"
refuses 'pin layers.\*.mlp.upp = "-,tp" matches nothing' steps_of_plan --steps 1 --out nothing
plan "$dp, $tp" "0, 1" "$(inputs 0), $(pin 'layers.*.mlp.up' '-,tp' 0)"
refuses 'mesh has no axis "tp"' steps_of_plan --steps 1 --out nothing

# Evaluation: the same loss on held-out text.
held() { sed -n 's/.*"eval_loss": \([^,]*\).*/\1/p' "$1" | cut -c1-7; }
ok steps --steps 2 --validation 0.2 --out held-one
for form in dp=2,pp=2 'dp=2|tp=2' 'tp=2,sp|dp=3,zero=3'; do
    ok steps --steps 2 --validation 0.2 --parallel "$form" --out "held-$form"
    same "evaluation with $form" "$(held "held-$form/metrics.jsonl")" "$(held held-one/metrics.jsonl)"
done
[ -n "$(held held-one/metrics.jsonl)" ] || fail "nothing was evaluated"

# A rank that fails: one line with the first cause, nobody left behind; started again, the run ends as if nothing had happened.
ok steps --steps 4 --parallel dp=2 --out whole
for kind in crash fail; do
    export HEDDLE_FAULT=1:3:$kind:$work/fault-$kind
    refuses 'rank 1: ' steps --steps 4 --parallel dp=2 --out "broken-$kind" --save-every 2
    rm "fault-$kind"
    ok steps --steps 4 --parallel dp=2 --out "broken-$kind" --save-every 2 --restarts 1 --no-resume
    has 'rank 1: .*starting again' err
    cmp -s "broken-$kind/step-4/model.safetensors" whole/step-4/model.safetensors || fail "$kind: a run that was started again ends elsewhere"
done
# A rank that fails again at once is given up: fewer, of the same losses.
ok steps --steps 6 --parallel dp=4 --out four
for lost in 3 1; do
    HEDDLE_FAULT=$lost:4:crash:- ok steps --steps 6 --parallel dp=4,zero=1 --out "fewer-$lost" --save-every 2 --restarts 4
    same "restarts" "$(grep -c 'starting again' err) $(grep -c 'again; going on with' err)" "$([ $lost = 3 ] && echo '1 1' || echo '2 2')"
    has 'again; going on with 2 ranks instead of 4, dp=2,zero=1, from the last checkpoint' err
    close "without rank $lost" <(tail -n 3 four/metrics.jsonl) <(tail -n 3 "fewer-$lost/metrics.jsonl")
done
has 'again; going on with 1 rank instead of 2, dp=1, from the last checkpoint' err
if HEDDLE_FAULT=1:3:crash:- steps --steps 4 --parallel tp=2 --out stuck --restarts 5 > out 2> err; then fail "half a matrix is no job"; fi
same "lines" "$(wc -l < err)" 2
has '^heddle train: .*rank 1: crashed .*, again; --parallel tp=2 has no smaller form for 1 rank: only dp can be made smaller' err
HEDDLE_COMM_DEADLINE=2 HEDDLE_FAULT=1:3:hang:$work/fault-hang refuses 'rank [01]: ' steps --steps 4 --parallel dp=2 --out broken-hang
unset HEDDLE_FAULT
# Everything started here works in this script's own folder.
left() { for p in /proc/[0-9]*; do if [ "$(readlink "$p/exe")" = "$(readlink -f "$heddle")" ] && [ "$(readlink "$p/cwd")" = "$PWD" ]; then echo "$p"; fi; done 2> /dev/null; }
[ -z "$(left)" ] || fail "processes are left: $(left)"

# Requests to stop are passed on.
stops() { # FLAGS...
    local pid
    rm -rf stopped
    "$heddle" train --model model.json --data corpus --tokenizer tokenizer.json --batch 2 --sequence 16 --validation 0 --quiet --steps 1000000 --parallel dp=2 --out stopped "$@" > out 2> err &
    pid=$!
    while [ ! -s stopped/metrics.jsonl ] && kill -0 $pid 2> /dev/null; do sleep 0.05; done
    kill -TERM $pid
    wait $pid
    same "status of a stopped run" $? 130
    has '^heddle train: interrupted: stopped after step [0-9]+, which is saved' err
    ls stopped | grep -q '^step-' || fail "a stopped run did not save"
}
stops

# What does not fit together.
refuses '--ranks 3 and --parallel dp=2' steps --steps 1 --parallel dp=2 --ranks 3 --planner given
refuses '--ranks 3 and --parallel dp=2.tp=2' steps --steps 1 --parallel 'dp=2|tp=2' --ranks 3 --planner given
refuses 'at most dp=4' steps --steps 1 --parallel 'tp=2|dp=5'
refuses 'one rank only' steps --steps 1 --parallel dp=2 --lora-rank 2
refuses 'nowhere' steps --steps 1 --parallel dp=2 --data nowhere
refuses 'needs [0-9]+ bytes' steps --steps 1 --parallel dp=2 --memory 0.001
refuses 'step [0-9]+: the loss is .*the first value that is not a number is [a-z].*after step 0$' \
    train --optimizer sgd --learning-rate 1e6 --clip 0 --schedule constant --steps 40 --parallel dp=2 --out unstable
refuses 'step [0-9]+: the loss is ' train --optimizer sgd --learning-rate 1e6 --clip 0 --schedule constant --steps 40 --parallel 'dp=2|tp=2' --out unstable-meshes
HEDDLE_FAULT=2:3:crash:$work/fault-meshes refuses 'rank 2: ' steps --steps 4 --parallel 'dp=2|tp=2' --out broken-meshes

# Traces: of every rank; the same weights with them; beside a prediction in a report.
events() { "$heddle" inspect "$1" | sed -n 's/^events: //p'; }
ok steps --steps 7 --parallel pp=2 --micro-batches 2 --out plain-7
ok steps --steps 7 --parallel pp=2 --micro-batches 2 --out traced-7 --trace run.json
cmp -s plain-7/step-7/model.safetensors traced-7/step-7/model.safetensors || fail "a trace changes the result"
ok "$heddle" inspect run.json
has '^ranks: 2' && has '^steps: 3'
ok steps --steps 2 --trace one.json
ok "$heddle" inspect one.json
has '^ranks: 1' && has '^steps: 1'
ok "$heddle" plan model.json --cluster cpu:2 --batch 4 --sequence 16 --parallel pp=2 --micro-batches 2 --report report.html --measured run.json --trace said.json
grep -q '"measured":{' report.html || fail "no measured run in the report"
same "events of a step, predicted and of three measured ones" "$(($(events said.json) * 3))" "$(events run.json)"
refuses 'nowhere/x.json' steps --steps 1 --trace nowhere/x.json
refuses 'no trace that heddle wrote' "$heddle" plan model.json --cluster cpu:2 --batch 2 --sequence 16 --report report.html --measured model.json
refuses '--optimizer must be' steps --steps 1 --optimizer sgd:1
refuses '--optimizer must be' steps --steps 1 --optimizer sgd:0.9x

# The same over MPI, where there is one.
if command -v mpirun > /dev/null && steps --steps 1 --parallel dp=2 --transport mpi > /dev/null 2>&1; then
    # MPICH's launcher is told from others, whatever its --version lists.
    if command -v mpirun.mpich > /dev/null && mpirun.mpich -n 1 true > /dev/null 2>&1; then
        HEDDLE_MPIRUN=mpirun.mpich ok steps --steps 2 --parallel dp=2 --transport mpi --out by-mpich
        HEDDLE_MPIRUN=mpirun.mpich stops --transport mpi
    fi
    ok steps --steps 4 --parallel dp=2,tp=2 --out local-4
    ok steps --steps 4 --parallel dp=2,tp=2 --transport mpi --out mpi-4
    stops --transport mpi
    cmp -s local-4/step-4/model.safetensors mpi-4/step-4/model.safetensors || fail "MPI's result is not that of threads"
    ok steps --steps 4 --parallel 'dp=2|tp=2' --out local-meshes
    ok steps --steps 4 --parallel 'dp=2|tp=2' --transport mpi --out mpi-meshes
    cmp -s local-meshes/step-4/model.safetensors mpi-meshes/step-4/model.safetensors || fail "MPI's result is not that of threads with stages of different meshes"
    ok steps --steps 7 --parallel pp=2 --micro-batches 2 --transport mpi --trace mpi.json
    same "events of MPI processes and of threads" "$(events mpi.json)" "$(events run.json)"
    for kind in crash kill; do
        HEDDLE_FAULT=1:3:$kind:$work/mpi-$kind refuses 'rank 1: ' steps --steps 4 --parallel dp=2 --transport mpi --out "mpi-broken-$kind"
    done
    HEDDLE_FAULT=2:3:kill:- ok steps --steps 4 --parallel dp=3,zero=2 --transport mpi --out mpi-fewer --restarts 2
    has 'rank 2: .*, again; going on with 1 rank instead of 3, dp=1' err
    close "mpi without rank 2" <(tail -n 2 local-4/metrics.jsonl) <(tail -n 2 mpi-fewer/metrics.jsonl)
    HEDDLE_FAULT=3:3:kill:- ok steps --steps 4 --parallel dp=2,tp=2 --transport mpi --out mpi-half --restarts 2
    has 'rank 3: .*, again; going on with 2 ranks instead of 4, dp=1,tp=2' err
    close "mpi without rank 3" <(tail -n 2 local-4/metrics.jsonl) <(tail -n 2 mpi-half/metrics.jsonl)
    # As Slurm's srun would start them: a stand-in with its --version and its way to pass the environment on.
    mkdir bin
    printf '%s\n' '#!/usr/bin/env bash' '[ "$1" != --version ] || { echo "slurm 22.05.8"; exit; }' 'n=$2' 'shift 2' \
        'while [[ $1 == --* ]]; do case $1 in --export=ALL,*) export "${1#--export=ALL,}" ;; esac; shift; done' \
        'if mpirun --version | grep -qE "Open MPI|OpenRTE"; then exec mpirun --oversubscribe --allow-run-as-root -x HEDDLE_SUPERVISED -n "$n" "$@"; fi' \
        'exec mpirun -n "$n" "$@"' > bin/srun
    chmod +x bin/srun
    HEDDLE_MPIRUN=$work/bin/srun ok steps --steps 4 --parallel dp=2,tp=2 --transport mpi --out slurm-4
    cmp -s local-4/step-4/model.safetensors slurm-4/step-4/model.safetensors || fail "srun's result is not that of threads"
else
    echo "no MPI that works: passed over"
fi
finish
