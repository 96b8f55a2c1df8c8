"""The policy's answers to a task's problems, verified."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from farside.configs.schema import Config
from farside.data.prepare import Prepared
from farside.parallel import comm
from farside.rl.origin import settings_of
from farside.rl.policy import load_unsharded
from farside.rl.reward.verifier import VerifierPool
from farside.rl.rollout.native import NativeRollout
from farside.rl.tasks.files import distinct
from farside.rl.tasks.registry import make_task
from farside.rl.types import Completion, Verdict
from farside.train.checkpoint import format as checkpoint_format
from farside.train.checkpoint.format import MANIFEST
from farside.train.checkpoint.retention import newest
from farside.train.runtime import Runtime, Stopped

SAMPLING_BATCH = 64
"""Problems."""

Answers = tuple[list[Completion], list[Verdict]]


def sampled_with(config: Config, policy: Path) -> dict[str, Any]:
    """What decides the sampled answers and what is made of them."""
    names = ("prompts", "samples", "held_out_prompts", "bare_pairs", "mixed_share", "continuations", "labels")
    keys = [f"reward.{name}" for name in (*names, "corrupted", "temperature")]
    folder = policy if (policy / MANIFEST).is_file() else newest(policy)
    told = {"policy": checkpoint_format.load(folder).hash} if folder else {}
    return settings_of(config, *keys, "sft.task.", "rl.max_new_tokens", "train.seed", "data.seed") | told


class Sampler:
    """A policy's checkpoint, unsharded on every rank, with the task and its verifier. Use as a context."""

    def __init__(self, runtime: Runtime, data: Prepared, policy: Path) -> None:
        self.runtime, self.config = runtime, runtime.config
        self.task = make_task(self.config.sft.task)
        model, checkpoint = load_unsharded(runtime, data, policy, "lm")
        self.rollout = NativeRollout.of(self.config.rl, model, data.tokenizer, checkpoint.step)
        self.verifier = VerifierPool(self.config.sft.task, self.config.rl.verifier_timeout_seconds)

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *raised: object) -> None:
        self.verifier.close()

    def answers(self, split: str, problems: int, samples: int) -> Iterator[Answers]:
        """This rank's share of problems 0..problems-1, each once if there are fewer, batch by batch, a problem's
        samples together. Collective.

        Raises:
            Stopped: asked to stop.
        """
        world, problems = self.runtime.mesh.world, distinct(self.task, split, problems)
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
