"""A task over any dataset of question, answer and score: the interface of reasoning-gym."""

from typing import Any, Protocol

from farside.data.chat import END, END_THINK, THINK
from farside.rl.tasks.split import is_held_out
from farside.rl.types import Mark, Prompt, Task, Verdict

STRIDE = 61
"""Prompt ``index`` starts its search at item ``index * STRIDE``. A window of 61 items lacks a held-out
question once in 620 times (0.9 ** 61); a prime, so that starts wrap over a finite dataset without a short
cycle."""
MAX_PROBES = 10_000


class Dataset(Protocol):
    """What reasoning-gym calls a procedural dataset. Items are pure functions of their index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``{"question": str, "answer": str, "metadata": dict}``, and ``"difficulty"`` (a number or a name) where the
        dataset has levels."""
        ...

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """1.0 for a right answer, less for anything else."""
        ...


def extract_answer(text: str) -> tuple[str, str]:
    """Returns (answer, fault) of a completion ``<think>...</think>ANSWER<|end|>``; one of them is empty.

    Without ``</think>`` the whole text is the answer, unless a ``<think>`` was left open: scratch work is no
    answer. Faults: "truncated" (no end token), "no answer". Linear in the length of the text.
    """
    body, end, _ = text.partition(END)
    if not end:
        return "", "truncated"
    _, closed, answer = body.rpartition(END_THINK)
    if not closed and THINK in body:
        answer = ""
    answer = answer.strip()
    return (answer, "") if answer else ("", "no answer")


def check_split(split: str, index: int) -> None:
    """Raises ValueError: unknown split or negative index."""
    if split not in ("train", "held_out"):
        raise ValueError(f'split must be "train" or "held_out", not {split!r}')
    if index < 0:
        raise ValueError(f"index must not be negative, is {index}")


class VerifiedTask(Task, Protocol):
    """A task that can tell some verdicts without a child process."""

    longest_seconds: float
    """What ``verify`` may take by its own limits; 0 where it has none."""

    def decide(self, prompt: Prompt, text: str) -> Verdict | None:
        """The verdict where it costs no more than reading the text, else None; never unlike ``verify``."""
        ...


class DatasetTask:
    """``Task`` over a ``Dataset``; see farside.rl.types.

    The split is decided by the question's text, so that two items with the same question, wherever they lie
    and whatever the seed, are on the same side.
    """

    longest_seconds = 0.0
    score_is_cheap = False
    """Whether ``score_answer`` is linear-time and safe on hostile text: no child process is needed."""
    step_separator = "\n"

    def __init__(self, name: str, dataset: Dataset) -> None:
        self.name = name
        self.dataset = dataset

    def prompt(self, split: str, index: int) -> Prompt:
        """The first item of ``split`` at or after item ``index * STRIDE``, modulo the dataset's length.

        About 10 items are generated for a held-out prompt, 1.1 for a training prompt. ``metadata["item"]`` is
        the item's index, ``metadata["difficulty"]`` its level where there are levels.

        Raises:
            ValueError: unknown split, negative index, or no item of the split within ``MAX_PROBES`` items.
        """
        check_split(split, index)
        size = len(self.dataset)
        for probe in range(min(size, MAX_PROBES)):
            item = (index * STRIDE + probe) % size
            entry = self.dataset[item]
            question = str(entry["question"])
            if is_held_out(question) == (split == "held_out"):
                level = {"difficulty": entry["difficulty"]} if "difficulty" in entry else {}
                return Prompt(index, question, str(entry["answer"]), {"item": item} | level)
        raise ValueError(f"task {self.name}: no {split} problem among {min(size, MAX_PROBES)} items")

    def trace(self, prompt: Prompt, seed: int) -> str:
        """The answer without scratch work; datasets that can show their work override this."""
        return f"{THINK}{END_THINK}{prompt.answer}{END}"

    def decide(self, prompt: Prompt, text: str) -> Verdict | None:
        """The verdict where it costs no more than reading the text, else None; never unlike ``verify``."""
        answer, fault = extract_answer(text)
        if fault:
            return Verdict(Mark.wrong, fault)
        return self._score(prompt, answer) if self.score_is_cheap else None

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Correct if the dataset scores the extracted answer 1.0.

        Partial credit counts as wrong: some datasets give it to any text that contains the answer.
        """
        answer, fault = extract_answer(text)
        return Verdict(Mark.wrong, fault) if fault else self._score(prompt, answer)

    def _score(self, prompt: Prompt, answer: str) -> Verdict:
        score = float(self.dataset.score_answer(answer, self._entry(prompt)))
        return Verdict(Mark.correct) if score >= 1.0 else Verdict(Mark.wrong, f"score {score:g}")

    def _entry(self, prompt: Prompt) -> dict[str, Any]:
        # Regenerated, not carried in the prompt: metadata (tuples, sets) need not survive JSON.
        if self.score_is_cheap or "item" not in prompt.metadata:
            return {"question": prompt.question, "answer": prompt.answer, "metadata": prompt.metadata}
        entry = self.dataset[prompt.metadata["item"]]
        if str(entry["question"]) != prompt.question:
            raise RuntimeError(
                f"task {self.name}: item {prompt.metadata['item']} gives another question than before, "
                "so its reference answer is unknown"
            )
        return entry
