#!/usr/bin/env bash
# Runs pytest on a folder with the project's own environment (.venv, made by `make test`); exit 77 (skipped) without it.
cd "$(dirname "$0")/.."
[[ -x .venv/bin/python ]] || { echo "no .venv: run make test"; exit 77; }
exec .venv/bin/python -m pytest -q -p no:cacheprovider "$@"
