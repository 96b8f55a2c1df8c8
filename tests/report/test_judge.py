"""What the report says of a reward model: as a chooser, as a model of steps, and exploited or not."""

import json
from pathlib import Path
from typing import Any

import pytest

from farside.report import plots
from farside.report.judge import choosing, watched
from farside.report.markup import join
from farside.report.read import read_run
from farside.report.training import reward_model


@pytest.fixture(autouse=True)
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are composed, not rendered: that takes nearly all the time."""
    monkeypatch.setattr(plots, "_png", lambda figure: b"")


def watch(steps: int, **last: Any) -> str:
    """Of so many steps, the last of them with more to tell."""
    row = {"length": 20.0, "proxy_window": 0.4, "truth_window": 0.5, "truth_lost": 0.0312}
    rows = [row | {"step": step} for step in range(1, steps + 1)]
    rows[0] |= {"kl_start": 0.5, "repetition": 0.0}
    rows[-1] |= last
    return join(watched(rows, {}))


def test_alarm_is_told_with_its_step() -> None:
    assert "No alarm" in watch(41, kl_start=2.5)
    text = watch(41, kl_start=2.5, repetition=0.125, overoptimisation="warn")
    for told in ("alarm at step 41", "best: sampled by 3.12%.", "nats an answer, 0.500 → 2.50", "4-grams 0% → 12.5%"):
        assert told in text
    told = watch(41, overoptimisation="warn", held_out_lost=0.04)
    assert "sampled by 3.12%, held out by 4.00%." in told or "held out by 4%." in told
    assert "Over-optimisation" in watch(3, overoptimisation="warn", truth_lost="much"), "odd values are no failure"


def test_no_word_without_a_reward_model() -> None:
    assert watched([{"step": 1, "accuracy": 0.5}], {}) == []
    assert choosing({}) == []


def test_best_of_n() -> None:
    best = {"answers": 8, "problems": 128, "one": 0.31, "majority": 0.725, "score": 0.875, "any": 0.99}
    text = join(choosing({"best_of": best}))
    for told in ("Of 8 answers to each of 128", "72.5%", "87.5%", "the highest score"):
        assert told in text
    assert "worst step" not in text


def test_calibration_and_a_model_of_steps(run_dir: Path) -> None:
    path = run_dir / "reward/summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"calibration": {"error": 0.0423, "bins": []}}))
    assert "off by 4.23%" in reward_model(read_run(run_dir))
    steps = {"accuracy": 0.971, "commoner": 0.61, "count": 700, "located": 0.93}
    path.write_text(json.dumps({"kind": "process", "train_steps": 9000, "steps": {"corrupted": steps}}))
    text = reward_model(read_run(run_dir))
    for told in ("97.1%", "61%", "93%", "9,000 steps"):
        assert told in text
    assert "pairs" not in text
