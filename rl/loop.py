"""The reinforcement learning loop: sync, sample, score, update.

Everything random is a function of (seed, step, problem), so that weights, optimizer state, the step number, the number
of problems used and the answers under way are the whole state: a resumed run repeats an uninterrupted one bit for bit.
"""

import time
from typing import Any

from farside.parallel import comm
from farside.rl.collect import Collected, Collector
from farside.rl.curriculum import Pool
from farside.rl.guessing import guessable
from farside.rl.learner import Learner
from farside.rl.policy import answer_held_out
from farside.rl.record import describe_sample, describe_step, samples_digest
from farside.rl.reward.combine import CombinedReward
from farside.rl.reward.overoptimisation import Overoptimisation, OverOptimised
from farside.rl.rollout.base import Rollout
from farside.rl.types import Task
from farside.train.checkpoint.store import CheckpointStore
from farside.train.console import StepPrinter
from farside.train.guard import Guard
from farside.train.metrics import MetricsWriter
from farside.train.progress import Diverged
from farside.train.record import peak_memory_bytes
from farside.train.runtime import Runtime, Stopped, write_status


class RlLoop:
    """Owns time and order; ``progress`` is what a checkpoint stores beside tensors."""

    def __init__(
        self,
        runtime: Runtime,
        learner: Learner,
        rollout: Rollout,
        task: Task,
        reward: CombinedReward,
        store: CheckpointStore,
        overoptimisation: Overoptimisation,
    ) -> None:
        self.runtime, self.learner, self.engine, self.rollout = runtime, learner, learner.engine, rollout
        self.task, self.reward, self.store, self.config = task, reward, store, runtime.config.rl
        self.collector = Collector(runtime, rollout, task, reward)
        self.curriculum = self.collector.curriculum
        self.overoptimisation = overoptimisation

    def run(self, progress: dict[str, Any]) -> None:
        """Trains to the last step. Raises Stopped after saving if asked to stop."""
        runtime, main = self.runtime, self.runtime.main
        runtime.pulse.expect_slow(progress["step"] + 1)
        self.guard = Guard(runtime.config.train.guard, progress.get("guard"))
        progress["guard"] = self.guard.record()
        self.collector.load(progress.get("in_flight", []))
        self.metrics = MetricsWriter(runtime.dir, progress["step"]) if main else None
        self.samples = MetricsWriter(runtime.dir, progress["step"], "samples.jsonl") if main else None
        evaluated = progress["step"] if "held_out_accuracy_before" in progress else -1
        self.answers = MetricsWriter(runtime.dir, evaluated, "held_out.jsonl") if main else None
        self.printer = StepPrinter("rl", self.config.steps, runtime.config.logging.every, silent=not main)
        try:
            if "held_out_accuracy_before" not in progress:
                progress["held_out_accuracy_before"] = self.evaluate(progress["step"])["held_out_accuracy"]
                self.printer.say(
                    f"rl: held-out accuracy {progress['held_out_accuracy_before']:.1%} before the first step"
                )
            self._begin_curriculum(progress)
            while progress["step"] < self.config.steps:
                signs = [float(runtime.stop.requested), float(self.store.failed)]
                stop, failed = comm.sum_floats(signs, runtime.mesh.world, runtime.device)
                if failed:
                    self.store.finish()
                if stop:
                    self._stop(progress)
                self._step(progress)
            self.store.finish()
        finally:
            self.store.let_end()
            self.printer.close()
            for writer in (self.metrics, self.samples, self.answers):
                if writer:
                    writer.close()

    def _begin_curriculum(self, progress: dict[str, Any]) -> None:
        """Where the checkpoint left it, or anew, without the problems that can be guessed."""
        tries = self.config.curriculum.guess_tries
        if "curriculum" in progress:
            self.curriculum.restore(progress["curriculum"])
        elif tries:
            assert isinstance(self.curriculum, Pool), "checked: there is a pool to leave something out of"
            self.rollout.load_weights(self.engine.named_weights(), progress["step"])
            self.curriculum.leave_out(guessable(self.runtime, self.rollout, self.task, self.reward, tries))

    def _step(self, progress: dict[str, Any]) -> None:
        started = time.perf_counter()
        step = progress["step"]
        self.runtime.pulse.beat("rollout", step + 1)
        self.rollout.load_weights(self.engine.named_weights(), step)
        collected = self.collector.collect(step, progress["problems"])
        seconds_rollout = time.perf_counter() - started
        described = describe_step(self.runtime, collected.sampled)
        described |= self.overoptimisation.observe(step + 1, described, collected.completions)
        lr = self.learner.lr(step)
        learnt = self.learner.update(collected.completions, collected.scores, step, lr, self.guard, self.runtime.pulse)
        progress["step"] += 1
        progress["problems"] += collected.problems
        chosen = self.curriculum.note(collected.sampled)
        record = {
            "step": progress["step"],
            **learnt,
            **described,
            **chosen,
            **collected.shown,
            "samples_digest": samples_digest(self.runtime, list(zip(collected.completions, collected.scores))),
            "problems": progress["problems"],
            "lr": lr,
            "seconds": time.perf_counter() - started,
            "seconds_rollout": seconds_rollout,
            "peak_memory_bytes": peak_memory_bytes(self.runtime.device),
        }
        self._after_step(progress, record, collected)
        if self.guard.gives_up:
            raise Diverged(f"{self.guard.streak} bad steps in a row before step {step + 2}; see metrics.jsonl")
        if self.overoptimisation.gives_up:
            self._save(progress)
            self.store.finish()
            raise OverOptimised(
                f"{self.overoptimisation.news}; step {step + 1} is saved, rl.overoptimisation.stop=null goes on from it"
            )

    def evaluate(self, step: int) -> dict[str, Any]:
        """Greedy verified accuracy on held-out problems with the current weights, for metrics. Collective."""
        self.runtime.pulse.beat("eval")
        self.rollout.load_weights(self.engine.named_weights(), step)
        accuracy, answers, answered = answer_held_out(
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
        shown = {"outcome_efficiency": sum(a["outcome_efficiency"] for a in answers) / len(answers)} if answers else {}
        return {"held_out_accuracy": accuracy, **shown, **self.overoptimisation.examine(step, answered)}

    def _after_step(self, progress: dict[str, Any], record: dict[str, Any], collected: Collected) -> None:
        step, last = progress["step"], progress["step"] == self.config.steps
        if last or (self.config.eval_every and step % self.config.eval_every == 0):
            record |= self.evaluate(step)
            progress["held_out_accuracy"] = record["held_out_accuracy"]
        if self.metrics and self.samples:
            for item, score in collected.sampled[: self.config.log_samples]:
                self.samples.write(describe_sample(step, item, score))
            self.metrics.write(record)  # after its samples: whoever follows the files finds both
            self.printer.step(record)
            if self.overoptimisation.news:
                self.printer.say(f"rl: {self.overoptimisation.news}")
        if last or step % self.runtime.config.checkpoint.every == 0:
            self._save(progress)

    def _save(self, progress: dict[str, Any]) -> None:
        self.runtime.pulse.beat("save")
        progress |= {
            "guard": self.guard.record(),
            "curriculum": self.curriculum.record(),
            "in_flight": self.collector.record(),
            "reward": self.reward.record(),
            "overoptimisation": self.overoptimisation.record(),
        }
        self.store.save(self.learner.saved, progress["step"], progress)
        if self.runtime.main:
            write_status(self.runtime.dir, "running", step=progress["step"], steps=self.config.steps)

    def _stop(self, progress: dict[str, Any]) -> None:
        self._save(progress)
        self.store.finish()
        self.printer.say(f"stopped at step {progress['step']}, checkpoint saved; the same command goes on from there")
        raise Stopped(f"asked to stop at step {progress['step']}")
