"""Algorithms by name, with what is laid over any of them: distance from a reference, corrections of the sampler."""

from collections.abc import Callable
from dataclasses import replace

from farside.configs.errors import UserError
from farside.configs.schema import Algorithm as Name
from farside.configs.schema import RlConfig
from farside.rl.algorithms.base import Algorithm
from farside.rl.algorithms.dapo import dapo
from farside.rl.algorithms.dr_grpo import dr_grpo
from farside.rl.algorithms.grpo import grpo
from farside.rl.algorithms.gspo import gspo
from farside.rl.algorithms.kimi import k2, k15
from farside.rl.algorithms.ppo import ppo
from farside.rl.algorithms.reinforce_pp import reinforce_pp, reinforce_pp_baseline
from farside.rl.algorithms.rloo import rloo
from farside.rl.correction import corrected
from farside.rl.kl import with_kl

ALGORITHMS: dict[Name, Callable[[RlConfig], Algorithm]] = {
    Name.grpo: grpo,
    Name.ppo: ppo,
    Name.dr_grpo: dr_grpo,
    Name.rloo: rloo,
    Name.reinforce_pp: reinforce_pp,
    Name.reinforce_pp_baseline: reinforce_pp_baseline,
    Name.dapo: dapo,
    Name.gspo: gspo,
    Name.k15: k15,
    Name.k2: k2,
}

WHOLE_ANSWERS = (Name.rloo, Name.gspo, Name.k15, Name.k2)
"""Their loss is one of an answer, which stands at each of its tokens: to leave out a token there leaves in its part."""


def make_algorithm(config: RlConfig) -> Algorithm:
    """The configured algorithm. Raises UserError for settings outside their range."""
    try:
        algorithm = ALGORITHMS[config.algorithm](config)
    except ValueError as error:
        raise UserError(f"rl.{error}") from error
    return replace(algorithm, objective=with_kl(corrected(algorithm.objective, config.correction), config.kl))
