#!/bin/sh
# Installs the Debian packages that the build needs and that are missing; quick and silent when none are.
#
#   tools/install-deps.sh        what building, testing and the demo need
#   tools/install-deps.sh --ci   also clang and its sanitizers, and both MPIs
#   tools/install-deps.sh --list prints the missing ones and installs nothing
#
# As root, or through sudo where that works; otherwise it prints the command to run.
set -eu

# package:what shows that it is there (a command, or a header below /usr/include)
wanted="cmake:cmake ninja-build:ninja gcc:cc libc6-dev:stdio.h pkg-config:pkg-config libjansson-dev:jansson.h libpcre2-dev:pcre2.h libutf8proc-dev:utf8proc.h
libevent-dev:event2/event.h libssl-dev:openssl/ssl.h libcmocka-dev:cmocka.h"
for_ci="clang:clang llvm:llvm-symbolizer libopenmpi-dev:mpicc.openmpi openmpi-bin:mpirun.openmpi libmpich-dev:mpicc.mpich mpich:mpirun.mpich"
mode=${1:-}

is_there() {
    case $1 in
    *.h) [ -e "/usr/include/$1" ] || [ -e "/usr/local/include/$1" ] ;;
    *) command -v "$1" > /dev/null 2>&1 ;;
    esac
}

[ "$mode" = --ci ] && wanted="$wanted $for_ci"
missing=
for entry in $wanted; do
    is_there "${entry#*:}" || missing="$missing ${entry%%:*}"
done
# The sanitizers' libraries have the version of clang in their path.
if [ "$mode" = --ci ] && ! ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-* > /dev/null 2>&1; then
    missing="$missing libclang-rt-14-dev"
fi
[ -n "$missing" ] || exit 0
if [ "$mode" = --list ]; then
    echo "$missing"
    exit 0
fi

install="apt-get install -y --no-install-recommends$missing"
if ! command -v apt-get > /dev/null 2>&1; then
    echo "heddle needs what Debian calls:$missing" >&2
    echo "This system has no apt-get; install them by other means." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    run=
elif command -v sudo > /dev/null 2>&1 && { sudo -n true 2> /dev/null || [ -t 0 ]; }; then
    run=sudo
else
    echo "heddle needs these Debian packages:$missing" >&2
    echo "Run as root:  apt-get update && $install" >&2
    exit 1
fi
echo "Installing:$missing"
$run apt-get -q update
$run env DEBIAN_FRONTEND=noninteractive $install
