#!/usr/bin/env bash
# Makes .venv beside this folder with farside and everything it needs, pinned. The second time it does nothing.
# Pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf ...) apply; PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

stamp=".venv/.farside-$(cat pyproject.toml setup.py scripts/constraints.txt | cksum | cut -d' ' -f1)"
[ -f "$stamp" ] && [ -x .venv/bin/farside ] && .venv/bin/python -c '' 2>/dev/null && exit 0

usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
python=""
for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3 python; do
    if command -v "$candidate" >/dev/null && usable "$candidate"; then python="$candidate"; break; fi
    [ "${PYTHON:-}" = "$candidate" ] && fail "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 with venv"
done
[ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 with venv found; install one, or name it: PYTHON=/path/to/python $0"

free_mib=$(df -Pm . | awk 'NR == 2 {print $4}')
[ "$free_mib" -ge 4096 ] || fail "only $free_mib MiB free here; 4,096 are needed (a CUDA build of torch takes 8,192)"

echo "setup: installing into .venv with $("$python" --version) (a few minutes, once)"
rm -rf .venv
"$python" -m venv .venv || fail "python -m venv failed; on Debian and Ubuntu: apt install python3-venv"
log=.venv/setup.log
if ! .venv/bin/python -m pip install --progress-bar off -c scripts/constraints.txt -e '.[dev]' >"$log" 2>&1; then
    grep -E 'ERROR|No space' "$log" | tail -n 5 >&2
    fail "pip could not install everything; the whole log is in $log"
fi
touch "$stamp"
echo "setup: done; the command is .venv/bin/farside"
