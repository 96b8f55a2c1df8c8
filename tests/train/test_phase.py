"""Weights of another phase: a reward head may be missing, nothing else."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from farside.configs.errors import UserError
from farside.configs.rope import Rope
from farside.parallel.mesh import ONE_RANK
from farside.train.engine.native import NativeEngine
from farside.train.phase import load_foreign
from tests.train.models import SMALL, small_config


def checkpoint_of(engine: NativeEngine) -> Any:
    """What ``load_foreign`` takes from a checkpoint."""
    weights = dict(engine.named_weights())

    def read(name: str, *box: Any) -> torch.Tensor:
        return weights[name]

    stored = SimpleNamespace(shapes={name: value.shape for name, value in weights.items()}, read=read)
    return SimpleNamespace(path="there", reader=lambda group: stored, state={"rope": Rope(10000.0).record()})


def test_a_reward_model_cannot_become_a_policy() -> None:
    config = small_config(replace(SMALL, tie_word_embeddings=False))
    policy, reward = (NativeEngine(config, ONE_RANK, torch.device("cpu"), head) for head in ("lm", "scalar"))
    load_foreign(checkpoint_of(policy), reward)
    with pytest.raises(
        UserError, match=r"there: has no lm_head\.weight; name a checkpoint of a model that writes text"
    ):
        load_foreign(checkpoint_of(reward), policy)
