"""Loading what RL builds on: a policy or reward model from a checkpoint, unsharded, and greedy evaluation of it."""

from pathlib import Path
from typing import Any

from farside.configs.errors import UserError
from farside.data.prepare import Prepared
from farside.parallel import comm
from farside.rl.overthinking import outcome_efficiency
from farside.rl.reward.verifier import VerifierPool
from farside.rl.rollout.base import Rollout
from farside.rl.tasks.files import distinct
from farside.rl.types import Completion, Mark, Task, Verdict
from farside.train.checkpoint.format import Checkpoint
from farside.train.checkpoint.store import CheckpointStore
from farside.train.engine.native import NativeEngine
from farside.train.model.transformer import Transformer
from farside.train.phase import identity, load_foreign
from farside.train.runtime import Runtime

Answered = list[tuple[Completion, Verdict]]


def load_engine(runtime: Runtime, data: Prepared, path: Path, head: str) -> tuple[NativeEngine, Checkpoint]:
    """A verified checkpoint's model. Raises UserError if it is of another model or head."""
    engine = NativeEngine(runtime.config, runtime.mesh, runtime.device, head)
    checkpoint = load_weights(runtime, data, path, engine)
    if head == "scalar" and "score.weight" not in checkpoint.reader("model").shapes:
        raise UserError(
            f"{path}: holds no reward model (no score.weight); name a checkpoint that `farside reward` made"
        )
    return engine, checkpoint


def load_weights(runtime: Runtime, data: Prepared, path: Path, engine: NativeEngine) -> Checkpoint:
    """A verified checkpoint's weights into an engine, whose head stays as it is if they have none for it."""
    store = CheckpointStore(runtime.dir, runtime.config.checkpoint, runtime.mesh.world, identity(runtime.config, data))
    checkpoint = store.start_from(path)
    load_foreign(checkpoint, engine)
    return checkpoint


def load_start(runtime: Runtime, data: Prepared, key: str) -> NativeEngine:
    """The policy that RL started from, frozen. key: what asks for it."""
    if runtime.init_from is None:
        raise UserError(f"{key}: no policy to measure from; name its checkpoint with train.init_from=PATH")
    return load_engine(runtime, data, runtime.init_from, "lm")[0]


def load_unsharded(runtime: Runtime, data: Prepared, path: Path, head: str) -> tuple[Transformer, Checkpoint]:
    """``load_engine`` as an unsharded copy on every rank."""
    engine, checkpoint = load_engine(runtime, data, path, head)
    return engine.replica(), checkpoint


def answer_held_out(
    runtime: Runtime,
    rollout: Rollout,
    task: Task,
    verifier: VerifierPool,
    prompts: int,
    max_new_tokens: int,
    shown: int,
) -> tuple[float, list[dict[str, Any]], Answered]:
    """Greedy answers to held-out problems 0..prompts-1, each once if there are fewer: verified accuracy, the first
    ``shown`` of them described, and this rank's. Collective.

    A verifier error counts as not answered: it lowers the accuracy, never raises it.
    """
    last = distinct(task, "held_out", prompts)
    mine = [
        task.prompt("held_out", index)
        for index in range(comm.rank(runtime.mesh.world), last, comm.size(runtime.mesh.world))
    ]
    answers = rollout.generate(mine, 1, max_new_tokens, 0.0, seed=0) if mine else []
    verdicts = verifier.verify([(answer.prompt, answer.text) for answer in answers])
    right = sum(verdict.mark is Mark.correct for verdict in verdicts)
    sums = comm.sum_floats([float(right), float(len(answers))], runtime.mesh.world, runtime.device)
    records = [
        {
            "problem": answer.prompt.index,
            "question": answer.prompt.question,
            "reference": answer.prompt.answer,
            "text": answer.text,
            "verdict": verdict.mark.value,
            "length": len(answer.tokens),
            "thinking": answer.thinking,
            "outcome_efficiency": outcome_efficiency(answer, verifier, rollout.tokenizer),
        }
        for answer, verdict in zip(answers, verdicts)
        if answer.prompt.index < shown
    ]
    gathered = [record for part in comm.gather_objects(records, runtime.mesh.world) for record in part]
    described = sorted(gathered, key=lambda record: record["problem"])
    return sums[0] / sums[1], described, list(zip(answers, verdicts))
