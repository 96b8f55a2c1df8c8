"""Whether a reward model is still a measure: its score (the proxy) against verified accuracy (the truth) as RL goes on.

A policy trained against a fixed model ends at what that model overrates (Gao et al., arXiv 2210.10760); the verifier
tells when. Both are followed in two ways: means over the last ``window`` steps' samples, and the greedy answers to the
held-out problems at every evaluation, which move earlier.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from farside.configs.schema import OveroptimisationConfig
from farside.parallel import comm
from farside.parallel.mesh import Mesh
from farside.rl.batches import AnswerRows
from farside.rl.reward.model import Judge
from farside.rl.reward.normalise import squashed
from farside.rl.types import Completion, Mark, Verdict
from farside.train.engine.base import Engine

GRAM = 4
LEVELS = ("", "warn", "stop")
NAMES = {"samples": "sampled accuracy", "answers": "held-out accuracy"}
NOISE = 2.0
"""Standard errors that a loss must exceed."""


class OverOptimised(RuntimeError):
    """The score rose while accuracy fell by more than rl.overoptimisation.stop."""


@dataclass(frozen=True)
class Window:
    """The last steps' means. step: the last of them; error: the standard error of ``truth``, from its own spread."""

    step: int
    proxy: float
    truth: float
    error: float

    @classmethod
    def of(cls, step: int, proxies: Sequence[float], truths: Sequence[float]) -> "Window":
        error = statistics.stdev(truths) / math.sqrt(len(truths)) if len(truths) > 1 else 0.0
        return cls(step, statistics.fmean(proxies), statistics.fmean(truths), error)

    def noise(self, other: "Window") -> float:
        """Standard error of the difference of the truths."""
        return math.hypot(self.error, other.error)


@dataclass(frozen=True)
class Examination:
    """Greedy answers to the held-out problems. right: "1" where one is, in the problems' order."""

    step: int
    proxy: float
    right: str

    @property
    def truth(self) -> float:
        return self.right.count("1") / len(self.right)

    def noise(self, other: "Examination") -> float:
        """As McNemar's test has it: the same problems twice, so that only those whose mark changed tell anything."""
        return math.sqrt(sum(one != two for one, two in zip(self.right, other.right))) / len(self.right)


Seen = TypeVar("Seen", Window, Examination)


