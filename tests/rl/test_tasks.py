"""Tasks: splits that never meet, honest traces, strict verdicts."""

import re
import sys
import types
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farside.configs.errors import UserError
from farside.configs.schema import TaskConfig
from farside.rl.tasks.addition import AdditionDataset, AdditionTask, columns
from farside.rl.tasks.dataset import DatasetTask, extract_answer
from farside.rl.tasks.registry import make_task
from farside.rl.tasks.split import is_held_out, normalised
from farside.rl.types import Mark, Prompt, Verdict

NATURAL = st.integers(0, 10**12)


def addition(digits: int = 2, seed: int = 0) -> DatasetTask:
    return make_task(TaskConfig(digits=digits, seed=seed))


def sum_prompt(a: int, b: int) -> Prompt:
    return Prompt(0, f"{a}+{b}=?", str(a + b))


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 10**6))
def test_splits_share_no_question(digits: int, seed: int, start: int) -> None:
    train, other = addition(digits, seed), addition(digits, seed + 1)
    seen = {train.prompt("train", start + i).question for i in range(400)}
    seen |= {other.prompt("train", i).question for i in range(100)}
    held_out = {train.prompt("held_out", start + i).question for i in range(100)}
    assert not seen & held_out
    assert not any(is_held_out(question) for question in seen)


def test_two_thousand_of_each_split_are_disjoint_and_varied() -> None:
    task = addition(digits=3)
    train = {task.prompt("train", i).question for i in range(2000)}
    held_out = {task.prompt("held_out", i).question for i in range(2000)}
    assert not train & held_out
    assert len(train) > 1900
    assert len(held_out) > 1900


def test_prompt_is_a_pure_function_of_settings_split_and_index() -> None:
    first, again = addition(), addition()
    backwards = [again.prompt("train", i) for i in reversed(range(50))][::-1]
    assert [first.prompt("train", i) for i in range(50)] == backwards
    assert first.prompt("train", 7) != addition(seed=1).prompt("train", 7)
    # A fixed point of the generator: prompts are named by index for ever, across machines and versions.
    assert first.prompt("train", 0) == Prompt(0, "36+22=?", "58", {"item": 0, "difficulty": 2})


def test_prompt_rejects_unknown_split_and_negative_index() -> None:
    with pytest.raises(ValueError, match="held_out"):
        addition().prompt("test", 0)
    with pytest.raises(ValueError, match="negative"):
        addition().prompt("train", -1)


