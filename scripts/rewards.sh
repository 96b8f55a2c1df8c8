#!/usr/bin/env bash
# The runs behind docs/rewards.md: scripts/rewards.sh FARSIDE DIR [Hydra overrides]. What is finished is left as it is;
# STUDIES names some of the functions below, in place of all.
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

outcome_models() {
  local policy="train.init_from=$(newest sft)" many="reward.prompts=4096 reward.steps=500"
  run reward reward_outcome "$policy" $many
  run reward reward_outcome_margin "$policy" $many reward.margin=1
}

process_models() {
  local policy="train.init_from=$(newest sft)" kind="reward.kind=process"
  run reward reward_process_planted "$policy" $kind reward.continuations=0 reward.corrupted=8192
  run reward reward_process_hard "$policy" $kind
  run reward reward_process_both "$policy" $kind reward.corrupted=8192
  run reward reward_process_soft "$policy" $kind reward.labels=soft
}

# the weak model alone teaches: its score rises, verified accuracy does not
exploited() {
  run reward reward_weak train.init_from="$(newest sft)" reward.prompts=64 reward.steps=40
  run rl rl_weak train.init_from="$(newest sft)" rl.reward_model="$(newest reward_weak)" \
    rl.verifier_weight=0 rl.reward_model_weight=1 rl.steps=60 rl.lr=1e-4 rl.eval_every=2
}

# at equal samples: the verifier's word on whole answers, and beside it rewards of steps
compared() {
  local seed policy
  policy="train.init_from=$(newest sft)"
  for seed in 0 1; do
    run rl "rl_verifier_$seed" "$policy" train.seed=$seed rl.reward_model_weight=0
    run rl "rl_process_$seed" "$policy" train.seed=$seed rl.reward_model="$(newest reward_process_planted)" \
      rl.reward_model_weight=0 rl.process_weight=0.5
  done
}

# the same, a token credited with what its own step changes
progress() {
  local seed
  for seed in 0 1; do
    run rl "rl_process_progress_$seed" train.init_from="$(newest sft)" train.seed=$seed rl.reward_model_weight=0 \
      rl.reward_model="$(newest reward_process_planted)" rl.process_weight=0.5 rl.process_credit=progress
  done
}

for study in ${STUDIES:-warm_start process_models outcome_models exploited compared progress}; do
  "$study"
done
