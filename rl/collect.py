"""One iteration's samples: which problems, the answers, their scores; groups that teach nothing may be replaced."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from farside.parallel import comm
from farside.rl.curriculum import make_curriculum
from farside.rl.reward.combine import CombinedReward
from farside.rl.rollout.base import Rollout
from farside.rl.shaping import shaped
from farside.rl.types import Completion, Mark, Prompt, Score, Task
from farside.train.runtime import Runtime

Group = list[tuple[Completion, Score]]


@dataclass
class Collected:
    """groups: this rank's share to learn from, equally many on every rank. sampled: all that this rank drew, for
    metrics: what was dropped is part of how good the policy is. problems: how many all ranks used up."""

    groups: list[Group]
    sampled: list[tuple[Completion, Score]] = field(default_factory=list)
    problems: int = 0

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
    """Samples with a rollout whose weights are the current policy's."""

    def __init__(self, runtime: Runtime, rollout: Rollout, task: Task, reward: CombinedReward) -> None:
        self.runtime, self.rollout, self.task, self.reward = runtime, rollout, task, reward
        self.config, self.mesh = runtime.config.rl, runtime.mesh
        self.curriculum = make_curriculum(self.config, runtime.config.train.seed, task, runtime.mesh)

    def collect(self, step: int, first_problem: int) -> Collected:
        """Answers to what the curriculum chooses after ``first_problem`` problems. Collective.

        With ``sampling_rounds`` above 1, problems are sampled until prompts_per_step groups teach something or the
        rounds are over; what is missing then is filled up with groups that do not. The first that teach are taken, in
        the problems' order, whatever the mesh.

        Raises:
            RuntimeError: more than rl.max_error_share of a round's verdicts are errors.
        """
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
        self.runtime.pulse.beat("score")
        scores = self._shared(self.reward.score(completions) if self.mesh.leads else [])
        self._check(step, scores)
        return list(zip(completions, shaped(completions, scores, config, step)))

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
            raise RuntimeError(
                f"{errors:.0f} of {samples:.0f} verdicts of step {step + 1} were errors, more than "
                f"rl.max_error_share; one of them: {self.reward.last_error}"
            )
