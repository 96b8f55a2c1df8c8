"""The report: complete for a finished run, honest for an unfinished one, safe whatever the model wrote."""

import base64
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from farside.configs.errors import UserError
from farside.report import plots
from farside.report.markup import escape, tag
from farside.report.page import write_report
from farside.report.read import read_run

VOID = {"img", "meta", "br"}
PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.stack, f"never closed: {self.stack}"

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.links += [value or "" for key, value in attributes if key in ("src", "href")]
        assert not [key for key, _ in attributes if key.startswith("on")]
        if name not in VOID:
            self.stack.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.stack.pop() == name

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.text += data


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are still composed, but not rendered: that takes nearly all the time of a report."""
    monkeypatch.setattr(plots, "_png", lambda figure: PNG)
    monkeypatch.setattr(plots, "grids", lambda results: PNG)


def page_of(run_dir: Path) -> Page:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    assert [p.name for p in run_dir.glob("report.html*")] == ["report.html"]  # nothing half-written stays
    return Page(path.read_text(encoding="utf-8"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_finished_run_tells_the_whole_story_and_needs_nothing_else(run_dir: Path) -> None:
    page = page_of(run_dir)
    for expected in (
        "farside run experiment=demo",
        "finished",
        "13 min 32 s",
        "AMD EPYC",
        "8.20 GB",
        "1.80 million training tokens",
        "48.9%",
        "4096+: 70% / 69%",
        "length 128 → 2,048",
        "41% → 90%",
        "55%",
        "93%",
        "of 225",
        "river stone",
        "蓝色 石头",
        "chain intact",
        "English 2.91, Chinese 3.42",
        "Step 41",
        "trained on at most 128 tokens",
        "(256 problems: differences below 6 points are noise)",
        "it solved 77% instead of 41% of the problems",
        "41% → 77%",
        "<think></think>56<|end|>",
        "<think>6 4</think>46<|end|>",
    ):
        assert expected in page.text, expected
    assert "not run yet" not in page.text.lower()
    assert page.tags.count("img") == 8
    assert "script" not in page.tags
    assert page.links
    for link in page.links:
        assert link.startswith(("#", "data:image/png;base64,"))
        if link.startswith("data:"):
            assert base64.b64decode(link.split(",")[1], validate=True).startswith(PNG)
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert "url(" not in text


@pytest.mark.usefixtures("unrendered")
def test_untrusted_text_is_shown_not_run(run_dir: Path) -> None:
    page = page_of(run_dir)
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<script>alert('sampled')</script>" in page.text
    assert "<script>alert('config')</script>" in page.text


BAD = "\"'><script>$x_{</script>\x00\ud800"
"""Markup, broken TeX, NUL and a lone surrogate."""


def test_text_that_is_drawn_into_pictures_is_escaped(run_dir: Path) -> None:
    for grid in run_dir.glob("eval/*/niah.json"):
        content = json.loads(grid.read_text())
        content["title"] = f"title {BAD}"
        content["grids"][f"language {BAD}"] = content["grids"].pop("en")
        grid.write_text(json.dumps(content))
    row = {"step": 1, "loss": 1.0, "stage": f"stage {BAD}", "seq_len": 128}
    (run_dir / "pretrain/metrics.jsonl").write_text(json.dumps(row) + "\n")
    page = page_of(run_dir)
    assert "script" not in page.tags
    for place in ("title", "language", "stage"):
        assert f"{place} \"'><script>$x_{{</script>" in page.text


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("place", ["question", "expected", "answer", "cause", "source"])
def test_every_place_of_text_is_escaped(run_dir: Path, place: str) -> None:
    for grid in run_dir.glob("eval/*/niah.json"):
        content = json.loads(grid.read_text())
        if place in ("question", "expected", "answer"):
            content["examples"] = [example | {place: BAD} for example in content["examples"]]
        grid.write_text(json.dumps(content))
    if place == "cause":
        change_json(run_dir / "status.json", status="failed", cause=BAD)
    elif place == "source":
        change_json(run_dir / "data.json", sources={BAD: {"train_tokens": 10}})
    page = page_of(run_dir)
    assert "script" not in page.tags
    assert "<script>$x_{</script>" in page.text


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("phase", ["pretrain", "sft", "reward", "rl", "eval"])
def test_missing_phase_gets_a_quiet_line(run_dir: Path, phase: str) -> None:
    shutil.rmtree(run_dir / phase)
    (run_dir / "phases.json").unlink()
    assert "Not run yet." in page_of(run_dir).text


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("name", ["config.yaml", "command.txt", "status.json", "machine.json", "data.json"])
def test_missing_file_is_no_failure(run_dir: Path, name: str) -> None:
    (run_dir / name).unlink()
    assert page_of(run_dir).text


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("phase", ["pretrain", "sft", "reward", "rl", "rl_reward_alone"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
def test_half_a_phase_is_shown(run_dir: Path, phase: str, name: str) -> None:
    (run_dir / phase / name).unlink()
    assert page_of(run_dir).text


def test_empty_directory_is_a_user_error(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="farside run experiment=demo") as caught:
            write_report(directory)
        assert str(directory) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unrendered")
def test_torn_last_line_is_dropped(run_dir: Path) -> None:
    path = run_dir / "rl/metrics.jsonl"
    whole = read_run(run_dir).rows("rl")
    path.write_bytes(path.read_bytes() + '{"step": 81, "note": "思'.encode()[:-1])
    run = read_run(run_dir)
    assert run.rows("rl") == whole
    assert run.problems == []
    assert page_of(run_dir).text


def test_line_separator_inside_a_completion_ends_no_line(run_dir: Path) -> None:
    path = run_dir / "rl/samples.jsonl"
    path.write_text('{"step": 1, "text": "one\u2028two"}\n', encoding="utf-8")
    assert [sample["text"] for sample in read_run(run_dir).samples] == ["one\u2028two"]


@pytest.mark.usefixtures("unrendered")
def test_unreadable_parts_are_named(run_dir: Path) -> None:
    lines = (run_dir / "rl/metrics.jsonl").read_text().splitlines()
    (run_dir / "rl/metrics.jsonl").write_text("\n".join([*lines[:3], "{torn", *lines[3:]]) + "\n")
    (run_dir / "status.json").write_text("{")
    change_json(run_dir / "eval/base/niah.json", lengths=[1])
    text = page_of(run_dir).text
    for expected in ("rl/metrics.jsonl, line 4", "status.json is not JSON", "eval/base/niah.json: scores"):
        assert expected in text


@pytest.mark.usefixtures("unrendered")
def test_wrong_types_and_missing_numbers_do_not_stop_the_report(run_dir: Path) -> None:
    for path in run_dir.rglob("*.json*"):
        text = path.read_text()
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines()]
            rows[0] |= {"loss": None, "step": "one", "reward": "NaN", "tokens_per_second": True, "stage": 3}
            rows[1] |= {"loss": float("nan"), "accuracy": float("inf"), "mfu": None, "seconds": None}
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif path.name == "summary.json":
            path.write_text(json.dumps(dict.fromkeys(json.loads(text), "?")))
    change_json(run_dir / "data.json", sources={"en": None, "zh": {"train_tokens": 0, "train_bytes": "x"}})
    bad = [None, {"entries": 3}, {"entries": {"en": None, "zh": {"asked": "x", "lengths": {"0": 1, "9": {}}}}}]
    (run_dir / "pretrain/data_drawn.json").write_text(json.dumps(bad))
    worse = [None, {"samples": 8, "entries": 2, "leaks": {"en": 1, "zh": [None, {}]}}, {"samples": "x"}]
    (run_dir / "pretrain/contamination.json").write_text(json.dumps(worse))
    (run_dir / "phases.json").write_text('[{"seconds": null}, 3, {"name": "rl", "seconds": "x", "status": null}]')
    assert page_of(run_dir).text


@pytest.mark.usefixtures("unrendered")
def test_one_phase_alone_keeps_its_metrics_at_the_top(run_dir: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(run_dir / "pretrain/metrics.jsonl", alone)
    text = page_of(alone).text
    assert "loss 7." in text
    assert text.count("Not run yet.") == 6  # data, needles, sft, reward, rl, completions


@pytest.mark.usefixtures("unrendered")
def test_leaks_of_the_needle_grid_are_shown_and_their_absence_said(run_dir: Path) -> None:
    text = page_of(run_dir).text
    assert "1 leaks" in text
    assert "amber falcon / river stone" in text
    (run_dir / "pretrain/contamination.json").write_text(
        json.dumps([{"stage": "s0", "samples": 8, "entries": ["en", "copy"], "leaks": {}}])
    )
    assert "16 samples searched for the needle grid's pairs" in page_of(run_dir).text
    (run_dir / "pretrain/contamination.json").unlink()
    assert "searched for" not in page_of(run_dir).text


@pytest.mark.usefixtures("unrendered")
def test_single_step_is_drawn(run_dir: Path) -> None:
    for phase in ("pretrain", "sft", "reward", "rl", "rl_reward_alone"):
        path = run_dir / phase / "metrics.jsonl"
        path.write_text(path.read_text().splitlines()[0] + "\n")
    assert page_of(run_dir).tags.count("img") == 8


@pytest.mark.usefixtures("unrendered")
def test_lineage_breaks_where_a_parent_is_wrong(run_dir: Path) -> None:
    path = run_dir / "reward/summary.json"
    checkpoint = json.loads(path.read_text())["checkpoint"]
    change_json(path, checkpoint=checkpoint | {"parent": "0" * 64})
    text = page_of(run_dir).text
    assert "chain broken" in text
    assert "reward did not start from the checkpoint of sft" in text
    assert "chain intact" not in text


@pytest.mark.usefixtures("unrendered")
def test_policy_may_start_from_the_warm_start_beside_the_reward_model(run_dir: Path) -> None:
    sft = json.loads((run_dir / "sft/summary.json").read_text())["checkpoint"]
    path = run_dir / "rl/summary.json"
    change_json(path, checkpoint=json.loads(path.read_text())["checkpoint"] | {"parent": sft["hash"]})
    assert "chain intact" in page_of(run_dir).text
    pretrain = json.loads((run_dir / "pretrain/summary.json").read_text())["checkpoint"]
    change_json(path, checkpoint=json.loads(path.read_text())["checkpoint"] | {"parent": pretrain["hash"]})
    assert "chain broken" in page_of(run_dir).text


@pytest.mark.usefixtures("unrendered")
def test_running_rl_shows_its_newest_evaluation(run_dir: Path) -> None:
    (run_dir / "rl/summary.json").unlink()
    change_json(run_dir / "status.json", status="running")
    assert "41% → 90%" in page_of(run_dir).text


@pytest.mark.usefixtures("unrendered")
def test_reward_model_behind_its_yardstick_is_said(run_dir: Path) -> None:
    change_json(run_dir / "reward/summary.json", held_out_accuracy=0.5)
    assert "no better than the 55%" in page_of(run_dir).text


def test_plain_text_never_becomes_markup() -> None:
    element = tag("b", "<i>", title='"')
    assert element == '<b title="&quot;">&lt;i&gt;</b>'
    assert escape(element) == element
    assert escape(element.lower()) != element  # a string method drops the mark of safety


@pytest.mark.usefixtures("unrendered")
def test_problems_solved_are_shown_where_they_were_counted(run_dir: Path) -> None:
    assert "Problems solved" not in page_of(run_dir).text
    folder = run_dir / "eval" / "after"
    folder.mkdir(parents=True)
    result = {"name": "after", "greedy": 0.5, "prompts": 64, "pass_at_k": {"4": 0.75}, "maj_at_k": {"4": 0.25}}
    (folder / "math.json").write_text(json.dumps(result))
    (folder / "math.png").write_bytes(b"a picture")
    page = page_of(run_dir)
    assert "Problems solved" in page.text
    for expected in ("4: 75%", "4: 25%", "64"):
        assert expected in page.text
    (folder / "math.json").write_text(json.dumps({"name": None, "pass_at_k": 3, "greedy": "x", "checkpoint": []}))
    assert "Problems solved" in page_of(run_dir).text
