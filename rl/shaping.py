"""What length and loops add to a reward. Shapes: N samples, a prompt's together."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from farside.configs.schema import RlConfig
from farside.rl.length import length_rewards
from farside.rl.types import Completion, Mark, Score
from farside.train.inference.repetition import ends_in_loop


def overlong_penalty(length: int, longest: int, cache: int) -> float:
    """0 up to longest - cache tokens, then falling to -1 at ``longest`` (DAPO, arXiv 2503.14476, eq. 13)."""
    return -min(max((length - (longest - cache)) / cache, 0.0), 1.0) if cache else 0.0


def shaped(completions: Sequence[Completion], scores: Sequence[Score], config: RlConfig, step: int) -> list[Score]:
    """Scores of iteration ``step`` (from 0) with the rewards that rl's keys change."""
    longest = config.max_new_tokens
    changes = [
        config.overlong_weight * overlong_penalty(len(item.tokens), longest, config.overlong_cache)
        - config.truncation_penalty * item.truncated
        - config.repetition.penalty * ends_in_loop(item.tokens, config.repetition)
        for item in completions
    ]
    if config.length.weight and step >= config.length.warmup_steps:
        changes = [change + more for change, more in zip(changes, _length(completions, scores, config))]
    return [replace(score, reward=score.reward + change) if change else score for score, change in zip(scores, changes)]


def _length(completions: Sequence[Completion], scores: Sequence[Score], config: RlConfig) -> list[float]:
    lengths_N = torch.tensor([len(item.tokens) for item in completions])
    correct_N = torch.tensor([score.verdict.mark is Mark.correct for score in scores])
    valid_N = torch.tensor([score.valid for score in scores])
    groups = (values_N.view(-1, config.samples_per_prompt) for values_N in (lengths_N, correct_N, valid_N))
    return (config.length.weight * length_rewards(*groups)).flatten().tolist()
