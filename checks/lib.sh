# lib.sh: what the scripts of this folder share. Source it; it sets
#   root    the source tree
#   build   the build folder: $BUILD or $HEDDLE_BUILD, else build/release, else build
# and counts in `failed` what report says FAIL to.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${BUILD:-${HEDDLE_BUILD:-}}
if [ -z "$build" ]; then
    build=$root/build
    if [ -d "$root/build/release" ]; then build=$root/build/release; fi
fi
failed=0
started=$(date +%s.%N)

# need FILE...: programs of the build folder; ends the check where one is missing.
need() {
    local file
    for file in "$@"; do
        [ -x "$build/$file" ] || { echo "$(basename "$0"): $build/$file is missing: build first (cmake --build), or set BUILD"; exit 1; }
    done
}

# report WHAT VALUE RELATION BOUND: one line, PASS or FAIL. A value that is no number fails.
report() {
    local verdict=FAIL
    if awk -v a="$2" -v b="$4" "BEGIN{exit !(a == a + 0 && a $3 b)}"; then verdict=PASS; else failed=1; fi
    printf '  %-64s %-11s %s %-9s %s\n' "$1" "$2" "$3" "$4" "$verdict"
}

# say WHAT pass|fail: the same for what has no figure.
say() {
    local verdict=PASS
    if [ "$2" != pass ]; then verdict=FAIL; failed=1; fi
    printf '  %-88s %s\n' "$1" "$verdict"
}

# finish: the last line, NAME: PASS or FAIL (seconds), and the exit status.
finish() {
    local verdict=PASS
    if [ "$failed" != 0 ]; then verdict=FAIL; fi
    echo "$(basename "$0"): $verdict ($(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }') s)"
    exit "$failed"
}
