"""A task in Python of one's own: the example of docs/own.md, and what is said of mistakes."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from farside.configs.errors import UserError
from farside.configs.schema import TaskConfig
from farside.rl.reward.verifier import VerifierPool
from farside.rl.tasks import traces
from farside.rl.tasks.registry import make_task
from farside.rl.types import Mark

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "own.md").read_text()
EXAMPLE = re.findall(r"```python\n(class Reverse.*?)```", PAGE, re.DOTALL)[0]


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """words.py in the working directory, as a user has it."""
    (tmp_path / "words.py").write_text(
        EXAMPLE + "\nclass Bare(list):\n    pass\n\n\nclass None_(Reverse):\n    def __len__(self):\n        return 0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "words", raising=False)
    importlib.invalidate_caches()


def own(name: str, **more: object) -> TaskConfig:
    return TaskConfig(name=name, **more)  # type: ignore[arg-type]


def test_the_example_is_a_task_that_the_verifier_judges_in_its_own_process() -> None:
    config = own("python:words:Reverse", levels=[{"letters": 3}, {"letters": 5}])
    task = make_task(config)
    prompts = [task.prompt("train", index) for index in range(8)]
    assert {prompt.metadata["difficulty"] for prompt in prompts} == {1, 2}
    assert {len(prompt.answer) for prompt in prompts} == {3, 5}
    with VerifierPool(config, 20.0) as pool:
        right = [(prompt, task.trace(prompt, 0)) for prompt in prompts]
        wrong = [(prompt, f"<think></think>{prompt.question[:2]}<|end|>") for prompt in prompts]
        assert [verdict.mark for verdict in pool.verify(right)] == [Mark.correct] * 8
        assert [verdict.mark for verdict in pool.verify(wrong)] == [Mark.wrong] * 8


def test_work_is_shown_where_there_is_some() -> None:
    prompt = make_task(own("python:words:Reverse")).prompt("train", 3)
    spaced = " ".join(prompt.answer)
    assert make_task(own("python:words:Reverse")).trace(prompt, 0) == f"<think>{spaced}</think>{prompt.answer}<|end|>"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (own("python:absent:Reverse"), "No module named 'absent'; give python:MODULE:NAME"),
        (own("python:words"), "give python:MODULE:NAME"),
        (own("python:words:Revers"), "has no attribute 'Revers'"),
        (own("python:words:Bare"), "has no score_answer"),
        (own("python:words:None_"), "without problems"),
        (own("python:words:Reverse", options={"size": 3}), r"sft\.task\.options=.*refuses it: .*size"),
        (own("python:words:Reverse", levels=[{}, {"size": 3}]), r"sft\.task\.levels\.1=.*refuses it"),
    ],
)
def test_mistakes_are_named(config: TaskConfig, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_task(config)


def test_traces_can_be_written_before_ranks_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=proof", "sft.task.name=python:words:Reverse", "sft.traces=5", f"run.dir={tmp_path / 'run'}"]
    assert traces.main(words) == 0
    assert len((tmp_path / "run" / "traces.jsonl").read_text().splitlines()) == 5
    assert traces.main([*words, "sft.traces=6"]) == 2
    assert "was made with sft.traces = 5, now 6" in capsys.readouterr().err
