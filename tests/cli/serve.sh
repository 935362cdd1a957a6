#!/usr/bin/env bash
# heddle serve on a tiny model, with heddle bench serve as its client: starting, answering, going down.
. "$(dirname "$0")/lib.sh"

make_corpus
llama num_hidden_layers=2 > model.json
ok train --out run --steps 2
model=run/$(cd run && ls -d step-* | tail -n 1)

# start FLAGS...: sets pid and url once the server is ready. launcher: what starts it, if it isn't the shell.
launcher=()
start() {
    : > log # not the one of the server before
    "${launcher[@]}" "$heddle" serve "$model" --port 0 --threads 1 --max-sequences 4 "$@" > /dev/null 2> log &
    pid=$!
    for _ in $(seq 200); do
        url=$(sed -n 's/^heddle: ready: //p' log)
        [ -n "$url" ] && return 0
        kill -0 "$pid" 2> /dev/null || break
        sleep 0.05
    done
    fail "no server: $(cat log)"
    return 1
}

# leave STATUS: what the server ends with after SIGTERM.
leave() {
    kill -TERM "$pid"
    wait "$pid"
    same "status of the server" "$?" "$1"
}

load="--dataset fixed --own-tokens 6 --output-tokens 5 --requests 6"
if start; then
    has '^heddle: keys and values .* blocks of 16 tokens' log
    ok "$heddle" bench serve --url "$url" $load --concurrency 3 --slo-first 60
    has '^6 requests in .* 0 failed$'
    has '^100.0 % of the requests'
    ok "$heddle" bench serve --url "$url" $load --arrivals gamma --cv 2 --rate 100 --endpoint chat --json
    has '"output_tokens": 30'
    has '"path": "/v1/chat/completions"' log
    leave 0
fi
for form in tp=2 pp=2; do
    start --parallel $form || continue
    has '1 threads on each of 2 ranks' log
    has '^heddle: keys and values .* on each rank' log
    ok "$heddle" bench serve --url "$url" $load --concurrency 3
    leave 0
done
printf '# keys\nsesame\n' > keys
if start --api-key-file keys --speculate ngram:4 --kv-policy reserve --no-log; then
    refuses 'status 401' "$heddle" bench serve --url "$url" $load
    ok "$heddle" bench serve --url "$url" --api-key sesame $load --concurrency 2
    leave 0
fi

# The processes of an MPI job; the launcher passes SIGUSR1 on.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
sanitize=${ASAN_OPTIONS-}
export ASAN_OPTIONS=${sanitize:+$sanitize:}detect_leaks=0 # what MPI itself leaves behind
for mpi in openmpi mpich; do
    if ! command -v "mpirun.$mpi" > /dev/null || [ ! -e "$(dirname "$heddle")/lib/heddle/mpi_$mpi.so" ]; then
        echo "skipped: $mpi is not installed"
        continue
    fi
    launcher=("mpirun.$mpi" -n 2)
    [ "$mpi" = openmpi ] && launcher+=(--oversubscribe --bind-to none)
    for form in tp=2 pp=2; do
        start --parallel $form --preemption swap --kv-bytes 20K || continue
        ok "$heddle" bench serve --url "$url" --dataset fixed --own-tokens 6 --output-tokens 20 --requests 6 --concurrency 3
        has '^6 requests in .* 0 failed$'
        kill -USR1 "$pid"
        wait "$pid"
        same "status of $mpi's server, $form" "$?" 0
    done
    "${launcher[@]}" "$heddle" serve "$model" --parallel tp=3 > out 2> err && fail "$mpi: three ranks of two processes"
    has 'mpirun started 2 processes: give --parallel tp=2' err
done
launcher=()
export ASAN_OPTIONS=$sanitize

refuses 'no such file' "$heddle" serve nowhere
refuses 'name one model' "$heddle" serve
refuses 'speculate must be' "$heddle" serve --speculate fast run
refuses 'go together' "$heddle" serve --speculate draft run
refuses 'over tp=N and pp=N only, not dp' "$heddle" serve --parallel dp=2 run
refuses 'both a certificate' "$heddle" serve --tls-cert keys run
refuses 'kv-bytes must be' "$heddle" serve --kv-bytes lots run
refuses 'connection' "$heddle" bench serve --url http://127.0.0.1:1
refuses 'fixed needs' "$heddle" bench serve --dataset fixed
finish
