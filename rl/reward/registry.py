"""A trained reward model by its checkpoint."""

import json
from pathlib import Path

from farside.configs.errors import UserError
from farside.configs.schema import RewardKind
from farside.data.prepare import Prepared
from farside.rl.policy import load_unsharded
from farside.rl.reward.model import Judge, RewardModel
from farside.rl.reward.process import ProcessModel
from farside.rl.reward.steps import StepFinder
from farside.rl.tasks.registry import make_task
from farside.train.runtime import Runtime

NORMALISATION = "normalisation.json"
"""In the run directory of ``farside reward``: {"kind", "center", "scale"}."""


def load_judge(runtime: Runtime, data: Prepared, path: Path) -> Judge:
    """Unsharded on every rank. Raises UserError if it is of another model or no reward model. Collective."""
    model, checkpoint = load_unsharded(runtime, data, path, "scalar")
    folder = checkpoint.path.parent.parent
    if not (folder / NORMALISATION).is_file():
        raise UserError(f"rl.reward_model: {folder} is not finished: it has no {NORMALISATION}; go on with it first")
    described = json.loads((folder / NORMALISATION).read_text())
    spread = described["center"], described["scale"]
    if described.get("kind", RewardKind.outcome.value) == RewardKind.outcome.value:  # the only kind there was once
        return RewardModel(model, *spread)
    separator = make_task(runtime.config.sft.task).step_separator
    return ProcessModel(model, StepFinder(data.tokenizer, separator), *spread)
