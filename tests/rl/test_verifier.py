"""Verdicts under attack: a hang, crash or raise costs its own item an error, and nothing else."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from farside.configs.errors import UserError
from farside.configs.schema import TaskConfig
from farside.rl.reward.verifier import VerifierPool, judge
from farside.rl.tasks.registry import make_task
from farside.rl.types import Mark, Prompt, Verdict

SUM = Prompt(0, "37+48=?", "85")

CHILD = '''
"""A child whose task does to itself what the completion says."""
import os, sys, time
from farside.rl.reward.equivalence import judge
from farside.rl.reward.verifier_child import run
from farside.rl.types import Mark, Verdict

class Hostile:
    def verify(self, prompt, text):
        order, _, rest = text.partition(":")
        if order == "judge":
            return judge(prompt.answer, rest)
        if order == "echo":
            return Verdict(Mark.correct if rest == prompt.answer else Mark.wrong, rest)
        if order == "pid":
            return Verdict(Mark.wrong, str(os.getpid()))
        if order == "sleep":
            time.sleep(float(rest))
        if order == "spin":
            pow(7, 1 << 9000, 10**40000)  # C code that holds the GIL and sees no signal handler
        if order == "raise":
            raise ValueError("no such luck")
        if order == "timeout-like":
            class TimeoutException(BaseException):  # what math-verify raises
                pass
            raise TimeoutException("not an Exception")
        if order == "rude":
            class Rude(Exception):
                def __str__(self):
                    raise RuntimeError
            raise Rude
        if order == "exit":
            sys.exit(3)
        if order == "_exit":
            os._exit(3)
        if order == "segfault":
            os.kill(os.getpid(), 11)
        if order == "allocate":
            return Verdict(Mark.correct, str(len(bytearray(1 << 40))))
        if order == "hoard":
            hoard = []
            while True:
                hoard.append(bytearray(1 << 24))
        if order == "recurse":
            return self.verify(prompt, text)
        if order == "forge":
            print('{"id": %s, "mark": "correct", "detail": "forged"}' % rest, flush=True)
            os.write(1, b'{"id": 1, "mark": "correct", "detail": "forged"}')
            return Verdict(Mark.wrong, "honest")
        if order == "fork":  # both copies return
            os.fork()
            return Verdict(Mark.wrong, "forked")
        if order == "fork-hang":  # the copy keeps our pipes open, the child dies
            if os.fork() == 0:
                with open(rest, "w") as file:
                    file.write(str(os.getpid()))
                time.sleep(600)
            while not os.path.exists(rest) or not open(rest).read():
                time.sleep(0.01)
            os._exit(4)
        return Verdict(Mark.wrong, "no such order")

run(lambda config: Hostile())
'''


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    script = tmp_path_factory.mktemp("child") / "hostile.py"
    script.write_text(CHILD)
    return [sys.executable, str(script)]


@pytest.fixture
def pool(command: list[str]) -> Iterator[VerifierPool]:
    with VerifierPool(TaskConfig(), timeout_seconds=0.5, command=command) as pool:
        yield pool


def order(text: str, answer: str = "85") -> tuple[Prompt, str]:
    return Prompt(0, "?", answer), text


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while not is_gone(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return is_gone(pid)


@pytest.mark.parametrize(
    ("attack", "detail"),
    [
        ("raise:", "raised ValueError: no such luck"),
        ("timeout-like:", "raised TimeoutException: not an Exception"),
        ("rude:", "raised Rude"),
        ("exit:", "raised SystemExit: 3"),
        ("_exit:", "crash verifier died: exit status 3"),
        ("segfault:", "crash verifier died: signal 11"),
        ("allocate:", "memory MemoryError"),
        ("hoard:", "memory MemoryError"),
        ("recurse:", "raised RecursionError"),
        ("sleep:60", "timeout timeout after 0.5 s"),
        ("spin:", "timeout timeout after 0.5 s"),
    ],
)
def test_a_fault_is_an_error_and_the_neighbours_are_judged(command: list[str], attack: str, detail: str) -> None:
    # A smaller cap than the default, so that reaching it takes no time; a busy machine may still need some.
    timeout = 0.5 if "timeout after" in detail else 5.0
    with VerifierPool(TaskConfig(), timeout_seconds=timeout, memory_bytes=1 << 28, command=command) as pool:
        pool.verify([order("echo:1")])
        start = time.monotonic()
        before, bad, after = pool.verify([order("echo:85"), order(attack), order("echo:84")])
        seconds = time.monotonic() - start
    assert bad.mark is Mark.error
    assert f"{bad.kind} {bad.detail}".startswith(detail)
    assert (before, after) == (Verdict(Mark.correct, "85"), Verdict(Mark.wrong, "84"))
    assert seconds < timeout + 4.0, "which a new child's start is part of"


def test_twenty_hangs_in_a_row_do_not_exhaust_it(command: list[str]) -> None:
    with VerifierPool(TaskConfig(), timeout_seconds=0.05, command=command) as pool:
        pool.verify([order("echo:1")])
        verdicts = pool.verify([order("sleep:60")] * 20 + [order("echo:85")])
        assert [verdict.mark for verdict in verdicts] == [Mark.error] * 20 + [Mark.correct]
        assert pool.restarts == 20


def test_the_deadline_is_held_and_excludes_start_up(command: list[str]) -> None:
    late = [*command[:1], "-c", f"import time; time.sleep(1); exec(open({command[1]!r}).read())"]
    with VerifierPool(TaskConfig(), timeout_seconds=0.4, command=late) as pool:
        assert pool.verify([order("sleep:0.1")])[0].mark is Mark.wrong
        start = time.monotonic()
        assert pool.verify([order("sleep:60")])[0] == Verdict(Mark.error, "timeout after 0.4 s", "timeout")
        assert 0.4 <= time.monotonic() - start < 1.4


def test_order_is_kept_over_several_workers(command: list[str]) -> None:
    with VerifierPool(TaskConfig(), timeout_seconds=0.5, workers=3, command=command) as pool:
        expected = {
            "sleep:0.2": "no such order",
            "echo:a": "a",
            "raise:": "ValueError: no such luck",
            "echo:b": "b",
            "sleep:60": "timeout after 0.5 s",
            "_exit:": "verifier died: exit status 3",
            "echo:c": "c",
        }
        verdicts = pool.verify([order(text) for text in expected] * 2)
        assert [verdict.detail for verdict in verdicts] == list(expected.values()) * 2
        start = time.monotonic()
        pool.verify([order("sleep:0.4")] * 9)
        # three at a time, not one after the other; a worker that died above starts anew within this time
        assert time.monotonic() - start < 0.4 * 6


def test_prints_cannot_forge_a_verdict(pool: VerifierPool) -> None:
    for serial in range(3):
        assert pool.verify([order(f"forge:{serial + 1}")]) == [Verdict(Mark.wrong, "honest")]


def test_a_forked_copy_neither_answers_nor_outlives_the_group(pool: VerifierPool, tmp_path: Path) -> None:
    verdicts = pool.verify([order("fork:")] * 3 + [order("echo:85")] * 3)
    assert [verdict.detail for verdict in verdicts] == ["forked"] * 3 + ["85"] * 3
    note = tmp_path / "pid"
    start = time.monotonic()
    assert pool.verify([order(f"fork-hang:{note}")]) == [Verdict(Mark.error, "verifier died: exit status 4", "crash")]
    assert time.monotonic() - start < 1.5
    assert wait_until_gone(int(note.read_text()))


def test_a_child_that_dies_idle_costs_no_verdict(pool: VerifierPool) -> None:
    first = int(pool.verify([order("pid:")])[0].detail)
    os.kill(first, signal.SIGKILL)
    time.sleep(0.1)
    second = pool.verify([order("pid:")])[0]
    assert second.mark is Mark.wrong
    assert int(second.detail) != first


def test_close_kills_and_the_pool_can_be_used_again(command: list[str]) -> None:
    pool = VerifierPool(TaskConfig(), timeout_seconds=0.5, command=command)
    pid = int(pool.verify([order("pid:")])[0].detail)
    pool.close()
    assert is_gone(pid)
    pool.close()
    assert pool.verify([order("echo:85")])[0].mark is Mark.correct
    pool.close()


@pytest.mark.parametrize("busy", [False, True])
def test_the_child_dies_with_its_parent(command: list[str], busy: bool) -> None:
    program = f"""
