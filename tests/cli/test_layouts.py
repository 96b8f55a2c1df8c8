"""Phases that decode, under every axis: grid, samples and held-out answers are those of one process."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.driver import farside, sequence

RL = [
    *("rl.steps=2", "rl.prompts_per_step=2", "rl.samples_per_prompt=4", "rl.max_new_tokens=8", "rl.eval_prompts=4"),
    *("rl.reward_model_weight=0", "rl.replay.samples=2", "rl.replay.seq_len=64", "+rl.replay.mixture={en: 1}"),
]
GRID = [f"eval.niah.{word}" for word in ("lengths=2", "depths=2", "needles=1", "min_length=96", "max_length=120")]


def grid_and_rl(
    words: list[str], start: Path, folder: Path, degree: str
) -> tuple[Any, list[dict[str, Any]], list[str]]:
    """What the grid said, metrics, and the lines of samples.jsonl and held_out.jsonl."""
    layout = [f"parallel.{degree}"] if degree else []
    newest = max((start / "checkpoints").glob("step_*"))
    for command in (
        ["eval", "niah", *words, *GRID, *layout, f"eval.checkpoint={newest}", "run.dir=run"],
        ["rl", *words, *RL, *layout, f"train.init_from={newest}", "run.dir=rl"],
    ):
        done = farside(command, folder)
        assert done.returncode == 0, done.stderr
    (grid,) = (folder / "run" / "eval").glob("*/niah.json")
    said = json.loads(grid.read_text())
    lines = [(folder / "rl" / name).read_text() for name in ("samples.jsonl", "held_out.jsonl")]
    return {key: said[key] for key in ("grids", "examples", "lengths")}, sequence(folder / "rl"), lines


def texts(lines: list[str]) -> list[str]:
    return [line["text"] for part in lines for line in map(json.loads, part.splitlines())]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_grid_and_rl_equal_those_of_one_process(tmp_path: Path, words: list[str], finished: Path) -> None:
    results = {}
    for degree in ("", "tp=2", "cp=2", "pp=2"):
        (tmp_path / f"x{degree}").mkdir()
        results[degree] = grid_and_rl(words, finished, tmp_path / f"x{degree}", degree)
    grid, metrics, lines = results.pop("")
    assert texts(lines)
    for degree, (other_grid, other_metrics, other_lines) in results.items():
        assert other_grid == grid, degree
        assert texts(other_lines) == texts(lines), degree
        for found, record in zip(other_metrics, metrics, strict=True):
            assert found["loss"] == pytest.approx(record["loss"], rel=1e-5), degree
            assert found["grad_norm"] == pytest.approx(record["grad_norm"], rel=1e-4), degree
