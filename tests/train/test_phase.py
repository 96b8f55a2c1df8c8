"""What phases share: weights of another phase, the loss at the end, and a finished one that is asked for again."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from farside.configs.errors import UserError
from farside.configs.rope import Rope
from farside.configs.stages import pretrain_stages
from farside.data.batch import Batch
from farside.parallel.mesh import ONE_RANK
from farside.train.engine.native import NativeEngine
from farside.train.phase import load_foreign, refuse_relabelling, validation_loss
from farside.train.runtime import Runtime
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


def losses(folder: Path, sizes: dict[str, int], micro_batch: int) -> tuple[dict[str, float], list[torch.Size]]:
    """Validation losses of sources with so many tokens at length 32, and the shapes that the engine was given."""
    config = small_config(SMALL)
    config.data.seq_len, config.data.micro_batch_size, config.data.global_batch_size = 32, micro_batch, 8
    config.data.mixture = {"a": 1.0}
    runtime = Runtime.alone(config, folder)
    engine, shapes = NativeEngine(config, runtime.mesh, runtime.device), []
    tokens = {name: np.arange(size, dtype=np.uint16) % 29 + 1 for name, size in sizes.items()}
    asked = engine.token_outputs

    def token_outputs(batches: Sequence[Batch]) -> Any:
        shapes.extend(batch.tokens.shape for batch in batches)
        return asked(batches)

    engine.token_outputs = token_outputs  # type: ignore[method-assign]
    data: Any = SimpleNamespace(
        names=list(sizes), tokens=lambda name, split: tokens[name], tokenizer=SimpleNamespace(end_of_text=0)
    )
    return validation_loss(runtime, engine, data, pretrain_stages(config)[-1], rows=7), shapes


def test_validation_is_read_in_micro_batches(tmp_path: Path) -> None:
    whole, shapes = losses(tmp_path, {"a": 1000}, 8)
    assert shapes == [(7, 32)]
    parts, shapes = losses(tmp_path, {"a": 1000}, 2)
    assert shapes == [(2, 32), (2, 32), (2, 32), (1, 32)]
    assert parts == pytest.approx(whole, rel=1e-5)


def test_a_validation_split_shorter_than_a_row_has_a_loss_all_the_same(tmp_path: Path) -> None:
    found, shapes = losses(tmp_path, {"short": 21, "one": 1, "a": 40}, 8)
    assert list(found) == ["short", "a"]
    assert shapes == [(1, 20), (1, 32)]


@pytest.mark.parametrize(
    ("step", "last", "summed_up", "changed", "refused"),
    [
        (4, 4, 4, " (changed: optim.lr 1 -> 2)", True),
        (4, 4, 4, "", False),
        (4, 8, 4, " (changed: train.steps 4 -> 8)", False),
        (8, 8, 4, " (changed: optim.lr 1 -> 2)", False),
        (4, 4, None, " (changed: parallel.dp_shard 1 -> 2)", False),
    ],
)
def test_a_finished_phase_is_not_described_anew(
    tmp_path: Path, step: int, last: int, summed_up: int | None, changed: str, refused: bool
) -> None:
    """summed_up: the step that summary.json is of."""
    if summed_up is not None:
        (tmp_path / "summary.json").write_text(json.dumps({"checkpoint": {"step": summed_up}}))
    runtime: Any = SimpleNamespace(dir=tmp_path)
    store: Any = SimpleNamespace(changed=lambda resumed: changed)
    resumed: Any = SimpleNamespace(step=step)
    if not refused:
        refuse_relabelling(runtime, store, resumed, last)
        return
    with pytest.raises(
        UserError, match=r"finished at step 4, other settings would change nothing \(changed: optim\.lr"
    ):
        refuse_relabelling(runtime, store, resumed, last)
