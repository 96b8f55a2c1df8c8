"""Bad steps: skipped by all ranks alike, bit for bit as if they had not been; and after several, the way back."""

import json
import math
from pathlib import Path

import pytest
import torch

from farside.configs.schema import Config, GuardConfig
from farside.train.guard import Guard
from tests.ranks import Rank, RankPool
from tests.train.looping import Factors, Ran, config_of, parallel, train

ALONE = Rank(0, 1)
LAYOUTS = {
    "dp_shard": {"dp_shard": 2},
    "dp_replicate": {"dp_replicate": 2},
    "tp": {"tp": 2},
    "cp": {"cp": 2},
    "pp": {"pp": 2},
}


def guarded(config: Config, **settings: float) -> Config:
    config.train.guard = GuardConfig(**settings)  # type: ignore[arg-type]
    return config


def tensors(ran: Ran, step: int) -> list[str]:
    """Hashes of weights and of optimizer state."""
    files = json.loads(ran.checkpoints[f"step_{step:08d}"])["files"]
    return [files[name]["sha256"] for name in sorted(files) if name.endswith(".safetensors")]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "layout", [name if name == "dp_shard" else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
@pytest.mark.parametrize("factor", [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_all_ranks_skip_the_same_step(ranks: RankPool, tmp_path: Path, layout: str, factor: float) -> None:
    """Of dp rank 0 only the loss is no number (of ranks that share a sample, all of its)."""
    config = config_of(6, parallel(**LAYOUTS[layout]))
    config.checkpoint.every = 1
    ran = ranks.run(train, 2, tmp_path, config, {(0, 3): factor})[0]
    assert [(line["step"], line["skipped"], line["batch"]) for line in ran.metrics if "skipped" in line] == [
        (4, "nan", 3)
    ]
    assert ran.metrics[3]["loss"] is None
    assert all(line["loss"] is not None for line in ran.metrics if line["step"] != 4)
    assert "step_00000004" not in ran.checkpoints, "nothing is saved before a good step"
    assert tensors(ran, 3) != tensors(ran, 5) != tensors(ran, 6), "the next steps train"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("size", [1, 2])
def test_a_skipped_step_leaves_every_bit(ranks: RankPool, tmp_path: Path, size: int) -> None:
    """Weights, moments and their age: the last step saves even if it is bad."""
    config = config_of(4, parallel(dp_shard=size))
    config.checkpoint.every = 3
    call = (tmp_path, config, {(0, 3): math.nan})
    ran = ranks.run(train, 2, *call)[0] if size == 2 else train(ALONE, *call)
    assert ran.metrics[-1]["skipped"] == "nan"
    assert tensors(ran, 3) == tensors(ran, 4)
    states = [
        json.loads((tmp_path / "checkpoints" / f"step_{step:08d}" / "state.json").read_text())["updates"]
        for step in (3, 4)
    ]
    assert states == [3, 3]


def test_a_skipped_step_is_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Slow twin: the same run without that batch. Its learning rate is a step behind, so that is held constant."""

    def constant(config: Config) -> None:
        config.schedule.warmup_steps, config.schedule.min_ratio = 0, 1.0

    bad = train(ALONE, tmp_path / "bad", config_of(6, constant), {(0, 2): math.nan})
    without = train(ALONE, tmp_path / "without", config_of(6, constant), {}, leave_out=range(2, 3))
    assert [line["loss"] for line in bad.metrics if "skipped" not in line] == [
        line["loss"] for line in without.metrics[:5]
    ]


SPIKES: Factors = {(0, 2): 1e4, (0, 9): 1e4, (0, 11): math.nan}


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_spikes_are_skipped_and_the_window_survives_a_kill(ranks: RankPool, tmp_path: Path, size: int) -> None:
    """The one before the window is full passes; NaN does not close the window."""
    config = guarded(config_of(16, parallel(dp_shard=size)), sigmas=6.0, window=5)

    def run(folder: str, stop_after: int | None = None) -> Ran:
        call = (tmp_path / folder, config, SPIKES, 1, stop_after)
        return ranks.run(train, 2, *call)[0] if size == 2 else train(ALONE, *call)

    whole = run("whole")
    assert [(line["step"], line["skipped"]) for line in whole.metrics if "skipped" in line] == [
        (10, "spike"),
        (12, "nan"),
    ]
    assert "skipped" not in whole.metrics[2]
    for step in (6, 9, 10, 13):
        assert run("hurt", step).error == "killed"
    again = run("hurt")
    assert again.metrics == whole.metrics
    assert again.checkpoints == whole.checkpoints


def test_thresholds() -> None:
    guard = Guard(GuardConfig(sigmas=2.0, window=4))
    for loss in (1.0, 2.0, 3.0, 4.0):
        assert not guard.judge(torch.tensor(1e30))(torch.tensor(1e30)), "the window is not full"
        guard.settle({"loss": loss, "grad_norm": 1.0, "skipped": 0.0}, 0)
    limit = 2.5 + 2 * math.sqrt(1.25)
    for loss, norm, bad in (
        (limit - 1e-9, 1.0, False),
        (limit + 1e-9, 1.0, True),
        (0.0, 1.0 + 1e-9, True),
        (math.nan, 0.0, True),
        (0.0, math.nan, True),
        (-math.inf, 0.0, True),
    ):
        flag = guard.judge(torch.tensor(loss, dtype=torch.float64))(torch.tensor(norm, dtype=torch.float64))
        assert bool(flag) is bad, (loss, norm)
    told = guard.settle({"loss": math.nan, "grad_norm": 1.0, "skipped": 1.0}, 7)
    assert (told["skipped"], told["batch"], guard.streak) == ("nan", 7, 1)
    assert list(guard.losses) == [1.0, 2.0, 3.0, 4.0]
    assert Guard(guard.config, json.loads(json.dumps(guard.record()))).record() == guard.record()


BAD: Factors = {(0, number): math.nan for number in (6, 7, 8)}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_after_bad_steps_in_a_row_the_run_goes_back(ranks: RankPool, tmp_path: Path, size: int) -> None:
    """Slow twin: a run that has never seen the batches which were left out."""
    config = guarded(config_of(12, parallel(dp_shard=size)), patience=3)

    def run(folder: str, factors: Factors, stop_after: int | None = None, leave_out: range = range(0)) -> Ran:
        call = (tmp_path / folder, config, factors, 1, stop_after, leave_out)
        return ranks.run(train, 2, *call)[0] if size == 2 else train(ALONE, *call)

    whole = run("whole", BAD)
    assert [line["step"] for line in whole.metrics] == list(range(1, 13))
    assert whole.metrics[4].pop("rewound") == {"from": 9, "to": 4, "left_out_batches": [4, 8]}
    assert not any("skipped" in line or "rewound" in line for line in whole.metrics)
    assert (whole.progress["left_out"], whole.progress["rewinds"]) == (0, 1)
    twin = run("twin", {}, leave_out=range(4, 9))
    assert whole.metrics == twin.metrics
    assert tensors(whole, 12) == tensors(twin, 12)
    for step in (5, 8, 9, 11):
        run("hurt", BAD, step)
    again = run("hurt", BAD)
    again.metrics[4].pop("rewound")
    assert (again.metrics, again.checkpoints) == (whole.metrics, whole.checkpoints)


def test_it_goes_back_only_so_often(tmp_path: Path) -> None:
    config = guarded(config_of(12), patience=2, rewinds=2)
    ran = train(ALONE, tmp_path, config, {(0, number): math.nan for number in range(6, 40)})
    assert "2 bad steps in a row before step 7 of s0, after 2 returns" in ran.error
    early = train(ALONE, tmp_path / "early", config, {(0, 0): math.nan, (0, 1): math.nan})
    assert "2 bad steps in a row before step 3 of s0, and no checkpoint to go back to" in early.error


def test_back_to_the_end_of_the_stage_before(tmp_path: Path) -> None:
    # a stage whose losses are other ones: the window of the one before must not judge it, after a return neither
    config = guarded(config_of(6), patience=2, sigmas=6.0, window=3)
    bad: Factors = {(1, 0): math.nan, (1, 1): math.inf, **{(1, number): 40.0 for number in range(2, 20)}}
    ran = train(ALONE, tmp_path, config, bad, stages=3)
    assert [line["step"] for line in ran.metrics] == list(range(1, 19))
    assert ran.metrics[6]["rewound"] == {"from": 8, "to": 6, "left_out_batches": [0, 1]}
    assert ran.progress["left_out"] == 0, "the third stage leaves nothing out"


def test_a_good_run_is_untouched(tmp_path: Path) -> None:
    """With and without a guard the floats are the same."""
    off = train(ALONE, tmp_path / "off", config_of(6), {})
    on = train(ALONE, tmp_path / "on", guarded(config_of(6), sigmas=50.0, window=2), {})
    assert off.metrics == on.metrics
    assert tensors(off, 6) == tensors(on, 6)


def test_only_bad_steps_in_a_row_count(tmp_path: Path) -> None:
    every_other: Factors = {(0, number): math.nan for number in range(2, 12, 2)}
    ran = train(ALONE, tmp_path, guarded(config_of(12), patience=2), every_other)
    assert sum("skipped" in line for line in ran.metrics) == 5
    assert not any("rewound" in line for line in ran.metrics)
