#!/usr/bin/env bash
# The runs behind docs/rewards.md: scripts/rewards.sh FARSIDE DIR [Hydra overrides]. What is finished is left as it is.
set -euo pipefail
farside="$1" root="$2"
shift 2
common=("$@")

# run COMMAND NAME [overrides]: as experiment=rewards in its own folder
run() {
  local command="$1" name="$2"
  shift 2
  grep -qs '"finished"' "$root/$name/status.json" && return
  "$farside" "$command" experiment=rewards run.dir="$root/$name" "${common[@]}" "$@"
}

# newest NAME: its last checkpoint
newest() { ls -d "$root/$1"/checkpoints/step_* | tail -n 1; }

warm_start() {
  run train pretrain
  run sft sft train.init_from="$(newest pretrain)"
}

reward_models() {
  local policy process="reward.kind=process"
  policy="train.init_from=$(newest sft)"
  run reward reward_outcome "$policy"
  run reward reward_outcome_margin "$policy" reward.margin=1
  run reward reward_weak "$policy" reward.prompts=24 reward.steps=40
  run reward reward_process_planted "$policy" $process reward.continuations=0 reward.corrupted=8192
  run reward reward_process_hard "$policy" $process
  run reward reward_process_soft "$policy" $process reward.labels=soft
  run reward reward_process_both "$policy" $process reward.corrupted=8192
}

# the weak model alone teaches: its score rises, verified accuracy does not
exploited() {
  run rl rl_weak train.init_from="$(newest sft)" rl.reward_model="$(newest reward_weak)" \
    rl.verifier_weight=0 rl.reward_model_weight=1 rl.steps=50
}

# at equal samples: the verifier's word on whole answers, and beside it rewards of steps
compared() {
  local seed policy
  policy="train.init_from=$(newest sft)"
  for seed in 0 1; do
    run rl "rl_verifier_$seed" "$policy" train.seed=$seed rl.reward_model_weight=0
    run rl "rl_process_$seed" "$policy" train.seed=$seed rl.reward_model="$(newest reward_process_both)" \
      rl.reward_model_weight=0 rl.process_weight=0.5
  done
}

warm_start
reward_models
exploited
compared
