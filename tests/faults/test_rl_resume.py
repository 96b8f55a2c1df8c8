"""RL with replay, with a critic and a pool: killed between two checkpoints, it goes on as if nothing had been."""

from pathlib import Path

import pytest

from tests.faults.driver import Job, checkpoint_files, farside, last_step, sequence

SHORT = [
    *("rl.steps=8", "checkpoint.every=3", "rl.prompts_per_step=2", "rl.samples_per_prompt=4", "rl.max_new_tokens=8"),
    *("rl.eval_every=4", "rl.eval_prompts=4", "rl.reward_model_weight=0", "run.dir=run"),
]
REPLAY = [
    *(*SHORT, "rl.kl.weight=0.1", "rl.updates_per_step=2", "rl.sampling_rounds=2"),
    *("rl.replay.samples=2", "rl.replay.seq_len=64", "+rl.replay.mixture={needle_en:0.5,en:0.5}"),
]
CRITIC = [*SHORT, "rl.algorithm=ppo", "rl.updates_per_step=2", "rl.critic.warmup_steps=2", "rl.gae_lambda=0.9"]
POOL = ["rl.curriculum.pool=64", "rl.curriculum.prioritised=true", "rl.curriculum.guess_tries=2"]


@pytest.mark.slow
def test_killed_rl_with_replay_equals_an_uninterrupted_one(tmp_path: Path, words: list[str], reference: Path) -> None:
    # the policy knows no sums: every reward is 0, no group teaches, so that all rounds are drawn, and what moves the
    # weights is replay, and with it the distance from the policy before
    command = ["rl", *words, *REPLAY, f"train.init_from={max((reference / 'checkpoints').glob('step_*'))}"]
    whole, hurt = uninterrupted(command, tmp_path)
    losses = [record["replay_loss"] for record in sequence(whole / "run")]
    assert len(set(losses)) == 8, "every step replays other samples"
    assert losses[-1] < losses[0], "and learns from them"
    assert [record["problems"] for record in sequence(whole / "run")] == list(range(4, 33, 4)), "two rounds of two"
    assert all(record["policy_loss"] > 0 for record in sequence(whole / "run")), "the second update is drawn back"
    assert_resumes(command, whole, hurt)


@pytest.mark.slow
def test_killed_rl_with_a_critic_and_a_pool_equals_an_uninterrupted_one(
    tmp_path: Path, words: list[str], reference: Path
) -> None:
    # every reward is 0, and what the policy learns from is what the critic expected of tokens before it knew
    command = ["rl", *words, *CRITIC, *POOL, f"train.init_from={max((reference / 'checkpoints').glob('step_*'))}"]
    whole, hurt = uninterrupted(command, tmp_path)
    records = sequence(whole / "run")
    losses = [record["value_loss"] for record in records]
    assert losses[-1] < losses[0], "the critic learns that nothing is right"
    assert [record["lr"] for record in records[:3]] == [0, 0, records[2]["lr"]]
    assert records[2]["lr"] > 0
    assert_resumes(command, whole, hurt)


def uninterrupted(command: list[str], tmp_path: Path) -> tuple[Path, Path]:
    """The folder of a whole run, and one for a run to be hurt."""
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    whole.mkdir()
    hurt.mkdir()
    done = farside(command, whole)
    assert done.returncode == 0, done.stderr
    return whole, hurt


def assert_resumes(command: list[str], whole: Path, hurt: Path) -> None:
    """Killed between two checkpoints and started again, the command leaves what the whole run left."""
    with Job(command, hurt) as job:
        job.until(lambda: last_step(hurt / "run") >= 5)
        job.kill_tree()
        assert job.gone()
    assert last_step(hurt / "run") < 8
    again = farside(command, hurt)
    assert "resumed at step 3" in again.stdout or "resumed at step 6" in again.stdout, again.stderr
    assert sequence(hurt / "run") == sequence(whole / "run")
    assert checkpoint_files(hurt / "run") == checkpoint_files(whole / "run")
    for name in ("samples.jsonl", "held_out.jsonl"):
        assert (hurt / "run" / name).read_bytes() == (whole / "run" / name).read_bytes(), name
