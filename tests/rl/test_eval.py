"""``farside eval math``: what is asked, cut, judged and counted; alike whatever the number of ranks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from farside.configs.errors import UserError
from farside.configs.schema import Config, MathConfig, ParallelConfig, TaskConfig
from farside.parallel.mesh import ParallelDims
from farside.rl.eval import MathEval, check, thinking_tokens, write_result
from farside.rl.eval_summary import Answer, summarise
from farside.rl.policy import answer_held_out
from farside.rl.reward.sampling import Sampler
from farside.rl.reward.verifier import VerifierPool
from farside.rl.rollout.native import NativeRollout
from farside.rl.study import CHARACTERS, character_tokenizer
from farside.rl.tasks.files import distinct
from farside.rl.tasks.registry import make_task
from farside.rl.types import Completion, Prompt
from farside.train.engine.native import NativeEngine
from farside.train.inference.generate import Request, decode
from farside.train.liveness import Pulse
from farside.train.runtime import Runtime, StopRequest
from tests.ranks import Rank, RankPool

TOKENIZER = character_tokenizer()
MATH = MathConfig(prompts=7, samples=3, k=[1, 2, 3, 8], budgets=[0, 2], answer_tokens=5, seed=1)


def config_of(layout: ParallelConfig) -> Config:
    config = Config(parallel=layout)
    model = config.model
    model.vocab_size, model.hidden_size, model.intermediate_size, model.head_dim = CHARACTERS, 32, 48, 8
    model.initializer_range = 0.3
    config.sft.task.min_digits = 1
    config.rl.max_new_tokens, config.rl.micro_batch_size = 12, 6
    config.eval.math = MATH
    return config


def evaluation(place: Rank, folder: Path, layout: ParallelConfig) -> MathEval:
    config = config_of(layout)
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    stop, pulse = StopRequest([], signals=[]), Pulse(folder, place.rank, 60.0, 60.0)
    runtime = Runtime(config, mesh, torch.device("cpu"), folder, None, stop, pulse)
    rollout = NativeRollout(NativeEngine(config, mesh, runtime.device).replica(), TOKENIZER, step=3)
    return MathEval(runtime, rollout, make_task(config.sft.task), VerifierPool(config.sft.task, 5.0))


def answers(place: Rank, folder: Path, layout: ParallelConfig) -> list[Answer]:
    return evaluation(place, folder, layout).answers()


def completion(text: str, index: int = 0) -> Completion:
    tokens = TOKENIZER.encode(text)
    prompt = Prompt(index, "3+4=?", "7", {"difficulty": 1})
    question = TOKENIZER.encode_prompt(prompt.question)
    return Completion(prompt, question, tokens, [0.0] * len(tokens), text, not text.endswith("<|end|>"), 3)


def test_every_problem_is_asked_in_every_way_whatever_the_ranks(ranks: RankPool, tmp_path: Path) -> None:
    alone = answers(Rank(0, 1), tmp_path, ParallelConfig())
    numbers = {(a.problem, a.budget, a.sample) for a in alone}
    ways = [(None, sample) for sample in range(MATH.samples + 1)] + [(budget, 0) for budget in MATH.budgets]
    assert numbers == {(problem, *way) for problem in range(MATH.prompts) for way in ways}
    assert len(alone) == len(numbers)
    assert {a.difficulty for a in alone} == {"1", "2"}
    assert len({a.text for a in alone if a.sample and a.problem == 0}) == MATH.samples, "samples differ"
    for layout in (ParallelConfig(dp_shard=2), ParallelConfig(tp=2)):
        for found in ranks.run(answers, 2, tmp_path, layout):
            assert found == alone


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("<think>3+4=7</think>7<|end|>", 5),
        ("<think></think>7<|end|>", 0),
        ("7<|end|>", 0),
        ("<think>3+4", 3),
        ("3</think>7<|end|>", 0),
    ],
)
def test_thinking_tokens(text: str, thought: int) -> None:
    assert thinking_tokens(TOKENIZER.encode(text), TOKENIZER) == thought


def test_a_thought_over_the_budget_is_cut_closed_and_answered(tmp_path: Path) -> None:
    """Slow twin: the model goes on greedily behind the cut, one prompt at a time."""
    maths = evaluation(Rank(0, 1), tmp_path, ParallelConfig())
    texts = ["<think>3+4=7</think>7<|end|>", "<think>34</think>7<|end|>", "<think>3+4=", "7<|end|>", "<think>3"]
    greedy = [completion(text, index) for index, text in enumerate(texts)]
    forced = maths.cut(greedy, 2)
    assert [forced[n] for n in (1, 3, 4)] == [greedy[n] for n in (1, 3, 4)], "within the budget"
    for item, whole in ((forced[0], greedy[0]), (forced[2], greedy[2])):
        kept = TOKENIZER.encode("<think>3+</think>")
        (more,) = decode(maths.rollout.decoder, [Request([*whole.prompt_tokens, *kept], 5)], TOKENIZER.end).answers
        assert item.tokens == [*kept, *more.tokens]
        assert item.text == TOKENIZER.decode(item.tokens)
        assert item.truncated == more.truncated
    assert maths.cut(greedy, 5) == greedy


def answer(problem: int, sample: int, text: str, verdict: str, budget: int | None = None, level: str = "1") -> Answer:
    tokens = TOKENIZER.encode(text)
    thought = thinking_tokens(tokens, TOKENIZER)
    efficiency = 0.25 * (verdict == "correct") if sample == 0 and budget is None else None
    return Answer(problem, level, sample, budget, "", "", text, verdict, "", len(tokens), thought, efficiency)


def test_summary_of_known_answers() -> None:
    found = [
        answer(0, 0, "<think></think>7<|end|>", "correct"),
        answer(1, 0, "<think>abc</think>8<|end|>", "wrong", level="10"),
        answer(0, 0, "<think></think>7<|end|>", "correct", budget=2),
        answer(1, 0, "<think>ab</think>9<|end|>", "correct", budget=2, level="10"),
        *(answer(0, n, f"<think></think>{said}<|end|>", mark) for n, said, mark in SAID_0),
        *(answer(1, n, f"<think></think>{said}<|end|>", mark, level="10") for n, said, mark in SAID_1),
    ]
    result = summarise(found, replace(MATH, prompts=2, budgets=[2]))
    assert result["greedy"] == 0.5
    assert result["sampled"] == pytest.approx(3 / 6)
    assert result["pass_at_k"] == pytest.approx({"1": 0.5, "2": (1.0 + 2 / 3) / 2, "3": 1.0})
    assert result["maj_at_k"] == pytest.approx({"1": 0.5, "2": 0.5, "3": 0.5})
    assert result["error_share"] == 0.1
    assert [(row["difficulty"], row["greedy"], row["thinking_tokens"]) for row in result["difficulty"]] == [
        ("1", 1.0, 0.0),
        ("10", 0.0, 3.0),
    ]
    assert result["thinking_difficulty_correlation"] == pytest.approx(1.0)
    assert result["outcome_efficiency"] == 0.125
    assert result["budgets"] == [{"budget": 2, "accuracy": 1.0, "thinking_tokens": 1.0, "cut_share": 0.5}]
    assert sum(row["answers"] for row in result["lengths"]) == 6


SAID_0 = [(1, "7", "correct"), (2, "7", "correct"), (3, "8", "wrong")]
SAID_1 = [(1, "8", "wrong"), (2, "9", "error"), (3, "9", "correct")]


def test_errors_have_no_vote() -> None:
    votes = [answer(1, n, f"<think></think>{said}<|end|>", mark).vote for n, said, mark in SAID_1]
    assert votes == ["8", "", "9"]


def test_levels_that_are_names_have_no_correlation() -> None:
    found = [answer(n, 0, "7<|end|>", "correct", level=level) for n, level in enumerate(("easy", "hard", "2"))]
    result = summarise(found, replace(MATH, samples=0, budgets=[]))
    assert result["thinking_difficulty_correlation"] is None
    assert [row["difficulty"] for row in result["difficulty"]] == ["2", "easy", "hard"]
    assert (result["sampled"], result["pass_at_k"], result["maj_at_k"]) == (None, {}, {})


def test_what_is_written(tmp_path: Path) -> None:
    found = [answer(0, 0, "7<|end|>", "correct"), answer(0, 0, "7<|end|>", "correct", budget=0)]
    settings = replace(MATH, samples=0, budgets=[0])
    result: dict[str, Any] = {"name": "x", **summarise(found, settings)}
    write_result(tmp_path / "eval" / "x", result, found)
    assert json.loads((tmp_path / "eval" / "x" / "math.json").read_text())["greedy"] == 1.0
    lines = (tmp_path / "eval" / "x" / "math.jsonl").read_text().splitlines()
    assert [Answer(**json.loads(line)) for line in lines] == found
    assert (tmp_path / "eval" / "x" / "math.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda math: setattr(math, "prompts", 0), r"eval\.math\.prompts = 0; give at least 1"),
        (lambda math: setattr(math, "temperature", 0.0), r"eval\.math\.temperature = 0\.0"),
        (lambda math: setattr(math, "k", [4, 0]), r"eval\.math\.k = \[4, 0\]"),
        (lambda math: setattr(math, "budgets", [-1]), r"eval\.math\.budgets = \[-1\]"),
    ],
)
def test_wrong_settings_are_named(change: Callable[[MathConfig], None], told: str) -> None:
    config = Config()
    change(config.eval.math)
    with pytest.raises(UserError, match=told):
        check(config)


def test_a_small_file_is_asked_each_problem_once(tmp_path: Path) -> None:
    """By ``farside eval math``, at an RL run's evaluations, and where a reward model's answers are sampled."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{n}", "answer": "1"}) + "\n" for n in range(40)))
    maths = evaluation(Rank(0, 1), tmp_path, ParallelConfig())
    task = make_task(TaskConfig(name=f"jsonl:{path}"))
    there = distinct(task, "held_out", 1000)
    asked: list[str] = []

    class Silent:
        tokenizer = TOKENIZER

        def generate(self, prompts: list[Prompt], *given: object, **named: object) -> list[Completion]:
            asked.extend(prompt.question for prompt in prompts)
            return [replace(completion("1<|end|>"), prompt=prompt) for prompt in prompts]

    rollout: Any = Silent()
    assert 0 < there < 40
    settings = replace(maths.runtime.config.eval, math=replace(MATH, prompts=200))
    runtime = replace(maths.runtime, config=replace(maths.runtime.config, eval=settings))
    assert MathEval(runtime, maths.rollout, task, maths.verifier).prompts == there
    answer_held_out(runtime, rollout, task, maths.verifier, 200, 8, 0)
    assert len(asked) == len(set(asked)) == there
    asked.clear()
    sampler: Any = SimpleNamespace(
        runtime=runtime, config=runtime.config, task=task, rollout=rollout, verifier=maths.verifier
    )
    assert len(list(Sampler.answers(sampler, "held_out", 200, 2))) == 1
    assert len(asked) == len(set(asked)) == there
