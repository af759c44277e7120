# Shared by the scripts of this directory: paths, progress, retries, processes. Sourced, not run.
# shellcheck shell=bash
# shellcheck disable=SC2034  # the variables are for the scripts that source this

ENV_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TESTS_DIR=$(dirname "$ENV_DIR")
REPO_DIR=$(dirname "$TESTS_DIR")

# What costs a download is kept here between runs; nothing in it is state of a run.
CACHE=${REWIND_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/rewind}

KAFKA_VERSION=3.9.1
KAFKA_JARS=$CACHE/kafka-$KAFKA_VERSION
POUCHDB_VERSION=4.2.0
POUCHDB=$CACHE/pouchdb-server-$POUCHDB_VERSION
NODE_VERSION=20.20.2
NODE_DIR=$CACHE/node-$NODE_VERSION
GO_VERSION=1.24.4

say() { printf '  %s\n' "$*" >&2; }
step() { printf '== %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
# A program, not a function of that name.
have() { type -P "$1" >/dev/null; }

# retry TRIES SECONDS COMMAND...: for what may fail for a moment (a mirror, a registry). Bounded.
retry() {
    local tries=$1 pause=$2 n; shift 2
    for ((n = 1; n <= tries; n++)); do
        "$@" && return 0
        ((n < tries)) && { say "try $n of $tries failed: $*; again in $pause s"; sleep "$pause"; }
    done
    return 1
}

# wait_for SECONDS WHAT COMMAND...: polls until the command succeeds or the deadline passes.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2; shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || { say "gave up waiting for $what"; return 1; }
        sleep 0.1
    done
}

# A TCP port that the kernel says is free now. Another process may take it before it is used,
# so every service start is tried a few times with a new one.
free_port() {
    perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(Listen=>1,LocalAddr=>"127.0.0.1",LocalPort=>0)->sockport'
}

tcp_open() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

alive() { [[ -n ${1:-} && -d /proc/$1 && $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) != Z* ]]; }

# stop_pid PID [SECONDS]: SIGTERM, then SIGKILL after the grace.
stop_pid() {
    local pid=$1 grace=${2:-10}
    alive "$pid" || return 0
    kill "$pid" 2>/dev/null || true
    local deadline=$((SECONDS + grace))
    while alive "$pid"; do
        ((SECONDS < deadline)) || { kill -9 "$pid" 2>/dev/null || true; break; }
        sleep 0.1
    done
}

# once NAME COMMAND...: one process at a time, so that parallel test binaries do not install twice.
once() {
    local name=$1; shift
    mkdir -p "$CACHE"
    exec {once_fd}>"$CACHE/.$name.lock"
    flock "$once_fd"
    "$@"
    flock -u "$once_fd"
    exec {once_fd}>&-
}

as_root() { [[ $(id -u) == 0 ]] || die "this needs root (Debian packages, Docker, containers)"; }
