"""Supervised fine-tuning on conversations: the worker behind ``farside sft``.

It is a stage of training like any other; what differs is a mixture that names ``trace``.
"""

import time
from pathlib import Path

from farside.configs.errors import UserError
from farside.configs.stages import sft_stages
from farside.data.chat import TRACES
from farside.train.checkpoint.contract import contract
from farside.train.checkpoint.files import hash_file
from farside.train.checkpoint.store import CheckpointStore
from farside.train.engine.native import NativeEngine
from farside.train.loop import TrainLoop
from farside.train.loss import lm_loss
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


def main(runtime: Runtime) -> None:
    started = time.monotonic()
    config = runtime.config
    stages = sft_stages(config)
    data = load_data(runtime)
    engine = NativeEngine(config, runtime.mesh, runtime.device)
    conversations = Path(config.sft.conversations or runtime.dir / TRACES)
    named = {"sft.conversations": hash_file(conversations)} if config.sft.conversations else {}
    agreed = contract(config, data.summary["fingerprint"], "sft", stages, **named)
    store = CheckpointStore(runtime.dir, config.checkpoint, runtime.mesh.world, identity(config, data), agreed)
    progress = begin(runtime, engine, store, stages[-1].last_step)
    if progress.step == 0 and runtime.init_from is None:
        raise UserError("sft: no checkpoint to start from; name one with train.init_from=PATH")
    if progress.step == 0 and engine.rope != stages[0].rope:
        raise UserError(
            f"sft: {runtime.init_from} was trained with {engine.rope}, the configuration says {stages[0].rope}; set "
            "model.rope_theta and model.rope_scaling, or stages, as they were there"
        )
    mixtures = make_mixtures(config, stages, data, make_sources(config, data, conversations), "sft")
    loop = TrainLoop(runtime, engine, stages, loader_maker(runtime, mixtures), lm_loss, store, "sft")
    loop.run(progress)
    write_summary(runtime, started, validation_loss=validation_loss(runtime, engine, data, stages[-1]))


if __name__ == "__main__":
    worker_main(main, check=sft_stages)
