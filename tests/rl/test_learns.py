"""RL learns: GRPO on two-digit sums raises held-out accuracy by 20 points within seconds, shuffled rewards do not.

The whole study, warm start included, is a function of its seed; the bounds leave room for another machine's rounding
(one saw 41 % rise to 82 % in 12 iterations). Longer runs of every algorithm with three seeds: docs/rl_proofs.md.
"""

from pathlib import Path
from typing import Any

import pytest

from farside.configs import compose
from farside.rl.study import Budget, Study, Weights, shuffled

WORDS = ["experiment=proof", "rl.algorithm=grpo", "rl.lr=1e-3", "rl.eval_prompts=300"]
ENOUGH = 0.3


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A policy that worked answers have taught to solve some of the problems."""
    study = Study(compose.compose(WORDS), tmp_path_factory.mktemp("warm"))
    looks = list(study.warm_start(enough=ENOUGH, prompts=100))
    assert looks[-1]["held_out_accuracy"] >= ENOUGH
    return Weights.of(study.engine)


def reinforced(warm: Weights, folder: Path, steps: int, control: bool) -> list[dict[str, Any]]:
    config = compose.compose(WORDS)
    study = Study(config, folder, shuffled) if control else Study(config, folder)
    study.load(warm)
    return list(study.reinforce(Budget(steps=steps), every=1))


@pytest.mark.timeout(240)
def test_grpo_gains_twenty_points(warm: Weights, tmp_path: Path) -> None:
    first, *_, last = reinforced(warm, tmp_path, steps=10, control=False)
    assert 0.2 <= first["held_out_accuracy"] <= 0.55
    assert last["held_out_accuracy"] - first["held_out_accuracy"] >= 0.2


@pytest.mark.timeout(240)
def test_shuffled_rewards_gain_nothing(warm: Weights, tmp_path: Path) -> None:
    first, *_, last = reinforced(warm, tmp_path, steps=7, control=True)
    assert last["held_out_accuracy"] - first["held_out_accuracy"] <= 0.03
