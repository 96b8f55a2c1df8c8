"""What length adds to a reward. Shapes: N samples."""

from collections.abc import Sequence
from dataclasses import replace

from farside.configs.schema import RlConfig
from farside.rl.types import Completion, Score


def overlong_penalty(length: int, longest: int, cache: int) -> float:
    """0 up to longest - cache tokens, then falling to -1 at ``longest`` (DAPO, arXiv 2503.14476, eq. 13)."""
    return -min(max((length - (longest - cache)) / cache, 0.0), 1.0) if cache else 0.0


def shaped(completions: Sequence[Completion], scores: Sequence[Score], config: RlConfig) -> list[Score]:
    """Scores with the rewards that rl's keys change."""
    longest = config.max_new_tokens
    changes = [
        config.overlong_weight * overlong_penalty(len(item.tokens), longest, config.overlong_cache)
        - config.truncation_penalty * item.truncated
        for item in completions
    ]
    return [replace(score, reward=score.reward + change) if change else score for score, change in zip(scores, changes)]
