#!/usr/bin/env bash
# Runs an image built by build-without-docker.sh where no Docker engine runs: as
# the image's user, with its environment and its command, in buildah's chroot
# isolation and on the host's network. SIGTERM or SIGINT stops the server as
# `docker stop` does. Run as root:
#
#   docker/run-without-docker.sh [options] [IMAGE [COMMAND...]]
#
# Options:
#   -d, --data DIR       folder to mount as the volume /data (made when missing;
#                        without it the data goes with the container)
#   -p, --port PORT      put this in the place of the port in the image's command
#   -t, --time SECONDS   how long the server may take to stop before it is killed (40)
#   -e, --env NAME=VALUE set in the container (repeatable; NAME alone is passed on)
#   -h, --help           this text
#
# VERANDAH_API_KEY is passed on when it is set. IMAGE is verandah:latest unless told.
set -euo pipefail

image=verandah:latest
data=
port=
grace=40
environment=()

die() { echo "run-without-docker: $*" >&2; exit 1; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
add_env() {
    case $1 in
        *=*) environment+=(--env "$1") ;;
        *) [ -z "${!1+set}" ] || environment+=(--env "$1=${!1}") ;;
    esac
}

while [ $# -gt 0 ]; do
    case $1 in
        -d|--data) data=${2:?"$1 needs a folder"}; shift 2 ;;
        -p|--port) port=${2:?"$1 needs a number"}; shift 2 ;;
        -t|--time) grace=${2:?"$1 needs seconds"}; shift 2 ;;
        -e|--env) add_env "${2:?"$1 needs a name"}"; shift 2 ;;
        -h|--help) usage; exit 0 ;;
        -*) die "unknown option $1 (see --help)" ;;
        *) break ;;
    esac
done
if [ $# -gt 0 ]; then image=$1; shift; fi
add_env VERANDAH_API_KEY

[ "$(id -u)" = 0 ] || die "must run as root: chroot isolation needs it"
for tool in buildah pgrep; do
    command -v "$tool" >/dev/null || die "$tool is missing"
done

config() { buildah inspect --type image --format "$1" "$image"; }
command=("$@")
if [ ${#command[@]} -eq 0 ]; then
    mapfile -t command < <(config '{{range .OCIv1.Config.Cmd}}{{println .}}{{end}}' | sed '/^$/d')
    if [ -n "$port" ]; then
        for i in "${!command[@]}"; do
            [ "${command[i]}" != --port ] || command[i + 1]=$port
        done
    fi
fi

mounts=()
if [ -n "$data" ]; then
    if [ ! -d "$data" ]; then
        mkdir -p "$data"
        chown "$(config '{{.OCIv1.Config.User}}')" "$data"
        chmod 0750 "$data"
    fi
    mounts=(--volume "$(cd "$data" && pwd):/data")
fi

container=$(buildah from --pull=never "$image")
trap 'buildah rm "$container" >/dev/null' EXIT
# The image's own volume would be mounted over the caller's folder.
[ -z "$data" ] || buildah config --volume /data- "$container"

# buildah kills what runs in chroot isolation when it is told to end itself, so the
# signal goes straight to the server: the first process below buildah's own three.
runner=
ended=
server_pid() {
    local pid=$runner name
    while [ -n "$pid" ]; do
        IFS= read -r -d '' name <"/proc/$pid/cmdline" || return 1
        case ${name##*/} in
            buildah|buildah-chroot-*) pid=$(pgrep -P "$pid" | head -n 1) || return 1 ;;
            *) echo "$pid"; return 0 ;;
        esac
    done
    return 1
}
stop() {
    local pid
    ended=$SECONDS
    # Before the server is there, buildah itself is the one to end.
    pid=$(server_pid 2>/dev/null) || pid=$runner
    kill -TERM "$pid" 2>/dev/null || true
}
trap stop TERM INT

# In a session of its own, so that an interrupt from the terminal does not reach
# buildah before it reaches the server.
setsid buildah run --isolation chroot "${mounts[@]}" "${environment[@]}" "$container" -- "${command[@]}" </dev/null &
runner=$!
status=0
wait "$runner" || status=$?
# A trapped signal ends that wait early: the server then has its time to end.
while [ -n "$ended" ] && kill -0 "$runner" 2>/dev/null; do
    if [ $((SECONDS - ended)) -ge "$grace" ]; then
        echo "run-without-docker: still running after $grace s, killed" >&2
        kill -TERM "$runner"
        ended=
    else
        sleep 0.2
    fi
done
status=0
wait "$runner" || status=$?
exit "$status"
