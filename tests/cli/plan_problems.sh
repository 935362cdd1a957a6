#!/usr/bin/env bash
# plan_problems.sh: planning problems from text files: what is found, and one clear line for what makes no sense.
. "$(dirname "$0")/lib.sh"

printf '# two layers\n0\t0\t1\ta\t4\t9\n1\t1\t1\tb\t6\t9\n0\t1\t2\tboth\t5.5\t9\n0\t1\t1\tone\t10\t9\n' > stages
ok "$heddle" plan stages --profile stages --devices 2 --micro-batches 1
grep -q '^objective 5.5 ' out || fail "one stage of two devices is best for one micro-batch"
ok "$heddle" plan stages --profile stages --devices 2 --micro-batches 8 --json
grep -q '"objective": 44.0' out || fail "eight micro-batches: $(cat out)"
refuses 'exactly 3 devices' "$heddle" plan stages --profile stages --devices 3
printf '0\t0\t1\ta\t4\t0\n1\t1\t1\tb\t6\t0\n' > tight
refuses 'max_succeeding_stages' "$heddle" plan stages --profile tight --devices 2
refuses 'is missing' "$heddle" plan stages --devices 2
refuses 'devices' "$heddle" plan stages --profile stages --devices 0
refuses 'devices' "$heddle" plan stages --profile stages --devices 1,2
: > empty
refuses 'no rows' "$heddle" plan stages --profile empty --devices 2
for bad in '0\t0\t1\ta\t-4\t0' '0\t0\t1\ta\tnan\t0' '0\t0\t1\ta\t4' '0\t0\t1\ta\t4\t0\t7' '1\t0\t1\ta\t4\t0' '0\t0\t0\ta\t4\t0' '0\t0\t1.5\ta\t4\t0' '0\t0\t1\t\t4\t0'; do
    printf '%b\n' "$bad" > bad
    refuses 'bad:1: ' "$heddle" plan stages --profile bad --devices 1
done
printf '0\t0\t1\ta\t4\t0\n0\t0\t1\ta\t5\t0\n' > bad
refuses 'twice' "$heddle" plan stages --profile bad --devices 1

printf 'len\tctx\tms\n4\t0\t4\n2\t0\t1.5\n2\t2\t2.5\n' > slices
ok "$heddle" plan slices --profile slices --stages 1
grep -q '4 tokens in [12] slices' out || fail "slices"
ok "$heddle" plan slices --profile slices --stages 4 --json
grep -q '"objective": 11.5' out || fail "two slices for four stages: $(cat out)"
printf '2\t0\t1\n2\t3\t1\n' > gap
refuses 'get to token 2' "$heddle" plan slices --profile gap --stages 2
printf '0\t0\t1\n' > bad
refuses 'at least 1' "$heddle" plan slices --profile bad --stages 2
printf '1\t0\t1\n1\t0\t2\n' > bad
refuses 'twice' "$heddle" plan slices --profile bad --stages 2
refuses 'stages' "$heddle" plan slices --profile slices --stages 0

node() { printf 'node%s -- L(%s) -- forward_compute_time=%s, backward_compute_time=%s, activation_size=%s, parameter_size=%s\n' "$1" "$1" "$2" "$3" "$4" "$5"; }
{ node 1 10 20 8 4000000; node 2 10 20 8 4000000; printf '\tnode1 -- node2\n'; } > graph
ok "$heddle" plan pipedream --profile graph --devices 2 --bandwidth 1e6 --json
grep -q '"objective": 30.0' out || fail "two stages when parameters are dear: $(cat out)"
{ node 1 10 20 8000000 40; node 2 10 20 8000000 40; printf '\tnode1 -- node2\n'; } > graph2
ok "$heddle" plan pipedream --profile graph2 --devices 2,2 --bandwidth 1e9,1e6 --json
grep -q '"objective": 15.0' out || fail "replicated when activations are dear: $(cat out)"
refuses 'bandwidths' "$heddle" plan pipedream --profile graph --devices 2,2 --bandwidth 1e6
refuses 'bandwidth' "$heddle" plan pipedream --profile graph --devices 2 --bandwidth 0
{ node 1 1 1 1 1; printf '\tnode1 -- node9\n'; } > bad
refuses 'unknown node' "$heddle" plan pipedream --profile bad --devices 2 --bandwidth 1
{ node 1 1 1 1 1; node 2 1 1 1 1; printf '\tnode1 -- node2\n\tnode2 -- node1\n'; } > bad
refuses 'circle' "$heddle" plan pipedream --profile bad --devices 2 --bandwidth 1
{ node 1 1 -1 1 1; } > bad
refuses 'number from 0' "$heddle" plan pipedream --profile bad --devices 2 --bandwidth 1
{ node 1 1 1 1 1; node 1 1 1 1 1; } > bad
refuses 'two nodes' "$heddle" plan pipedream --profile bad --devices 2 --bandwidth 1
echo 'rubbish' > bad
refuses 'expected' "$heddle" plan pipedream --profile bad --devices 2 --bandwidth 1
head -c 40 graph > bad
refuses 'bad:1' "$heddle" plan pipedream --profile bad --devices 2 --bandwidth 1

