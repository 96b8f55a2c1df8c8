"""The worker behind ``farside reward``: sample, verify, pair, then train a Bradley-Terry model on the pairs."""

import json
import time
from pathlib import Path

from farside.configs.errors import UserError
from farside.configs.schema import Packing
from farside.configs.stages import Stage, check_stages
from farside.data.prepare import Prepared
from farside.parallel import comm
from farside.rl.batches import row_size
from farside.rl.policy import load_unsharded
from farside.rl.reward.format_baseline import pairwise_accuracy
from farside.rl.reward.model import RewardModel, bradley_terry_loss, normalisation
from farside.rl.reward.pairs import Pair, PairFeed, load_pairs, make_pairs, save_pairs
from farside.rl.reward.verifier import VerifierPool
from farside.rl.rollout.native import NativeRollout
from farside.rl.tasks.registry import make_task
from farside.rl.types import Completion
from farside.train.checkpoint.contract import contract
from farside.train.checkpoint.store import CheckpointStore
from farside.train.engine.native import NativeEngine
from farside.train.loop import TrainLoop
from farside.train.phase import begin, identity, load_data, write_summary
from farside.train.runtime import Runtime, Stopped, worker_main

PAIRS = "pairs.jsonl"
NORMALISATION = "normalisation.json"
SAMPLING_BATCH = 64


def sample_pairs(runtime: Runtime, data: Prepared, policy: Path) -> dict[str, list[Pair]]:
    """Pairs of both splits, alike on every rank; kept in pairs.jsonl. Collective."""
    path = runtime.dir / PAIRS
    if comm.broadcast_object(path.is_file(), runtime.mesh.world):
        return load_pairs(path)
    config, settings = runtime.config, runtime.config.reward
    task = make_task(config.sft.task)
    model, checkpoint = load_unsharded(runtime, data, policy, "lm")
    rollout = NativeRollout(model, data.tokenizer, checkpoint.step)
    pairs: dict[str, list[Pair]] = {}
    rank, size = comm.rank(runtime.mesh.world), comm.size(runtime.mesh.world)
    with VerifierPool(config.sft.task, config.rl.verifier_timeout_seconds) as verifier:
        for split, count in (("train", settings.prompts), ("held_out", settings.held_out_prompts)):
            found: tuple[list[Pair], list[Pair]] = ([], [])
            for first in range(0, count, SAMPLING_BATCH):
                runtime.pulse.beat("rollout")
                if runtime.stop.agreed(runtime.mesh, runtime.device):
                    raise Stopped("asked to stop while sampling pairs; they are drawn again")
                indices = range(first + rank, min(first + SAMPLING_BATCH, count), size)
                prompts = [task.prompt(split, index) for index in indices]
                answers = rollout.generate(
                    prompts,
                    settings.samples,
                    config.rl.max_new_tokens,
                    settings.temperature,
                    config.train.seed,
                )
                verdicts = verifier.verify([(answer.prompt, answer.text) for answer in answers])
                for kept, new in zip(found, make_pairs(answers, verdicts, bare=settings.bare_pairs)):
                    kept += new
            gathered = comm.gather_objects(found, runtime.mesh.world)
            alike, mixed = ([pair for part in gathered for pair in part[kind]] for kind in (0, 1))
            pairs[split] = alike + (mixed[: int(settings.mixed_share * len(alike))] if split == "train" else [])
    if runtime.main:
        save_pairs(path, pairs)
    return pairs


def main(runtime: Runtime) -> None:
    started = time.monotonic()
    config, settings = runtime.config, runtime.config.reward
    data = load_data(runtime)
    if runtime.init_from is None:
        raise UserError("reward: no policy to sample from; name its checkpoint with train.init_from=PATH")
    pairs = sample_pairs(runtime, data, runtime.init_from)
    if runtime.main:
        print(
            f"reward: {len(pairs['train']):,} pairs to train on, {len(pairs['held_out']):,} held out",
            flush=True,
        )
    if min(map(len, pairs.values())) < 2:
        raise UserError(
            "reward: fewer than 2 pairs of a right and a wrong answer of one format; the policy is always right "
            "or always wrong: change sft.steps, or raise reward.prompts"
        )
    engine = NativeEngine(config, runtime.mesh, runtime.device, head="scalar")
    pairs_per_batch = {"reward.pairs_per_batch": settings.pairs_per_batch}
    agreed = contract(config, data.summary["fingerprint"], "reward", [], **pairs_per_batch)
    store = CheckpointStore(runtime.dir, config.checkpoint, runtime.mesh.world, identity(config, data), agreed)
    progress = begin(runtime, engine, store)
    longest = max(16, *(row_size([pair.chosen, pair.rejected]) + 1 for pair in pairs["train"]))
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
        {"pairs": 1.0},
        Packing.concatenate,
        {},
        False,
    )
    check_stages(config, [stage])
    feed = PairFeed(
        pairs["train"],
        settings.pairs_per_batch,
        settings.micro_pairs,
        config.data.seed,
        runtime.mesh.dp_rank,
        runtime.mesh.dp_size,
    )
    TrainLoop(runtime, engine, [stage], lambda stage: feed, bradley_terry_loss, store, "reward").run(progress)
    finish(runtime, engine, pairs, started)


def finish(runtime: Runtime, engine: NativeEngine, pairs: dict[str, list[Pair]], started: float) -> None:
    """Measures the model on held-out pairs, beside a classifier that sees only length and format."""
    model = RewardModel(engine.replica())
    held_out = pairs["held_out"]
    scores = model.raw_scores([item for pair in held_out for item in (pair.chosen, pair.rejected)])
    accuracy = float((scores[0::2] > scores[1::2]).double().mean())
    center, scale = normalisation(scores.double().numpy())
    baseline = pairwise_accuracy(*([_texts(pair) for pair in pairs[split]] for split in ("train", "held_out")))
    if runtime.main:
        (runtime.dir / NORMALISATION).write_text(json.dumps({"center": center, "scale": scale}))
        print(
            f"reward: {accuracy:.1%} of held-out pairs in order; by length and format alone {baseline:.1%}",
            flush=True,
        )
    write_summary(
        runtime,
        started,
        held_out_accuracy=accuracy,
        format_baseline_accuracy=baseline,
        train_pairs=len(pairs["train"]),
        held_out_pairs=len(held_out),
    )


def _texts(pair: Pair) -> tuple[Completion, Completion]:
    return pair.chosen, pair.rejected


if __name__ == "__main__":
    worker_main(main)
