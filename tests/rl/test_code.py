"""Code as answers: rows of every form, verdicts that a program cannot forge, a pool that survives its programs."""

import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from farside.configs.errors import UserError
from farside.configs.schema import TaskConfig
from farside.rl.reward.sandbox import Outcome, Sandbox
from farside.rl.reward.verifier import VerifierPool
from farside.rl.tasks import code as module
from farside.rl.tasks.code import CodeTask, program_of
from farside.rl.tasks.code_tests import DRIVER, read_assert, read_tests, same_output, same_value
from farside.rl.tasks.registry import make_task
from farside.rl.types import Mark, Prompt, Verdict
from tests.rl.isolation import allowed

ADD = {"question": "Write f(a, b), their sum.", "test_list": ["assert f(1, 2) == 3", "assert f(-1, 1) == 0"]}
ECHO = {
    "question": "Read two numbers and print their sum.",
    "tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "10 5", "output": "15"}],
    "solution": "print(sum(map(int, input().split())))",
}
ISOLATED = allowed()
"""Where the kernel forbids it, the verdicts are tested under limits alone."""


def config(path: Path, *rows: Any, **settings: Any) -> TaskConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"code_isolated": ISOLATED, "code_seconds": 10.0, **settings}
    return TaskConfig(name=f"code:{path}", held_out=str(path), **settings)


@pytest.fixture
def task(tmp_path: Path) -> CodeTask:
    made = make_task(config(tmp_path / "code.jsonl", ADD, ECHO))
    assert isinstance(made, CodeTask)
    return made


def find(task: CodeTask, word: str) -> Prompt:
    return next(p for p in (task.prompt("held_out", i) for i in range(2)) if word in p.question)


def verdict(task: CodeTask, word: str, program: str) -> Verdict:
    return task.verify(find(task, word), f"<think>so</think>Here:\n```python\n{program}\n```\n<|end|>")


@pytest.mark.parametrize(
    ("word", "program", "detail"),
    [
        ("Write", "def f(a, b):\n    print('debugging')\n    return a + b", ""),
        ("Write", "from __future__ import annotations\nf = lambda a, b: a + b", ""),
        ("Write", "def f(a, b): return 3", "test 2 of 2: another value"),
        ("Write", "def f(a, b): return float(a + b) + 1e-15", ""),
        ("Write", "def g(a, b): return a + b", "test 1 of 2: crash: AttributeError"),
        ("Write", "def f(a): return a", "test 1 of 2: crash: TypeError"),
        ("Write", "def f(a, b", "test 1 of 2: crash: SyntaxError"),
        ("Write", "def f(a, b): return [[]] * 10**6", "test 1 of 2: a value of 4000000 characters"),
        ("Write", "def f(a, b): return bytearray(10**12)", "test 1 of 2: memory"),
        ("Read", "a, b = map(int, input().split())\nprint(a + b)", ""),
        ("Read", "print(3)", "test 2 of 2: another output"),
        ("Read", "print(3", "test 1 of 2: crash: SyntaxError"),
    ],
)
def test_programs_are_judged_by_their_tests(task: CodeTask, word: str, program: str, detail: str) -> None:
    found = verdict(task, word, program)
    assert found.mark is (Mark.wrong if detail else Mark.correct)
    assert found.detail.startswith(detail)


WRITES_EVERYWHERE = "import os\nfor fd in range(64):\n try: os.write(fd, b'{}')\n except OSError: pass"


@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "print('ALL TESTS PASSED')",
        WRITES_EVERYWHERE.format("ALL TESTS PASSED"),
        WRITES_EVERYWHERE.format('{"exit": 0}\\n{"id": 1, "mark": "correct", "detail": "", "kind": ""}'),
        "class A:\n    def __eq__(self, other): return True\n    def __repr__(self): return '3'\nf = lambda a, b: A()",
        "import builtins\nbuiltins.repr = lambda value: '3'\nf = lambda a, b: None",
        "import json\njson.dumps = lambda value: '\"3\"'\nf = lambda a, b: None",
        "import sys, unittest\nunittest.TestCase.assertEqual = lambda *a: None\nf = lambda a, b: None",
        "f = lambda a, b: open('tests.json').read()",
        "f = lambda a, b: __import__('sys')._getframe(1).f_globals['asked']",
        "open('conftest.py', 'w').write('import os; os._exit(0)')",
        "f = lambda a, b: [[]] * 9 ** 9",
        "class E(Exception): pass\ndef f(a, b): raise E('correct')",
        "f = lambda a, b: '(' * 100000",
        "class D:\n    def __repr__(self): return '(' * 100000\nf = lambda a, b: D()",
        "class D:\n    def __repr__(self): return '__import__(\"os\").getpid()'\nf = lambda a, b: D()",
    ],
)
def test_a_verdict_cannot_be_forged(task: CodeTask, program: str) -> None:
    for word in ("Write",) if "f(" in program or "f =" in program else ("Write", "Read"):
        assert verdict(task, word, program).mark is Mark.wrong


