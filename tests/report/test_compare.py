"""The comparison of several runs: what differs, what came of it, and the sweep's page that is made of it."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest

from farside.configs import compose
from farside.configs.errors import UserError
from farside.launch.sweep import Point
from farside.report import plots
from farside.report.compare import _labels, write_comparison
from farside.report.sweep import write_sweep_report
from tests.report.test_report import PNG, Page, change_json


@cache
def configurations() -> tuple[str, str]:
    """Composing costs half a second."""
    changed = ["optim.lr=0.125", "run.name=else", "+stages.0.rope_theta=777"]
    one, other = (compose.compose(["experiment=demo", *words]) for words in ([], changed))
    return compose.to_yaml(one), compose.to_yaml(other)


@pytest.fixture
def pair(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two finished runs that differ in a learning rate and what came of it; figures are composed, not rendered."""
    monkeypatch.setattr(plots, "_png", lambda figure: PNG)
    monkeypatch.setattr(plots, "grids", lambda results: PNG)
    other = run_dir.parent / "other"
    (run_dir / "config.yaml").write_text(configurations()[0])
    shutil.copytree(run_dir, other)
    (other / "config.yaml").write_text(configurations()[1])
    change_json(other / "rl" / "summary.json", held_out_accuracy_after=0.775)
    change_json(other / "pretrain" / "summary.json", validation_loss={"en": 2.5})
    shutil.rmtree(other / "eval" / "after_rl")
    return [run_dir, other]


def test_what_differs_and_what_came_of_it(pair: list[Path]) -> None:
    path = write_comparison(pair)
    assert path.resolve() == pair[0].parent / "comparison.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.tags.count("section") == 7  # results, differences, four curves, needles
    html = path.read_text(encoding="utf-8")
    differences = html[html.index("What was set differently") : html.index("Pretraining and context extension")]
    assert differences.count("<tr>") == 3  # header and two keys: the run's own name does not count
    assert ">optim.lr<" in differences
    assert ">0.004<" in differences
    assert ">0.125<" in differences
    assert ">stages.0.rope_theta<" in differences
    assert ">777<" in differences
    results = html[html.index("Results") : html.index("What was set differently")]
    for cells in (("2.91", "2.50"), ("3.42", "–"), ("90%", "77.5%")):
        assert "".join(f'<td class="number">{cell}</td>' for cell in cells) in results
    assert page.text.count("farside run experiment=demo") == 2
    assert all(link.startswith("data:") for link in page.links)


def test_unfinished_and_foreign_runs_are_compared_as_far_as_they_go(pair: list[Path]) -> None:
    for name in ("pretrain", "sft", "reward", "rl", "eval"):
        shutil.rmtree(pair[1] / name)
    (pair[1] / "config.yaml").write_text("run: {name: x}\nnokey: 1\n")
    text = Page(write_comparison(pair).read_text(encoding="utf-8")).text
    assert "nokey" in text
    assert "no such key" in text


def test_directories_that_cannot_be_compared_are_named(pair: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds nothing of a run"):
        write_comparison([pair[0], tmp_path / "empty"])
    with pytest.raises(UserError, match="named twice"):
        write_comparison([pair[0], pair[1], pair[0] / ".." / pair[0].name])


def test_labels_tell_runs_apart() -> None:
    assert _labels([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert _labels([Path("/a/x"), Path("/b/x"), Path("/b/y")]) == ["a/x", "b/x", "b/y"]


def test_page_of_a_sweep(pair: list[Path]) -> None:
    points = [
        Point("optim.lr=1<b>", str(pair[0]), "finished", 80, 2.2, 3.1, 10.0, best=True),
        Point("optim.lr=2", str(pair[1]), "failed", 3, float("nan"), None, 1.0, "rank 0: <oops>", 1),
        Point("optim.lr=3", str(pair[0].parent / "never")),
    ]
    sweep = {"command": "train", "line": "farside train -m optim.lr=1,2,3"}
    path = write_sweep_report(pair[0].parent, sweep, points)
    page = Page(path.read_text(encoding="utf-8"))
    assert "b" not in page.stack
    for expected in ("optim.lr=1<b>", "best", "rank 0: <oops>", "failed at step 3", "not a number", "not started"):
        assert expected in page.text
    assert (pair[0].parent / "sweep.png").read_bytes() == PNG


def test_pictures_are_drawn_whatever_the_names(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 2.0 / step, "accuracy": None} for step in range(1, 5)]
    curves = [(name, rows) for name in ("_hidden", "$\\frac", "学习", "x" * 300, *map(str, range(9)))]
    assert plots.overlay(curves, [("loss", "loss", 1.0), ("accuracy", "%", 100.0)]).startswith(PNG)
    values = [(name, None if name == "0" else 1.0, False) for name, _ in curves]
    assert plots.sweep(curves, "loss", values, "loss").startswith(PNG)
    assert len(set(map(str, plots.colors(30)))) == 30


def test_curves_of_json_that_is_no_number(tmp_path: Path) -> None:
    rows = json.loads('[{"step": 1, "loss": NaN}, {"step": 2, "loss": Infinity}]')
    assert plots.overlay([("a", rows)], [("loss", "loss", 1.0)]).startswith(PNG)
