#!/usr/bin/env bash
# The tests: 5 minutes on 2 fast cores is their budget. --all adds the long ones. Other arguments go to pytest.
set -euo pipefail
scripts="$(dirname "${BASH_SOURCE[0]}")"
"$scripts/setup.sh"
cd "$scripts/.."
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest "$@"
