#!/usr/bin/env bash
# The whole story on two CPU cores: raw text to a long-context model trained by RL, and its report.
# The same command again resumes where the last one ended. Arguments are Hydra overrides. It has two ranks; for them to
# use two GPUs, name these in CUDA_VISIBLE_DEVICES.
set -euo pipefail
scripts="$(dirname "${BASH_SOURCE[0]}")"
"$scripts/setup.sh"
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}"
cd "$scripts/.."
exec .venv/bin/farside run experiment=demo "$@"
