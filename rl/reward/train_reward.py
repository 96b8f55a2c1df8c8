"""The worker behind ``farside reward``: sample, verify, train a model of whole answers or of steps, measure it."""

import json
import time
from pathlib import Path
from typing import Any

from farside.configs.errors import UserError
from farside.configs.layout import check_layout
from farside.configs.schema import Config, Packing, RewardKind
from farside.configs.stages import Stage, check_stages
from farside.data.prepare import Prepared
from farside.parallel import comm
from farside.rl.reward.best_of import Candidate, accuracies, values_of
from farside.rl.reward.model import Judge
from farside.rl.reward.outcome import OutcomeTraining
from farside.rl.reward.process_training import ProcessTraining
from farside.rl.reward.registry import NORMALISATION
from farside.rl.reward.sampling import Sampler
from farside.train.checkpoint.contract import contract
from farside.train.checkpoint.store import CheckpointStore
from farside.train.engine.native import NativeEngine
from farside.train.loop import TrainLoop
from farside.train.phase import begin, identity, load_data, write_summary
from farside.train.runtime import Runtime, worker_main

Training = OutcomeTraining | ProcessTraining
TRAININGS: dict[RewardKind, type[OutcomeTraining] | type[ProcessTraining]] = {
    RewardKind.outcome: OutcomeTraining,
    RewardKind.process: ProcessTraining,
}


def check(config: Config) -> None:
    """Raises UserError for settings of reward that cannot run."""
    check_layout(config)
    settings = config.reward
    for key in ("prompts", "held_out_prompts", "samples", "steps"):
        if getattr(settings, key) < 1:
            raise UserError(f"reward.{key} = {getattr(settings, key)}; give at least 1")
    if settings.temperature <= 0:
        raise UserError(f"reward.temperature = {settings.temperature}; give more than 0")
    if settings.margin < 0:
        raise UserError(f"reward.margin = {settings.margin}; give 0 or more")
    if settings.best_of_prompts and settings.best_of < 2:
        raise UserError(f"reward.best_of = {settings.best_of}; give at least 2 to choose among, or best_of_prompts=0")
    if settings.kind is RewardKind.process and not (settings.continuations or settings.corrupted):
        raise UserError("reward.continuations, reward.corrupted: both 0, so there is no step to learn from; raise one")


def main(runtime: Runtime) -> None:
    started = time.monotonic()
    config, settings = runtime.config, runtime.config.reward
    data = load_data(runtime)
    if runtime.init_from is None:
        raise UserError("reward: no policy to sample from; name its checkpoint with train.init_from=PATH")
    training = TRAININGS[settings.kind](runtime, data, runtime.init_from)
    if runtime.main:
        print(f"reward: {training.found}", flush=True)
    engine = NativeEngine(config, runtime.mesh, runtime.device, head="scalar")
    held = {"reward.pairs_per_batch": settings.pairs_per_batch, "reward.kind": settings.kind.value}
    agreed = contract(config, data.summary["fingerprint"], "reward", [], **held)
    store = CheckpointStore(runtime.dir, config.checkpoint, runtime.mesh.world, identity(config, data), agreed)
    progress = begin(runtime, engine, store, settings.steps)
    longest = max(16, training.longest + 1)
    longest += -longest % config.parallel.pieces
    stage = Stage(
        0,
        "reward",
        0,
        settings.steps,
        longest,
        engine.rope,
        settings.lr,
        2 * settings.pairs_per_batch,
        2 * settings.micro_pairs,
        {settings.kind.value: 1.0},
        Packing.concatenate,
        {},
        False,
    )
    check_stages(config, [stage])
    feed = training.feed()
    TrainLoop(runtime, engine, [stage], lambda stage: feed, training.loss_fn, store, "reward").run(progress)
    finish(runtime, data, engine, training, started)


def finish(
    runtime: Runtime,
    data: Prepared,
    engine: NativeEngine,
    training: Training,
    started: float,
) -> None:
    """Measures the model on what was held out, and as a chooser among answers. Collective."""
    judge, facts, line = training.judge(engine.replica())
    kind = runtime.config.reward.kind.value
    if runtime.main:
        record = {"kind": kind, "center": judge.center, "scale": judge.scale}
        (runtime.dir / NORMALISATION).write_text(json.dumps(record))
        print(f"reward: {line}", flush=True)
    assert runtime.init_from is not None
    if runtime.config.reward.best_of_prompts:
        facts["best_of"] = best_of(runtime, data, runtime.init_from, judge)
    write_summary(runtime, started, kind=kind, **facts)


def best_of(runtime: Runtime, data: Prepared, policy: Path, judge: Judge) -> dict[str, Any]:
    """Accuracy on held-out problems of one answer, of the majority and of the model's choice. Collective."""
    settings = runtime.config.reward
    count, groups = settings.best_of, []
    with Sampler(runtime, data, policy) as sampler:
        for answers, verdicts in sampler.answers("held_out", settings.best_of_prompts, count):
            opinions = judge.opinions(answers) if answers else []
            candidates = [Candidate.of(item, verdict) for item, verdict in zip(answers, verdicts)]
            for first in range(0, len(answers), count):
                one = slice(first, first + count)
                groups.append((candidates[one], values_of(opinions[one])))
    everything = [group for part in comm.gather_objects(groups, runtime.mesh.world) for group in part]
    names = everything[0][1]
    values = {name: [of_group[name] for _, of_group in everything] for name in names}
    found = accuracies([candidates for candidates, _ in everything], values)
    if runtime.main:
        shown = ", ".join(f"{name} {share:.1%}" for name, share in found.items())
        print(f"reward: best of {count} on {len(everything)} held-out problems: {shown}", flush=True)
    return {"answers": count, "problems": len(everything), **found}


if __name__ == "__main__":
    worker_main(main, check=check)
