#!/usr/bin/env bash
# Long studies: scripts/experiments.sh NAME [Hydra overrides]. The same command again goes on where the last one ended;
# the table lands in docs/NAME.md.
#   demo_seeds    the demo with seeds 0, 1 and 2 (of data and of weights): are its numbers luck?
#   rewards       reward models of answers and of steps, best of 8, a weak one exploited (docs/rewards_numbers.md)
#   parity        every layout against one process, in fp64, fp32 and bf16
#   rl            do the RL algorithms learn, and does a control not? Hours on one core
set -euo pipefail
scripts="$(dirname "${BASH_SOURCE[0]}")"
cd "$scripts/.."
name="${1:-}"
case "$name" in
  demo_seeds)
    shift
    ./scripts/setup.sh
    runs=()
    for seed in 0 1 2; do
      .venv/bin/farside run experiment=demo run.name="demo-seed-$seed" train.seed="$seed" data.seed="$seed" "$@"
      runs+=("runs/demo-seed-$seed")
    done
    .venv/bin/python scripts/demo_table.py "${runs[@]}" > docs/demo_seeds.md
    cat docs/demo_seeds.md
    ;;
  rewards)
    shift
    ./scripts/setup.sh
    ./scripts/rewards.sh .venv/bin/farside runs/rewards "$@"
    .venv/bin/python scripts/rewards_table.py runs/rewards > docs/rewards_numbers.md
    cat docs/rewards_numbers.md
    ;;
  parity)
    ./scripts/setup.sh
    OMP_NUM_THREADS=1 .venv/bin/python -m tests.parity.table > docs/parity.md
    head -n 20 docs/parity.md
    ;;
  rl)
    ./scripts/setup.sh
    .venv/bin/python scripts/prove_rl.py run
    .venv/bin/python scripts/prove_rl.py write
    ;;
  *)
    sed -n 's/^#   /  /p' "$0" >&2
    exit 2
    ;;
esac
