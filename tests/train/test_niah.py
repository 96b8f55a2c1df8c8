"""Needle grids by name: drawn once of the same checkpoint, told apart from others, one for each source."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from farside.configs.errors import UserError
from farside.configs.rope import Rope
from farside.data.tokenizer import Tokenizer
from farside.train.eval import niah
from farside.train.runtime import Runtime
from tests.train.models import SMALL, small_config


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draws a grid whose answers are all right; drawn(rope, title): the result, or None if it was left alone."""
    config = small_config(SMALL)
    config.eval.niah = replace(config.eval.niah, sources=["t", "u", "z"], lengths=2, depths=2, needles=1)
    languages = {"t": "en", "u": "en", "z": "zh"}
    data: Any = SimpleNamespace(
        language=languages.__getitem__, tokens=lambda *_: np.zeros(9), tokenizer=Tokenizer.train([], 262)
    )
    monkeypatch.setattr(niah, "make_trial", lambda *given: niah.Trial(given[4], given[5], [1], SimpleNamespace(), 0.0))  # type: ignore[arg-type]
    monkeypatch.setattr(niah, "answer_trials", lambda *given: [(trial.row, True, {}) for trial in given[3]])
    runtime = Runtime.alone(config, tmp_path)

    def draw(theta: float, title: str = "") -> dict[str, Any] | None:
        engine: Any = SimpleNamespace(replica=lambda: None, rope=Rope(theta))
        return niah.evaluate_grid(runtime, engine, data, "mine", 0, 64, None, title)

    return draw


def test_a_grid_is_drawn_once(tmp_path: Path, drawn: Any) -> None:
    assert drawn(1e4) is not None
    assert drawn(1e4) is None
    assert drawn(1e4, "by hand") is None
    with pytest.raises(UserError, match=r"eval\.name = mine: .* holds a grid of another rope; use another name"):
        drawn(77.0, "by hand")
    assert drawn(77.0) is not None, "a stage that goes on"
    told = json.loads((tmp_path / "eval" / "mine" / "niah.json").read_text())
    assert told["asked"]["rope"]["theta"] == 77.0
    del told["asked"]
    (tmp_path / "eval" / "mine" / "niah.json").write_text(json.dumps(told))
    assert drawn(5.0, "by hand") is None, "one that an older farside drew"


def test_sources_of_one_language_have_a_grid_each(drawn: Any) -> None:
    result = drawn(1e4)
    assert {name: (grid["green"], grid["cells"]) for name, grid in result["grids"].items()} == {
        "t": (4, 4),
        "u": (4, 4),
        "zh": (4, 4),
    }
    assert {example["language"] for example in result["examples"]} == {"t", "u", "zh"}
