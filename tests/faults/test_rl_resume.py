"""RL killed at any moment goes on as if nothing had been, bit for bit: with replay, with a critic and a pool, with
answers under way."""

import json
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
@pytest.mark.timeout(300)
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


PARTIAL = [
    *("rl.steps=8", "checkpoint.every=3", "rl.prompts_per_step=2", "rl.samples_per_prompt=4", "rl.max_new_tokens=9"),
    *("rl.partial_tokens=3", "rl.max_staleness=3", "rl.rollout_batch=6", "rl.learn_old_segments=false"),
    *("rl.reward_model_weight=0", "rl.truncation_penalty=0.5", "rl.eval_every=4", "rl.eval_prompts=4"),
    *("rl.updates_per_step=2", "rl.lr=1e-3", "run.dir=run"),
    *("rl.replay.samples=2", "rl.replay.seq_len=64", "+rl.replay.mixture={needle_en:0.5,en:0.5}"),
]
SFT = [
    *("sft.task.digits=1", "sft.traces=500", "sft.steps=40", "sft.seq_len=96", "sft.global_batch_size=16"),
    *("sft.micro_batch_size=16", "sft.lr=1e-2", "sft.mixture={trace:1.0}", "run.dir=sft"),
]
FILES = ("samples.jsonl", "held_out.jsonl")


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory, words: list[str], reference: Path) -> tuple[list[str], Path]:
    """An RL command from a policy whose answers end sooner and later, and the run that nothing interrupted."""
    root = tmp_path_factory.mktemp("partial")
    start = max((reference / "checkpoints").glob("step_*"))
    done = farside(["sft", *words, *SFT, f"train.init_from={start}"], root)
    assert done.returncode == 0, done.stderr
    command = ["rl", *words, "sft.task.digits=1", *PARTIAL, f"train.init_from={root / 'sft'}"]
    done = farside(command, root)
    assert done.returncode == 0, done.stderr
    return command, root / "run"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_partial_rollouts_are_under_way_and_learn(partial: tuple[list[str], Path]) -> None:
    """What the kills below interrupt is there."""
    records = sequence(partial[1])
    assert all(record["in_flight"] > 0 for record in records[:-1])
    assert max(record["staleness"] for record in records) >= 1
    assert max(record["staleness"] for record in records) <= 3
    for share in ("old_share", "truncated_share"):
        assert any(0 < record[share] < 1 for record in records), share
    assert any(record["policy_loss"] for record in records)
    state = json.loads((partial[1] / "checkpoints" / "step_00000006" / "state.json").read_text())
    drafts = [draft for flight in state["in_flight"] for draft in flight["drafts"]]
    assert {draft["done"] for draft in drafts} == {False, True}, "answers under way, and answers without a reward yet"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", ["decode 5", "reward 5", "update 5", "save 6", "sync 5"])
def test_killed_in_the_midst_with_answers_under_way(
    tmp_path: Path, partial: tuple[list[str], Path], moment: str
) -> None:
    """GATE: weights, optimizer, answers under way, samples and metrics are those of a run that nothing interrupted."""
    command, whole = partial
    with Job(command, tmp_path, "tests.faults.rl_worker", KILL=moment) as job:
        assert job.wait() != 0
        assert job.gone()
    run = tmp_path / "run"
    if moment == "save 6":
        assert last_step(run) >= 6
        assert not (run / "checkpoints" / "step_00000006").exists()
    else:
        assert last_step(run) in (4, 5)
    again = farside(command, tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumed at step 3" in again.stdout
    assert sequence(run) == sequence(whole)
    assert checkpoint_files(run) == checkpoint_files(whole)
    for name in FILES:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
