"""Samples of pretraining's kinds beside every RL step, so that what RL does not train is not forgotten.

The auxiliary next-token loss that Kimi K2 calls PTX (arXiv 2507.20534, section 3.2.3), after InstructGPT (arXiv
2203.02155, equation 2).
"""

from collections.abc import Sequence
from dataclasses import replace

from farside.configs.stages import replay_stage
from farside.data.batch import Batch
from farside.data.prepare import Prepared
from farside.train.loop import Feed
from farside.train.phase import loader_maker, make_mixtures, make_sources
from farside.train.runtime import Runtime


class Replay:
    """feed: None replays nothing, whatever the weight."""

    def __init__(self, feed: Feed | None, weight: float) -> None:
        self.feed, self.weight = feed, weight if feed else 0.0

    @classmethod
    def of(cls, runtime: Runtime, data: Prepared) -> "Replay":
        """The replay of rl.replay: its samples are a function of data.seed and the step."""
        stage = replay_stage(runtime.config)
        if stage is None:
            return cls(None, 0.0)
        mixtures = make_mixtures(runtime.config, [stage], data, make_sources(runtime.config, data), "replay")
        return cls(loader_maker(runtime, mixtures)(stage), runtime.config.rl.replay.weight)

    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches of RL step ``step`` (from 0), with the sources' own weights."""
        return self.feed.step(step) if self.feed else []

    def weighed(self, batches: Sequence[Batch], samples: float, total: float) -> list[Batch]:
        """The batches with weights that sum to ``weight`` times ``samples``, the weight of all ranks' completions.

        total: Σ weight of this step's replayed tokens over all ranks.
        """
        return [replace(batch, weights=batch.weights * (self.weight * samples / total)) for batch in batches]