def test_what_is_expected_never_enters_the_sandbox(task: CodeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(self: Sandbox, program: str, given: str = "", seconds: float | None = None, **files: str) -> Outcome:
        asked.append(program + given + repr(files))
        return Outcome("", "", "")

    monkeypatch.setitem(ADD, "test_list", ["assert f(1, 2) == 7654321"])
    path = Path(task.path)
    other = make_task(config(path, ADD, ECHO | {"tests": [{"input": "1 2", "output": "7654321"}]}, code_isolated=False))
    assert isinstance(other, CodeTask)
    monkeypatch.setattr(Sandbox, "run", run)
    for word in ("Write", "Read"):
        assert verdict(other, word, "pass").mark is Mark.wrong
    assert len(asked) == 2
    assert not any("7654321" in text for text in asked)


def test_time_is_shared_by_the_tests_and_told(tmp_path: Path) -> None:
    slow = make_task(config(tmp_path / "code.jsonl", ADD, ECHO, code_seconds=1.0))
    assert isinstance(slow, CodeTask)
    started = time.monotonic()
    assert verdict(slow, "Write", "import time\nf = lambda a, b: time.sleep(60)").detail.endswith("timeout after 1.0 s")
    assert (
        "timeout" in verdict(slow, "Read", "import time\ntime.sleep(0.7)\nprint(sum(map(int, input().split())))").detail
    )
    assert time.monotonic() - started < 6


def test_a_trace_is_the_solution_and_its_lack_is_told(task: CodeTask) -> None:
    prompt = find(task, "Read")
    assert task.verify(prompt, task.trace(prompt, 0)) == Verdict(Mark.correct)
    with pytest.raises(UserError, match="no solution to 'Write f"):
        task.trace(find(task, "Write"), 0)
    assert task.decide(prompt, "unfinished") == task.verify(prompt, "unfinished") == Verdict(Mark.wrong, "truncated")
    assert task.decide(prompt, f"{'#' * 200_000}<|end|>") == task.verify(prompt, f"{'#' * 200_000}<|end|>")
    assert task.decide(prompt, task.trace(prompt, 0)) is None


def test_a_set_that_changed_is_an_error_not_a_wrong_answer(task: CodeTask) -> None:
    prompt = find(task, "Read")
    changed = Prompt(prompt.index, "Another question", prompt.answer, prompt.metadata)
    with pytest.raises(RuntimeError, match="its file changed"):
        task.verify(changed, task.trace(prompt, 0))


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("print(1)", "print(1)"),
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("```\nprint(1)\n```", "print(1)\n"),
        ("First:\n```py\nx\n```\nbetter:\n```Python\ny\n```\nthat is it", "y\n"),
        ("```python\ncut off", "cut off"),
    ],
)
def test_the_last_fenced_block_is_the_program(answer: str, program: str) -> None:
    assert program_of(answer) == program


