"""What ``farside run`` asks of each phase, before the first begins."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import farside.run
from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.schema import NiahConfig
from farside.run import REWARD_ALONE, arm_of, check_ahead, phases_of

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
