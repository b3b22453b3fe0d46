#!/usr/bin/env bash
# Chooses the versions of all dependencies anew: requirements/run.txt for running and building; requirements/quality.txt,
# the same and what judges how files sound; requirements/dev.txt, all of these and what tests need. Valid for every Python from 3.11 on, with hashes, without addresses.
# Uses the uv on PATH, or fetches one for the moment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    tools=$(mktemp -d)
    trap 'rm -rf "$tools"' EXIT
    python3 -m venv "$tools"
    "$tools/bin/python" -m pip --quiet --disable-pip-version-check install 'uv>=0.9,<1'
    uv=$tools/bin/uv
fi

compile=(
    "$uv" pip compile --quiet --universal --python-version 3.11
    --generate-hashes --no-header
    --no-emit-index-url
)
"${compile[@]}" --upgrade pyproject.toml --group build --output-file requirements/run.txt
"${compile[@]}" pyproject.toml --group build --extra quality --constraint requirements/run.txt \
    --output-file requirements/quality.txt
"${compile[@]}" --upgrade pyproject.toml --group build --group dev --extra quality --constraint requirements/run.txt \
    --output-file requirements/dev.txt
