#!/usr/bin/env bash
# Runs a built image for real and checks what a container of Verandah promises.
# No Docker engine is needed: run-without-docker.sh runs it. Run as root:
#
#   docker/check-image.sh [IMAGE [PORT]]      (verandah:latest, 18000)
#
# Exits 0 when every check passed. CHECK_START_SECONDS (120) is how long the server
# may take to answer.
set -euo pipefail

case ${1:-} in -h|--help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;; esac
image=${1:-verandah:latest}
port=${2:-18000}
patience=${CHECK_START_SECONDS:-120}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
run=$here/run-without-docker.sh
work=$(mktemp -d)
data=$work/data
server=
passed=0
failed=0

cleanup() {
    [ -z "$server" ] || kill -TERM "$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

check() {   # check WHAT COMMAND...: the command's status is the verdict
    local what=$1
    shift
    if "$@"; then
        passed=$((passed + 1)); echo "ok      $what"
    else
        failed=$((failed + 1)); echo "FAILED  $what"
    fi
}
config() { buildah inspect --type image --format "$1" "$image"; }
inside() { "$run" --data "$data" "$image" "$@" 2>"$work/stderr"; }
health() { inside python3 /usr/local/bin/verandah-healthcheck "$port" >/dev/null; }
unhealthy() { ! health; }
refuses_without_key() { ! inside verandah serve --host 0.0.0.0 && grep -q VERANDAH_API_KEY "$work/stderr"; }
same() { [ "$1" = "$2" ] || { echo "        got: $1" >&2; false; }; }
absent() { ! inside sh -c "command -v $1" >/dev/null; }
start() {
    "$run" --data "$data" --port "$port" "$image" >"$work/log" 2>&1 &
    server=$!
    local deadline=$((SECONDS + patience))
    until health; do
        if [ $SECONDS -ge $deadline ] || ! kill -0 "$server" 2>/dev/null; then
            sed 's/^/        /' "$work/log" >&2
            return 1
        fi
        sleep 1
    done
}
stop() {    # an orderly end: by itself, not by force
    local status=0
    kill -TERM "$server"
    wait "$server" || status=$?
    server=
    if grep -qE 'killed' "$work/log"; then return 1; fi
    # Without a process namespace of its own the server may close with the signal
    # that asked it to, after it has shut down.
    [ "$status" = 0 ] || grep -q 'exited on terminated' "$work/log"
}
owned_files() { [ -n "$(find "$data" -type f -user "$uid" -print -quit)" ]; }
foreign_files() { [ -z "$(find "$data" ! -user "$uid" -print -quit)" ]; }
# A database's side files come and go with the connections to it.
kept_files() { find "$data" -type f ! -name '*-wal' ! -name '*-shm' ! -name '*-journal' | sort; }
nothing_lost() { same "$(kept_files | comm -23 "$work/before" -)" ""; }

user=$(config '{{.OCIv1.Config.User}}')
uid=${user%%:*}

echo "== the image's configuration"
check "runs as a numeric user that is not root" test "$uid" -gt 0
check "starts verandah serve" same "$(config '{{.OCIv1.Config.Cmd}}')" \
    "[verandah serve --host 0.0.0.0 --port 8000]"
check "exposes port 8000" same "$(config '{{.OCIv1.Config.ExposedPorts}}')" "map[8000/tcp:{}]"
check "keeps its data in the volume /data" same "$(config '{{.OCIv1.Config.Volumes}}')" "map[/data:{}]"
check "stops by SIGTERM" same "$(config '{{.OCIv1.Config.StopSignal}}')" SIGTERM
check "has a health check" same "$(config '{{.Docker.Config.Healthcheck.Test}}')" \
    "[CMD python3 /usr/local/bin/verandah-healthcheck]"

echo "== inside"
check "is user $uid" same "$(inside id -u)" "$uid"
check "finds VERANDAH_HOME" same "$(inside printenv VERANDAH_HOME)" /data
check "can write to the volume" inside sh -c 'touch /data/.check && rm /data/.check'
check "cannot write to its own code" inside sh -c '! touch /opt/venv/.check 2>/dev/null'
check "holds no pip" absent pip
check "holds no compiler" absent cc
check "holds no tests" inside sh -c '! ls -d /tests /build /opt/venv/lib/python3*/site-packages/tests 2>/dev/null'
check "imports torch and transformers" inside python3 -c '
import torch, transformers
print("        torch", torch.__version__, " CUDA", torch.version.cuda, " transformers", transformers.__version__)'
check "imports compiled code only" inside python3 -c '
import importlib.util, os, sys, server.cli.running.http_server, transformers.models.llama.modeling_llama
files = [str(getattr(module, "__file__", "")) for module in list(sys.modules.values())]
bare = [file for file in files if file.endswith(".py") and os.path.isabs(file)
        and not os.path.exists(importlib.util.cache_from_source(file))]
sys.exit(f"        not compiled: {bare[:3]}" if bare else 0)'

echo "== the server"
unset VERANDAH_API_KEY
check "does not start without a key" refuses_without_key
export VERANDAH_API_KEY=check-image
check "health check fails before it is there" unhealthy
check "health check succeeds once it is up" start
if [ -n "$server" ]; then
    check "has written under the volume" owned_files
    check "and as its own user only" foreign_files
    check "SIGTERM stops it in good order" stop
    check "health check fails after it has gone" unhealthy
    kept_files >"$work/before"
    check "starts again on the same data" start
    check "still has what was there" nothing_lost
    [ -z "$server" ] || check "and stops again" stop
fi

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
