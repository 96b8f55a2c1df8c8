"""Which steps are traced, and what is written."""

import json
from pathlib import Path

import pytest
import torch

from farside.configs.errors import UserError
from farside.configs.schema import Config, DataConfig, ProfileConfig, TrainConfig
from farside.configs.stages import pretrain_stages, profile_range
from farside.train.profile import StepProfiler

CPU = torch.device("cpu")


def work(profiler: StepProfiler, steps: range) -> None:
    for step in steps:
        with profiler.around(step):
            torch.ones(step, step) @ torch.ones(step, step)


def shapes_of_products(path: Path) -> list[int]:
    events = json.loads(path.read_text())["traceEvents"]
    return [event["args"]["Input Dims"][0][0] for event in events if event.get("name") == "aten::mm"]


def test_the_named_steps_and_no_others_are_traced(tmp_path: Path) -> None:
    work(StepProfiler(ProfileConfig("3..4", memory=True), tmp_path, 1, CPU), range(1, 7))
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [
        "rank_1.memory.json",
        "rank_1.operators.txt",
        "rank_1.trace.json",
    ]
    assert shapes_of_products(tmp_path / "profile" / "rank_1.trace.json") == [3, 4]
    assert "aten::mm" in (tmp_path / "profile" / "rank_1.operators.txt").read_text()
    memory = json.loads((tmp_path / "profile" / "rank_1.memory.json").read_text())
    assert memory["peak_resident_bytes"] > 10**7
    assert memory["allocated_bytes_by_operator"]


def test_a_run_that_ends_or_begins_inside_the_range_keeps_what_it_saw(tmp_path: Path) -> None:
    profiler = StepProfiler(ProfileConfig("3..9"), tmp_path, 0, CPU)
    work(profiler, range(5, 7))
    assert not (tmp_path / "profile").exists()
    profiler.close()
    assert shapes_of_products(tmp_path / "profile" / "rank_0.trace.json") == [5, 6]


def test_off_writes_nothing(tmp_path: Path) -> None:
    profiler = StepProfiler(ProfileConfig(), tmp_path, 0, CPU)
    work(profiler, range(1, 3))
    profiler.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["3", "a..b", "3...4", "0..2", "5..3", "1..2..3", "-1..2", "1-3"])
def test_a_wrong_range_is_one_line_with_the_fix(text: str) -> None:
    with pytest.raises(
        UserError, match=r"profile\.steps = .*give FIRST\.\.LAST, counted from 1, such as 10\.\.12"
    ) as error:
        profile_range(ProfileConfig(text))
    assert "\n" not in str(error.value)


def test_ranges_that_would_never_be_written_are_refused() -> None:
    config = Config(data=DataConfig(mixture={"en": 1.0}), train=TrainConfig(steps=30))
    config.profile.steps = "30..31"
    with pytest.raises(UserError, match=r"profile\.steps = 30\.\.31, but training has 30 steps"):
        pretrain_stages(config)
    config.profile.steps = "30..30"
    pretrain_stages(config)
    with pytest.raises(UserError, match=r"profile\.memory = true without steps"):
        profile_range(ProfileConfig("", memory=True))