class Watch:
    """Follows (proxy, truth). state: what ``record`` gave before."""

    def __init__(self, config: OveroptimisationConfig, state: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.proxies: list[float] = list(state["proxies"]) if state else []
        self.truths: list[float] = list(state["truths"]) if state else []
        self.best_window = Window(**state["best_window"]) if state and state["best_window"] else None
        self.best_answers = Examination(**state["best_answers"]) if state and state["best_answers"] else None
        levels = state["levels"] if state else {"samples": "", "answers": ""}
        # whoever goes on after a stop has chosen to: it takes a new loss to stop again
        self.levels: dict[str, str] = {what: level.replace("stop", "warn") for what, level in levels.items()}
        """One of LEVELS of each way to follow it, as of the newest step or evaluation."""
        self.before, self.cause = self.alarm, ""

    @property
    def alarm(self) -> str:
        return max(self.levels.values(), key=LEVELS.index)

    @property
    def worse(self) -> bool:
        """Whether the alarm is a higher one than after the step before."""
        return LEVELS.index(self.alarm) > LEVELS.index(self.before)

    def observe(self, step: int, proxy: float, truth: float) -> dict[str, Any]:
        """A step's samples. For metrics.jsonl: the window's means, the accuracy lost since the best one, an alarm."""
        self.before = self.alarm
        self.proxies = [*self.proxies, proxy][-self.config.window :]
        self.truths = [*self.truths, truth][-self.config.window :]
        if len(self.truths) < self.config.window:
            return {}
        now = Window.of(step, self.proxies, self.truths)
        self.best_window, lost = self._compare("samples", self.best_window, now)
        return {"proxy_window": now.proxy, "truth_window": now.truth, "truth_lost": lost, **self._told()}

    def examine(self, now: Examination) -> dict[str, Any]:
        """An evaluation, likewise."""
        self.best_answers, lost = self._compare("answers", self.best_answers, now)
        return {"held_out_reward_model": now.proxy, "held_out_lost": lost, **self._told()}

    def _compare(self, what: str, best: Seen | None, now: Seen) -> tuple[Seen, float]:
        """(the best so far, what has been lost since); sets the level."""
        if best is None or now.truth >= best.truth:
            best = now
        lost = best.truth - now.truth
        exploited = lost > NOISE * best.noise(now) and now.proxy > best.proxy
        self.levels[what] = self._level(lost) if exploited else ""
        if self.levels[what]:
            self.cause = (
                f"over-optimisation: from step {best.step} to {now.step} the reward model's score rose by "
                f"{now.proxy - best.proxy:.1g} to {now.proxy:.3f} while {NAMES[what]} fell from {best.truth:.1%} to "
                f"{now.truth:.1%}"
            )
        return best, lost

    def _level(self, lost: float) -> str:
        for level in reversed(LEVELS[1:]):
            threshold = getattr(self.config, level)
            if threshold is not None and lost > threshold:
                return level
        return ""

    def _told(self) -> dict[str, str]:
        return {"overoptimisation": self.alarm} if self.alarm else {}

    def record(self) -> dict[str, Any]:
        """For a checkpoint."""
        window, answers = (vars(best) if best else None for best in (self.best_window, self.best_answers))
        seen = {"proxies": self.proxies, "truths": self.truths, "best_window": window, "best_answers": answers}
        return {**seen, "levels": self.levels}


def repetition(tokens: Sequence[int], gram: int = GRAM) -> float:
    """Share of an answer's n-grams that occurred in it before; 0 for one that is too short to repeat any."""
    grams = Counter(tuple(tokens[start : start + gram]) for start in range(len(tokens) - gram + 1))
    total = sum(grams.values())
    return 1 - len(grams) / total if total else 0.0


class Drift:
    """How far the policy has gone from a frozen one, by its own samples. micro_batch: answers computed at once."""

    def __init__(self, start: Engine | None, mesh: Mesh, device: torch.device, micro_batch: int) -> None:
        self.start, self.mesh, self.device, self.micro_batch = start, mesh, device, micro_batch

    def describe(self, completions: Sequence[Completion]) -> dict[str, float]:
        """Means over all ranks' answers: ``repetition``; ``kl_start``, the divergence from the start in nats an answer
        (k1, unbiased, for samples of temperature 1). Collective; ranks bring equally many."""
        sums = {"repetition": math.fsum(repetition(item.tokens) for item in completions)}
        if self.start is not None:
            sums["kl_start"] = self._divergence(self.start, completions)
        totals = comm.sum_floats([*sums.values(), float(len(completions))], self.mesh.dp, self.device)
        return {name: total / totals[-1] for name, total in zip(sums, totals)}

    def _divergence(self, start: Engine, completions: Sequence[Completion]) -> float:
        """Σ log(policy / start) over all tokens of this rank's answers."""
        rows = AnswerRows(completions, self.micro_batch)
        found = []
        for outputs in start.token_outputs(rows.batches(torch.ones(len(completions)), {})):
            assert outputs.logprobs is not None
            found.append(outputs.logprobs)
        return math.fsum(logprob for item in completions for logprob in item.logprobs) - float(rows.take(found).sum())


class Overoptimisation:
    """All that is told of a reward model in the loop; nothing where there is none (the three are None).

    judge: of the held-out answers. every: steps between looks at the drift; 0: none.
    """

    def __init__(self, watch: Watch | None, drift: Drift | None, judge: Judge | None, every: int) -> None:
        self.watch, self.drift, self.judge, self.every = watch, drift, judge, every

    def observe(self, step: int, described: Mapping[str, float], completions: Sequence[Completion]) -> dict[str, Any]:
        """For metrics.jsonl. described: the step's ``reward_model`` and ``accuracy``. Collective."""
        if self.watch is None or self.drift is None:
            return {}
        found = self.watch.observe(step, described["reward_model"], described["accuracy"])
        return {**found, **self.drift.describe(completions)} if self.every and step % self.every == 0 else found

    def examine(self, step: int, answered: Sequence[tuple[Completion, Verdict]]) -> dict[str, Any]:
        """For metrics.jsonl. answered: this rank's share of the held-out problems. Collective."""
        if self.watch is None or self.drift is None or self.judge is None:
            return {}
        opinions = self.judge.opinions([item for item, _ in answered]) if answered else []
        mine = [
            (
                item.prompt.index,
                verdict.mark is Mark.correct,
                squashed(opinion.raw, self.judge.center, self.judge.scale),
            )
            for (item, verdict), opinion in zip(answered, opinions)
        ]
        everyone = sorted(each for part in comm.gather_objects(mine, self.drift.mesh.world) for each in part)
        right = "".join(str(int(correct)) for _, correct, _ in everyone)
        return self.watch.examine(Examination(step, statistics.fmean(score for *_, score in everyone), right))

    @property
    def news(self) -> str:
        """The alarm as a line, where the newest step raised it; else empty."""
        return self.watch.cause if self.watch and self.watch.worse else ""

    @property
    def gives_up(self) -> bool:
        return self.watch is not None and self.watch.alarm == "stop"

    def record(self) -> dict[str, Any] | None:
        return self.watch.record() if self.watch else None
