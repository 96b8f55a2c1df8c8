"""Countdown: every problem solvable, traces honest, hostile expressions judged by reading them."""

import re
import time
from collections import Counter
from itertools import islice, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farside.configs.errors import UserError
from farside.configs.schema import TaskConfig
from farside.rl.tasks.countdown import attempts, chain, evaluate, expression, parse_question, running, tokenise
from farside.rl.tasks.dataset import DatasetTask
from farside.rl.tasks.registry import make_task
from farside.rl.types import Mark, Prompt, Verdict

NUMBERS = st.lists(st.integers(0, 50), min_size=1, max_size=6)


def countdown(**settings: object) -> DatasetTask:
    return make_task(TaskConfig(name="countdown", **settings))  # type: ignore[arg-type]


def mark(question: str, answer: str) -> Mark:
    task, prompt = countdown(), Prompt(0, question, "")
    verdict = task.verify(prompt, f"<think></think>{answer}<|end|>")
    assert task.decide(prompt, f"<think></think>{answer}<|end|>") == verdict
    return verdict.mark


@settings(max_examples=300, deadline=None)
@given(NUMBERS, st.data())
def test_an_expression_has_the_value_of_the_calculation_it_writes_down(numbers: list[int], data: st.DataObject) -> None:
    operations = data.draw(st.lists(st.sampled_from("+-*"), min_size=len(numbers) - 1, max_size=len(numbers) - 1))
    text = expression(numbers, operations)
    assert evaluate(tokenise(text)) == running(numbers, operations)[-1]
    assert re.sub("[()]", "", text) == re.sub("=-?[0-9]+", "", chain(numbers, operations))


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.integers(0, 99).map(str),
        lambda inner: (
            st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: "(" + "".join(parts) + ")")
            | st.tuples(inner, st.sampled_from("+-*"), inner).map("".join)
        ),
    )
)
def test_evaluation_agrees_with_python(text: str) -> None:
    plain = re.sub(r"\b0+(?=[0-9])", "", text)
    assert evaluate(tokenise(plain)) == eval(plain)  # noqa: S307 - digits, operations and parentheses


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3*7+5", 26), ("5+3*7", 26), ("(3+7)*5", 50), ("((3))", 3), ("20-3-2", 15), ("2*3*4-1", 23), (" 3 * 7 ", 21),
        ("", None), ("+", None), ("3+", None), ("-3", None), ("3 7", None), ("(3", None), ("3)", None), ("()", None),
        ("3(7)", None), ("3**7", None), ("3//7", None), ("3^7", None), ("3e7", None), ("٣+٧", None), ("３", None),
        ("3+7\0", None), ("3--7", None), ("(3+7)5", None), (")3(", None),
    ],
)  # fmt: skip
def test_evaluate(text: str, value: int | None) -> None:
    assert evaluate(tokenise(text)) == value


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("3*7+5", True),
        ("5+7*3", True),
        (" 5 + (3 * 7) ", True),
        ("((5)+(7*3))", True),
        ("26", False),
        ("3*7", False),
        ("3*7+5+3-3", False),
        ("21+5", False),
        ("3*7+5=26", False),
        ("37-5", False),
        ("03*7+5", False),
        ("3*7+5.0", False),
        ("5-(-3)*7", False),
        ("3*7+5 3*7+5", False),
        ("__import__('os').system('touch marker_file')", False),
        ("9**9**9**9", False),
        ("(" * 10**6, False),
        ("9" * 10**6, False),
        ("3*7+5" + "+0" * 10**5, False),
        ("", False),
        ("３*７+５", False),
    ],
)
def test_an_answer_uses_every_number_once_and_hits_the_target(answer: str, right: bool) -> None:
    started = time.monotonic()
    assert mark("3,5,7=26?", answer) is (Mark.correct if right else Mark.wrong)
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize("config", [{}, {"numbers": 4, "operations": "+-"}, {"numbers": 5, "min_numbers": 2}])
def test_every_problem_is_solved_by_its_own_answer_and_traces(config: dict[str, object]) -> None:
    task = countdown(**config)
    for split in ("train", "held_out"):
        for index in range(200):
            prompt = task.prompt(split, index)
            numbers, target = parse_question(prompt.question)
            assert numbers == sorted(numbers)
            assert 1 <= min(numbers) <= max(numbers) <= 9
            assert 1 <= target <= 99
            assert len(numbers) == prompt.metadata["difficulty"]
            for seed in range(3):
                assert task.verify(prompt, task.trace(prompt, seed)) == Verdict(Mark.correct)
                assert task.trace(prompt, seed) == task.trace(prompt, seed)


def test_the_splits_share_no_problem_in_any_order_of_its_numbers() -> None:
    task, other = countdown(), countdown(seed=1)
    train = {task.prompt("train", i).question for i in range(3000)} | {
        other.prompt("train", i).question for i in range(500)
    }
    held_out = {task.prompt("held_out", i).question for i in range(500)}
    as_sets = [{tuple(map(str, parse_question(question))) for question in part} for part in (train, held_out)]
    assert not as_sets[0] & as_sets[1]
    assert len(held_out) > 150


