"""Numbers that no run can have are named before it begins."""

import math
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.ranges import check_grid_size
from farside.configs.schema import Config, StageConfig
from farside.configs.stages import pretrain_stages


@cache
def good() -> Config:
    return compose.compose(["experiment=tiny"])


def changed(key: str, value: Any) -> Config:
    """That one with another value; composing costs half a second."""
    config = deepcopy(good())
    *sections, name = key.split(".")
    section: Any = config
    for each in sections:
        section = getattr(section, each)
    setattr(section, name, value)
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.clip_norm", -1),
        ("optim.clip_norm", 0),
        ("optim.clip_norm", math.nan),
        ("optim.betas", (0.9, 1.5)),
        ("optim.weight_decay", -0.1),
        ("logging.every", 0),
        ("launch.threads_per_rank", 0),
        ("train.guard.window", 0),
        ("train.guard.sigmas", math.nan),
        ("train.timeout_seconds", 0),
        ("schedule.warmup_steps", -1),
        ("schedule.min_ratio", -0.1),
        ("schedule.decay_share", 1.5),
        ("eval.training_points", 0),
        ("data.mixture_temperature", 0),
    ],
)
def test_a_number_out_of_range_is_named(key: str, value: Any) -> None:
    pretrain_stages(good())
    with pytest.raises(UserError, match=rf"^{key.replace('.', '[.]')} = .*; give "):
        pretrain_stages(changed(key, value))


@pytest.mark.parametrize("lr", [-1.0, math.nan, math.inf])
def test_a_learning_rate_is_a_number_from_0_up(lr: float) -> None:
    with pytest.raises(UserError, match="lr = "):
        pretrain_stages(changed("optim.lr", lr))


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", ".", "", "a b"])
def test_a_stage_is_named_like_a_folder(name: str) -> None:
    config = Config()
    config.data.mixture = {"en": 1.0}
    config.stages = [StageConfig(name="a", steps=4), StageConfig(name="b-2.x", steps=4)]
    pretrain_stages(config)
    config.stages[1] = replace(config.stages[1], name=name)
    with pytest.raises(UserError, match="a stage's name is a folder's"):
        pretrain_stages(config)


def test_two_stages_of_one_name_are_refused() -> None:
    config = Config()
    config.data.mixture = {"en": 1.0}
    config.stages = [StageConfig(name="a", steps=4), StageConfig(name="a", steps=4)]
    with pytest.raises(UserError, match="give each its own"):
        pretrain_stages(config)


def test_a_grid_has_cells() -> None:
    check_grid_size(Config().eval.niah)
    for change in ({"lengths": 0}, {"depths": 0}, {"needles": 0}, {"sources": []}, {"max_length": 1}):
        with pytest.raises(UserError, match=rf"eval\.niah\.{next(iter(change))}"):
            check_grid_size(replace(Config().eval.niah, **change))  # type: ignore[arg-type]
