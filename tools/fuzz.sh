#!/usr/bin/env bash
# Fuzzing of everything that reads files from elsewhere: each tests/fuzz/fuzz_NAME.c under libFuzzer, AddressSanitizer and
# UndefinedBehaviorSanitizer, with its corpus tests/fuzz/corpus/NAME.
#
#   tools/fuzz.sh build                       only build
#   tools/fuzz.sh replay [NAME...]            every input of the corpus once
#   tools/fuzz.sh run SECONDS_EACH [NAME...]  fuzz, one target on each core; one line of figures for each target; what is new stays in the build folder
#   tools/fuzz.sh keep [NAME...]              add to the corpus what `run` found that reaches new code, and drop what no longer does
#
# HEDDLE_FUZZ_BUILD: the build folder (build/fuzz). HEDDLE_CI_JOBS: processes to build with. Needs clang and its libraries (tools/install-deps.sh --ci).
# Ends with status 0 when nothing was found, 77 where there is no libFuzzer. A finding is written to the build folder's findings/.
set -u
cd "$(dirname "$0")/.." || exit 2
build=${HEDDLE_FUZZ_BUILD:-build/fuzz}
corpus=tests/fuzz/corpus
export ASAN_OPTIONS=allocator_may_return_null=1:${ASAN_OPTIONS:-}
export UBSAN_OPTIONS=print_stacktrace=1:${UBSAN_OPTIONS:-}
limits="-timeout=20 -rss_limit_mb=2048 -max_len=65536"

names() {
    [ $# -gt 0 ] && printf '%s\n' "$@" && return
    for source in tests/fuzz/fuzz_*.c; do basename "$source" .c | sed 's/^fuzz_//'; done
}

# The library instrumented for coverage and both sanitizers, then each target linked with libFuzzer's main.
make_targets() {
    local flags="-O1 -fsanitize=fuzzer-no-link" libraries name
    command -v clang > /dev/null || { echo "fuzz: SKIP: no clang here"; exit 77; }
    echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' > "${TMPDIR:-/tmp}/fuzz-$$.c"
    clang -fsanitize=fuzzer -o "${TMPDIR:-/tmp}/fuzz-$$" "${TMPDIR:-/tmp}/fuzz-$$.c" 2> /dev/null || { echo "fuzz: SKIP: clang has no libFuzzer here"; exit 77; }
    rm -f "${TMPDIR:-/tmp}/fuzz-$$" "${TMPDIR:-/tmp}/fuzz-$$.c"
    mkdir -p "$build"
    {
        cmake -S . -B "$build" -G Ninja -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS="$flags" -DHEDDLE_SANITIZE=address,undefined \
            -DHEDDLE_PLAIN_KERNELS=ON -DBUILD_TESTING=OFF && cmake --build "$build" --target heddle_static -j "${HEDDLE_CI_JOBS:-$(nproc)}"
    } > "$build/build.log" 2>&1 || { tail -n 40 "$build/build.log"; exit 1; }
    libraries=$(pkg-config --libs jansson libpcre2-8 libutf8proc libevent_core libevent_openssl libssl libcrypto)
    for name in $(names); do
        [ "$build/fuzz_$name" -nt "$build/src/libheddle.a" ] && [ "$build/fuzz_$name" -nt "tests/fuzz/fuzz_$name.c" ] && continue
        # shellcheck disable=SC2086
        clang -g -O1 -Wall -Wextra -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -D_GNU_SOURCE -Iinclude -Isrc -o "$build/fuzz_$name" \
            "tests/fuzz/fuzz_$name.c" "$build/src/libheddle.a" $libraries -lm -pthread || exit 1
    done
    mkdir -p "$build/findings"
}

replay() {
    local failed=0 name
    for name in $(names "$@"); do
        if "$build/fuzz_$name" $limits -runs=0 -artifact_prefix="$build/findings/$name-" "$corpus/$name" > "$build/$name.log" 2>&1; then
            echo "  $name: $(find "$corpus/$name" -type f | wc -l) inputs, no finding"
        else
            failed=1
            echo "  $name: FAIL"
            tail -n 40 "$build/$name.log"
        fi
    done
    return $failed
}

# One line: NAME seconds executions edges findings
fuzz_one() { # SECONDS NAME
    local found=0 log=$build/$2.log runs edges
    mkdir -p "$build/new/$2"
    "$build/fuzz_$2" $limits -max_total_time="$1" -print_final_stats=1 -artifact_prefix="$build/findings/$2-" "$build/new/$2" "$corpus/$2" > "$log" 2>&1 ||
        found=1
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
    echo "$2 $1 ${runs:-0} ${edges:-0} $found"
    if [ $found = 1 ]; then grep -aE 'ERROR|SUMMARY|runtime error|Test unit written|deadly signal' "$log" >&2; fi
    return $found
}

run() {
    local failed=0 running=0 name seconds=$1 cores
    cores=${HEDDLE_CI_JOBS:-$(nproc)}
    shift
    for name in $(names "$@"); do
        if [ "$running" -ge "$cores" ]; then wait -n || failed=1; running=$((running - 1)); fi
        fuzz_one "$seconds" "$name" &
        running=$((running + 1))
    done
    while [ "$running" -gt 0 ]; do wait -n || failed=1; running=$((running - 1)); done
    return $failed
}

# The corpus and what is new, merged into the fewest inputs that reach as much, smallest first.
keep() {
    local name merged
    for name in $(names "$@"); do
        merged=$build/merged/$name
        rm -rf "$merged"
        mkdir -p "$merged" "$build/new/$name"
        "$build/fuzz_$name" $limits -merge=1 "$merged" "$corpus/$name" "$build/new/$name" > "$build/$name.log" 2>&1 || { tail "$build/$name.log"; return 1; }
        echo "  $name: $(find "$corpus/$name" -type f | wc -l) inputs before, $(find "$merged" -type f | wc -l) now"
        rm -rf "${corpus:?}/$name" "$build/new/$name"
        cp -r "$merged" "$corpus/$name"
    done
}

case "${1:-}" in
build) make_targets ;;
replay) make_targets && shift && replay "$@" ;;
run)
    [ "${2:-0}" -gt 0 ] 2> /dev/null || { echo "usage: tools/fuzz.sh run SECONDS_EACH [NAME...]" >&2; exit 2; }
    make_targets && shift && run "$@"
    ;;
keep) make_targets && shift && keep "$@" ;;
*)
    sed -n '5,8s/^# *//p' "$0" >&2
    exit 2
    ;;
esac
