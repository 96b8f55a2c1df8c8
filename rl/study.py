"""A whole small study in this process: supervised warm start, then reinforcement learning, with no launcher and no
checkpoints. Proofs of learning and quick experiments use it; the engine, the rollout, the collector and the learner are
those of ``farside rl``.

Time is this process's CPU time, evaluations left out: on a shared machine the clock says little.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from farside.configs.schema import Algorithm, Config
from farside.data.batch import Batch
from farside.data.chat import SPECIAL_TOKENS
from farside.data.order import fold, rng
from farside.data.tokenizer import Tokenizer
from farside.parallel.box import Box
from farside.rl.batches import padded_row
from farside.rl.collect import Collector
from farside.rl.learner import Learner
from farside.rl.policy import answer_held_out
from farside.rl.record import describe_step
from farside.rl.replay import Replay
from farside.rl.reward.combine import CombinedReward
from farside.rl.reward.verifier import VerifierPool
from farside.rl.rollout.native import NativeRollout
from farside.rl.tasks.registry import make_task
from farside.rl.types import Completion, Score, Task
from farside.train.engine.native import NativeEngine
from farside.train.guard import Guard
from farside.train.loss import lm_loss
from farside.train.runtime import Runtime
from farside.train.schedule import lr_factor

CHARACTERS = len(SPECIAL_TOKENS) + 256
"""Vocabulary of the tokenizer without merges: the chat format's marks and every byte."""


def character_tokenizer() -> Tokenizer:
    return Tokenizer.train([], CHARACTERS)


@dataclass(frozen=True)
class Weights:
    """Whole weights by canonical name, in memory; implements ``Stored``."""

    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, engine: NativeEngine) -> "Weights":
        return cls({name: value.clone() for name, value in engine.named_weights()})

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in self.tensors.items()}

    def read(self, name: str, box: Box) -> Tensor:
        return self.tensors[name][box.within(Box.whole(self.tensors[name].shape))]


@dataclass(frozen=True)
class Budget:
    """When RL ends: after ``steps`` iterations or ``seconds`` of CPU time, whichever is given."""

    steps: int | None = None
    seconds: float | None = None

    def share(self, steps: int, seconds: float) -> float:
        """How much of it is used up, from 0 to 1: what the learning rate's schedule goes by."""
        parts = [done / whole for done, whole in ((steps, self.steps), (seconds, self.seconds)) if whole]
        return min(max(parts), 1.0)


class Shuffled(CombinedReward):
    """The control: an iteration's rewards are dealt out anew among all of its samples. Verdicts stay, for metrics."""

    def score(self, completions: Sequence[Completion]) -> list[Score]:
        scores = super().score(completions)
        order = rng("shuffled", completions[0].policy_step).permutation(len(scores))
        return [replace(score, reward=scores[other].reward) for score, other in zip(scores, order)]


def shuffled(reward: CombinedReward) -> CombinedReward:
    return Shuffled(reward.verifier, reward.model, reward.weight, reward.verifier_weight)


