"""Needle in a haystack: lengths x depths x languages, free-running greedy decoding with a KV cache.

A cell holds ``needles`` prompts, each with one random held-out needle in the haystack file, put at the sentence
boundary nearest to the wanted depth; it is green when every value comes back exactly. ``farside eval niah``
runs it on a checkpoint, training on its way. Differences to Kamradt's test: keys, values and text are held
out, boundaries know Chinese, the exact value counts instead of a judge's opinion.
"""

import itertools
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from farside.configs.errors import UserError
from farside.configs.ranges import check_grid_size
from farside.configs.schema import NiahConfig
from farside.data.order import rng
from farside.data.prepare import Prepared
from farside.data.synthetic.needle import Needle, NeedleWriter, insert
from farside.parallel import comm
from farside.train.checkpoint.format import load
from farside.train.checkpoint.retention import newest
from farside.train.checkpoint.store import CheckpointStore
from farside.train.console import say
from farside.train.engine.native import NativeEngine
from farside.train.hooks import StepInfo
from farside.train.inference.generate import generate
from farside.train.liveness import Pulse
from farside.train.metrics import MetricsWriter
from farside.train.model.transformer import Transformer
from farside.train.phase import identity, load_data, load_foreign
from farside.train.runtime import Runtime, Stopped, worker_main


@dataclass(frozen=True)
class Trial:
    """One prompt of the grid. row, column: depth and length number; depth: the real one, in percent."""

    row: int
    column: int
    prompt: list[int]
    needle: Needle
    depth: float


def make_trial(
    writer: NeedleWriter,
    haystack: np.ndarray,
    length: int,
    depth: float,
    row: int,
    column: int,
    seed: tuple[Any, ...],
) -> Trial:
    """A prompt of exactly ``length`` tokens: text with one needle, then its question."""
    generator = rng("niah", *seed)
    needle = writer.draw(generator, 1, held_out=True)[0]
    hidden, (stem, _) = writer.needle(needle), writer.question(needle)
    room = length - len(hidden) - len(stem)
    if room < 0:
        raise UserError(
            f"eval.niah.min_length: {length} tokens are too few for a needle of {len(hidden)} and its question of "
            f"{len(stem)}; raise it"
        )
    if room >= len(haystack):
        raise UserError(f"eval.niah.max_length: {length} tokens exceed the haystack of {len(haystack):,}; lower it")
    start = generator.integers(len(haystack) - room)
    text = np.asarray(haystack[start : start + room]).astype(np.int64)
    boundaries = writer.boundaries(text)
    place = boundaries[np.abs(boundaries - room * depth / 100).argmin()]
    prompt = [*insert(text, [hidden], np.array([place])).tolist(), *stem]
    return Trial(row, column, prompt, needle, 100 * float(place) / max(room, 1))


def axis(low: float, high: float, count: int) -> list[float]:
    return [float(value) for value in np.linspace(low, high, count)]


def check_grid(config: NiahConfig, data: Prepared) -> None:
    """Raises UserError naming the key if some prompt of the grid cannot be made: a needle longer than the context, a
    haystack shorter than it, a source that is not there."""
    check_grid_size(config)
    for source in config.sources:
        haystack, writer = data.tokens(source, "haystack"), NeedleWriter(data.language(source), data.tokenizer)
        lengths = [round(value) for value in axis(config.min_length, config.max_length, config.lengths)]
        for length in {lengths[0], lengths[-1]}:
            for row, repeat in itertools.product(range(config.depths), range(config.needles)):  # they differ in length
                make_trial(writer, haystack, length, 0.0, row, 0, (config.seed, source, length, row, repeat))


