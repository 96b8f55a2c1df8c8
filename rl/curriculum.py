"""Which problems an iteration gets: each once, or drawn from a pool by how hard they are for the policy.

Kimi k1.5 (arXiv 2501.12599, section 2.3.4) begins with easy problems and goes on to harder ones (curriculum), and draws
a problem in proportion to 1 - its success rate (prioritised sampling). What is drawn is a function of (seed, number of
problems used so far, counts so far); the counts are whole numbers summed over ranks, so that a mesh changes nothing.
Shapes: N problems of the pool, V levels.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from farside.configs.errors import UserError
from farside.configs.schema import RlConfig
from farside.data.order import rng
from farside.parallel import comm
from farside.parallel.mesh import Mesh
from farside.rl.estimators import level_order
from farside.rl.rates import Rates
from farside.rl.tasks.files import distinct
from farside.rl.types import Completion, Mark, Score, Task

Tally = Counter[tuple[int, Any, bool]]
"""(problem, its level or None, whether right) -> samples."""


def tally(sampled: Sequence[tuple[Completion, Score]], group: comm.Group) -> Tally:
    """Valid samples of all ranks of the group. Collective."""
    mine = Counter(
        (item.prompt.index, item.prompt.metadata.get("difficulty"), score.verdict.mark is Mark.correct)
        for item, score in sampled
        if score.valid
    )
    return sum(comm.gather_objects(mine, group), Counter())


def by_level(samples: Tally) -> dict[str, float]:
    """Metrics: the share of right answers at every level of difficulty that came up; none without levels."""
    right, count = Counter[str](), Counter[str]()
    for (_, level, is_right), number in samples.items():
        if level is not None:
            right[str(level)] += number * is_right
            count[str(level)] += number
    return {f"accuracy_difficulty_{level}": right[level] / count[level] for level in sorted(count, key=level_order)}


class EachOnce:
    """Problem numbers as they come, without end: no pool, no state."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def choose(self, first: int, drawn: int, count: int) -> list[int]:
        """Numbers of training problems for an iteration: ``first`` were used before it, ``drawn`` in it so far."""
        return list(range(first + drawn, first + drawn + count))

    def note(self, sampled: Sequence[tuple[Completion, Score]]) -> dict[str, float]:
        """Takes in what this rank sampled in an iteration; returns metrics. Collective."""
        return by_level(tally(sampled, self.mesh.dp))

    def record(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {}

    def restore(self, record: dict[str, Any]) -> None: ...


class Pool(EachOnce):
    """The task's first ``pool`` training problems. level_N: each one's level, from 0; ``names`` of the levels."""

    def __init__(self, config: RlConfig, seed: int, task: Task, mesh: Mesh) -> None:
        super().__init__(mesh)
        self.config, self.seed = config.curriculum, seed
        rounds = max(config.sampling_rounds, 1 + (config.max_staleness if config.partial_tokens else 0))
        if (there := distinct(task, "train", self.config.pool)) < self.config.pool:
            raise UserError(f"rl.curriculum.pool = {self.config.pool}: {task.name} has {there} problems; use {there}")
        self.needed = config.prompts_per_step * rounds
        self.enough = config.prompts_per_step
        levels = [task.prompt("train", index).metadata.get("difficulty") for index in range(self.config.pool)]
        if self.config.unlock_at is not None and None in levels:
            raise UserError(
                f"rl.curriculum.unlock_at: problems of {task.name} have no difficulty; use unlock_at=null or a task "
                "with levels"
            )
        self.names = sorted(set(levels), key=lambda level: (level is not None, level_order(str(level))))
        self.level_N = np.array([self.names.index(level) for level in levels])
        self.of_problems, self.of_levels = Rates(self.config.pool), Rates(len(self.names))
        self.kept_N = np.ones(self.config.pool, dtype=bool)
        self.unlocked = len(self.names) if self.config.unlock_at is None else 1
        self._check()

    def _check(self) -> None:
        open_N = self.kept_N & (self.level_N < self.unlocked)
        if open_N.sum() < self.needed:
            raise UserError(
                f"rl.curriculum.pool = {self.config.pool}: {open_N.sum()} problems can be drawn, but an iteration may "
                f"need {self.needed}; use a larger pool or a smaller rl.prompts_per_step"
            )

    def choose(self, first: int, drawn: int, count: int) -> list[int]:
        """No problem comes twice in an iteration: it would get the same random numbers."""
        weights_N = self.weights()
        draws_N = rng(self.seed, "curriculum", first).random(len(weights_N))
        # the largest u^(1 / w) are a draw without replacement by weights w (Efraimidis and Spirakis 2006)
        open_N = np.flatnonzero(weights_N)
        keys = np.log1p(-draws_N[open_N]) / weights_N[open_N]
        return open_N[np.argsort(-keys, kind="stable")][drawn : drawn + count].tolist()

    def weights(self) -> np.ndarray:
        """[N]: in proportion to which problems are drawn; 0 for what is locked or left out."""
        open_N = self.kept_N & (self.level_N < self.unlocked)
        if not self.config.prioritised:
            return open_N.astype(float)
        # what has hardly been tried is taken to be as hard as its level
        rates_N = self.of_problems.rates(self.of_levels.rates()[self.level_N])
        return np.where(open_N, np.maximum(1 - rates_N, self.config.floor), 0.0)

    def note(self, sampled: Sequence[tuple[Completion, Score]]) -> dict[str, float]:
        samples = tally(sampled, self.mesh.dp)
        right_N2 = np.zeros((len(self.kept_N), 2))
        for (problem, _, is_right), number in samples.items():
            right_N2[problem, int(is_right)] += number
        right_V2 = np.zeros((len(self.names), 2))
        np.add.at(right_V2, self.level_N, right_N2)
        self.of_problems.add(right_N2[:, 1], right_N2.sum(1), self.config.memory)
        self.of_levels.add(right_V2[:, 1], right_V2.sum(1), self.config.memory)
        if self.config.unlock_at is not None and self.unlocked < len(self.names):
            right, count = self.of_levels.right[self.unlocked - 1], self.of_levels.count[self.unlocked - 1]
            self.unlocked += bool(count >= self.enough and right >= self.config.unlock_at * count)
        return {**by_level(samples), "unlocked_levels": self.unlocked}

    def leave_out(self, problems: Sequence[int]) -> None:
        self.kept_N[list(problems)] = False
        self._check()

    def record(self) -> dict[str, Any]:
        return {
            "problems": self.of_problems.record(),
            "levels": self.of_levels.record(),
            "unlocked": self.unlocked,
            "left_out": np.flatnonzero(~self.kept_N).tolist(),
        }

    def restore(self, record: dict[str, Any]) -> None:
        """An empty record, of a run that had no pool, changes nothing; nor do problems that are no longer in it."""
        if not record:
            return
        self.of_problems.restore(record["problems"])
        self.of_levels.restore(record["levels"])
        self.unlocked = record["unlocked"] if self.config.unlock_at is not None else len(self.names)
        self.kept_N[[problem for problem in record["left_out"] if problem < len(self.kept_N)]] = False


def make_curriculum(config: RlConfig, seed: int, task: Task, mesh: Mesh) -> EachOnce:
    """The configured one. Raises UserError for a pool that is too small."""
    return Pool(config, seed, task, mesh) if config.curriculum.pool else EachOnce(mesh)
