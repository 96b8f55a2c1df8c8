"""What ``farside run`` asks of each phase, before the first begins."""

import pytest

from farside.configs import compose
from farside.configs.errors import UserError
from farside.run import REWARD_ALONE, arm_of, check_ahead, phases_of

WORDS = ("experiment=demo", "rl.reward_alone_steps=5", "rl.sampling_rounds=4", "rl.overoptimisation.stop=0.1")


def test_the_arm_of_the_reward_model_alone_fits_what_the_other_was_given() -> None:
    config = compose.compose([*WORDS])
    check_ahead(config)
    arms = {phase.name: arm_of(phase, config).rl for phase in phases_of(config)}
    alone = arms.pop(REWARD_ALONE)
    assert all(arm == config.rl for arm in arms.values())
    assert (alone.steps, alone.verifier_weight, alone.reward_model_weight) == (5, 0.0, 1.0)
    assert (alone.sampling_rounds, alone.overoptimisation.stop, alone.replay.samples) == (1, None, 0)


def test_what_a_late_phase_would_refuse_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"rl\.eval_prompts = 0; give at least 1"):
        check_ahead(compose.compose([*WORDS, "rl.eval_prompts=0"]))