def test_a_dataset_without_held_out_items_says_so() -> None:
    dataset = AdditionDataset(1, 0, size=3)
    task = AdditionTask(dataset, 0.4, 0.3)
    missing = "train" if is_held_out(dataset[0]["question"]) else "held_out"
    if len({is_held_out(dataset[i]["question"]) for i in range(3)}) == 2:
        pytest.fail("choose another seed: these three items cover both splits")
    with pytest.raises(ValueError, match=f"no {missing} problem among 3"):
        task.prompt(missing, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2 + 3?", "what is  2+3 ?\n"),
        ("Add 1,000 and 007.", "Add 1000 and 7."),
        ("Half of 2.50", "Half of 2.5"),
        ("Add １２ and 3", "Add 12 and 3"),
        (r"Find $x^2 = 1{,}000$.", r"Find \(x^2=1000\)."),
        (r"$\dfrac{1}{2}\, x$", r"$\frac{1}{2}x$"),
        ("5 − 3", "5-3"),
    ],
)
def test_near_duplicates_are_on_one_side(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    assert is_held_out(one) == is_held_out(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("37+48=?", "37+84=?"), ("1.5", "15"), ("10", "1"), ("3,5,7=26?", "35,7=26?"), ("x<3", "x>3"), ("2.05", "2.5")],
)
def test_different_problems_are_told_apart(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abcXYZ019+-=.?", min_size=1, max_size=8), min_size=1, max_size=6))
def test_case_and_spacing_never_change_the_side(words: list[str]) -> None:
    sides = {is_held_out(text) for text in ("".join(words), " ".join(words), "\n\t".join(words).swapcase())}
    assert len(sides) == 1


@pytest.mark.parametrize("digits", [1, 2, 5])
def test_summands_have_the_digits_asked_for(digits: int) -> None:
    for i in range(200):
        question = addition(digits).prompt("train", i).question
        assert re.fullmatch(rf"(0|[1-9]\d{{{digits - 1}}})\+(0|[1-9]\d{{{digits - 1}}})=\?", question)


@settings(max_examples=300, deadline=None)
@given(NATURAL, NATURAL, st.integers(0, 2**31))
def test_traces_are_right_and_verified(a: int, b: int, seed: int) -> None:
    task, prompt = addition(), sum_prompt(a, b)
    trace = task.trace(prompt, seed)
    assert trace == task.trace(prompt, seed)
    assert task.verify(prompt, trace) == Verdict(Mark.correct)
    scratch = re.fullmatch(rf"<think>([0-9+= ]*)</think>{a + b}<\|end\|>", trace)
    assert scratch
    sums = [step.rpartition("=") for step in scratch[1].split()]
    for terms, _, total in sums:
        assert not terms or sum(map(int, terms.split("+"))) == int(total)
    if sums:  # the last digits of the column sums, read from the right, are the answer
        digits = [total for _, _, total in sums]
        assert int(digits[-1] + "".join(total[-1] for total in reversed(digits[:-1]))) == a + b


def test_mixed_digits_are_even_and_named_and_leave_single_ones_alone() -> None:
    task = make_task(TaskConfig(digits=4, min_digits=2))
    prompts = [task.prompt("train", i) for i in range(1500)]
    for prompt in prompts:
        assert {len(number) for number in prompt.question[:-2].split("+")} == {prompt.metadata["difficulty"]}
    counts = Counter(prompt.metadata["difficulty"] for prompt in prompts)
    assert sorted(counts) == [2, 3, 4]
    assert min(counts.values()) > 400
    assert make_task(TaskConfig(min_digits=2)).prompt("train", 0) == addition().prompt("train", 0)


def test_columns_spell_out_the_carry() -> None:
    assert columns("37+48=?") == [("7+8", 15), ("3+4+1", 8)]
    assert columns("7+48=?") == [("7+8", 15), ("0+4+1", 5)]
    for hostile in ("37-48=?", "37+48", "3+4+8=?", "", "x+1=?"):
        with pytest.raises(ValueError, match="not an addition problem"):
            columns(hostile)


def test_three_trace_formats_in_the_stated_shares() -> None:
    task = addition()
    traces = [task.trace(task.prompt("train", i), seed=3) for i in range(2000)]
    assert abs(sum("=" in trace for trace in traces) / 2000 - 0.4) < 0.04
    assert abs(sum("<think></think>" in trace for trace in traces) / 2000 - 0.3) < 0.04
    prompt = sum_prompt(37, 48)
    assert {task.trace(prompt, seed) for seed in range(50)} == {
        "<think>7+8=15 3+4+1=8</think>85<|end|>",
        "<think>15 8</think>85<|end|>",
        "<think></think>85<|end|>",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>7+8=15</think>85<|end|>", ("85", "")),
        ("85<|end|>", ("85", "")),
        ("<think>a</think>84<think>b</think> 85 <|end|>", ("85", "")),
        ("<think></think>85<|end|>86<|end|>", ("85", "")),
        ("<think></think>85", ("", "truncated")),
        ("", ("", "truncated")),
        ("<|end|>", ("", "no answer")),
        ("<think>85</think> \n<|end|>", ("", "no answer")),
        ("<think>85<|end|>", ("", "no answer")),
        ("84<|end|></think>85<|end|>", ("84", "")),
    ],
)
def test_extract_answer(text: str, expected: tuple[str, str]) -> None:
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "mark"),
    [
        ("85", Mark.correct),
        ("085", Mark.correct),
        (" 85\n", Mark.correct),
        ("84", Mark.wrong),
        ("37+48", Mark.wrong),
        ("8 5", Mark.wrong),
        ("８５", Mark.wrong),
        ("٨٥", Mark.wrong),
        ("85\0", Mark.wrong),
        ("+85", Mark.wrong),
        ("85.0", Mark.wrong),
        ("84 85", Mark.wrong),
        ("(" * 10**6, Mark.wrong),
        ("9" * 10**6, Mark.wrong),
    ],
)
def test_addition_takes_digits_only(answer: str, mark: Mark) -> None:
    task, prompt = addition(), sum_prompt(37, 48)
    text = f"<think></think>{answer}<|end|>"
    assert task.verify(prompt, text).mark is mark
    assert task.decide(prompt, text) == task.verify(prompt, text)


def test_zero_is_an_answer() -> None:
    assert addition(1).verify(sum_prompt(0, 0), "0<|end|>").mark is Mark.correct
    assert addition(1).verify(sum_prompt(0, 0), "000<|end|>").mark is Mark.correct
    assert AdditionDataset(1, 0, 1).score_answer("", {"answer": "0"}) == 0.0


class Parrot:
    """A stand-in family with reasoning-gym's interface; metadata that JSON would change."""

    def __init__(self, seed: int, size: int, prefix: str = "w") -> None:
        if size > 20_000:
            raise ValueError("size must be at most 20000")
        assert prefix, "prefix must not be empty"
        self.seed, self.size, self.prefix = seed, size, prefix

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        word = f"{self.prefix}{self.seed + index}"
        return {"question": f"Say {word}.", "answer": word, "metadata": {"pair": (index, word)}}

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        assert entry["metadata"]["pair"][1] == entry["answer"]
        assert isinstance(entry["metadata"]["pair"], tuple)
        if answer == entry["answer"]:
            return 1.0
        return 0.5 if answer and entry["answer"] in answer else 0.0


