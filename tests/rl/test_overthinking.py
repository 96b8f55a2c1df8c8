"""How much of an answer comes after it is already right."""

import pytest

from farside.configs.schema import TaskConfig
from farside.data.chat import END_THINK, THINK
from farside.data.tokenizer import Tokenizer
from farside.rl.overthinking import first_correct, outcome_efficiency, thinking_tokens, tokens_up_to
from farside.rl.reward.verifier import VerifierPool
from farside.rl.types import Completion, Prompt


def judge(answers: list[str]) -> list[bool]:
    assert len(set(answers[:-1])) == len(answers) - 1, "a candidate is judged once"
    return [answer == "85" for answer in answers]


@pytest.mark.parametrize(
    ("text", "up_to"),
    [
        ("<think>7+8=15, so 85. Check: 85, yes</think>85<|end|>", "<think>7+8=15, so 85"),
        ("<think>7+8=15 3+4+1=8</think>85<|end|>", "<think>7+8=15 3+4+1=8</think>85"),
        (r"<think>\boxed{85} or 86?</think>86<|end|>", r"<think>\boxed{85}"),
        ("<think>185 850 8.5 -85 85/2</think>84<|end|>", None),
        ("<think>85 and on and on", "<think>85"),  # cut off
        ("85<|end|>", "85"),
        ("<think></think> 85 <|end|>", "<think></think> 85 "),
        ("", None),
    ],
)
def test_first_correct(text: str, up_to: str | None) -> None:
    assert first_correct(text, judge) == (None if up_to is None else len(up_to))


def test_what_is_judged_is_bounded() -> None:
    asked: list[int] = []

    def slow(answers: list[str]) -> list[bool]:
        asked.append(len(answers))
        return [False] * len(answers)

    assert first_correct(" ".join(map(str, range(1000))).join((THINK, END_THINK)) + "7", slow) is None
    assert asked == [65]


def test_efficiency_by_the_tasks_own_verdict() -> None:
    """In tokens, a mark being one: 3 of 17, all of 4; the end mark is none of them, whether it is there or not."""
    prompt, tokenizer = Prompt(0, "37+48=?", "85"), Tokenizer.train([], 262)
    with VerifierPool(TaskConfig(), 5.0) as verifier:
        found = [
            outcome_efficiency(Completion(prompt, [], tokenizer.encode(text), [], text, False, 0), verifier, tokenizer)
            for text in (
                "<think>85 85 85 8585</think>85<|end|>",
                "<think></think>85<|end|>",
                "<think>86</think>1<|end|>",
                "<think>86</think>85",
            )
        ]
    assert found == [3 / 17, 1.0, 0.0, 1.0]


def test_in_tokens() -> None:
    tokenizer = Tokenizer.train([], 262)
    tokens = tokenizer.encode(f"{THINK}é 85{END_THINK}85")
    text = tokenizer.decode(tokens)
    for end in range(1, len(text) + 1):
        count = tokens_up_to(end, tokens, tokenizer)
        assert len(tokenizer.decode(tokens[:count])) >= end > len(tokenizer.decode(tokens[: count - 1]))
    assert thinking_tokens(tokens, tokenizer) == len(tokens) - 4
    assert thinking_tokens(tokens[:4], tokenizer) == 3, "it never stopped"
    assert thinking_tokens(tokens[-2:], tokenizer) == 0
