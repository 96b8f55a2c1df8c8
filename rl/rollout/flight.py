"""Answers under way: groups that iterations begin and later ones finish (partial rollouts, Kimi k1.5, section 2.6.2).

A checkpoint keeps them as JSON. Every rank holds all of them, so that any mesh can go on from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from farside.configs.errors import UserError
from farside.rl.types import Prompt, Segment, Task


@dataclass
class Draft:
    """An answer as far as it has come; each segment's log-probabilities are those of the policy that drew it."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    done: bool = False
    """It ended, or is as long as an answer may be."""

    def extend(self, tokens: Sequence[int], logprobs: Sequence[float], policy_step: int) -> None:
        if not self.segments or self.segments[-1].policy_step != policy_step:
            self.segments.append(Segment(policy_step, len(self.tokens)))
        self.tokens += tokens
        self.logprobs += logprobs

    def drawn_before(self, policy_step: int) -> int:
        """Tokens of older policies."""
        return next((part.start for part in self.segments if part.policy_step == policy_step), len(self.tokens))


@dataclass
class Flight:
    """A problem's answers. started: the step at which they began; with the problem it names their random numbers."""

    prompt: Prompt
    started: int
    drafts: list[Draft]

    @classmethod
    def start(cls, prompt: Prompt, samples: int, step: int) -> "Flight":
        return cls(prompt, step, [Draft() for _ in range(samples)])

    @property
    def done(self) -> bool:
        return all(draft.done for draft in self.drafts)

    def record(self) -> dict[str, Any]:
        drafts = [
            {
                "tokens": draft.tokens,
                "logprobs": draft.logprobs,
                "segments": [[part.policy_step, part.start] for part in draft.segments],
                "done": draft.done,
            }
            for draft in self.drafts
        ]
        question = self.prompt.question
        return {"problem": self.prompt.index, "question": question, "started": self.started, "drafts": drafts}

    @classmethod
    def of(cls, record: dict[str, Any], task: Task) -> "Flight":
        """Raises UserError if the task's problem is another one now."""
        prompt = task.prompt("train", record["problem"])
        if record.get("question", prompt.question) != prompt.question:  # older checkpoints have none
            raise UserError(
                f"sft.task: problem {record['problem']}, whose answers are under way, was {record['question']!r} and "
                f"is {prompt.question!r}; give back the task and its files as they were, or use another run.dir"
            )
        drafts = [
            Draft(draft["tokens"], draft["logprobs"], [Segment(*part) for part in draft["segments"]], draft["done"])
            for draft in record["drafts"]
        ]
        return cls(prompt, record["started"], drafts)


def choose(flights: Sequence[Flight], wanted: int, step: int, max_staleness: int) -> list[Flight] | None:
    """The first ``wanted`` finished groups of ``flights``, which are in the order of their start; None: decode on.

    None if there are fewer, or if one left behind could then not be trained, ``wanted`` a step in order of their start,
    within ``max_staleness`` steps after its own. That holds for every group that is begun while at most
    wanted * (max_staleness + 1) are under way, as long as the oldest are chosen, and when all are done the oldest are.
    """
    chosen = [flight for flight in flights if flight.done][:wanted]
    if len(chosen) < wanted:
        return None
    left = [flight for flight in flights if not any(flight is other for other in chosen)]
    late = any(step + 1 + place // wanted > flight.started + max_staleness for place, flight in enumerate(left))
    return None if late and not all(flight.done for flight in left) else chosen
