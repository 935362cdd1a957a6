#!/usr/bin/env bash
# --weight-cache: the same text with it and without, from the first start and the second; a server that maps; a folder that can't be written; servers that are killed.
. "$(dirname "$0")/lib.sh"
make_corpus
llama > model.json
ok train --steps 2 --out run
model=run/step-2
cp "$root/tests/data/gguf/llama-mixed.gguf" mixed.gguf
for type in q8_0 f16 f32; do ok "$heddle" convert "$model" --out $type.gguf --dtype $type --quiet; done

# say MODEL FLAGS...: a greedy text to `out`.
say() {
    local model=$1
    shift
    ok "$heddle" generate "$model" --prompt "the ta" --max-tokens 12 --temperature 0 --threads 1 --quiet "$@"
}

for file in q8_0.gguf f16.gguf f32.gguf mixed.gguf "$model"; do
    for precision in f32 bf16; do
        say $file --precision $precision
        mv out without
        for start in first second; do
            say $file --precision $precision --weight-cache packed
            cmp -s out without || fail "$file in $precision: another text at the $start start with the cache"
            [ -s err ] && fail "$file: $(cat err)"
            [ $start = first ] && state=$(ls -l --time-style=full-iso packed)
        done
        same "the folder after a second start of $file" "$state" "$(ls -l --time-style=full-iso packed)"
    done
done
same "files for models in blocks, and for others in two precisions" "$(ls packed | wc -l)" 7

# start FLAGS...: sets pid; once the server is ready, url. Its log goes to $log.
start() {
    : > "$log"
    "$heddle" serve mixed.gguf --port 0 --threads 1 --max-sequences 4 --context 64 "$@" > /dev/null 2> "$log" &
    pid=$!
}
ready() { # LOG PID
    for _ in $(seq 600); do
        grep -q '^heddle: ready: ' "$1" && return 0
        kill -0 "$2" 2> /dev/null || break
        sleep 0.05
    done
    fail "no server: $(cat "$1")"
}

# Two servers at once: one packs.
rm -rf packed
log=one start --weight-cache packed
first=$pid
log=two start --weight-cache packed
second=$pid
ready one $first
ready two $second
has 'mapped from packed, (0 packed before, 15 packed now|15 packed before, 0 packed now)' one
same "weights that were packed now" "$(cat one two | sed -nE 's/.*before, ([0-9]+) packed now/\1/p' | sort -n | tr '\n' ' ')" "0 15 "
same "maps of the file in the processes" "$(grep -l 'packed/mixed.gguf' /proc/$first/maps /proc/$second/maps | wc -l)" 2
same "inodes that they map" "$(grep -h 'packed/mixed.gguf' /proc/$first/maps /proc/$second/maps | awk '{print $5}' | sort -u | wc -l)" 1
kill -TERM $first $second
wait $first $second

# Over two ranks each has a file of its own.
for start in first second; do
    log=ranks start --weight-cache packed --parallel tp=2
    ready ranks $pid
    kill -TERM $pid
    wait $pid
done
has 'mapped from packed, 30 packed before, 0 packed now' ranks
same "files" "$(ls packed | wc -l)" 3

# Killed at any time, it leaves nothing that is taken for good.
say mixed.gguf
mv out without
for delay in 0.001 0.005 0.01 0.02 0.03 0.04; do
    rm -rf packed
    log=killed start --weight-cache packed
    sleep $delay
    kill -9 $pid
    wait $pid 2> /dev/null
    say mixed.gguf --weight-cache packed
    cmp -s out without || fail "another text after a server was killed after $delay s"
    same "temporary files" "$(ls packed | grep -c tmp)" 0
done

# What doesn't fit any more is told in one line.
touch mixed.gguf
say mixed.gguf --weight-cache packed
has '^heddle: weight cache: .*mixed.gguf.*\.packed: was made from other weights: weights are packed anew$' err
same "lines" "$(wc -l < err)" 1
truncate -s 5000 packed/mixed.gguf*
say mixed.gguf --weight-cache packed
has 'cut short' err
cmp -s out without || fail "another text from a file that was cut short"
say mixed.gguf --weight-cache mixed.gguf/folder
has '^heddle: weight cache: .*: going on without it$' err
same "lines" "$(wc -l < err)" 1
cmp -s out without || fail "another text without a folder that can be written"
finish
