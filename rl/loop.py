"""The reinforcement learning loop: sync, generate, score, advantage, step.

Everything random is a function of (seed, step, problem), so that weights, optimizer state and the step number
are the whole state: a resumed run repeats an uninterrupted one bit for bit.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from farside.data.batch import Batch
from farside.parallel import comm
from farside.rl.advantage import group_normalised
from farside.rl.batches import policy_batches
from farside.rl.objective import rl_loss
from farside.rl.policy import answer_held_out
from farside.rl.replay import Replay
from farside.rl.reward.combine import CombinedReward
from farside.rl.rollout.base import Rollout
from farside.rl.types import Completion, Mark, Prompt, Score, Task
from farside.train.checkpoint.store import CheckpointStore
from farside.train.console import StepPrinter
from farside.train.engine.base import Engine
from farside.train.guard import Guard, read
from farside.train.metrics import MetricsWriter
from farside.train.progress import Diverged
from farside.train.record import peak_memory_bytes
from farside.train.runtime import Runtime, Stopped, write_status
from farside.train.schedule import lr_factor


class RlLoop:
    """Owns time and order; ``progress`` is what a checkpoint stores beside tensors."""

    def __init__(
        self,
        runtime: Runtime,
        engine: Engine,
        rollout: Rollout,
        task: Task,
        reward: CombinedReward,
        replay: Replay,
        store: CheckpointStore,
    ) -> None:
        self.runtime, self.engine, self.rollout, self.task = runtime, engine, rollout, task
        self.reward, self.replay, self.store, self.config = reward, replay, store, runtime.config.rl
        self.guard = Guard(runtime.config.train.guard)
        self.loss_fn = rl_loss(self.config.clip_low, self.config.clip_high, replay.weight)

    def run(self, progress: dict[str, Any]) -> None:
        """Trains to the last step. Raises Stopped after saving if asked to stop."""
        runtime, main = self.runtime, self.runtime.main
        runtime.pulse.expect_slow(progress["step"] + 1)
        self.metrics = MetricsWriter(runtime.dir, progress["step"]) if main else None
        self.samples = MetricsWriter(runtime.dir, progress["step"], "samples.jsonl") if main else None
        evaluated = progress["step"] if "held_out_accuracy_before" in progress else -1
        self.answers = MetricsWriter(runtime.dir, evaluated, "held_out.jsonl") if main else None
        self.printer = StepPrinter("rl", self.config.steps, runtime.config.logging.every, silent=not main)
        try:
            if "held_out_accuracy_before" not in progress:
                progress["held_out_accuracy_before"] = self.evaluate(progress["step"])
                self.printer.say(
                    f"rl: held-out accuracy {progress['held_out_accuracy_before']:.1%} before the first step"
                )
            while progress["step"] < self.config.steps:
                if runtime.stop.agreed(runtime.mesh, runtime.device):
                    self._stop(progress)
                self._step(progress)
        finally:
            self.printer.close()
            for writer in (self.metrics, self.samples, self.answers):
                if writer:
                    writer.close()

    def _step(self, progress: dict[str, Any]) -> None:
        started = time.perf_counter()
        step = progress["step"]
        pulse = self.runtime.pulse
        pulse.beat("rollout", step + 1)
        self.rollout.load_weights(self.engine.named_weights(), step)
        completions = self.rollout.generate(
            self.prompts(step),
            self.config.samples_per_prompt,
            self.config.max_new_tokens,
            self.config.temperature,
            self.runtime.config.train.seed,
        )
        seconds_rollout = time.perf_counter() - started
        pulse.beat("score")
        scores = self.reward.score(completions)
        replayed = self.replay.step(step)
        sums = self.totals(completions, scores, replayed)
        if sums["errors"] > self.config.max_error_share * sums["samples"]:
            raise RuntimeError(
                f"{sums['errors']:.0f} of {sums['samples']:.0f} verdicts of step {step + 1} were errors, more than "
                f"rl.max_error_share; one of them: {self.reward.last_error}"
            )
        valid = sums["samples"] - sums["errors"]
        batches = self.batches(completions, scores) + self.replay.weighed(replayed, valid, sums["replay"])
        pulse.beat("forward")
        outputs = self.engine.forward_backward(batches, pulse.around(self.loss_fn), valid * (1 + self.replay.weight))
        lr = self.config.lr * lr_factor(self.runtime.config.schedule, step, self.config.steps)
        pulse.beat("step")
        stats = self.engine.step(lr, self.guard.judge(outputs.loss))
        progress["step"] += 1
        learnt = read({"loss": outputs.loss, **vars(stats), **outputs.metrics})
        record = {
            "step": progress["step"],
            **self.guard.settle(learnt, step),
            **self.describe(sums),
            "lr": lr,
            "seconds": time.perf_counter() - started,
            "seconds_rollout": seconds_rollout,
            "peak_memory_bytes": peak_memory_bytes(self.runtime.device),
        }
        self._after_step(progress, record, completions, scores)
        if self.guard.gives_up:
            raise Diverged(f"{self.guard.streak} bad steps in a row before step {step + 2}; see metrics.jsonl")

    def prompts(self, step: int) -> list[Prompt]:
        """This rank's problems: step k uses training problems [kP, (k+1)P), whatever the mesh."""
        share = self.config.prompts_per_step // self.runtime.mesh.dp_size
        first = step * self.config.prompts_per_step + self.runtime.mesh.dp_rank * share
        return [self.task.prompt("train", first + offset) for offset in range(share)]

    def batches(self, completions: Sequence[Completion], scores: Sequence[Score]) -> list[Batch]:
        groups = (-1, self.config.samples_per_prompt)
        rewards_PG = torch.tensor([score.reward for score in scores], dtype=torch.float64).view(groups)
        valid_PG = torch.tensor([score.valid for score in scores]).view(groups)
        advantages = group_normalised(rewards_PG, valid_PG)
        return policy_batches(completions, advantages.flatten(), valid_PG.flatten(), self.config.micro_batch_size)

    def totals(
        self, completions: Sequence[Completion], scores: Sequence[Score], replayed: Sequence[Batch]
    ) -> dict[str, float]:
        """Sums over all ranks' samples; rewards count valid samples only. replay: the replayed tokens' weight."""
        valid = [score for score in scores if score.valid]
        names = ("samples", "errors", "reward", "correct", "reward_model", "tokens", "truncated", "replay")
        values = [
            float(len(scores)),
            float(len(scores) - len(valid)),
            sum(score.reward for score in valid),
            float(sum(score.verdict.mark is Mark.correct for score in valid)),
            sum(score.reward_model or 0.0 for score in valid),
            float(sum(len(item.tokens) for item in completions)),
            float(sum(item.truncated for item in completions)),
            sum(batch.weight for batch in replayed),
        ]
        return dict(zip(names, comm.sum_floats(values, self.runtime.mesh.dp, self.runtime.device)))

    def describe(self, sums: dict[str, float]) -> dict[str, float]:
        valid = max(sums["samples"] - sums["errors"], 1.0)
        return {
            "reward": sums["reward"] / valid,
            "accuracy": sums["correct"] / valid,
            "reward_model": sums["reward_model"] / valid,
            "length": sums["tokens"] / sums["samples"],
            "tokens": sums["tokens"],
            "truncated_share": sums["truncated"] / sums["samples"],
            "error_share": sums["errors"] / sums["samples"],
        }

    def evaluate(self, step: int) -> float:
        """Greedy verified accuracy on held-out problems with the current weights. Collective."""
        self.runtime.pulse.beat("eval")
        self.rollout.load_weights(self.engine.named_weights(), step)
        accuracy, answers = answer_held_out(
            self.runtime,
            self.rollout,
            self.task,
            self.reward.verifier,
            self.config.eval_prompts,
            self.config.max_new_tokens,
            self.config.log_samples,
        )
        if self.answers:
            for answer in answers:
                self.answers.write({"step": step, **answer})
        return accuracy

    def _after_step(
        self,
        progress: dict[str, Any],
        record: dict[str, Any],
        completions: Sequence[Completion],
        scores: Sequence[Score],
    ) -> None:
        step, last = progress["step"], progress["step"] == self.config.steps
        if step % self.config.eval_every == 0 or last:
            record["held_out_accuracy"] = progress["held_out_accuracy"] = self.evaluate(step)
        if self.metrics and self.samples:
            self.metrics.write(record)
            self.printer.step(record)
            for item, score in list(zip(completions, scores))[: self.config.log_samples]:
                self.samples.write(describe_sample(step, item, score))
        if last or step % self.runtime.config.checkpoint.every == 0:
            self._save(progress)

    def _save(self, progress: dict[str, Any]) -> None:
        self.runtime.pulse.beat("save")
        self.store.save(self.engine, progress["step"], progress)
        if self.runtime.main:
            write_status(self.runtime.dir, "running", step=progress["step"], steps=self.config.steps)

    def _stop(self, progress: dict[str, Any]) -> None:
        self._save(progress)
        self.printer.say(f"stopped at step {progress['step']}, checkpoint saved; the same command goes on from there")
        raise Stopped(f"asked to stop at step {progress['step']}")


def describe_sample(step: int, item: Completion, score: Score) -> dict[str, Any]:
    """A line of samples.jsonl."""
    return {
        "step": step,
        "question": item.prompt.question,
        "reference": item.prompt.answer,
        "text": item.text,
        "reward": score.reward if score.valid else None,
        "verdict": score.verdict.mark.value,
        "detail": score.verdict.detail,
        "reward_model": score.reward_model,
        "length": len(item.tokens),
    }