def test_traces_search_with_different_wrong_tries_and_end_with_the_right_one() -> None:
    task = countdown(full_share=0.5, compact_share=0.3)
    forms: Counter[str] = Counter()
    tries: Counter[int] = Counter()
    for index in range(1500):
        prompt = task.prompt("train", index)
        numbers, target = parse_question(prompt.question)
        scratch, answer = re.fullmatch(r"<think>(.*)</think>(.*)<\|end\|>", task.trace(prompt, index)).groups()  # type: ignore[union-attr]
        assert answer == prompt.answer
        chains = scratch.split(" ") if scratch else []
        assert len(set(chains)) == len(chains)
        for tried in chains:
            used = re.findall(r"(?:^|[-+*])([0-9]+)", re.sub("=-?[0-9]+", "", tried))
            assert sorted(map(int, used)) == numbers
            value = int(re.findall(r"-?[0-9]+", tried.replace("=", " "))[-1])
            assert (value == target) == (tried is chains[-1])
        forms["search" if len(chains) > 1 else "steps" if chains else "none"] += 1
        tries[len(chains) - 1] += 1
    assert abs(forms["none"] / 1500 - 0.2) < 0.04
    assert abs(forms["search"] / 1500 - 0.5 * 3 / 4) < 0.04
    assert {key for key in tries if key > 0} == {1, 2, 3}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from(["+", "-", "+-", "-+", "+-*"]))
def test_attempts_reach_every_value_that_any_order_reaches(numbers: list[int], operations: str) -> None:
    everything = [
        running(order, chosen)[-1]
        for order in permutations(numbers)
        for chosen in product(operations, repeat=len(numbers) - 1)
    ]
    tried = [running(order, chosen)[-1] for order, chosen in attempts(numbers, operations)]
    assert set(tried) == set(everything)
    assert len(tried) <= len(everything)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_no_attempt_repeats_another_with_its_summands_in_another_order(numbers: list[int]) -> None:
    signed = [tuple(sorted(zip(("+", *chosen), order))) for order, chosen in attempts(numbers, "+-")]
    assert len(set(signed)) == len(signed)
    if len(set(numbers)) == len(numbers):
        assert len(signed) == 2 ** len(numbers) - 1  # every choice of signs but the one without a plus


def test_attempts_begin_with_the_largest_numbers_and_with_many_numbers_at_once() -> None:
    first = [chain(*tried) for tried in islice(attempts([1, 4, 6], "+-"), 5)]
    assert first == ["6+4=10+1=11", "6+4=10-1=9", "6-4=2+1=3", "6-4=2-1=1", "4-6=-2+1=-1"]
    assert [chain(*tried) for tried in attempts([2, 3], "+*")] == ["3+2=5", "3*2=6"]
    started = time.monotonic()
    assert len(next(attempts(range(12), "+-"))[0]) == 12
    assert time.monotonic() - started < 0.5


def test_a_systematic_trace_tries_in_order_until_one_is_right() -> None:
    task = countdown(numbers=4, operations="+-", full_share=1.0, compact_share=0.0, systematic=True, tries=4)
    searched = 0
    for index in range(300):
        prompt = task.prompt("train", index)
        numbers, target = parse_question(prompt.question)
        trace = task.trace(prompt, index)
        assert task.verify(prompt, trace) == Verdict(Mark.correct)
        scratch, answer = re.fullmatch(r"<think>(.*)</think>(.*)<\|end\|>", trace).groups()  # type: ignore[union-attr]
        tries = list(islice(attempts(numbers, "+-"), 5))
        right = [running(*tried)[-1] == target for tried in tries]
        if any(right):
            searched += 1
            upto = right.index(True) + 1
            assert scratch == " ".join(chain(*tried) for tried in tries[:upto])
            assert answer == expression(*tries[upto - 1])
        else:
            assert " " not in scratch
            assert answer == prompt.answer
    assert 150 < searched < 300


def test_a_trace_shows_what_it_says() -> None:
    task = countdown(full_share=0.0, compact_share=1.0)
    assert task.trace(Prompt(0, "3,5,7=50?", "(3+7)*5"), 0) == "<think>3+7=10*5=50</think>(3+7)*5<|end|>"
    assert countdown(full_share=0.0, compact_share=0.0).trace(Prompt(0, "3,5,7=50?", "(3+7)*5"), 0) == (
        "<think></think>(3+7)*5<|end|>"
    )


def test_a_problem_is_a_fixed_function_of_the_settings() -> None:
    assert countdown().prompt("train", 0) == countdown().prompt("train", 0)
    assert countdown().prompt("train", 0) != countdown(seed=1).prompt("train", 0)
    assert countdown().prompt("train", 0) == GOLDEN


GOLDEN = Prompt(0, "1,1,3=1?", "3-1-1", {"item": 0, "difficulty": 3})
"""Prompts are named by index for ever, across machines and versions."""


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        ({"numbers": 1}, "task.numbers=1: choose 2 to"),
        ({"numbers": 3, "min_numbers": 4}, "task.min_numbers=4: choose 2 to sft.task.numbers=3"),
        ({"operations": "+/"}, "choose from"),
        ({"operations": ""}, "choose from"),
        ({"tries": -1}, "task.tries=-1"),
        ({"largest": 0}, "task.largest=0"),
        ({"largest_target": 0}, "task.largest_target=0"),
        ({"operations": "*", "numbers": 6, "largest": 1000, "largest_target": 1}, "task.largest_target=1: .*raise it"),
    ],
)
def test_wrong_settings_name_the_fix_in_one_line(config: dict[str, object], hint: str) -> None:
    with pytest.raises(UserError, match=hint) as caught:
        countdown(**config)
    assert "\n" not in str(caught.value)


def test_a_question_of_another_task_is_refused() -> None:
    for question in ("3+5=?", "3,5=8", "3,5=?", ",3=3?", ""):
        with pytest.raises(ValueError, match="not a countdown problem"):
            parse_question(question)
