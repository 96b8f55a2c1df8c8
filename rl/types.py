"""What flows between tasks, rollouts, rewards and the loop."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol


@dataclass(frozen=True)
class Prompt:
    """One problem.

    ``index`` names it for ever: the same task, split and index give the same problem.
    """

    index: int
    question: str
    """What the user asks, e.g. "37+48=?"."""
    answer: str
    """The reference answer, e.g. "85"."""
    metadata: dict[str, Any] = field(default_factory=dict)
    begun: str = ""
    """What the answer is made to begin with; it is no part of the completion."""


class Mark(Enum):
    correct = "correct"
    wrong = "wrong"
    error = "error"


ERRORS = ("timeout", "memory", "crash", "malformed", "raised")
"""Why there is no verdict: the verifier ran over its time, over its memory, died, gave no proper reply, or raised."""


@dataclass(frozen=True)
class Verdict:
    """A verifier's word. ``error`` is not ``wrong``: such a sample is masked and counted, never rewarded 0."""

    mark: Mark
    detail: str = ""
    """For an error: its cause, e.g. "timeout after 5.0 s"."""
    kind: str = ""
    """For an error: one of ``ERRORS``."""


@dataclass(frozen=True)
class Segment:
    """Tokens from ``start`` on, up to the next segment's, were drawn by the policy of ``policy_step``."""

    policy_step: int
    start: int


@dataclass(frozen=True)
class Completion:
    """One sampled answer to a prompt.

    tokens: ids after the prompt, ending with the end token unless ``truncated``.
    logprobs: log-probability of each token under the policy that drew it (temperature 1 numerics).
    policy_step: the step of the policy's weights, of its last token where several drew it.
    segments: which policy drew what, where several did.
    unlearnt: that many tokens from the first on carry no loss.
    thinking: how many of the tokens are thinking, without its marks.
    """

    prompt: Prompt
    prompt_tokens: list[int]
    tokens: list[int]
    logprobs: list[float]
    text: str
    truncated: bool
    policy_step: int
    segments: list[Segment] = field(default_factory=list)
    unlearnt: int = 0
    thinking: int = 0


@dataclass(frozen=True)
class Score:
    """A reward and its parts; ``valid`` is false when the verifier erred: mask the sample.

    steps: of each step that was judged, the index of its last token among the answer's, and its reward.
    """

    reward: float
    valid: bool
    verdict: Verdict
    reward_model: float | None = None
    steps: list[tuple[int, float]] | None = None


class Task(Protocol):
    """Problems with a verifiable answer, split so that train and held-out never meet."""

    name: str
    step_separator: str
    """What stands between the steps of worked answers; a process reward model judges each."""

    def prompt(self, split: str, index: int) -> Prompt:
        """Problem ``index`` of "train" or "held_out": a pure function of both and the task's settings."""
        ...

    def trace(self, prompt: Prompt, seed: int) -> str:
        """A worked answer in the chat format, for supervised warm start; pure function of its arguments."""
        ...

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Judge a completion's text. May be slow or hostile input: callers run it in a killable process."""
        ...
