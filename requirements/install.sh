#!/bin/sh
# Installs the locked packages, and Verandah itself from this tree, into a virtual environment:
#
#   requirements/install.sh PYTHON [EXTRA...]
#
# PYTHON is the environment's interpreter, EXTRA an extra of pyproject.toml. The environment variable
# TORCH_INDEX may name the package index that torch alone comes from.
set -eu
python=${1:?"no PYTHON: name the interpreter of the virtual environment to install into"}
shift
here=$(dirname "$0")
for extra in "$@"; do
    set -- "$@" -r "$here/$extra.txt"
    shift
done

pip() { "$python" -m pip install --disable-pip-version-check --no-compile "$@"; }
# uv needs a fraction of pip's time. It does not exist for every machine, and it does not read the
# settings that may tell pip of a mirror.
uv=
fast() {
    [ -n "$uv" ] || return 1
    "$python" -m uv pip install --python "$python" "$@" && return
    echo "uv could not install these packages, so pip does, which takes longer." >&2
    return 1
}

if pip --quiet --only-binary :all: --require-hashes -r "$here/uv.txt"; then
    uv=yes
else
    echo "uv cannot be installed here, so pip installs everything, which takes longer." >&2
fi
set -- --no-deps --require-hashes -r "$here/run.txt" "$@"
fast "$@" || pip "$@"
# By pip, since its settings say where to find the build of torch that suits this machine.
pip ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r "$here/torch.txt"
# setuptools is among the locked packages, so it is not fetched anew to build Verandah.
set -- --no-deps --no-build-isolation -e "$here/.."
fast "$@" || pip "$@"