def test_forms_of_tests() -> None:
    returned = read_tests("", {"function": "Solution.add", "tests": [{"args": [1, [2]], "expected": 3}]})
    assert returned.function == "Solution.add"
    assert read_tests("", {"entry_point": "f", "tests": [{"input": [1], "output": 2}]}).returned[0].expected == 2
    apps = {"inputs": [[1, 2]], "outputs": [3], "fn_name": "f"}
    assert read_tests("", {"input_output": json.dumps(apps)}) == read_tests("", {"input_output": apps})
    printed = read_tests("", {"input_output": {"inputs": ["1\n", ["2", "3"]], "outputs": ["1", "5"]}}).printed
    assert [test.given for test in printed] == ["1\n", "2\n3"]
    assert read_assert("", "assert not is_odd(4), 'even'")[1].expected is False
    assert read_assert("", "assert a.b.f({'x': (1, None)}) is True") == (
        "a.b.f",
        type(returned.returned[0])(({"x": (1, None)},), True),
    )


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"question": "q"}, "line 1 has no list of tests"),
        ({"tests": ["assert f(1) == 1"]}, "line 1 has no question"),
        ({"question": "q", "tests": []}, "no list of tests"),
        ({"question": "q", "tests": ["assert f(x) == 1"]}, "cannot read 'assert f"),
        ({"question": "q", "tests": ["import os"]}, "cannot read 'import os'"),
        ({"question": "q", "tests": ["assert f(1) < 1"]}, "cannot read"),
        ({"question": "q", "tests": ["assert f(a=1) == 1"]}, "cannot read"),
        ({"question": "q", "tests": ["assert f(__import__('os').getpid()) == 1"]}, "cannot read"),
        ({"question": "q", "tests": ["assert f(1)", "assert g(1)"]}, "several functions"),
        ({"question": "q", "tests": ["assert f(1)", {"input": ""}]}, "neither all assertions"),
        ({"question": "q", "tests": [{"input": 1, "output": "1"}]}, 'needs "input" and "output"'),
        ({"question": "q", "function": "f", "tests": [{"args": 1}]}, 'needs "args", a list'),
        ({"question": "q", "input_output": {"inputs": ["1"], "outputs": []}}, "as many outputs"),
        ({"question": "q", "input_output": "{"}, "as many outputs"),
        ({"question": "q<|end|>", "tests": ["assert f(1)"]}, r"holds <\|end\|>"),
    ],
)
def test_a_bad_row_names_its_line_and_the_fix(tmp_path: Path, row: Any, hint: str) -> None:
    task = make_task(config(tmp_path / "bad.jsonl", row, code_isolated=False))
    with pytest.raises(UserError, match=hint) as caught:
        task.prompt("held_out", 0)
    assert "bad.jsonl line 1" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        (3, 3, True), (3.0, 3, True), (0.1 + 0.2, 0.3, True), (1e-3, 2e-3, False), (True, 1, True), ("3", 3, False),
        ([1, 2.0], [1, 2], True), ([1, 2], (1, 2), False), ([1], [1, 2], False), ({1, 2}, {2, 1}, True),
        ({"a": [0.1 + 0.2]}, {"a": [0.3]}, True), ({"a": 1}, {"b": 1}, False), (None, None, True), (None, 0, False),
        (float("inf"), float("inf"), True), (float("nan"), float("nan"), False), (10**400, 1.0, False),
    ],
)  # fmt: skip
def test_same_value(got: Any, expected: Any, same: bool) -> None:
    assert same_value(got, expected) is same


def test_same_output() -> None:
    assert same_output("1 \n2\n\n", "1\n2")
    assert not same_output("1\n\n2", "1\n2")
    assert not same_output("1 2", "1  2")


def test_the_pool_survives_its_programs_and_they_not_it(tmp_path: Path) -> None:
    settings = config(tmp_path / "code.jsonl", ADD, ECHO)
    task = make_task(settings)
    assert isinstance(task, CodeTask)
    prompt = find(task, "Read")
    before = set(Path(tempfile.gettempdir()).glob("farside-program-*"))
    good, hang = (prompt, task.trace(prompt, 0)), (prompt, "import time\ntime.sleep(60)<|end|>")
    with VerifierPool(settings, 30.0) as pool:
        assert pool.verify([good]) == [Verdict(Mark.correct)]
        child = pool._children[0]
        assert child is not None
        pid = child.process.pid
        below: set[int] = set()

        def strike() -> None:
            while len(found := offspring(pid)) < (3 if ISOLATED else 2):
                time.sleep(0.01)
            below.update(found)
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=strike)
        killer.start()
        started = time.monotonic()
        first, second = pool.verify([hang, good])
        killer.join()
        assert time.monotonic() - started < 9
    assert (first.mark, first.kind) == (Mark.error, "crash")
    assert second == Verdict(Mark.correct)
    deadline = time.monotonic() + 3
    while any(map(runs, below)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(runs, below)), "the program outlived its verifier"
    assert not ISOLATED or set(Path(tempfile.gettempdir()).glob("farside-program-*")) <= before


def offspring(pid: int) -> set[int]:
    """Every process below one."""
    found = {pid}
    while more := {one for one in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent(one) in found} - found:
        found |= more
    return found - {pid}


def parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_settings_that_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path / "code.jsonl", ADD, code_isolated=False, code_seconds=5.0)
    with pytest.raises(UserError, match=r"task\.code_seconds=5\.0: a verdict may take 6\.5 s"):
        VerifierPool(settings, 5.0)
    for wrong in ({"code_seconds": 0.0}, {"code_memory_mb": 10}):
        with pytest.raises(UserError, match="choose more than 0, and at least 64"):
            make_task(config(tmp_path / "code.jsonl", ADD, **wrong))
    monkeypatch.setattr(module.Sandbox, "check", lambda self: "unshare: no")
    with pytest.raises(UserError, match=r"unshare: no; allow user namespaces, or set task\.code_isolated=false"):
        make_task(config(tmp_path / "code.jsonl", ADD, code_isolated=True))


def test_the_driver_is_python() -> None:
    compile(DRIVER, "driver", "exec")
