"""Files of problems: every format maps onto prompts, wrong rows name their line, the splits cannot leak."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from farside.configs.errors import UserError
from farside.configs.schema import CurriculumConfig, RlConfig, TaskConfig
from farside.parallel.mesh import ONE_RANK
from farside.rl.curriculum import EachOnce, Pool, make_curriculum
from farside.rl.estimators import level_order
from farside.rl.reward.equivalence import judge, judge_quickly
from farside.rl.reward.verifier import VerifierPool
from farside.rl.tasks.dataset import VerifiedTask
from farside.rl.tasks.files import distinct
from farside.rl.tasks.formats import FORMATS, last_boxed
from farside.rl.tasks.registry import make_task
from farside.rl.tasks.split import is_held_out, normalised
from farside.rl.types import Completion, Mark, Prompt, Score, Verdict

EXAMS = Path(__file__).parent / "exams"
SAMPLES = {form: EXAMS / f"{form}.jsonl" for form in FORMATS if form != "datasets"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def task_of(form: str, path: Path, **settings: Any) -> VerifiedTask:
    return make_task(TaskConfig(name=f"{form}:{path}", **settings))


def all_train(task: VerifiedTask, count: int) -> dict[str, Prompt]:
    """One epoch of a task whose held-out problems come from elsewhere."""
    prompts = [task.prompt("train", index) for index in range(count)]
    assert len({prompt.question for prompt in prompts}) == count, "an epoch has every problem once"
    return {prompt.question: prompt for prompt in prompts}


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    return str(write(tmp_path / "elsewhere.jsonl", {"problem": "other", "answer": "1", "solution": r"\boxed{1}"} | {
        "question": "other"}))  # fmt: skip


EXPECTED: dict[str, list[tuple[str, str, Any, str]]] = {
    "math": [
        ("Find the sum", "7", 2, "Algebra"),
        ("A bag holds", r"\frac{3}{8}", 1, "Counting & Probability"),
        ("For which", "(-2,2)", 3, "Intermediate Algebra"),
        ("Simplify", r"2\sqrt{3}", 5, "Prealgebra"),
    ],
    "omni_math": [
        ("How many", "6", 4.5, "Mathematics -> Number Theory -> Divisibility"),
        ("A sequence", "100", 2, "Mathematics -> Algebra -> Sequences"),
        ("A square", r"\frac{2}{\sqrt{\pi}}", 7, "Mathematics -> Geometry"),
    ],
    "aime": [("Let $N$", "55", 1, ""), ("Find the rem", "001", 6, ""), ("How many", "10", 11, "")],
    "middle_school": [
        ("一个长方形", "C", None, "几何"),
        ("解方程", "x=4", None, "代数"),
        ("A shirt", "60", None, "arithmetic"),
    ],
    "college_entrance": [
        ("已知集合", "A", 5, "集合"),
        ("函数", "2", 5, "导数"),
        ("某班有40名学生", r"$\frac{5}{8}$", 5, "概率"),
    ],
    "graduate_entrance": [("求极限", "3", 4, "高等数学"), ("设 $A", "-2", 4, "线性代数"), ("计算", "1", 5, "高等数学")],
    "jsonl": [("What is half", "4.5", "easy", "arithmetic"), ("Write", r"30\%", 1, ""), ("Tom has", "31", None, "")],
}  # fmt: skip


@pytest.mark.parametrize("form", SAMPLES)
def test_a_format_maps_onto_prompts_that_are_solved_by_their_traces(form: str, elsewhere: str) -> None:
    task = task_of(form, SAMPLES[form], held_out=elsewhere)
    prompts = all_train(task, len(EXPECTED[form]))
    for begins, answer, difficulty, subject in EXPECTED[form]:
        (prompt,) = [prompt for question, prompt in prompts.items() if question.startswith(begins)]
        assert prompt.answer == answer
        assert prompt.metadata.get("difficulty") == difficulty
        assert prompt.metadata.get("subject", "") == subject
        assert task.verify(prompt, task.trace(prompt, 0)) == Verdict(Mark.correct)
        assert task.decide(prompt, task.trace(prompt, 0)) == Verdict(Mark.correct)
        assert task.verify(prompt, f"The answer is \\boxed{{{answer.strip('$')}}}.<|end|>") == Verdict(Mark.correct)
        assert task.verify(prompt, r"\boxed{99999}<|end|>").mark is Mark.wrong
        assert task.verify(prompt, "unfinished") == Verdict(Mark.wrong, "truncated")


def test_options_passages_and_solutions_are_shown(elsewhere: str) -> None:
    school = all_train(task_of("middle_school", SAMPLES["middle_school"], held_out=elsewhere), 3)
    assert any(question.endswith("？\nA. 10\nB. 20\nC. 24\nD. 48") for question in school)
    task = task_of("college_entrance", SAMPLES["college_entrance"], held_out=elsewhere)
    questions = list(all_train(task, 3))
    assert any(
        r"$A\cap B$。" + "\n(A)" in question and question.endswith(r"(D)$\varnothing$") for question in questions
    )
    assert any("会游泳。\n随机" in question for question in questions)
    task = task_of("jsonl", SAMPLES["jsonl"], held_out=elsewhere)
    eggs = next(p for q, p in all_train(task, 3).items() if q.startswith("Tom"))
    assert task.trace(eggs, 0) == "<think>3 boxes hold 36 eggs. 36 - 5 = 31.</think>31<|end|>"


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ("{", r"line 2 is no JSON .*; mend or remove it"),
        ("[1]", r"line 2 is no object .* list; mend"),
        ({"answer": "1"}, r"line 2 has no question \(fields: answer\); name it problem or question"),
        ({"problem": "", "answer": "1"}, "no question"),
        ({"problem": "p"}, r"line 2 has no answer \(fields: problem\); give it a field answer"),
        ({"problem": "p", "solution": "so it is 5"}, r"no answer .*boxed"),
        ({"problem": "p", "solution": r"\boxed{5"}, "no answer"),
        ({"problem": "p", "answer": {"a": 1}}, "field 'answer' is no text but dict"),
        ({"problem": ["p", 1], "answer": "1"}, "field 'problem' is no text but list"),
        ({"problem": "p", "answer": "E", "options": ["1", "2"]}, "the answer 'E' is none of AB"),
        ({"problem": "p", "answer": "A", "options": "12"}, "no list of at most 8"),
        ({"problem": "p<|end|>", "answer": "A"}, r"line 2 holds <\|end\|>, a mark of the chat format"),
        ({"problem": "p\ud800", "answer": "A"}, "half a character"),
    ],
)  # fmt: skip
def test_a_bad_row_is_one_line_with_file_line_and_fix(tmp_path: Path, row: Any, hint: str) -> None:
    task = task_of("jsonl", write(tmp_path / "bad.jsonl", {"problem": "good", "answer": "1"}, row))
    with pytest.raises(UserError, match=hint) as caught:
        task.prompt("train", 0)
    assert str(tmp_path / "bad.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_aime_answer_is_a_whole_number_to_999(tmp_path: Path) -> None:
    for answer in ("1000", "-1", "1/2", "x"):
        task = task_of("aime", write(tmp_path / "bad.jsonl", {"problem": "p", "answer": answer}))
        with pytest.raises(UserError, match="whole number from 0 to 999"):
            task.prompt("train", 0)


def test_files_that_are_not_there_or_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file or folder 'nowhere'"):
        make_task(TaskConfig(name="jsonl:nowhere"))
    with pytest.raises(UserError, match="there is no file or folder ''"):
        make_task(TaskConfig(name="jsonl:"))
    path = write(tmp_path / "one.jsonl", {"problem": "p", "answer": "1"})
    with pytest.raises(UserError, match=r"task\.held_out: there is no file"):
        task_of("jsonl", path, held_out="nowhere")
    empty = "train" if is_held_out("p") else "held_out"
    with pytest.raises(UserError, match=rf"no {empty} problem"):
        task_of("jsonl", path).prompt(empty, 0)
    with pytest.raises(UserError, match=r"no train problem; name another file"):
        task_of("jsonl", path, held_out=str(path)).prompt("train", 0)
    with pytest.raises(UserError, match="is no data set"):
        task_of("datasets", tmp_path).prompt("train", 0)


def spellings(number: int) -> list[str]:
    return [f"What is {number} + 1?", f"what is  {number}+1 ?", f"WHAT IS ${number:,} + 1$?", f"What is {number}.0+1?"]


def test_no_spelling_of_a_problem_crosses_the_split(tmp_path: Path) -> None:
    rows = [{"question": text, "answer": str(n + 1)} for n in range(990, 1290) for text in spellings(n)]
    task = task_of("jsonl", write(tmp_path / "twins.jsonl", *rows))
    sides = {
        split: {normalised(task.prompt(split, i).question) for i in range(1200)} for split in ("train", "held_out")
    }
    assert not sides["train"] & sides["held_out"]
    assert len(sides["train"] | sides["held_out"]) == 300
    assert 10 < len(sides["held_out"]) < 60


def test_what_the_held_out_file_asks_is_never_trained_on(tmp_path: Path) -> None:
    rows = [{"question": spellings(n)[0], "answer": str(n + 1)} for n in range(1000, 1040)]
    other = [{"question": spellings(n)[2], "answer": str(n + 1)} for n in range(1030, 1050)]
    task = task_of("jsonl", write(tmp_path / "a.jsonl", *rows), held_out=str(write(tmp_path / "b.jsonl", *other)))
    train = {normalised(task.prompt("train", i).question) for i in range(100)}
    held_out = {normalised(task.prompt("held_out", i).question) for i in range(100)}
    assert (len(train), len(held_out)) == (30, 20)
    assert not train & held_out


def test_an_epoch_visits_every_problem_once_in_another_order_each_time(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": "1"} for n in range(61)]  # 61: a stride that divides the size
    task = task_of("jsonl", write(tmp_path / "a.jsonl", *rows))
    size = len({task.prompt("train", i).question for i in range(500)})
    epochs = [[task.prompt("train", epoch * size + i).question for i in range(size)] for epoch in range(3)]
    assert all(len(set(epoch)) == size for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = task_of("jsonl", tmp_path / "a.jsonl")
    assert [again.prompt("train", size + i).question for i in range(size)] == epochs[1]
    assert [task_of("jsonl", tmp_path / "a.jsonl", seed=1).prompt("train", i).question for i in range(size)] != epochs[
        0
    ]


def test_parquet_json_and_saved_data_sets_hold_the_same_problems(tmp_path: Path, elsewhere: str) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [json.loads(line) for line in SAMPLES["omni_math"].read_text().splitlines()]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(str(tmp_path / "a.parquet"))
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "both"))
    expected = all_train(task_of("omni_math", SAMPLES["omni_math"], held_out=elsewhere), 3)
    for name in ("a.json", "a.parquet", "saved", "both/train"):
        assert all_train(task_of("omni_math", tmp_path / name, held_out=elsewhere), 3) == expected
    with pytest.raises(UserError, match=r"holds the splits train, test; name one of them: .*both/train"):
        task_of("omni_math", tmp_path / "both").prompt("train", 0)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(UserError, match="is no Parquet file"):
        task_of("omni_math", tmp_path / "a.parquet").prompt("train", 0)


def test_the_verifiers_child_reads_no_problems(elsewhere: str) -> None:
    config = TaskConfig(name=f"math:{SAMPLES['math']}", held_out=elsewhere)
    task = make_task(config)
    items = [(prompt, text) for prompt in all_train(task, 4).values() for text in (
        task.trace(prompt, 0), r"<think>x</think>\boxed{\sqrt{12}}<|end|>", "no", "0.375<|end|>")]  # fmt: skip
    with VerifierPool(config, 10.0) as pool:
        verdicts = pool.verify(items)
        assert pool._children != [None], "an equivalence is left to the child"
    assert verdicts == [task.verify(prompt, text) for prompt, text in items]
    assert sum(verdict.mark is Mark.correct for verdict in verdicts) == 4 + 1 + 1
    other = make_task(config)
    other.verify(*items[0])
    assert "splits" not in vars(other)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}} and \boxed{ \frac{\sqrt{3}}{2} }.", r"\frac{\sqrt{3}}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{8}", "8"),
        (r"\boxed{5", None),
        (r"\boxed{\{5}", r"\{5"),
        (r"\boxed{a\\}", r"a\\"),
        ("boxed{5}", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, box: str | None) -> None:
    assert last_boxed(text) == box


TABLE = [
    ("-5", "\N{MINUS SIGN}5", True),
    ("\N{MINUS SIGN}5", "-5", True),
    ("5", "7\N{MINUS SIGN}2", False),
    # fractions
    (r"\frac{3}{4}", "0.75", True),
    (r"\frac34", r"\tfrac{6}{8}", True),
    (r"2\frac12", "2.5", True),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
    (r"\frac{1}{3}", "0.333", False),
    (r"-\frac12", "0.5", False),
    # sets and lists: order means nothing without parentheses
    (r"\{1,2,3\}", "{3,1,2}", True),
    (r"\left\{1,2\right\}", r"\{2,1\}", True),
    ("1,2", "2,1", True),
    (r"\pm 2", "2,-2", True),
    (r"\{1,2,3\}", "1,2", False),
    (r"\{1,2\}", r"\{1,2,3\}", False),
    ("(1,2)", "(2,1)", False),
    # intervals
    ("[1,2)", "[1, 2)", True),
    ("[1,2)", "[1,2]", False),
    (r"(-\infty,3]", r"(-\infty,3)", False),
    (r"[0,1]\cup[2,3]", r"[2,3]\cup[0,1]", True),
    ("x>2", r"(2,\infty)", True),
    ("x>2", "x>2.5", False),
    ("1<x<2", "(1,2)", True),
    ("1<x<2", r"1 \lt x \lt 2", True),
    (r"1\le x\le 2", "[1,2]", True),
    ("1<x<2", "1,2", False),
    ("1<x<2", r"\{1,2\}", False),
    ("1<x<2", r"\boxed{1}\boxed{2}", False),
    (r"1\le x\le 2", "1,2", False),
    ("2", "x>2", False),
    # units are not compared
    ("5", "5 cm", True),
    (r"5\text{ cm}", "5", True),
    (r"90^\circ", "90", True),
    (r"5\text{ cm}", "6 cm", False),
    # percentages
    ("50%", r"50\%", True),
    ("50%", "50", True),
    ("50", r"\boxed{50\%}", True),
    ("50%", "1/2", True),
    ("0.75", r"75\%", True),
    (r"\frac14", r"25\%", False),
    ("50%", "0.05", False),
    ("50%", "5000", False),
    ("0.5", "5%", False),
    (r"33\frac13\%", r"33\frac{1}{3}\%", True),
    # money and thousands
    (r"\$5", "5", True),
    ("5", r"\$5.00", True),
    ("1{,}234", "1234", True),
    ("1234", "1,234", True),
    # letters and words
    ("B", "(B)", True),
    ("B", r"\text{B}", True),
    ("B", "C", False),
    (r"\text{Monday}", "Monday", True),
    (r"\text{Monday}", "Tuesday", False),
    # equations, powers, matrices
    ("x=5", "5", True),
    ("y=2x+1", "2x+1", True),
    ("10^{-3}", "0.001", True),
    (r"1.5\times10^3", "1500", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", True),
    (r"\pi", "3.14159", False),
]


@pytest.mark.parametrize(("reference", "answer", "same"), TABLE)
def test_equivalence_of_a_sets_answers(reference: str, answer: str, same: bool) -> None:
    verdict = judge(reference, answer)
    assert verdict.mark is (Mark.correct if same else Mark.wrong), verdict
    assert judge_quickly(reference, answer) in (verdict, None)


HOSTILE = [
    *(r"\boxed{9^{9^{9^{9}}}}", "9^{9^{9^{9}}}", "10**10**8", "10^{10^8}", "10^7!", "(10^7)!", r"\frac{" * 50_000),
    *("(" * 1_000_000, "(" * 900, r"\int " * 200, r"\int_0^1 " * 30 + "x" + " dx" * 30, "+".join(["x"] * 300)),
    *("+".join(["1"] * 100_000), "((((a+)+)+)+)", "a" * 900 + "!", "\uff18\uff15", "85\0", r"\boxed{1}\boxed{2}", ""),
    *(",".join(map(str, range(1, 1000))), r"\{" + ",".join(map(str, range(1, 200))) + r"\}", "word " * 200_000),
    *("1" * 900, r"\sqrt{" * 200 + "2" + "}" * 200, "x^{" * 200 + "2" + "}" * 200, r"\sum_{n=1}^{10^9} n"),
    *(r"\prod_{n=1}^{10^6} n", r"\binom{10^9}{5*10^8}", "2^{2^{2^{2^{2^{2}}}}}", r"\text{__import__}('os')"),
    *("__import__('os').system('touch marker_file')", r"\begin{matrix}[__import__('os')...]\end{matrix}"),
]
REFERENCES = ("85", "x", r"\frac{\sqrt{3}}{2}", "1<x<2")


def assert_harmless(references: tuple[str, ...], answers: list[str], folder: Path, seconds: float) -> None:
    config = TaskConfig(name=f"jsonl:{write(folder / 'a.jsonl', {'problem': 'p', 'answer': '1'})}")
    with VerifierPool(config, seconds) as pool:
        for reference in references:
            for answer in answers:
                prompt = Prompt(0, "p", reference)
                started = time.monotonic()
                (verdict,) = pool.verify([(prompt, f"{answer}<|end|>")])
                assert verdict.mark is not Mark.correct, (reference, answer[:60])
                assert verdict.mark is Mark.wrong or verdict.kind in ("timeout", "memory", "raised"), verdict
                assert time.monotonic() - started < seconds + 20, "start-up aside"
                assert pool.verify([(prompt, f"{reference}<|end|>")]) == [Verdict(Mark.correct)]
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl"]


def test_a_flood_of_spaces_costs_no_more_than_reading_it() -> None:
    started = time.monotonic()
    assert judge("x", "y" + " " * 1_000_000 + "z").mark is Mark.wrong
    assert judge("x+y", "y" + " " * 1_000_000 + "+x").mark is Mark.correct
    assert time.monotonic() - started < 5


def test_hostile_answers_are_wrong_or_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_harmless(("x",), [HOSTILE[0], HOSTILE[7], HOSTILE[17], HOSTILE[-2]], tmp_path, 5.0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_hostile_answers_are_wrong_or_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_harmless(REFERENCES, HOSTILE, tmp_path, 0.5)


def test_a_small_file_is_asked_no_problem_twice(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": "1"} for n in range(40)]
    task = task_of("jsonl", write(tmp_path / "a.jsonl", *rows))
    size = len({task.prompt("train", index).question for index in range(200)})
    assert size < 40
    assert (distinct(task, "train", 200), distinct(task, "train", 3)) == (size, 3)
    assert distinct(make_task(TaskConfig(name="addition")), "train", 10**6) == 10**6
    curriculum = CurriculumConfig(pool=40)
    with pytest.raises(UserError, match=rf"rl\.curriculum\.pool = 40: .* has {size} problems; use {size}"):
        make_curriculum(RlConfig(prompts_per_step=2, curriculum=curriculum), 0, task, ONE_RANK)
    empty = "train" if is_held_out("q0") else "held_out"
    with pytest.raises(UserError, match=f"no {empty} problem"):
        distinct(task_of("jsonl", write(tmp_path / "one.jsonl", rows[0])), empty, 5)


def test_levels_that_are_words_and_numbers(elsewhere: str) -> None:
    """The sample file has "easy" and 1: numbers come first."""
    task = make_task(TaskConfig(name=f"jsonl:{SAMPLES['jsonl']}", held_out=str(SAMPLES["jsonl"])))
    prompts = [task.prompt("held_out", index) for index in range(distinct(task, "held_out", 1000))]
    levels = {prompt.metadata["difficulty"] for prompt in prompts if "difficulty" in prompt.metadata}
    assert {type(level) for level in levels} == {int, str}
    right = Score(1.0, True, Verdict(Mark.correct))
    found = EachOnce(ONE_RANK).note([(Completion(p, [1], [2], [0.0], "", False, 0), right) for p in prompts])
    assert list(found) == [f"accuracy_difficulty_{level}" for level in sorted(map(str, levels), key=level_order)]
    assert next(iter(found)) == "accuracy_difficulty_1"
    pool = make_curriculum(RlConfig(prompts_per_step=1, curriculum=CurriculumConfig(pool=3)), 0, Held(task), ONE_RANK)
    assert isinstance(pool, Pool)
    assert pool.names == [None, 1, "easy"]


class Held:
    """Its held-out problems, as if they were for training."""

    name = "held"

    def __init__(self, task: VerifiedTask) -> None:
        self.task = task

    def prompt(self, split: str, index: int) -> Prompt:
        return self.task.prompt("held_out", index)