layouts() { "$heddle" plan layouts "$@"; }
ok layouts --graph "$root/examples/layouts/mlp-512.json" --mesh 4 --optimizer sgd
grep -q 'all-reduce  *7, ' out && grep -q 'fc1.w  *-,x$' out && grep -q 'fc2.w  *x,-$' out || fail "a wide MLP is cut by columns and rows in turn"
ok layouts --graph "$root/examples/layouts/mlp-128.json" --mesh 4 --optimizer sgd --json
grep -q '"optimal": true' out || fail "layouts: not proven best"
ok layouts --graph "$root/examples/layouts/mlp-128.json" --mesh 4 --optimizer sgd --force data-parallel
grep -q 'all-reduce  *9, 1 with' out || fail "data parallelism is one all-reduce"
ok layouts --graph "$root/examples/layouts/mlp-512.json" --mesh 2x2 --forbid all-reduce,all-to-all
grep -q 'all-reduce' out && fail "a forbidden collective is used"
least=$(layouts --graph "$root/examples/layouts/mlp-512.json" --mesh 4 --memory 1000 2>&1 | sed -n 's/.*at least \([0-9]*\).*/\1/p')
ok layouts --graph "$root/examples/layouts/mlp-512.json" --mesh 4 --memory "$least"
refuses 'at least' layouts --graph "$root/examples/layouts/mlp-512.json" --mesh 4 --memory $((least - 1))
refuses 'numbers from 1' layouts --graph "$root/examples/layouts/mlp-512.json" --mesh 4y
refuses 'each of the mesh.s 2 axes' layouts --graph "$root/examples/layouts/mlp-512.json" --mesh 2x2 --alpha 1,2,3
refuses 'alpha' layouts --graph "$root/examples/layouts/mlp-512.json" --mesh 2x2 --alpha -1
ok layouts --graph "$root/examples/mlp.json" --mesh 2 --cluster cpu:2 --plan-out plan.json
grep -q 's a step, of which' out && grep -q '"pins"' plan.json || fail "layouts on a cluster: $(cat out)"
ok "$heddle" train --model "$root/examples/mlp.json" --plan plan.json --batch 64 --steps 3
ok layouts --graph "$root/examples/mlp.json" --mesh 2 --cluster cpu:2 --json
grep -q '"computing"' out || fail "layouts: no computing"
refuses 'leave --alpha' layouts --graph "$root/examples/mlp.json" --mesh 2 --cluster cpu:2 --alpha 1
refuses 'wants --cluster' layouts --graph "$root/examples/mlp.json" --mesh 2 --plan-out plan.json
refuses 'cluster cpu:2 has 2' layouts --graph "$root/examples/mlp.json" --mesh 3 --cluster cpu:2
refuses 'no collective' layouts --graph "$root/examples/layouts/mlp-512.json" --mesh 4 --forbid gossip
refuses 'must be data-parallel' layouts --graph "$root/examples/layouts/mlp-512.json" --mesh 4 --force tensor-parallel
refuses 'missing' layouts --mesh 4
refuses 'no such file' layouts --graph nothing.json --mesh 4
finish
