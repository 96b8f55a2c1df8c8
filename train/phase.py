"""What pretraining and supervised fine-tuning share: data, engine, checkpoints, the way a phase ends."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from farside.configs.errors import UserError
from farside.configs.rope import Rope
from farside.configs.schema import Config, ModelConfig
from farside.configs.stages import Stage
from farside.data.batch import Batch
from farside.data.joined import Joined
from farside.data.loader import Loader
from farside.data.mixing import StageMixture, stage_mixtures
from farside.data.mixture import Source
from farside.data.pack import TextSource, TraceSource
from farside.data.plan import PlanStore
from farside.data.prepare import Prepared, prepare
from farside.data.synthetic.copy import CopySource
from farside.data.synthetic.needle import NeedleSource
from farside.data.synthetic.source import TaskSource
from farside.data.synthetic.tasks import TASKS
from farside.data.tokenizer import Tokenizer
from farside.parallel import comm
from farside.train.checkpoint.format import Checkpoint
from farside.train.checkpoint.retention import newest
from farside.train.checkpoint.store import CheckpointStore
from farside.train.console import say
from farside.train.engine.native import NativeEngine
from farside.train.loss import lm_loss
from farside.train.progress import Progress
from farside.train.runtime import Runtime

SUMMARY = "summary.json"


def load_data(runtime: Runtime) -> Prepared:
    """Prepared data; rank 0 prepares what is missing while the others wait."""
    folder: Path | None = None
    if runtime.main:
        runtime.pulse.beat("prepare")
        folder = prepare(runtime.config.data, say)
        Prepared(folder).check()  # reads all of it, which takes as long as it takes
    runtime.pulse.beat("init")
    folder = comm.broadcast_object(folder, runtime.mesh.world)
    data = Prepared(folder)
    if data.tokenizer.vocab_size > runtime.config.model.vocab_size:
        raise UserError(
            f"model.vocab_size = {runtime.config.model.vocab_size}, but the tokenizer has {data.tokenizer.vocab_size} "
            "tokens (data.tokenizer.vocab_size); raise the first or lower the second"
        )
    return data


def identity(config: Config, data: Prepared) -> dict[str, Any]:
    """What two checkpoints must share to continue one another."""
    return identity_of(config.model, data.tokenizer)


def identity_of(model: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """As ``identity``, of a model that no data has been prepared for."""
    free = ("rope_theta", "rope_scaling", "initializer_range")
    kept = {f"model.{key}": value for key, value in vars(model).items() if key not in free}
    return {**kept, "tokenizer": tokenizer.hash}


def make_sources(config: Config, data: Prepared, traces: Path | None = None) -> dict[str, Source]:
    """Everything a mixture may name: <source>, needle_<source> and other tasks, copy, and trace if there is a file of
    conversations."""
    sources: dict[str, Source] = {}
    for name in data.names:
        documents = data.documents(name, "train")
        tokens = documents.tokens
        sources[name] = TextSource(name, tokens, data.tokenizer.end_of_text, config.data.seed, documents.offsets)
        if data.language(name) in NeedleSource.languages:
            sources[f"needle_{name}"] = NeedleSource(
                name, data.language(name), tokens, data.tokenizer, config.data.needle, config.data.seed
            )
        if data.language(name) in TaskSource.languages:
            rest = (name, data.language(name), tokens, data.tokenizer, config.data.synthetic, config.data.seed)
            sources |= {f"{kind}_{name}": TaskSource(kind, *rest) for kind in TASKS}
    everything = Joined([data.tokens(name, "train") for name in data.names])
    sources["copy"] = CopySource(everything, data.tokenizer.vocab_size, config.data.seed)
    if traces is not None:
        sources["trace"] = TraceSource(traces, data.tokenizer, config.data.seed)
    return sources


def make_mixtures(
    config: Config, stages: Sequence[Stage], data: Prepared, sources: dict[str, Source], salt: str = "", few: int = 4
) -> list[StageMixture]:
    """The mixture of every stage, packing plans made. Draws a few samples of every source, so that a later stage that
    cannot run is named before the first step."""
    store = PlanStore(data.folder / "plans", data.summary["fingerprint"])
    mixtures = stage_mixtures(config.data, stages, sources, store, salt)
    for planned in mixtures:
        for source in planned.mixture.sources:
            for index in range(few):
                try:
                    source.sample(index, planned.stage.seq_len)
                except UserError as error:
                    raise UserError(f"stage {planned.stage.name!r}: {error}") from error
    return mixtures


def loader_maker(runtime: Runtime, mixtures: Sequence[StageMixture]) -> Callable[[Stage], Loader]:
    """Loaders by stage."""
    by_stage = {planned.stage.index: planned.mixture for planned in mixtures}

    def make(stage: Stage) -> Loader:
        return Loader(
            by_stage[stage.index],
            stage.seq_len,
            stage.global_batch_size,
            stage.micro_batch_size,
            runtime.mesh.dp_rank,
            runtime.mesh.dp_size,
        )

    return make


def begin(runtime: Runtime, engine: NativeEngine, store: CheckpointStore, last_step: int) -> Progress:
    """Resumes this directory's run; else takes weights from ``init_from``; else starts at the initial weights."""
    store.preflight(engine)
    resumed = store.resume(engine)
    if resumed is not None:
        refuse_relabelling(runtime, store, resumed, last_step)
        engine.set_rope(Rope.from_record(resumed.state["rope"]))
        if runtime.main:
            say(f"resumed at step {resumed.step} from {resumed.path}{store.changed(resumed)}", indent=2)
        return Progress.of(resumed.state)
    if runtime.init_from is None:
        return Progress()
    parent = store.start_from(runtime.init_from)
    load_foreign(parent, engine)
    return Progress(trained_length=parent.state["trained_length"])


