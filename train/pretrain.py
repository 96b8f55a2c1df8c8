"""Pretraining and context extension: the worker behind ``farside train``.

torchrun --nproc-per-node 2 -m farside.train.pretrain experiment=tiny
"""

import shutil
import time
from collections.abc import Sequence

from farside.configs.stages import Stage, pretrain_stages
from farside.data.drawn import DRAWN, drawn
from farside.data.mixing import StageMixture
from farside.data.prepare import Prepared
from farside.data.synthetic.contamination import CONTAMINATION, Evaluation, look
from farside.train.checkpoint.contract import contract
from farside.train.checkpoint.retention import newest
from farside.train.checkpoint.store import CheckpointStore
from farside.train.console import say
from farside.train.engine.native import NativeEngine
from farside.train.eval.niah import GridHook, check_grid, evaluate_grid
from farside.train.loop import TrainLoop
from farside.train.loss import lm_loss
from farside.train.metrics import write_json
from farside.train.phase import (
    begin,
    identity,
    load_data,
    loader_maker,
    make_mixtures,
    make_sources,
    validation_loss,
    write_summary,
)
from farside.train.runtime import Runtime, worker_main


def look_for_leaks(runtime: Runtime, data: Prepared, mixtures: Sequence[StageMixture]) -> None:
    """Searches samples of every stage for what its needle grids use; warns of what it finds and writes it down."""
    evaluation = Evaluation.of(data, runtime.config.eval.niah.sources)
    found = look(evaluation, mixtures, runtime.config.data.contamination_samples)
    write_json(runtime.dir / CONTAMINATION, found)
    for stage in found:
        for name, leaks in stage["leaks"].items():
            first = leaks[0]
            say(
                f"warning: stage {stage['stage']!r}, {name}: {len(leaks)} leaks of the needle grid into "
                f"{stage['samples']} samples; sample {first['sample']} holds {first['kind']} {first['what']!r}; "
                f"all are in {CONTAMINATION}",
                indent=2,
            )


def main(runtime: Runtime) -> None:
    started = time.monotonic()
    config = runtime.config
    stages = pretrain_stages(config)
    data = load_data(runtime)
    if runtime.main:
        shutil.copyfile(data.folder / "data.json", runtime.dir / "data.json")
    mixtures = make_mixtures(config, stages, data, make_sources(config, data))
    if runtime.main:
        write_json(runtime.dir / DRAWN, drawn(mixtures))
    if config.eval.every or any(stage.eval for stage in stages):
        check_grid(config.eval.niah, data)
        if runtime.main:
            look_for_leaks(runtime, data, mixtures)
    engine = NativeEngine(config, runtime.mesh, runtime.device)
    agreed = contract(config, data.summary["fingerprint"], "stages" if config.stages else "data", stages)
    store = CheckpointStore(runtime.dir, config.checkpoint, runtime.mesh.world, identity(config, data), agreed)
    progress = begin(runtime, engine, store, stages[-1].last_step)

    def after_stage(stage: Stage) -> None:
        if stage.eval:
            evaluate_grid(runtime, engine, data, stage.name, stage.index, stage.seq_len, newest(runtime.dir))

    hook = GridHook(runtime, engine, data, config.eval.every, progress.step)
    loop = TrainLoop(
        runtime,
        engine,
        stages,
        loader_maker(runtime, mixtures),
        lm_loss,
        store,
        "train",
        [hook],
        after_stage,
    )
    loop.run(progress)
    losses = validation_loss(runtime, engine, data, stages[-1])
    write_summary(runtime, started, validation_loss=losses, tokens=progress.tokens)


if __name__ == "__main__":
    worker_main(main, check=pretrain_stages)