@pytest.fixture
def gym(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a stand-in for the reasoning_gym package in place, whether or not the real one is installed."""
    package: Any = types.ModuleType("reasoning_gym")
    factory: Any = types.ModuleType("reasoning_gym.factory")
    factory.DATASETS = {"parrot": (Parrot, None), "chain_sum": (Parrot, None)}
    package.create_dataset = lambda name, **settings: factory.DATASETS[name][0](**settings)
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)


@pytest.mark.usefixtures("gym")
def test_reasoning_gym_family_behind_the_same_interface() -> None:
    task = make_task(TaskConfig(name="reasoning_gym:parrot", seed=5))
    prompt = task.prompt("held_out", 3)
    assert is_held_out(prompt.question)
    assert task.trace(prompt, 0) == f"<think></think>{prompt.answer}<|end|>"
    assert task.verify(prompt, task.trace(prompt, 0)).mark is Mark.correct
    assert task.verify(prompt, f"either x or {prompt.answer}<|end|>") == Verdict(Mark.wrong, "score 0.5")
    assert task.decide(prompt, task.trace(prompt, 0)) is None
    assert task.decide(prompt, "unfinished") == task.verify(prompt, "unfinished")


@pytest.mark.usefixtures("gym")
def test_an_item_that_changed_is_an_error_not_a_wrong_answer() -> None:
    prompt = make_task(TaskConfig(name="reasoning_gym:parrot", seed=5)).prompt("train", 3)
    with pytest.raises(RuntimeError, match="another question"):
        make_task(TaskConfig(name="reasoning_gym:parrot", seed=6)).verify(prompt, "w1<|end|>")


@pytest.mark.usefixtures("gym")
def test_options_and_levels_of_a_family() -> None:
    task = make_task(TaskConfig(name="reasoning_gym:parrot", options={"prefix": "p"}))
    assert task.prompt("train", 0).answer.startswith("p")
    assert "difficulty" not in task.prompt("train", 0).metadata
    levels = [{"prefix": "a"}, {"prefix": "b"}, {}]
    task = make_task(TaskConfig(name="reasoning_gym:parrot", options={"prefix": "p"}, levels=levels))
    prompts = [task.prompt(split, i) for split in ("train", "held_out") for i in range(300)]
    for prompt in prompts:
        assert prompt.answer[0] == "abp"[prompt.metadata["difficulty"] - 1]
        assert task.verify(prompt, task.trace(prompt, 0)).mark is Mark.correct
        assert task.verify(prompt, "other<|end|>").mark is Mark.wrong
    counts = Counter(prompt.metadata["difficulty"] for prompt in prompts)
    assert min(counts[level] for level in (1, 2, 3)) > 150


@pytest.mark.usefixtures("gym")
@pytest.mark.parametrize(
    ("options", "hint"),
    [({"colour": 1}, "task.options=.*colour"), ({"prefix": ""}, "prefix must not be empty"), ({"size": 10**6}, "size")],
)
def test_options_that_a_family_refuses(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        make_task(TaskConfig(name="reasoning_gym:parrot", options=options))
    with pytest.raises(UserError, match=r"task\.levels\.1=.*refuses"):
        make_task(TaskConfig(name="reasoning_gym:parrot", levels=[{}, options]))


@pytest.mark.usefixtures("gym")
def test_unknown_family_names_near_ones() -> None:
    with pytest.raises(UserError, match=r"no family 'chain_sums'; try chain_sum$"):
        make_task(TaskConfig(name="reasoning_gym:chain_sums"))


def test_real_reasoning_gym_or_one_line_that_says_how_to_get_it() -> None:
    config = TaskConfig(name="reasoning_gym:chain_sum", seed=1)
    try:
        import reasoning_gym  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"pip install reasoning-gym==0\.1\.25"):
            make_task(config)
        return
    task = make_task(config)
    for i in range(50):
        prompt = task.prompt("train", i)
        assert task.verify(prompt, task.trace(prompt, 0)).mark is Mark.correct
        assert task.verify(prompt, f"{int(prompt.answer) + 1}<|end|>").mark is Mark.wrong


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        (TaskConfig(name="subtraction"), "known: addition, countdown, reasoning_gym:<family>"),
        (TaskConfig(name="reasoning_gym"), "known: addition"),
        (TaskConfig(digits=0), "choose 1 to 1000"),
        (TaskConfig(digits=10**6), "choose 1 to 1000"),
        (TaskConfig(full_share=0.8, compact_share=0.3), "choose shares of at most 1 in all"),
        (TaskConfig(digits=2, min_digits=3), r"task.min_digits=3: choose 1 to sft.task.digits=2"),
        (TaskConfig(digits=2, min_digits=0), "task.min_digits=0: choose 1"),
    ],
)
def test_wrong_settings_name_the_fix_in_one_line(config: TaskConfig, hint: str) -> None:
    with pytest.raises(UserError, match=hint) as caught:
        make_task(config)
    assert "\n" not in str(caught.value)
