#!/usr/bin/env bash
# Builds docker/Dockerfile where no Docker engine runs: with buildah, in chroot
# isolation, over a base image that debootstrap makes and that is tagged with the
# name the Dockerfile gives. Run as root on a Debian-like system:
#
#   apt-get install -y --no-install-recommends buildah debootstrap
#   docker/build-without-docker.sh [options] [-- BUILDAH_OPTIONS...]
#
# Options:
#   -t, --tag NAME       name of the image (verandah:latest)
#   -c, --context DIR    tree to build (the one this script lies in)
#   --rebuild-base       make the base image anew although it is there
#   -h, --help           this text
#
# What stands after -- goes to `buildah build` as it is: build arguments, and the
# caller's own pip or apt configuration as mounts, which are not in the image:
#
#   docker/build-without-docker.sh -t verandah:cuda -- --build-arg TORCH_VARIANT=cu130
#   docker/build-without-docker.sh -- --volume "$HOME/build-home:/root:ro"
#
# (with .config/pip/pip.conf in that folder). Mount over a folder that the base
# image has, such as /root, /mnt or /srv: for any other, an empty one is left.
#
# Environment:
#   DEBIAN_MIRROR            http://deb.debian.org/debian
#   DEBIAN_SECURITY_MIRROR   http://deb.debian.org/debian-security
#   DEBIAN_SUITE             the one in the base image's tag: bookworm of debian:bookworm-slim
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tag=verandah:latest
context=$(dirname "$here")
rebuild_base=no
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
security_mirror=${DEBIAN_SECURITY_MIRROR:-http://deb.debian.org/debian-security}

die() { echo "build-without-docker: $*" >&2; exit 1; }
say() { echo "==> $*"; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

while [ $# -gt 0 ]; do
    case $1 in
        -t|--tag) tag=${2:?"$1 needs a name"}; shift 2 ;;
        -c|--context) context=$(cd "${2:?"$1 needs a folder"}" && pwd); shift 2 ;;
        --rebuild-base) rebuild_base=yes; shift ;;
        -h|--help) usage; exit 0 ;;
        --) shift; break ;;
        *) die "unknown option $1 (see --help)" ;;
    esac
done

[ "$(id -u)" = 0 ] || die "must run as root: debootstrap and chroot isolation need it"
for tool in buildah debootstrap; do
    command -v "$tool" >/dev/null || die "$tool is missing: apt-get install $tool"
done

# The base image is the one the Dockerfile names, unless a build argument names another.
base=$(sed -n 's/^ARG BASE_IMAGE=//p' "$here/Dockerfile")
for argument in "$@"; do
    case $argument in
        BASE_IMAGE=*|--build-arg=BASE_IMAGE=*) base=${argument##*BASE_IMAGE=} ;;
    esac
done
case $base in
    */*) reference=$base ;;
    *) reference=docker.io/library/$base ;;
esac
suite=${base##*:}
suite=${DEBIAN_SUITE:-${suite%-slim}}

make_base() {
    local work root
    work=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder of now is the one to remove
    trap "rm -rf --one-file-system '$work'" EXIT
    root=$work/root
    say "making $reference with debootstrap ($suite, $mirror)"
    debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$work/log" 2>&1 \
        || { tail -n 20 "$work/log" >&2; die "debootstrap failed"; }
    rm -f "$root/etc/apt/sources.list"
    cat >"$root/etc/apt/sources.list.d/debian.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: $suite $suite-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: $security_mirror
Suites: $suite-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
    # What makes the slim variant slim: no manuals, no translations, and dpkg told
    # to leave them out of what is installed later.
    cat >"$root/etc/dpkg/dpkg.cfg.d/docker" <<'DPKG'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/groff/*
path-exclude /usr/share/info/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
force-unsafe-io
DPKG
    # And what makes it small to install into: apt keeps no archives and no indexes
    # beyond the lists, which the Dockerfile removes itself.
    cat >"$root/etc/apt/apt.conf.d/docker-clean" <<'APT'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };
APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Apt::AutoRemove::SuggestsImportant "false";
APT
    find "$root/usr/share/doc" -type f ! -name copyright -delete
    find "$root/usr/share/doc" -type l -delete
    find "$root/usr/share/doc" -type d -empty -delete
    rm -rf "$root"/usr/share/{groff,info,linda,lintian,locale,man}/* \
        "$root"/var/cache/apt/{archives/*.deb,*.bin} "$root"/var/lib/apt/lists/* \
        "$root"/var/log/{bootstrap.log,dpkg.log,alternatives.log,apt/*} \
        "$root"/etc/{resolv.conf,hostname,machine-id}
    # No service is started while packages install.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 0755 "$root/usr/sbin/policy-rc.d"

    tar --numeric-owner --xattrs -C "$root" -cf "$work/base.tar" .
    local container
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$work/base.tar" / >/dev/null
    buildah config --cmd bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah commit --quiet --rm --format docker "$container" "$reference" >/dev/null
    rm -rf --one-file-system "$work"
    trap - EXIT
}

if [ "$rebuild_base" = yes ] || ! buildah inspect --type image "$reference" >/dev/null 2>&1; then
    make_base
else
    say "$reference is there already"
fi

# --format docker: the OCI format has no place for HEALTHCHECK.
# --pull=never: the base is the one made here, and no registry is asked for it.
say "building $tag from $context"
buildah build \
    --isolation chroot \
    --format docker \
    --layers \
    --pull=never \
    --file "$here/Dockerfile" \
    --ignorefile "$here/Dockerfile.dockerignore" \
    --tag "$tag" \
    "$@" \
    "$context"

say "built $tag"
buildah images --format '{{.Name}}:{{.Tag}}  {{.ID}}  {{.Size}}' "$tag"
