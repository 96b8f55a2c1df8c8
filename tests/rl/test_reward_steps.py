"""Steps: where they end, what labels them, what a model of them is told and says."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from farside.configs.schema import StepLabels, TaskConfig
from farside.data.tokenizer import Tokenizer
from farside.rl.reward.corrupt import Worked, corrupted, corrupted_answers, labelled, wrong_columns
from farside.rl.reward.labels import Continuations, label
from farside.rl.reward.process import Labelled, ProcessModel, process_loss, step_batch
from farside.rl.reward.process_training import load_answers, on_corrupted, on_labels, save_answers
from farside.rl.reward.steps import StepFinder
from farside.rl.rollout.native import NativeRollout
from farside.rl.tasks.dataset import DatasetTask
from farside.rl.tasks.registry import make_task
from farside.rl.types import Completion, Mark, Prompt, Verdict
from farside.train.model.heads import TokenOutputs
from farside.train.model.transformer import Transformer
from tests.rl.policy import tensor
from tests.train.models import SMALL, random_model

ADDITION = make_task(TaskConfig(name="addition", digits=2, full_share=1.0, compact_share=0.0))
PROMPT = Prompt(0, "37+48=?", "85")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["<think>7+8=15 3+4+1=8</think>85<|end|> a text\n\nof lines\n"] * 3, 300)


def scalar_model(tokenizer: Tokenizer) -> Transformer:
    """Every parameter random, so that no term is hidden by a 1."""
    generator = torch.Generator().manual_seed(0)
    model = Transformer(replace(SMALL, vocab_size=tokenizer.vocab_size), "scalar").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.3, generator=generator) + (parameter.ndim == 1))
    return model


def answer(tokenizer: Tokenizer, text: str, prompt: Prompt = PROMPT) -> Completion:
    tokens = tokenizer.encode(text)
    return Completion(prompt, tokenizer.encode_prompt(prompt.question), tokens, [0.0] * len(tokens), text, False, 0)


@pytest.mark.parametrize(
    ("text", "separator", "steps"),
    [
        ("<think>7+8=15 3+4+1=8</think>85<|end|>", " ", ["<think>7+8=15", " 3+4+1=8", "</think>85<|end|>"]),
        ("<think></think>85<|end|>", " ", ["<think></think>85<|end|>"]),
        ("<think>7+8=15 3+", " ", ["<think>7+8=15", " 3+"]),
        ("85<|end|>", " ", ["85<|end|>"]),
        ("<think>a b\n\n\nc\n</think>1 2<|end|>", "\n", ["<think>a b", "\n\n\nc", "\n</think>1 2<|end|>"]),
    ],
)
def test_where_steps_end(tokenizer: Tokenizer, text: str, separator: str, steps: list[str]) -> None:
    tokens = tokenizer.encode(text)
    ends = StepFinder(tokenizer, separator).ends(tokens)
    cuts = [tokens[start:end] for start, end in zip([0, *(end + 1 for end in ends)], [end + 1 for end in ends])]
    assert [tokenizer.decode(cut) for cut in cuts] == steps


def test_tokens_that_hold_more_than_one_part_of_a_step() -> None:
    """As a tokenizer made elsewhere may have them: text and separator in one, two separators, half a character."""

    class Pieces:
        def decode(self, tokens: list[int]) -> str:
            return ["<think>", "one", " two.\n", "\n", "\nthree", "\ufffd", "a\nb\nc", "</think>", "4"][tokens[0]]

    finder = StepFinder(Pieces(), "\n")  # type: ignore[arg-type]
    assert finder.ends([0, 1, 2, 3, 4, 5, 3, 7, 8]) == [2, 5, 8]
    assert finder.ends([0, 1, 4, 7, 8]) == [1, 2, 4]
    assert finder.ends([0, 1, 6, 7, 8]) == [2, 4], "steps within one token end at once; the rest of it is a step"


def test_process_loss_is_binary_cross_entropy_at_the_ends_of_steps(tokenizer: Tokenizer) -> None:
    items = [answer(tokenizer, "<think>7+8=15 3+4+1=8</think>85<|end|>"), answer(tokenizer, "<think></think>84<|end|>")]
    finder = StepFinder(tokenizer, " ")
    answers = [
        Labelled(item, finder.ends(item.tokens), labels) for item, labels in zip(items, ([1.0, 0.25, 0.0], [0.0]))
    ]
    model = scalar_model(tokenizer)
    judge = ProcessModel(model, finder)
    logits = judge.logits(answers)
    alone = torch.cat([judge.logits([each])[0] for each in answers])
    assert (torch.cat(logits) - alone).abs().max() < 1e-12, "padding does not matter"
    batch = step_batch(answers)
    assert batch.weight == 4, "a step weighs 1"
    start = len(items[0].prompt_tokens)
    assert batch.weights[0].nonzero().flatten().tolist() == [start + end for end in answers[0].ends]
    values = torch.zeros(batch.tokens.shape, dtype=torch.float64)
    values[batch.weights > 0] = torch.cat(logits)
    result = process_loss(TokenOutputs(values=values), batch)
    wanted = sum(
        math.log1p(math.exp(-z)) * y + math.log1p(math.exp(z)) * (1 - y)
        for z, y in zip(torch.cat(logits).tolist(), [1.0, 0.25, 0.0, 0.0])
    )
    assert result.total.item() == pytest.approx(wanted, abs=1e-12)
    right = sum((z > 0) == (y >= 0.5) for z, y in zip(torch.cat(logits).tolist(), [1.0, 0.25, 0.0, 0.0]))
    assert result.metrics["accuracy"].item() == right


def test_a_judge_of_steps_is_as_sure_as_of_the_worst(tokenizer: Tokenizer) -> None:
    item = answer(tokenizer, "<think>7+8=15 3+4+1=8</think>85<|end|>")
    judge = ProcessModel(scalar_model(tokenizer), StepFinder(tokenizer, " "))
    (opinion,) = judge.opinions([item])
    (logits,) = judge.logits([Labelled(item, judge.finder.ends(item.tokens), [0.0] * 3)])
    assert opinion.raw == logits.min().item()
    assert opinion.steps is not None
    assert [end for end, _ in opinion.steps] == judge.finder.ends(item.tokens)
    assert [share for _, share in opinion.steps] == pytest.approx(logits.sigmoid().tolist(), abs=1e-12)


def test_hard_and_soft_labels() -> None:
    assert [label(share, StepLabels.hard) for share in (0.0, 0.125, 1.0)] == [0.0, 1.0, 1.0]
    assert [label(share, StepLabels.soft) for share in (0.0, 0.125, 1.0)] == [0.0, 0.125, 1.0]


def test_labels_are_the_share_of_continuations_that_end_right(tokenizer: Tokenizer) -> None:
    """What counts as right here: an even number of characters. Slow twin: prefix by prefix, sample by sample."""
    rollout = NativeRollout(random_model(replace(SMALL, vocab_size=tokenizer.vocab_size)), tokenizer, step=3)
    asked: list[str] = []

    def verify(items: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        asked.extend(text for _, text in items)
        return [Verdict(Mark.correct if len(text) % 2 == 0 else Mark.wrong) for _, text in items]

    texts = [
        "<think>7+8=15 3+4+1=8</think>85<|end|>",
        "<think>7+8=15 3+4=7</think>75<|end|>",
        "<think>7+8=14 3+4=7</think>74<|end|>",
    ]
    items = [answer(tokenizer, text) for text in texts]
    verdicts = [Verdict(Mark.correct), Verdict(Mark.wrong), Verdict(Mark.error)]
    finder = StepFinder(tokenizer, " ")
    estimate = Continuations(rollout, verify, 5, 24, seed=1)
    found = estimate.label(items, verdicts, finder, StepLabels.soft)
    assert [each.completion for each in found] == items[:2], "what could not be verified is left out"
    assert [each.labels[-1] for each in found] == [1.0, 0.0], "the last step is the verdict"
    assert found[0].labels[0] == found[1].labels[0], "of one beginning"
    assert len(asked) == 3 * 5, "which is continued once"
    assert all(text.startswith("<think>7+8=15") for text in asked)
    assert len(set(asked)) > 3
    for each in found:
        for end, share in zip(each.ends[:-1], each.labels):
            start = tokenizer.decode(each.completion.tokens[: end + 1])
            name = (0, tuple(each.completion.tokens[: end + 1]))
            alone = estimate.shares({name: each.completion})[name]
            assert share == alone, start
    hard = estimate.label(items, verdicts, finder, StepLabels.hard)
    assert [[float(share > 0) for share in each.labels] for each in found] == [each.labels for each in hard]
    asked.clear()
    Continuations(rollout, verify, 5, found[0].ends[0] + 1, seed=1).label(items, verdicts, finder, StepLabels.soft)
    assert "<think>7+8=15" in asked, "cut where a sample is: nothing may follow"


def test_wrong_columns_are_wrong_where_they_say_so() -> None:
    kinds, slips = set(), set()
    for seed in range(400):
        work = wrong_columns("37+48=?", random.Random(seed))
        right = ["7+8=15", "3+4+1=8"]
        kinds.add(work.wrong)
        first = 3 if work.wrong is None else work.wrong
        assert work.steps[:first] == right[:first]
        if work.wrong is None:
            assert work.answer == "85"
        elif work.wrong < 2:
            assert work.steps[work.wrong] != right[work.wrong]
            terms, _, total = work.steps[work.wrong].partition("=")
            adds_up = sum(map(int, terms.split("+"))) == int(total)
            slips.add((work.wrong, adds_up, terms == right[work.wrong].partition("=")[0]))
        else:
            assert work.steps == right
            assert work.answer != "85"
    assert kinds == {None, 0, 1, 2}
    assert slips == {(0, True, False), (0, False, True), (1, True, False), (1, False, True)}


def test_a_mistake_is_carried_on() -> None:
    works = [wrong_columns("37+48=?", random.Random(seed)) for seed in range(200)]
    without = next(work for work in works if work.wrong == 0 and work.steps[0] == "7+8=5")
    assert without == Worked(["7+8=5", "3+4=7"], "75", 0)


def test_corrupted_answers_are_labelled_up_to_their_mistake(tokenizer: Tokenizer) -> None:
    answers = list(corrupted_answers(ADDITION, tokenizer, "held_out", 60, seed=1))
    again = list(corrupted_answers(ADDITION, tokenizer, "held_out", 60, seed=1))
    assert answers == again
    assert {tuple(each.labels) for each in answers} == {(1, 1, 1), (1, 1, 0), (1, 0, 0), (0, 0, 0)}
    for each in answers:
        verdict = ADDITION.verify(each.completion.prompt, each.completion.text)
        assert (verdict.mark is Mark.correct) == all(each.labels)
    trained = {each.completion.prompt.question for each in corrupted_answers(ADDITION, tokenizer, "train", 60, 1)}
    assert not trained & {each.completion.prompt.question for each in answers}


class Lines(DatasetTask):
    """Any task whose worked answers have lines."""

    def __init__(self) -> None:
        super().__init__("lines", ADDITION.dataset)

    def trace(self, prompt: Prompt, seed: int) -> str:
        return "<think>first 12\nno digit\nthen 345</think>67<|end|>"


def test_other_tasks_get_another_digit(tokenizer: Tokenizer) -> None:
    found = [corrupted(Lines(), PROMPT, seed) for seed in range(60)]
    assert {work.wrong for work in found} == {None, 0, 2, 3}
    for work in found:
        parts, right = [*work.steps, work.answer], ["first 12", "no digit", "then 345", "67"]
        assert [part != other for part, other in zip(parts, right)] == [index == work.wrong for index in range(4)]
        if work.wrong == 2:
            assert labelled(work, PROMPT, "\n", tokenizer).labels == [1, 1, 0, 0]


def test_measures_of_steps(tokenizer: Tokenizer, tmp_path: Path) -> None:
    item = answer(tokenizer, "<think>7+8=15 3+4+1=8</think>85<|end|>")
    answers = [Labelled(item, [4, 9, 12], labels) for labels in ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0])]
    logits = [tensor(2.0, -1.0, 5.0), tensor(1.0, -1.0, 1.0)]
    found = on_corrupted(answers, logits)
    assert found["accuracy"] == pytest.approx(4 / 5), "what follows the mistake is not asked"
    assert (found["count"], found["commoner"], found["located"]) == (5, 4 / 5, 1 / 2)
    assert on_labels(answers, logits)["accuracy"] == pytest.approx(4 / 6)
    kept = {"train": answers, "held_out": [], "corrupted": answers[:1]}
    save_answers(tmp_path / "steps.jsonl", kept)
    assert load_answers(tmp_path / "steps.jsonl") == kept