def refuse_relabelling(runtime: Runtime, store: CheckpointStore, resumed: Checkpoint, last_step: int) -> None:
    """Raises UserError for a phase that ended at its last step and would only be described by other settings."""
    path = runtime.dir / SUMMARY
    if resumed.step < last_step or not path.is_file() or not (changed := store.changed(resumed)):
        return
    if json.loads(path.read_text())["checkpoint"]["step"] == resumed.step:
        raise UserError(
            f"{runtime.dir}: finished at step {resumed.step}, other settings would change nothing{changed}; name "
            "another run.dir, or ask for more steps"
        )


def load_foreign(checkpoint: Checkpoint, engine: NativeEngine) -> None:
    """Weights of another phase; a reward head that it lacks keeps its initial values. Raises UserError if it lacks
    anything else."""
    stored = checkpoint.reader("model")
    absent = engine.table.shapes.keys() - stored.shapes.keys()
    if missing := sorted(absent - {"score.weight"}):
        raise UserError(f"{checkpoint.path}: has no {missing[0]}; name a checkpoint of a model that writes text")
    engine.load_weights(stored, absent)
    engine.set_rope(Rope.from_record(checkpoint.state["rope"]))


def validation_loss(
    runtime: Runtime, engine: NativeEngine, data: Prepared, stage: Stage, rows: int = 32
) -> dict[str, float]:
    """Mean next-token loss in nats per source, over the first ``rows`` validation windows of the stage's length, in its
    micro-batches. A split with less text is one shorter window; one with hardly any has no loss. Collective."""
    losses: dict[str, float] = {}
    for name in data.names:
        tokens = data.tokens(name, "validation")
        length = min(stage.seq_len, len(tokens) - 1)
        length -= length % runtime.config.parallel.pieces
        if length > 0:
            source = TextSource(name, tokens, data.tokenizer.end_of_text, 0)
            losses[name] = _mean_loss(runtime, engine, source, length, rows, stage.micro_batch_size)
    return losses


def _mean_loss(
    runtime: Runtime, engine: NativeEngine, source: TextSource, length: int, rows: int, at_once: int
) -> float:
    size, count = runtime.mesh.dp_size, min(rows, source.windows(length))
    sums = [0.0, 0.0]
    for first in range(0, -(-count // size), at_once):  # equally often on every rank, as collectives must be
        runtime.pulse.beat("eval")
        places = range(first * size + runtime.mesh.dp_rank, min((first + at_once) * size, count), size)
        mine = [source.window(place, length) for place in places]
        batch = Batch.of(mine or [source.window(0, length)])
        weights = batch.weights if mine else torch.zeros_like(batch.weights)
        outputs = engine.token_outputs([batch])[0]
        total: Tensor = lm_loss(outputs, Batch(**{**vars(batch), "weights": weights}).to(runtime.device)).total
        sums = [sums[0] + total.item(), sums[1] + float(weights.double().sum())]
    total_loss, weight = comm.sum_floats(sums, runtime.mesh.dp, runtime.device)
    return total_loss / weight


def write_summary(runtime: Runtime, started: float, **facts: Any) -> None:
    """summary.json: a phase's headline facts and the checkpoint it leaves behind. Rank 0 only."""
    if not runtime.main:
        return
    from farside.train.checkpoint.format import load

    path = newest(runtime.dir)
    assert path is not None
    checkpoint = load(path)
    described = {
        "path": str(path),
        "step": checkpoint.step,
        "hash": checkpoint.hash,
        "parent": checkpoint.state["parent"],
    }
    record = {"seconds": time.monotonic() - started, "checkpoint": described, **facts}
    (runtime.dir / SUMMARY).write_text(json.dumps(record, indent=1))