def run_grid(runtime: Runtime, model: Transformer, data: Prepared, config: NiahConfig, source: str) -> dict[str, Any]:
    """Scores of one source's grid, alike on every rank. Collective; the ranks share each column's prompts. It goes by
    its language, or by its source where another one has that language."""
    languages = [data.language(each) for each in config.sources]
    label = data.language(source) if languages.count(data.language(source)) == 1 else source
    writer = NeedleWriter(data.language(source), data.tokenizer)
    haystack = data.tokens(source, "haystack")
    lengths, depths = (
        [round(value) for value in axis(config.min_length, config.max_length, config.lengths)],
        axis(0, 100, config.depths),
    )
    correct = np.zeros((len(depths), len(lengths)))
    examples: list[dict[str, Any]] = []
    for column, length in enumerate(lengths):
        if runtime.stop.agreed(runtime.mesh, runtime.device):
            raise Stopped("asked to stop during a needle grid; it is run again")
        trials = [
            make_trial(writer, haystack, length, depth, row, column, (config.seed, source, length, row, repeat))
            for row, depth in enumerate(depths)
            for repeat in range(config.needles)
        ]
        mine = trials[comm.rank(runtime.mesh.world) :: comm.size(runtime.mesh.world)]
        found = [
            item
            for items in comm.gather_objects(answer_trials(runtime.pulse, model, writer, mine), runtime.mesh.world)
            for item in items
        ]
        for row, exact, _ in found:
            correct[row, column] += exact
        if column in (0, len(lengths) // 2, len(lengths) - 1):
            examples.append({"language": label, "length": length, **found[len(found) // 2][2]})
    scores = correct / config.needles
    return {
        "language": label,
        "lengths": lengths,
        "depths": depths,
        "scores": scores.tolist(),
        "green": int((scores == 1.0).sum()),
        "cells": scores.size,
        "examples": examples,
    }


def answer_trials(
    pulse: Pulse, model: Transformer, writer: NeedleWriter, trials: list[Trial], tokens_at_once: int = 16384
) -> list[tuple[int, bool, dict[str, Any]]]:
    """(row, exact, example) per trial, decoded in batches of at most ``tokens_at_once`` prompt tokens."""
    results: list[tuple[int, bool, dict[str, Any]]] = []
    if not trials:
        return results
    at_once = max(1, tokens_at_once // max(len(trial.prompt) for trial in trials))
    for first in range(0, len(trials), at_once):
        pulse.beat("eval")
        batch = trials[first : first + at_once]
        budget = max(len(writer.question(trial.needle)[1]) for trial in batch) + 2
        answers = generate(model, [trial.prompt for trial in batch], budget, writer.tokenizer.end_of_text)
        for trial, answer in zip(batch, answers):
            exact, text = writer.is_exact(trial.needle, answer.tokens)
            example = {
                "depth": round(trial.depth, 1),
                "question": writer.wording.question.format(key=trial.needle.key).strip(),
                "expected": trial.needle.value,
                "answer": text,
                "correct": exact,
            }
            results.append((trial.row, exact, example))
    return results


def evaluate_grid(
    runtime: Runtime,
    engine: NativeEngine,
    data: Prepared,
    name: str,
    order: int,
    trained_length: int,
    checkpoint: Path | None,
    title: str = "",
) -> dict[str, Any] | None:
    """The whole grid of the configuration into eval/<name>/niah.json and .png. The very same grid of the same
    checkpoint, done already, is left alone; a training stage's of another one is drawn anew.

    Raises:
        UserError: of a grid that was asked for by hand (with a title), whose name another one has.
    """
    folder = runtime.dir / "eval" / name
    config = runtime.config.eval.niah
    of = load(checkpoint).hash if checkpoint else None
    asked = json.loads(json.dumps({"checkpoint": of, "grid": asdict(config), "rope": engine.rope.record()}))
    there = comm.broadcast_object(_asked_of(folder / "niah.json"), runtime.mesh.world)
    if there is not None:
        different = sorted(key for key in asked if there.get(key, asked[key]) != asked[key])
        if not different:
            return None
        if title:
            raise UserError(f"eval.name = {name}: {folder} holds a grid of another {different[0]}; use another name")
    started = time.monotonic()
    model = engine.replica()
    grids = {source: run_grid(runtime, model, data, config, source) for source in config.sources}
    first = grids[config.sources[0]]
    described = (
        {"path": str(checkpoint), "hash": load(checkpoint).hash, "step": load(checkpoint).step} if checkpoint else None
    )
    result = {
        "name": name,
        "order": order,
        "title": title or f"after stage {name}, trained to {trained_length:,} tokens",
        "trained_length": trained_length,
        "checkpoint": described,
        "asked": asked,
        "lengths": first["lengths"],
        "depths": first["depths"],
        "needles_per_cell": config.needles,
        "seconds": time.monotonic() - started,
        "grids": {
            grid["language"]: {key: grid[key] for key in ("green", "cells", "scores")} for grid in grids.values()
        },
        "examples": [example for grid in grids.values() for example in grid["examples"]],
    }
    if runtime.main:
        write_grid(folder, result)
        counts = ", ".join(f"{language} {grid['green']}/{grid['cells']}" for language, grid in result["grids"].items())
        say(f"needle grid {name}: {counts} green, {result['seconds']:.0f} s", indent=2)
    comm.barrier(runtime.mesh.world)
    return result


def _asked_of(path: Path) -> dict[str, Any] | None:
    """What the grid there was asked for; None if there is none. An older one does not tell."""
    return json.loads(path.read_text()).get("asked", {}) if path.is_file() else None


def write_grid(folder: Path, result: dict[str, Any]) -> None:
    from farside.train.eval.heatmap import draw_grid

    folder.mkdir(parents=True, exist_ok=True)
    draw_grid(result, folder / "niah.png")
    unfinished = folder / "niah.tmp"
    unfinished.write_text(json.dumps(result))
    unfinished.rename(folder / "niah.json")


class GridHook:
    """A coarse grid every n steps of training: eval.training_points lengths and depths, one needle each."""

    def __init__(self, runtime: Runtime, engine: NativeEngine, data: Prepared, every: int, step: int) -> None:
        self.runtime, self.engine, self.data, self.every = runtime, engine, data, every
        self.writer = MetricsWriter(runtime.dir, step, "niah.jsonl") if every and runtime.main else None

    def __call__(self, info: StepInfo) -> None:
        points = self.runtime.config.eval.training_points
        config = replace(self.runtime.config.eval.niah, lengths=points, depths=points, needles=1)
        model = self.engine.replica()
        grids = [run_grid(self.runtime, model, self.data, config, source) for source in config.sources]
        if self.writer:
            self.writer.write({"step": info.step, **{grid["language"]: grid for grid in grids}})
            counts = ", ".join(f"{grid['language']} {grid['green']}/{grid['cells']}" for grid in grids)
            say(f"needles at step {info.step}: {counts}", indent=2)

    def rewind(self, step: int) -> None:
        if self.writer:
            self.writer.rewind(step)


def main(runtime: Runtime) -> None:
    """``farside eval niah``: the checkpoint is eval.checkpoint, --init-from, or the newest of the run directory."""
    config = runtime.config
    path = Path(config.eval.checkpoint) if config.eval.checkpoint else runtime.init_from or newest(runtime.dir)
    if path is None:
        raise UserError(f"{runtime.dir}: no checkpoint to evaluate; name one with eval.checkpoint=PATH")
    data = load_data(runtime)
    check_grid(config.eval.niah, data)
    engine = NativeEngine(config, runtime.mesh, runtime.device)
    store = CheckpointStore(runtime.dir, config.checkpoint, runtime.mesh.world, identity(config, data))
    checkpoint = store.start_from(path)
    load_foreign(checkpoint, engine)
    engine.set_rope(engine.rope.changed(config.eval.rope_theta, config.eval.rope_scaling, "eval."))
    evaluate_grid(
        runtime,
        engine,
        data,
        config.eval.name,
        100,
        checkpoint.state["trained_length"],
        checkpoint.path,
        f"after {checkpoint.path.parent.parent.name}, step {checkpoint.step}",
    )


if __name__ == "__main__":
    worker_main(main, evaluates=True)
