"""What ``farside run`` asks of each phase, before the first begins."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import farside.run
from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.schema import Config, NiahConfig
from farside.launch.local import read_status
from farside.run import REWARD_ALONE, Phase, arm_of, check_ahead, phases_of
from farside.train.checkpoint.format import MANIFEST


@cache
def demo() -> Config:
    return compose.compose(["experiment=demo"])


def changed(**values: Any) -> Config:
    """The demo's configuration with other values, by dotted key; composing costs half a second."""
    config = deepcopy(demo())
    for key, value in values.items():
        *sections, name = key.split(".")
        section: Any = config
        for each in sections:
            section = getattr(section, each)
        setattr(section, name, value)
    return config


WORDS = ("experiment=demo", "rl.reward_alone_steps=5", "rl.sampling_rounds=4", "rl.overoptimisation.stop=0.1")


def test_the_arm_of_the_reward_model_alone_fits_what_the_other_was_given() -> None:
    config = compose.compose([*WORDS])
    check_ahead(config)
    arms = {phase.name: arm_of(phase, config).rl for phase in phases_of(config)}
    alone = arms.pop(REWARD_ALONE)
    assert all(arm == config.rl for arm in arms.values())
    assert (alone.steps, alone.verifier_weight, alone.reward_model_weight) == (5, 0.0, 1.0)
    assert (alone.sampling_rounds, alone.overoptimisation.stop, alone.replay.samples) == (1, None, 0)


def test_what_a_late_phase_would_refuse_is_refused_at_once(tmp_path: Path) -> None:
    """Before data are prepared, and before the directory tells of a job."""
    launcher: Any = SimpleNamespace(directory=tmp_path, stopping=False)
    with pytest.raises(UserError, match=r"rl\.eval_prompts = 0; give at least 1"):
        farside.run.run(compose.compose([*WORDS, "rl.eval_prompts=0"]), launcher)
    assert not list(tmp_path.iterdir())


def test_a_grid_that_cannot_be_drawn_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its haystack is too short, say, which shows once data are prepared."""

    def too_long(config: NiahConfig, data: object) -> None:
        raise UserError("eval.niah.max_length: too long")

    started: list[str] = []
    monkeypatch.setattr(farside.run, "prepare", lambda *given: tmp_path)
    monkeypatch.setattr(farside.run, "Prepared", lambda folder: folder)
    monkeypatch.setattr(farside.run, "check_grid", too_long)
    monkeypatch.setattr(farside.run, "run_phase", lambda phase, *given: started.append(phase.name))
    launcher: Any = SimpleNamespace(directory=tmp_path, stopping=False)
    with pytest.raises(UserError, match="max_length: too long"):
        farside.run.run(compose.compose([*WORDS]), launcher)
    assert not started


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sft.task.name", "adition", r"sft\.task\.name=adition: unknown task; did you mean addition\?"),
        ("sft.task.digits", 0, r"sft\.task\.digits=0: choose 1"),
        ("sft.task.name", "jsonl:absent.jsonl", "there is no file or folder 'absent.jsonl'"),
        ("reward.prompts", 0, r"reward\.prompts = 0; give at least 1"),
        ("eval.niah.sources", ["fr"], r"eval\.niah\.sources names 'fr'; data\.sources has code, en, zh"),
    ],
)
def test_wrong_input_of_late_phases_is_seen_ahead(key: str, value: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_ahead(changed(**{key: value}))


def fake_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str) -> Callable[..., int]:
    """farside run without workers: phases leave a checkpoint and a summary; one refuses its input."""

    def run_phase(phase: Phase, config: object, launcher: Any, status: Any) -> bool:
        if phase.name == refusing:
            raise UserError(f"{phase.name}: something of it is wrong")
        folder = launcher.directory / phase.name
        (folder / "checkpoints" / "step_00000001").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "step_00000001" / MANIFEST).touch()
        (folder / "summary.json").write_text("{}")
        return True

    monkeypatch.setattr(farside.run, "prepare", lambda *given: tmp_path)
    monkeypatch.setattr(farside.run, "Prepared", lambda folder: folder)
    monkeypatch.setattr(farside.run, "check_grid", lambda *given: None)
    monkeypatch.setattr(farside.run, "run_phase", run_phase)
    monkeypatch.setattr(farside.run, "write_report", lambda folder: folder)
    launcher: Any = SimpleNamespace(directory=tmp_path, stopping=False)
    return lambda **values: farside.run.run(changed(**values), launcher)


def test_what_a_phase_refused_can_be_changed_and_what_has_begun_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = fake_job(tmp_path, monkeypatch, "reward")
    with pytest.raises(UserError, match="reward: something"):
        job()
    assert read_status(tmp_path)["status"] == "failed"
    assert "something of it is wrong" in str(read_status(tmp_path)["cause"])
    job = fake_job(tmp_path, monkeypatch, "none")
    for key, value in {"optim.lr": 1.0, "sft.steps": 7, "sft.task.digits": 1}.items():
        with pytest.raises(UserError, match=f"made with another configuration .{key}"):
            job(**{key: value})
    other = {"reward.prompts": 400, "rl.lr": 1e-4, "rl.max_new_tokens": 50}
    assert job(**other) == 0
    with pytest.raises(UserError, match=r"made with another configuration .*rl\.lr"):
        job(**{**other, "rl.lr": 2e-4})
