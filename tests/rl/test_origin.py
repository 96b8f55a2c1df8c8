"""Files that are made once, of other settings than the ones asked for now, are not taken over."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from farside.configs.errors import UserError
from farside.configs.schema import Config
from farside.rl.origin import difference, note
from farside.rl.reward import registry
from farside.rl.reward.sampling import sampled_with
from farside.rl.tasks.traces import write_traces
from farside.train.checkpoint import format as checkpoint_format


def traces(tmp_path: Path, digits: int) -> Path:
    config = Config()
    config.sft.traces, config.sft.task.digits = 3, digits
    return write_traces(config, tmp_path)


def test_traces_of_another_task_are_refused(tmp_path: Path) -> None:
    path = traces(tmp_path, 2)
    made = path.read_text()
    assert traces(tmp_path, 2).read_text() == made
    told = r"traces\.jsonl was made with sft\.task\.digits = 2, now 3; give back what it was, use another run\.dir"
    with pytest.raises(UserError, match=told):
        traces(tmp_path, 3)
    assert path.read_text() == made, "refused, and nothing lost"
    path.unlink()
    assert traces(tmp_path, 3).read_text() != made


def test_what_was_not_noted_is_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    assert difference(path, {"a": 1}) == "", "not made yet"
    path.touch()
    assert difference(path, {"a": 1}) == "", "by a version that left no note"
    note(path, {"a": 1, "gone": 2})
    assert difference(path, {"a": 1, "new": 3}) == ""
    assert "a = 1, now 2" in difference(path, {"a": 2, "new": 3})


def test_samples_are_of_a_policy_and_of_settings(tmp_path: Path) -> None:
    def policy(value: float) -> Path:
        folder = tmp_path / str(value) / "checkpoints" / "step_00000001"
        checkpoint_format.write(folder, 1, {"model": {"w": torch.full((2,), value)}}, {"step": 1})
        return folder

    config, first = Config(), policy(1.0)
    told = sampled_with(config, first)
    assert sampled_with(config, first.parent.parent) == told, "a run directory stands for its newest"
    assert sampled_with(config, policy(2.0))["policy"] != told["policy"]
    for change in ({"prompts": 9}, {"temperature": 0.5}, {"bare_pairs": False}):
        other = replace(config, reward=replace(config.reward, **change))  # type: ignore[arg-type]
        assert sampled_with(other, first) != told
    other = replace(config, reward=replace(config.reward, steps=9, lr=1.0))
    assert sampled_with(other, first) == told, "what trains on the samples does not decide them"


def test_a_reward_model_is_named_by_its_run_or_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = SimpleNamespace(config=Config(), tokenizer=None)
    found = SimpleNamespace(path=tmp_path / "checkpoints" / "step_00000001")
    monkeypatch.setattr(registry, "load_unsharded", lambda *_: (None, found))
    for path in (tmp_path, found.path):
        with pytest.raises(UserError, match=r"rl\.reward_model: .* is not finished: it has no normalisation\.json"):
            registry.load_judge(nothing, nothing, path)
    (tmp_path / registry.NORMALISATION).write_text('{"kind": "outcome", "center": 1.0, "scale": 2.0}')
    for path in (tmp_path, found.path):
        judge = registry.load_judge(nothing, nothing, path)
        assert (judge.center, judge.scale) == (1.0, 2.0)
