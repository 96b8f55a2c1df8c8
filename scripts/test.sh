#!/usr/bin/env bash
# The tests, two files at a time: 5 minutes on 2 cores is their budget. Arguments go to pytest, which then takes one
# test at a time (those with deadlines want the machine to themselves); --all adds the long ones.
set -euo pipefail
scripts="$(dirname "${BASH_SOURCE[0]}")"
"$scripts/setup.sh"
cd "$scripts/.."
export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE  # dozens of processes import the same files
[ $# -gt 0 ] || set -- -n 2 --dist loadfile --no-loadscope-reorder
exec .venv/bin/python -m pytest "$@"
