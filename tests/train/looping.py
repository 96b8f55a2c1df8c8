"""A training loop on random batches, some of which are bad, without a command or a process of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from farside.configs.rope import Rope
from farside.configs.schema import Config, OptimKind, Packing, ParallelConfig
from farside.configs.stages import Stage
from farside.data.batch import Batch
from farside.parallel.mesh import ParallelDims
from farside.train.checkpoint.store import CheckpointStore
from farside.train.engine.native import NativeEngine
from farside.train.hooks import Hook
from farside.train.liveness import Pulse
from farside.train.loop import TrainLoop
from farside.train.loss import WeightedSum, lm_loss
from farside.train.metrics import read_metrics
from farside.train.model.heads import TokenOutputs
from farside.train.progress import Progress
from farside.train.runtime import Runtime, Stopped
from tests.ranks import Rank
from tests.train.models import SMALL, random_batch, small_config

ROWS, SEQ_LEN = 4, 12
MODEL = replace(SMALL, num_key_value_heads=2)
Factors = Mapping[tuple[int, int], float]
"""(stage, batch) -> what the loss of dp rank 0's rows is multiplied by; NaN and infinity too."""


def config_of(steps: int, changes: Callable[[Config], None] = lambda config: None) -> Config:
    config = small_config(MODEL)
    config.optim.kind = OptimKind.muon
    config.checkpoint.every, config.checkpoint.keep, config.logging.every = 4, 100, 1000
    config.train.steps = steps
    changes(config)
    return config


class Feed:
    """Batch n of a stage is a function of n; the bad ones carry their factor with them."""

    def __init__(self, stage: Stage, factors: Factors, rank: int, size: int) -> None:
        self.stage, self.factors, self.rank, self.rows = stage, factors, rank, ROWS // size

    def step(self, number: int) -> list[Batch]:
        batch = random_batch(1000 * self.stage.index + number, ROWS, SEQ_LEN)
        mine = slice(self.rank * self.rows, (self.rank + 1) * self.rows)
        factor = self.factors.get((self.stage.index, number), 1.0) if self.rank == 0 else 1.0
        cut = {name: value[mine] for name, value in vars(batch).items() if name != "extras"}
        return [Batch(**cut, extras={"factor": torch.full_like(cut["weights"], factor)})]


def poisoned(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
    result = lm_loss(outputs, batch)
    return replace(result, total=result.total * batch.extras["factor"].flatten()[0])


@dataclass(frozen=True)
class Ran:
    """What a run left. metrics: without what measures time."""

    metrics: list[dict[str, Any]]
    checkpoints: dict[str, str]
    error: str
    progress: dict[str, Any]


def train(
    place: Rank,
    run_dir: Path,
    config: Config,
    factors: Factors,
    stages: int = 1,
    stop_after: int | None = None,
    leave_out: range = range(0),
    hooks: Sequence[Hook] = (),
) -> Ran:
    """One rank's part. stop_after: the feed raises at this step, as a kill would; leave_out: batches that never
    come."""
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    mesh = ParallelDims.resolve(config.parallel, place.world_size).build("cpu")
    device = torch.device("cpu")
    engine = NativeEngine(config, mesh, device)
    pulse = Pulse(run_dir / "logs", place.rank, 60, 60)
    stop: Any = SimpleNamespace(requested=False)
    runtime = Runtime(config, mesh, device, run_dir, None, stop, pulse)
    steps = config.train.steps
    plan = [
        Stage(
            index=index,
            name=f"s{index}",
            first_step=index * steps,
            steps=steps,
            seq_len=SEQ_LEN,
            rope=Rope(10000.0),
            lr=1e-2,
            global_batch_size=ROWS,
            micro_batch_size=ROWS,
            mixture={"x": 1.0},
            packing=Packing.concatenate,
            lengths={},
            eval=False,
        )
        for index in range(stages)
    ]
    store = CheckpointStore(run_dir, config.checkpoint, mesh.world, {})
    resumed = store.resume(engine)
    progress = Progress.of(resumed.state) if resumed else Progress()

    class Killed(Exception):
        pass

    def make(stage: Stage) -> Feed:
        feed = Feed(stage, factors, mesh.dp_rank, mesh.dp_size)
        whole = feed.step

        def step(number: int) -> list[Batch]:
            if progress.step == stop_after:
                raise Killed
            return whole(number + len(leave_out) if number >= leave_out.start and leave_out else number)

        feed.step = step  # type: ignore[method-assign]
        return feed

    error = ""
    try:
        TrainLoop(runtime, engine, plan, make, poisoned, store, "test", hooks).run(progress)
    except Killed:
        error = "killed"
    except Stopped:
        error = "stopped"
    except RuntimeError as caught:
        error = str(caught)
    kept = ("step", "tokens", "loss", "grad_norm", "lr", "skipped", "batch", "rewound", "stage")
    records = [{key: line[key] for key in kept if key in line} for line in read_metrics(run_dir / "metrics.jsonl")]
    manifests = {path.parent.name: path.read_text() for path in run_dir.glob("checkpoints/*/manifest.json")}
    return Ran(records, manifests, error, {key: value for key, value in vars(progress).items() if key != "guard"})


def parallel(**degrees: int) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        config.parallel = ParallelConfig(**degrees)

    return change
