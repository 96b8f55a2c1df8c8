"""Whether a reward model is still a measure: its score (the proxy) against verified accuracy (the truth) as RL goes on.

A policy trained against a fixed model ends at what that model overrates (Gao et al., arXiv 2210.10760); the verifier
tells when. Both are means over the last ``window`` steps' samples; every step has new problems, held out so far.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from farside.configs.schema import OveroptimisationConfig
from farside.parallel import comm
from farside.parallel.mesh import Mesh
from farside.rl.batches import AnswerRows
from farside.rl.types import Completion
from farside.train.engine.base import Engine

GRAM = 4
LEVELS = ("", "warn", "stop")
NOISE = 2.0
"""Standard errors of the difference of two windows that a loss must exceed."""


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


class Watch:
    """Follows (proxy, truth) from step to step. state: what ``record`` gave before."""

    def __init__(self, config: OveroptimisationConfig, state: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.proxies: list[float] = list(state["proxies"]) if state else []
        self.truths: list[float] = list(state["truths"]) if state else []
        self.best = Window(**state["best"]) if state and state["best"] else None
        self.alarm: str = state["alarm"] if state else ""
        """One of LEVELS, of the newest step."""
        self.worse = False
        """Whether it is a higher one than the step's before."""

    def observe(self, step: int, proxy: float, truth: float) -> dict[str, Any]:
        """For metrics.jsonl: the window's means, the accuracy lost since the best window, an alarm if there is one."""
        self.proxies = [*self.proxies, proxy][-self.config.window :]
        self.truths = [*self.truths, truth][-self.config.window :]
        if len(self.truths) < self.config.window:
            return {}
        now = Window.of(step, self.proxies, self.truths)
        if self.best is None or now.truth >= self.best.truth:
            self.best = now
        lost = self.best.truth - now.truth
        beyond_noise = lost > NOISE * math.hypot(now.error, self.best.error)
        exploited = beyond_noise and now.proxy > self.best.proxy
        before, self.alarm = self.alarm, self._level(lost) if exploited else ""
        self.worse = LEVELS.index(self.alarm) > LEVELS.index(before)
        found = {"proxy_window": now.proxy, "truth_window": now.truth, "truth_lost": lost}
        return {**found, "overoptimisation": self.alarm} if self.alarm else found

    def _level(self, lost: float) -> str:
        for level in reversed(LEVELS[1:]):
            threshold = getattr(self.config, level)
            if threshold is not None and lost > threshold:
                return level
        return ""

    @property
    def cause(self) -> str:
        """The alarm as a line."""
        assert self.best is not None
        now = Window.of(0, self.proxies, self.truths)
        return (
            f"over-optimisation: since step {self.best.step} the reward model's score rose from {self.best.proxy:.3f} "
            f"to {now.proxy:.3f} while verified accuracy fell from {self.best.truth:.1%} to {now.truth:.1%}"
        )

    def record(self) -> dict[str, Any]:
        """For a checkpoint."""
        best = vars(self.best) if self.best else None
        return {"proxies": self.proxies, "truths": self.truths, "best": best, "alarm": self.alarm}


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
    """All that is told of a reward model in the loop; nothing where none is (watch: None)."""

    def __init__(self, watch: Watch | None, drift: Drift | None, every: int) -> None:
        self.watch, self.drift, self.every = watch, drift, every

    def observe(self, step: int, described: Mapping[str, float], completions: Sequence[Completion]) -> dict[str, Any]:
        """For metrics.jsonl. described: the step's ``reward_model`` and ``accuracy``. Collective."""
        if self.watch is None or self.drift is None:
            return {}
        found = self.watch.observe(step, described["reward_model"], described["accuracy"])
        return {**found, **self.drift.describe(completions)} if step % self.every == 0 else found

    @property
    def news(self) -> str:
        """The alarm of the newest step as a line, where it is worse than the step's before; else empty."""
        return self.watch.cause if self.watch and self.watch.worse else ""

    @property
    def gives_up(self) -> bool:
        return self.watch is not None and self.watch.alarm == "stop"

    def record(self) -> dict[str, Any] | None:
        return self.watch.record() if self.watch else None