class Study:
    """One task and one small policy. ``config.sft`` says how the warm start goes, ``config.rl`` the rest.

    folder: takes the heartbeat. wrap: changes the reward, for controls. examined: whose held-out problems accuracy is
    measured on, where it is another task than the one trained on.
    """

    def __init__(
        self, config: Config, folder: Path, wrap: Callable[[CombinedReward], CombinedReward] = lambda reward: reward
    ) -> None:
        self.config, self.runtime = config, Runtime.alone(config, folder)
        self.task, self.tokenizer = make_task(config.sft.task), character_tokenizer()
        self.examined: Task | None = None
        self.verifier = VerifierPool(config.sft.task, config.rl.verifier_timeout_seconds)
        self.reward = wrap(CombinedReward(self.verifier, None, 0.0, config.rl.verifier_weight))
        self.engine = NativeEngine(config, self.runtime.mesh, self.runtime.device, entropy=True)
        self.rollout = NativeRollout.of(config.rl, self.engine.replica(), self.tokenizer)

    def load(self, weights: Weights) -> None:
        """Begins at these weights, without moments."""
        self.engine.load_weights(weights)
        self.engine.reset_optimizer()

    def accuracy(self, step: int, prompts: int | None = None) -> float:
        """Greedy, on held-out problems."""
        self.rollout.load_weights(self.engine.named_weights(), step)
        task, wanted = self.examined or self.task, prompts or self.config.rl.eval_prompts
        longest = self.config.rl.max_new_tokens
        return answer_held_out(self.runtime, self.rollout, task, self.verifier, wanted, longest, 0)[0]

    def warm_start(self, enough: float, every: int = 20, prompts: int = 200) -> Iterator[dict[str, Any]]:
        """Supervised steps on worked answers until held-out accuracy, looked at every so many steps, is ``enough`` or
        sft.steps are done; yields what it saw."""
        config, started = self.config.sft, time.process_time()
        for step in range(config.steps):
            batch = self._traces(step * config.global_batch_size, config.global_batch_size)
            loss = self.engine.forward_backward([batch], lm_loss, batch.weight).loss
            self.engine.step(config.lr * lr_factor(self.config.schedule, step, config.steps))
            if (step + 1) % every == 0 or step + 1 == config.steps:
                seconds = time.process_time() - started
                accuracy = self.accuracy(0, prompts)
                started += time.process_time() - started - seconds
                yield {"step": step + 1, "seconds": seconds, "loss": loss.item(), "held_out_accuracy": accuracy}
                if accuracy >= enough:
                    return

    def _traces(self, first: int, count: int) -> Batch:
        """Worked answers, one a row."""
        prompts = [self.task.prompt("train", index) for index in range(first, first + count)]
        asked = [self.tokenizer.encode_prompt(prompt.question) for prompt in prompts]
        seed = self.config.train.seed
        said = self.tokenizer.encode_batch([self.task.trace(p, fold(seed, "trace", p.index)) for p in prompts])
        size = max(len(question) + len(answer) for question, answer in zip(asked, said)) - 1
        return Batch.of([padded_row(question, answer, size, 1.0) for question, answer in zip(asked, said)])

    def _critic(self) -> NativeEngine | None:
        """For ppo, from the policy's weights."""
        if self.config.rl.algorithm is not Algorithm.ppo:
            return None
        critic = NativeEngine(self.config, self.runtime.mesh, self.runtime.device, "scalar")
        critic.load_weights(Weights.of(self.engine), absent={"score.weight"})
        return critic

    def _reference(self) -> NativeEngine | None:
        """For rl.kl: the policy as it begins."""
        if self.config.rl.kl.weight == 0:
            return None
        reference = NativeEngine(self.config, self.runtime.mesh, self.runtime.device)
        reference.load_weights(Weights.of(self.engine))
        return reference

    def reinforce(self, budget: Budget, every: float) -> Iterator[dict[str, Any]]:
        """Iterations of RL from the weights that are there. Yields a record of every iteration; its
        ``held_out_accuracy`` is there at the first, whenever another share ``every`` of the budget is used up, and at
        the last. ``seconds``: CPU time so far without evaluations."""
        config, runtime = self.config, self.runtime
        learner = Learner(config, self.engine, Replay(None, 0.0), self._reference(), self._critic())
        collector = Collector(runtime, self.rollout, self.task, self.reward)
        guard, problems, step, spent, looks = Guard(config.train.guard), 0, 0, 0.0, 0
        yield {"step": 0, "seconds": 0.0, "held_out_accuracy": self.accuracy(0)}
        while (done := budget.share(step, spent)) < 1:
            started = time.process_time()
            self.rollout.load_weights(self.engine.named_weights(), step)
            collected = collector.collect(step, problems)
            lr = config.rl.lr * lr_factor(config.schedule, round(1000 * done), 1001)
            learnt = learner.update(collected.completions, collected.scores, step, lr, guard, runtime.pulse)
            chosen = collector.curriculum.note(collected.sampled)
            step, problems = step + 1, problems + collected.problems
            spent += time.process_time() - started
            record = {"step": step, "seconds": spent, **learnt, **describe_step(runtime, collected.sampled), **chosen}
            done = budget.share(step, spent)
            if done >= 1 or done >= (looks + 1) * every:
                looks = int(done / every)
                record["held_out_accuracy"] = self.accuracy(step)
            yield record
