"""One iteration's samples: which problems, the answers, their scores.

Groups that teach nothing may be replaced, and answers that take long may be finished in later iterations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from farside.configs.errors import UserError
from farside.parallel import comm
from farside.rl.curriculum import make_curriculum
from farside.rl.reward.combine import CombinedReward
from farside.rl.rollout.base import Rollout
from farside.rl.rollout.flight import Flight, choose
from farside.rl.shaping import shaped
from farside.rl.types import Completion, Mark, Prompt, Score, Task
from farside.train.runtime import Runtime

Group = list[tuple[Completion, Score]]


@dataclass
class Collected:
    """groups: this rank's share to learn from, equally many on every rank. sampled: all that this rank drew, for
    metrics: what was dropped is part of how good the policy is. problems: how many all ranks used up. shown: metrics
    of partial rollouts."""

    groups: list[Group]
    sampled: list[tuple[Completion, Score]] = field(default_factory=list)
    problems: int = 0
    shown: dict[str, float] = field(default_factory=dict)

    @property
    def completions(self) -> list[Completion]:
        return [item for group in self.groups for item, _ in group]

    @property
    def scores(self) -> list[Score]:
        return [score for group in self.groups for _, score in group]


def teaches(group: Group) -> bool:
    """Whether some answers are right and some wrong (DAPO, arXiv 2503.14476, eq. 11)."""
    return {Mark.correct, Mark.wrong} <= {score.verdict.mark for _, score in group}


class Collector:
    """Samples with a rollout whose weights are the current policy's. flights: of all ranks, alike on each."""

    def __init__(self, runtime: Runtime, rollout: Rollout, task: Task, reward: CombinedReward) -> None:
        self.runtime, self.rollout, self.task, self.reward = runtime, rollout, task, reward
        self.config, self.mesh = runtime.config.rl, runtime.mesh
        self.curriculum = make_curriculum(self.config, runtime.config.train.seed, task, runtime.mesh)
        self.flights: list[Flight] = []

    def record(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps of answers under way."""
        return [flight.record() for flight in self.flights]

    def load(self, record: list[dict[str, Any]]) -> None:
        """Raises UserError for answers under way that nothing would go on with."""
        if record and not self.config.partial_tokens:
            raise UserError(
                f"rl.partial_tokens = 0, but the checkpoint holds {len(record)} groups of answers under way; give it "
                "any other value to go on with them"
            )
        self.flights = [Flight.of(item, self.task) for item in record]

    def collect(self, step: int, first_problem: int) -> Collected:
        """Answers to what the curriculum chooses after ``first_problem`` problems. Collective.

        With ``partial_tokens`` an answer gets no more tokens than that at a time, and the iteration learns from the
        first prompts_per_step groups that are finished, whatever the mesh.

        With ``sampling_rounds`` above 1, problems are sampled until prompts_per_step groups teach something or the
        rounds are over; what is missing then is filled up with groups that do not. The first that teach are taken, in
        the problems' order, whatever the mesh.

        Raises:
            RuntimeError: more than rl.max_error_share of a round's verdicts are errors.
        """
        if self.config.partial_tokens:
            return self._partial(step, first_problem)
        wanted, per_prompt = self.config.prompts_per_step, self.config.samples_per_prompt
        collected = Collected([])
        kept: list[Group] = []
        spare: list[Group] = []
        for _ in range(self.config.sampling_rounds):
            drawn = self._round(step, first_problem, collected.problems)
            collected.sampled += drawn
            collected.problems += wanted
            groups = [drawn[first : first + per_prompt] for first in range(0, len(drawn), per_prompt)]
            if self.config.sampling_rounds == 1:
                collected.groups = groups
                return collected
            for group in (group for part in comm.gather_objects(groups, self.mesh.dp) for group in part):
                (kept if teaches(group) else spare).append(group)
            if len(kept) >= wanted:
                break
        share = wanted // self.mesh.dp_size
        collected.groups = (kept + spare)[self.mesh.dp_rank * share :][:share]
        return collected

    def _partial(self, step: int, first_problem: int) -> Collected:
        """Rounds of at most partial_tokens tokens an answer, as many as it takes; each begins prompts_per_step problems
        if there is room: no group then is older than max_staleness steps when it is learnt from."""
        config, wanted, most = self.config, self.config.prompts_per_step, self.config.max_staleness
        problems = steps = 0
        while (chosen := choose(self.flights, wanted, step, most)) is None:
            if len(self.flights) <= wanted * most:
                indices = self.curriculum.choose(first_problem, problems, wanted)
                prompts = [self.task.prompt("train", index) for index in indices]
                self.flights += [Flight.start(prompt, config.samples_per_prompt, step) for prompt in prompts]
                problems += wanted
            steps += self._extend(step)
        self.flights = [flight for flight in self.flights if not any(flight is other for other in chosen)]
        share = wanted // self.mesh.dp_size
        mine = chosen[self.mesh.dp_rank * share :][:share]
        scored = self._scored(step, [item for flight in mine for item in self._completions(flight, step)])
        drafts = [draft for flight in chosen for draft in flight.drafts]
        shown = {
            "decode_steps": float(steps),
            "in_flight": float(len(self.flights)),
            "staleness": sum(step - flight.started for flight in chosen) / wanted,
            "old_share": sum(draft.drawn_before(step) for draft in drafts) / sum(len(draft.tokens) for draft in drafts),
        }
        per_prompt = config.samples_per_prompt
        groups = [scored[first : first + per_prompt] for first in range(0, len(scored), per_prompt)]
        return Collected(groups, scored, problems, shown)

    def _extend(self, step: int) -> int:
        """One round. A rank's share is every dp_size-th group: those that began together take about as long.

        Returns the steps of decoding of the rank that took most.
        """
        self.runtime.pulse.beat("rollout")
        config, size = self.config, self.mesh.dp_size
        mine = self.flights[self.mesh.dp_rank :: size]
        steps = self.rollout.extend(
            mine, config.partial_tokens, config.max_new_tokens, self.temperature(step), self.runtime.config.train.seed
        )
        parts = comm.gather_objects((mine, steps), self.mesh.dp)
        self.flights = [parts[place % size][0][place // size] for place in range(len(self.flights))]
        return max(taken for _, taken in parts)

    def _completions(self, flight: Flight, step: int) -> list[Completion]:
        """With rl.learn_old_segments off, what older policies drew carries no loss (Kimi k1.5, section 2.6.2)."""
        items = self.rollout.completions(flight)
        if self.config.learn_old_segments:
            return items
        return [replace(item, unlearnt=draft.drawn_before(step)) for item, draft in zip(items, flight.drafts)]

    def _round(self, step: int, first_problem: int, drawn: int) -> list[tuple[Completion, Score]]:
        config = self.config
        self.runtime.pulse.beat("rollout")
        completions = self.rollout.generate(
            self.prompts(first_problem, drawn),
            config.samples_per_prompt,
            config.max_new_tokens,
            self.temperature(step),
            self.runtime.config.train.seed,
        )
        return self._scored(step, completions)

    def _scored(self, step: int, completions: list[Completion]) -> list[tuple[Completion, Score]]:
        self.runtime.pulse.beat("score")
        scores = self._shared(self.reward.score(completions) if self.mesh.leads else [])
        self._check(step, scores)
        return list(zip(completions, shaped(completions, scores, self.config, step)))

    def _shared(self, scores: list[Score]) -> list[Score]:
        """The leading rank's, on all ranks that share its samples: a verdict may depend on time, which each would
        measure for itself. Collective."""
        for group in (self.mesh.tp, self.mesh.cp, self.mesh.pp):
            scores = comm.broadcast_object(scores, group)
        return scores

    def prompts(self, first_problem: int, drawn: int) -> list[Prompt]:
        """This rank's share of prompts_per_step problems, whatever the mesh."""
        share = self.config.prompts_per_step // self.mesh.dp_size
        chosen = self.curriculum.choose(first_problem, drawn, self.config.prompts_per_step)
        return [self.task.prompt("train", index) for index in chosen[self.mesh.dp_rank * share :][:share]]

    def temperature(self, step: int) -> float:
        """Of iteration ``step`` (from 0): from the first to the last it moves in equal steps."""
        first, last = self.config.temperature, self.config.temperature_end
        return first if last is None else first + (last - first) * step / max(self.config.steps - 1, 1)

    def _check(self, step: int, scores: Sequence[Score]) -> None:
        errors = float(sum(not score.valid for score in scores))
        errors, samples = comm.sum_floats([errors, float(len(scores))], self.mesh.dp, self.runtime.device)
        if errors > self.config.max_error_share * samples:
            told = comm.gather_objects(self.reward.last_error, self.mesh.dp)
            raise RuntimeError(
                f"{errors:.0f} of {samples:.0f} verdicts of step {step + 1} were errors, more than "
                f"rl.max_error_share; one of them: {next(filter(None, told))}"
            )
