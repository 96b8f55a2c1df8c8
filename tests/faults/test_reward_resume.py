"""A model of steps from the command line, and RL that it teaches, killed between two checkpoints: bit for bit as if
nothing had been."""

import json
from pathlib import Path

import pytest

from tests.faults.driver import Job, checkpoint_files, farside, last_step, sequence

PROCESS = [
    *("reward.kind=process", "reward.prompts=6", "reward.samples=2", "reward.held_out_prompts=6", "reward.steps=4"),
    *("reward.continuations=2", "reward.corrupted=40", "reward.pairs_per_batch=4", "reward.micro_pairs=2"),
    *("reward.best_of=2", "reward.best_of_prompts=4", "rl.max_new_tokens=8", "checkpoint.every=2"),
]
RL = [
    *("rl.steps=8", "checkpoint.every=3", "rl.prompts_per_step=2", "rl.samples_per_prompt=4", "rl.max_new_tokens=8"),
    *("rl.eval_every=4", "rl.eval_prompts=4", "run.dir=run", "rl.process_weight=0.5", "rl.reward_model_norm=running"),
    *("rl.reward_model_clip=2", "rl.overoptimisation.window=3"),
]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rewards_of_steps_survive_a_kill(tmp_path: Path, words: list[str], reference: Path) -> None:
    policy = f"train.init_from={max((reference / 'checkpoints').glob('step_*'))}"
    done = farside(["reward", *words, *PROCESS, policy, "run.dir=judge"], tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "judge/summary.json").read_text())
    assert summary["kind"] == "process"
    assert set(summary["steps"]) == {"corrupted", "samples"}
    assert 0 <= summary["best_of"]["min"] <= summary["best_of"]["any"] <= 1
    judge = max((tmp_path / "judge/checkpoints").glob("step_*"))
    command = ["rl", *words, *RL, policy, f"rl.reward_model={judge}"]
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    whole.mkdir()
    hurt.mkdir()
    done = farside(command, whole)
    assert done.returncode == 0, done.stderr
    rows = sequence(whole / "run")
    assert all(row["grad_norm"] > 0 for row in rows), "the policy knows no sums: what moves it is the model"
    assert ["proxy_window" in row for row in rows] == [False] * 2 + [True] * 6
    assert "kl_start" in rows[7]
    with Job(command, hurt) as job:
        job.until(lambda: last_step(hurt / "run") >= 5)
        job.kill_tree()
    assert last_step(hurt / "run") < 8
    again = farside(command, hurt)
    assert "resumed at step" in again.stdout, again.stderr
    assert sequence(hurt / "run") == rows
    assert checkpoint_files(hurt / "run") == checkpoint_files(whole / "run")
    refused = farside(["rl", *words, *RL, policy, f"rl.reward_model={reference}"], tmp_path)
    assert refused.returncode == 2, refused.stderr
