#!/usr/bin/env bash
# Fills .venv with exactly what a lock names, and Wavekeep itself: `deploy/bootstrap.sh run`, `quality` or `dev`.
# Called by make, which skips it while .venv/.run-ready and .venv/.dev-ready are newer than what they depend on.
# Needs python3 and, on a Debian or Ubuntu without the venv module, root or passwordless sudo to install that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "bootstrap: $*" >&2
    exit 1
}

# Prints the first interpreter for which the Python expression is true.
first_python() {
    local candidate
    for candidate in python3.13 python3.12 python3.11 python3; do
        if "$candidate" -c "import sys; sys.exit(not ($1))" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

new_enough='sys.version_info >= (3, 11)'
with_venv="$new_enough and __import__('ensurepip') and __import__('venv')"

install_venv_module() {
    local package as_root=()
    package="python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    local sentence="install the package $package, then run make again: $1 cannot create a virtual environment."
    command -v apt-get >/dev/null || fail "$sentence"
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || fail "$sentence"
        as_root=(sudo -n)
    fi
    echo "bootstrap: installing $package ..." >&2
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
    { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "$package"; } >/dev/null || fail "$sentence"
}

lock=${1:-}
[[ $lock == run || $lock == quality || $lock == dev ]] || fail "say which lock to install: run, quality or dev."

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    if ! python=$(first_python "$with_venv"); then
        python=$(first_python "$new_enough") || fail "Wavekeep needs Python 3.11 or newer: install it, then run make again."
        install_venv_module "$python"
    fi
    echo "bootstrap: creating .venv with $("$python" --version) ..." >&2
    rm -rf .venv
    "$python" -m venv .venv
fi

echo "bootstrap: installing requirements/$lock.txt ..." >&2
pip=(.venv/bin/python -m pip --quiet --disable-pip-version-check)
# Read-only homes and caches owned by somebody else are no reason to stop or to warn.
export PIP_ROOT_USER_ACTION=ignore
"${pip[@]}" install --require-hashes --requirement "requirements/$lock.txt"
# The build backend is in the lock too, so that nothing unlocked takes part.
"${pip[@]}" install --no-build-isolation --no-deps --editable .
touch .venv/.run-ready
if [ "$lock" = dev ]; then
    touch .venv/.dev-ready
fi
