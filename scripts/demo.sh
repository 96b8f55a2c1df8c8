#!/usr/bin/env bash
# The whole story on two CPU cores: raw text to a long-context model trained by RL, and its report.
# The same command again resumes where the last one ended. Arguments are Hydra overrides.
set -euo pipefail
scripts="$(dirname "${BASH_SOURCE[0]}")"
"$scripts/setup.sh"
cd "$scripts/.."
exec .venv/bin/farside run experiment=demo "$@"
