"""The policy's answers to a task's problems, verified."""

from collections.abc import Iterator
from pathlib import Path

from farside.data.prepare import Prepared
from farside.parallel import comm
from farside.rl.policy import load_unsharded
from farside.rl.reward.verifier import VerifierPool
from farside.rl.rollout.native import NativeRollout
from farside.rl.tasks.registry import make_task
from farside.rl.types import Completion, Verdict
from farside.train.runtime import Runtime, Stopped

SAMPLING_BATCH = 64
"""Problems."""

Answers = tuple[list[Completion], list[Verdict]]


class Sampler:
    """A policy's checkpoint, unsharded on every rank, with the task and its verifier. Use as a context."""

    def __init__(self, runtime: Runtime, data: Prepared, policy: Path) -> None:
        self.runtime, self.config = runtime, runtime.config
        self.task = make_task(self.config.sft.task)
        model, checkpoint = load_unsharded(runtime, data, policy, "lm")
        self.rollout = NativeRollout(model, data.tokenizer, checkpoint.step)
        self.verifier = VerifierPool(self.config.sft.task, self.config.rl.verifier_timeout_seconds)

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *raised: object) -> None:
        self.verifier.close()

    def answers(self, split: str, problems: int, samples: int) -> Iterator[Answers]:
        """This rank's share of problems 0..problems-1, batch by batch, a problem's samples together. Collective.

        Raises:
            Stopped: asked to stop.
        """
        world = self.runtime.mesh.world
        for first in range(0, problems, SAMPLING_BATCH):
            self.runtime.pulse.beat("rollout")
            if self.runtime.stop.agreed(self.runtime.mesh, self.runtime.device):
                raise Stopped("asked to stop while sampling; the answers are drawn again")
            last = min(first + SAMPLING_BATCH, problems)
            prompts = [
                self.task.prompt(split, index) for index in range(first + comm.rank(world), last, comm.size(world))
            ]
            config = self.config
            answers = (
                self.rollout.generate(
                    prompts, samples, config.rl.max_new_tokens, config.reward.temperature, config.train.seed
                )
                if prompts
                else []
            )
            yield answers, self.verifier.verify([(answer.prompt, answer.text) for answer in answers])