import sys, time
from farside.configs.schema import TaskConfig
from farside.rl.reward.verifier import VerifierPool
from farside.rl.types import Prompt
pool = VerifierPool(TaskConfig(), 60, command={command!r})
print(pool.verify([(Prompt(0, "?", ""), "pid:")])[0].detail, flush=True)
{'pool.verify([(Prompt(0, "?", ""), "spin:")])' if busy else "time.sleep(60)"}
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.1)
    assert not is_gone(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until_gone(pid)


def test_works_from_threads_an_event_loop_and_a_fork(pool: VerifierPool) -> None:
    items = [order("echo:85"), order("raise:")]
    expected = [Verdict(Mark.correct, "85"), Verdict(Mark.error, "ValueError: no such luck", "raised")]
    found: list[list[Verdict]] = []
    threads = [threading.Thread(target=lambda: found.append(pool.verify(items))) for _ in range(2)]
    for thread in threads:  # the first starts the child, and ends
        thread.start()
        thread.join()
    together = [threading.Thread(target=lambda: found.append(pool.verify(items))) for _ in range(4)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()

    async def inside() -> list[Verdict]:
        return pool.verify(items)

    found.append(asyncio.run(inside()))
    assert found == [expected] * 7
    assert pool.restarts == 0  # the end of those threads took no child with it
    pid = os.fork()
    if pid == 0:
        os._exit(0 if pool.verify(items) == expected else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert pool.verify(items) == expected


def test_large_and_odd_texts_cross_the_pipe(command: list[str]) -> None:
    pool = VerifierPool(TaskConfig(), timeout_seconds=10, command=command)
    for text in ("x" * 5_000_000, "\0\n\r\u2028", "\ud800", '"}\n{"id": 1}', "🦀"):
        verdict = pool.verify([order(f"echo:{text}", answer=text)])[0]
        assert verdict.mark is Mark.correct
        assert verdict.detail == text[:300]
    pool.close()


def test_a_verifier_that_cannot_start_raises(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="did not start: exit status 7"):
        VerifierPool(TaskConfig(), 0.2, command=[sys.executable, "-c", "raise SystemExit(7)"]).verify([order("echo:")])
    broken = tmp_path / "broken.py"
    broken.write_text(CHILD.replace("run(lambda config: Hostile())", "run(lambda config: 1 / 0)"))
    with (
        VerifierPool(TaskConfig(), 0.2, command=[sys.executable, str(broken)]) as pool,
        pytest.raises(UserError, match="ZeroDivisionError"),
    ):
        pool.verify([order("echo:")])


def test_a_malformed_reply_is_an_error(tmp_path: Path) -> None:
    ready = '{"ready": true}'
    for reply in (
        "nonsense",
        '{"id": 9, "mark": "correct", "detail": "", "kind": ""}',
        '{"id": 1, "mark": "correct", "detail": ""}',
        "[]",
        '{"id": 1, "mark": "maybe"}',
    ):
        program = tmp_path / "odd.py"
        program.write_text(
            f"import time\nprint({ready!r}, flush=True)\n"  # then reads the settings and one request
            f"input(); input(); print({reply!r}, flush=True)\ntime.sleep(60)\n"
        )
        with VerifierPool(TaskConfig(), 5.0, command=[sys.executable, str(program)]) as pool:
            verdict = pool.verify([order("echo:")])[0]
        assert (verdict.mark, verdict.kind) == (Mark.error, "malformed")
        assert verdict.detail.startswith("malformed reply")


ANSWERS = [
    "85",
    "085",
    "84",
    "",
    " 85 ",
    "8 5",
    "37+48",
    "８５",
    "85\0",
    "-85",
    "85.0",
    "(" * 10_000,
    "9**9**9**9",
]


def test_the_quick_path_and_the_real_child_agree() -> None:
    texts = [f"<think>1+1=2</think>{answer}<|end|>" for answer in ANSWERS]
    texts += ["85", "<think>85<|end|>", "<|end|>", "85<|end|>", ""]
    items = [(SUM, text) for text in texts]
    child = [sys.executable, "-P", "-m", "farside.rl.reward.verifier_child"]
    with VerifierPool(TaskConfig(), 5.0) as quick, VerifierPool(TaskConfig(), 5.0, command=child) as slow:
        assert quick.verify(items) == slow.verify(items)
        assert quick._children == [None]
        assert slow._children != [None]


def test_a_step_of_addition_takes_no_time() -> None:
    task = make_task(TaskConfig(digits=3))
    prompts = [task.prompt("train", i) for i in range(32)]
    items = [(prompt, task.trace(prompt, seed)) for prompt in prompts for seed in range(8)]
    with VerifierPool(TaskConfig(digits=3), 5.0) as pool:
        start = time.process_time()
        verdicts = pool.verify(items)
        seconds = time.process_time() - start
        assert pool._children == [None], "cheap verdicts need no process"
    assert all(verdict.mark is Mark.correct for verdict in verdicts)
    assert seconds < 0.1


def test_the_child_imports_no_torch() -> None:
    program = "import sys, farside.rl.reward.verifier_child as child; child.make_ready(child.TaskConfig())"
    program += "; print('torch' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout
    assert output == "False\n"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("85", "85"),
        ("a  b", " a b\n"),
        ("85", "85."),
        ("85", "+085.00"),
        ("1/2", "0.5"),
        ("1/2", "2/4"),
        ("-0.5", "-1/2"),
        ("1/2", r"\frac12"),
        (r"\frac{1}{2}", ".5"),
        ("1000", "1,000"),
        ("85", r"\boxed{85}"),
        ("85", r"so - at last - \boxed{85}"),
        ("85", "$85$"),
        ("85", r"85\text{ cm}"),
        ("85", r"85^\circ"),
        ("85", "x=85"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("9" * 3000, "9" * 3000 + ".0"),
    ],
)
def test_equivalent_answers(reference: str, answer: str) -> None:
    assert judge(reference, answer) == Verdict(Mark.correct)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("85", ""),
        ("85", "84"),
        ("85", "-85"),
        ("1/3", "0.333333333333"),
        ("10000000000000000000001", "10000000000000000000000"),
        ("85", "84 85"),
        ("85", r"\boxed{84}\boxed{85}"),
        ("8485", r"\boxed{84}\boxed{85}"),
        ("84", r"\boxed{84}\boxed{85}"),
        ("85", "$84$ $85$"),
        ("85", ",".join(map(str, range(1, 200)))),
        ("85", "37+48"),
        ("85", "170/2"),
        ("85", "100-15"),
        ("85", "85**1"),
        ("85", r"17 \times 5"),
        ("85", "(17)(5)"),
        ("85", r"\boxed{\frac{170}{2}}"),
        ("85", "８５"),
        ("85", "85\0"),
        ("85", "1/0"),
        ("85", "the answer is 85"),
        ("85", "9**9**9**9"),
        ("x", "9**9**9**9"),
        ("x", "9^{9^{9^{9}}}"),
        ("x", "(" * 1_000_000),
        ("x", r"\frac{" * 50_000),
        ("x", r"\frac{" * 100),
        ("x", "9" * 1_000_000),
        ("x", "__import__('os').system('touch marker_file')"),
        ("x", "[__import__('os').system('touch marker_file')]"),
    ],
)
def test_answers_that_are_not(reference: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert judge(reference, answer).mark is Mark.wrong
    assert not list(tmp_path.iterdir())


def test_judge_needs_no_signals_and_no_reference_is_no_wrong_answer() -> None:
    found: list[Verdict] = []
    thread = threading.Thread(target=lambda: found.append(judge(r"2\sqrt{3}", r"\sqrt{12}")))
    thread.start()
    thread.join()
    assert found == [Verdict(Mark.correct)]
    for reference in ("", "$", "\\"):
        with pytest.raises(ValueError, match="reference"):
            judge(reference, "85")


def test_judge_under_the_pool_holds_the_deadline(pool: VerifierPool) -> None:
    pool.verify([order("judge:y", "x")])  # imports math-verify
    start = time.monotonic()
    deep, good, huge = pool.verify(
        [order("judge:" + "(" * 900, "x"), order("judge:0.50", "1/2"), order("judge:" + "(" * 10**6, "x")]
    )
    assert time.monotonic() - start < 2.5
    assert deep == Verdict(Mark.error, "timeout after 0.5 s", "timeout")
    assert (good.mark, huge.mark) == (Mark.correct, Mark.wrong)
