"""What a step of RL leaves in metrics.jsonl and samples.jsonl."""

import json
import zlib
from collections.abc import Sequence
from typing import Any

from farside.parallel import comm
from farside.rl.types import ERRORS, Completion, Mark, Score
from farside.train.inference.repetition import ends_in_loop
from farside.train.runtime import Runtime

Sampled = Sequence[tuple[Completion, Score]]


def describe_step(runtime: Runtime, sampled: Sampled) -> dict[str, float]:
    """Means over all ranks' samples; rewards over valid ones. Collective."""
    scores = [score for _, score in sampled]
    valid = [score for score in scores if score.valid]
    values = {
        "samples": float(len(scores)),
        "valid": float(len(valid)),
        "reward": sum(score.reward for score in valid),
        "accuracy": float(sum(score.verdict.mark is Mark.correct for score in valid)),
        "reward_model": sum(score.reward_model or 0.0 for score in valid),
        "tokens": float(sum(len(item.tokens) for item, _ in sampled)),
        "thinking": float(sum(item.thinking for item, _ in sampled)),
        "truncated": float(sum(item.truncated for item, _ in sampled)),
        "loops": float(sum(ends_in_loop(item.tokens, runtime.config.rl.repetition) for item, _ in sampled)),
        **{kind: float(sum(score.verdict.kind == kind for score in scores)) for kind in ERRORS},
    }
    sums = dict(zip(values, comm.sum_floats(list(values.values()), runtime.mesh.dp, runtime.device)))
    return {
        **{name: sums[name] / max(sums["valid"], 1.0) for name in ("reward", "accuracy", "reward_model")},
        "length": sums["tokens"] / sums["samples"],
        "thinking": sums["thinking"] / sums["samples"],
        "tokens": sums["tokens"],
        "truncated_share": sums["truncated"] / sums["samples"],
        "loop_share": sums["loops"] / sums["samples"],
        "error_share": (sums["samples"] - sums["valid"]) / sums["samples"],
        **{f"errors_{kind}": sums[kind] for kind in ERRORS},
    }


def samples_digest(runtime: Runtime, learnt: Sampled) -> int:
    """What an iteration learnt from, in one number: the sum of a 32-bit hash of each sample's number in the iteration,
    problem, tokens, policy and verdict. Collective.

    Equal samples show equal numbers on every mesh; a lost, repeated or swapped one shows. Log-probabilities and rewards
    are left out, since a mesh may round them otherwise. learnt: of this rank, equally many on every rank.
    """
    first = runtime.mesh.dp_rank * len(learnt)
    total = 0
    for number, (item, score) in enumerate(learnt, first):
        told = [number, item.prompt.index, item.policy_step, score.verdict.mark.value, *item.tokens]
        total += zlib.crc32(json.dumps(told).encode())
    return int(comm.sum_floats([float(total)], runtime.mesh.dp, runtime.device)[0])


def describe_sample(step: int, item: Completion, score: Score) -> dict[str, Any]:
    """A line of samples.jsonl."""
    return {
        "step": step,
        "question": item.prompt.question,
        "reference": item.prompt.answer,
        "text": item.text,
        "reward": score.reward if score.valid else None,
        "verdict": score.verdict.mark.value,
        "detail": score.verdict.detail,
        "reward_model": score.reward_model,
        "length": len(item.tokens),
        "thinking": item.thinking,
    }
