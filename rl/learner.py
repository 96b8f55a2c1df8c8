"""From scored completions to an update of the policy. N completions, T tokens of the longest answer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from farside.configs.schema import Config, Correction, KlPlace
from farside.data.batch import Batch
from farside.parallel import comm
from farside.rl.algorithms.ppo import estimates
from farside.rl.algorithms.registry import make_algorithm
from farside.rl.batches import AnswerRows
from farside.rl.critic import Critic, saved
from farside.rl.experience import Experience
from farside.rl.kl import estimate
from farside.rl.objective import rl_loss
from farside.rl.replay import Replay
from farside.rl.types import Completion, Score
from farside.train.engine.base import Engine, Stateful
from farside.train.engine.native import NativeEngine
from farside.train.guard import Guard, read
from farside.train.liveness import Pulse
from farside.train.precision import COMPUTED
from farside.train.schedule import lr_factor

SUMS = ("policy_loss", "replay_loss")
"""Metrics that are losses, over the loss's own divisor; the others are means over tokens by their weights."""


class Learner:
    """The algorithm over an engine. reference: the frozen policy that rl.kl measures from; None at weight 0. critic:
    the engine of a scalar head that learns beside the policy, for algorithms that have one."""

    def __init__(
        self,
        config: Config,
        engine: NativeEngine,
        replay: Replay,
        reference: Engine | None = None,
        critic: NativeEngine | None = None,
    ) -> None:
        self.config, self.engine, self.replay, self.reference = config.rl, engine, replay, reference
        self.critic = Critic(config, critic, self.total) if critic is not None else None
        self.schedule = config.schedule
        self.algorithm = make_algorithm(config.rl)
        self.loss_fn = rl_loss(self.algorithm.objective, replay.weight, config.rl.entropy_weight)
        self.dtype = torch.promote_types(COMPUTED[config.train.dtype], torch.float32)

    @property
    def saved(self) -> Stateful:
        """What of the learner a checkpoint holds."""
        return saved(self.engine, None if self.critic is None else self.critic.engine)

    def lr(self, step: int) -> float:
        """Of the policy in iteration ``step`` (from 0)."""
        warms_up = self.critic is not None and step < self.config.critic.warmup_steps
        return 0.0 if warms_up else self.config.lr * lr_factor(self.schedule, step, self.config.steps)

    def update(
        self,
        completions: Sequence[Completion],
        scores: Sequence[Score],
        step: int,
        lr: float,
        guard: Guard,
        pulse: Pulse,
    ) -> dict[str, Any]:
        """Iteration ``step`` on this rank's completions; numbers of its last update, ``skipped`` of the first that was
        skipped. An iteration without a token to learn from (all drawn by older policies, or not judged) is skipped
        as "empty" and leaves everything as it was. Collective.

        Ranks bring equally many completions.
        """
        sampled, total = self.batches(completions, scores)
        if not total:
            return {"loss": 0.0, "grad_norm": 0.0, "skipped": "empty", "batch": step}
        replayed = self.replay.step(step)
        own, weight = self.total([sum(batch.weight for batch in kind) for kind in (sampled, replayed)])
        batches = sampled + self.replay.weighed(replayed, total, weight)
        if self.algorithm.reset_optimizer:
            self.engine.reset_optimizer()
        first_skip: dict[str, Any] = {}
        for _ in range(self.config.updates_per_step):
            pulse.beat("forward")
            loss_fn = pulse.around(self.loss_fn)
            outputs = self.engine.forward_backward(batches, loss_fn, total * (1 + self.replay.weight))
            pulse.beat("step")
            stats = self.engine.step(lr, guard.judge(outputs.loss))
            metrics = {
                name: value if name in SUMS else value * (total / max(own, 1e-9))
                for name, value in outputs.metrics.items()
            }
            learnt = guard.settle(read({"loss": outputs.loss, **vars(stats), **metrics}), step)
            first_skip = first_skip or {name: learnt[name] for name in ("skipped", "batch") if name in learnt}
            if self.critic:
                learnt |= self.critic.update(sampled, total, step, pulse)
        return {**learnt, **first_skip}

    def batches(self, completions: Sequence[Completion], scores: Sequence[Score]) -> tuple[list[Batch], float]:
        """Micro-batches with all that the objective looks at, as many on every rank, and the divisor of their loss."""
        rows = AnswerRows(completions, self.config.micro_batch_size, self.dtype)
        seen = Experience.of(completions, scores, self.config.samples_per_prompt, self.total)
        learnt_N = torch.tensor([len(item.tokens) - item.unlearnt for item in completions])
        weights_N, shares_N = self.algorithm.normalisation.weights(
            learnt_N.clamp(min=1),
            seen.valid_PG.flatten() & (learnt_N > 0),
            self.config.max_new_tokens,
        )
        extras = {"old_logprobs": rows.sampled_logprobs}
        corrects = self.config.correction.kind is not Correction.none
        looks = corrects or self.reference is not None or self.critic is not None
        plain = rows.batches(weights_N, extras) if looks else []
        if corrects:
            extras = {"sampler_logprobs": extras["old_logprobs"], "old_logprobs": self.logprobs(self.engine, plain)}
        if self.reference is not None:
            extras["ref_logprobs"] = self.logprobs(self.reference, plain)
            if self.config.kl.place is KlPlace.reward:
                old, ref = rows.take(extras["old_logprobs"]), rows.take(extras["ref_logprobs"])
                distance = estimate(self.config.kl.estimator, old, ref)
                seen = replace(seen, kl_NT=torch.where(seen.counted_NT, self.config.kl.weight * distance, 0.0))
        if self.critic is not None:
            extras["old_values"] = self.critic.values(plain)
            seen = replace(seen, values_NT=rows.take(extras["old_values"]))
            extras["returns"] = rows.put(estimates(seen, self.config)[1])
        advantages_NT = self.algorithm.advantages(seen)
        if self.config.process_weight:
            of_steps_NT = seen.process_advantages(self.config.process_credit)
            advantages_NT = advantages_NT + self.config.process_weight * of_steps_NT
        extras["advantages"] = rows.put(advantages_NT)
        return rows.batches(weights_N, extras), self.total([shares_N.sum().item()])[0]

    def logprobs(self, engine: Engine, batches: Sequence[Batch]) -> list[Tensor]:
        """Rows of log-probabilities under an engine's policy, on the CPU. Collective."""
        found = [outputs.logprobs for outputs in engine.token_outputs(batches)]
        return [values.to("cpu", self.dtype) for values in found if values is not None]

    def total(self, values: list[float]) -> list[float]:
        """Sums over the ranks that hold other samples."""
        return comm.sum_floats(values, self.engine.mesh.dp, self.engine.device)
