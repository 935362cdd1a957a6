#!/usr/bin/env bash
# Runs the benchmarks and writes what they print into docs/benchmarks.md, between its two markers: the one place where figures stand.
#
#   tools/record-figures.sh [bounds|gemm|kernels|train-speed|decode-speed|decode-bound|serve-speed|memory|collective-speed|parallel-speed ...]    all without words: about two hours
#
# On a machine that does nothing else. BUILD: the build folder. A command that fails is recorded as it is, with its FAIL.
set -euo pipefail
. "$(dirname "$0")/../checks/lib.sh"
page=$root/docs/benchmarks.md
parts=${*:-bounds gemm kernels train-speed decode-speed decode-bound serve-speed memory collective-speed parallel-speed}
new=$(mktemp)
trap 'rm -f "$new" "$new.page"' EXIT

load=$(cut -d' ' -f1 /proc/loadavg)
if awk -v l="$load" 'BEGIN{exit !(l > 0.5)}'; then
    echo "record-figures: the machine is busy (load $load); figures would mean nothing. Wait, or set HEDDLE_RECORD_ANYWAY=1"
    [ -n "${HEDDLE_RECORD_ANYWAY:-}" ] || exit 1
fi

command_of() {
    case $1 in
    train-speed | decode-speed | decode-bound | serve-speed | memory | collective-speed | parallel-speed) echo "checks/$1" ;;
    *) echo "heddle bench $1" ;;
    esac
}

output_of() {
    case $1 in
    train-speed | decode-speed | decode-bound | serve-speed | memory | collective-speed | parallel-speed) BUILD=$build "$root/checks/$1" ;;
    *) "$build/heddle" bench "$1" ;;
    esac
}

{
    echo "On $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores, $(awk '/MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo)," \
        "$(date +%Y-%m-%d), commit $(git -C "$root" rev-parse --short HEAD)."
    for part in $parts; do
        echo
        echo "\`$(command_of "$part")\`:"
        echo
        echo '```'
        { output_of "$part" || true; } 2>&1 | tee /dev/stderr
        echo '```'
    done
} > "$new"
awk -v figures="$new" '/^<!-- figures end -->/ {skip = 0} !skip {print} /^<!-- figures begin/ {skip = 1; print ""; while ((getline line < figures) > 0) print line; print ""}' \
    "$page" > "$new.page"
cat "$new.page" > "$page"
echo "record-figures: written to $page"
