#!/usr/bin/env bash
# One sequence of transfers gives the same bytes between threads and between processes of each MPI that is installed; an abort and a deadline end all.
. "$(dirname "$0")/lib.sh"
check=$(dirname "$heddle")/bin/check_comm
plugins=$(dirname "$heddle")/lib/heddle
[ -x "$check" ] || { echo "check_comm is not built"; exit 0; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 # what Open MPI itself leaves behind

# several MPI N ARGUMENTS...: N processes of check_comm.
several() {
    local mpi=$1 n=$2 more=
    shift 2
    [ "$mpi" = openmpi ] && more=--oversubscribe
    timeout 60 "mpirun.$mpi" $more -n "$n" "$check" mpi "$@"
}

compare() {
    local mpi=$1 n=$2
    ok "$check" local "$n" && cp out local
    ok several "$mpi" "$n"
    same "$mpi, $n ranks" "$(cat local)" "$(cat out)"
}

ends() {
    local mpi=$1 how=$2 cause=$3 status=0
    several "$mpi" 2 "$how" > out 2> err || status=$?
    if [ $status = 0 ] || [ $status = 124 ]; then fail "$mpi, $how: status $status"; fi
    has "rank 0 ends: .*$cause" err
}

for n in 1 2 16; do ok timeout 60 "$check" local "$n"; done
for mpi in openmpi mpich; do
    if ! command -v "mpirun.$mpi" > /dev/null || [ ! -e "$plugins/mpi_$mpi.so" ]; then
        echo "skipped: $mpi is not installed"
        continue
    fi
    compare "$mpi" 2
    if [ "$mpi" = openmpi ]; then compare "$mpi" 4; fi
    ends "$mpi" abort 'rank 1: asked to abort'
    ends "$mpi" silent 'rank 1 has been silent for 1 s'
done
finish
