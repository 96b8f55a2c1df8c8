"""Tasks by name. Imports no optional package before its task is asked for."""

import difflib
import importlib

from farside.configs.errors import UserError
from farside.configs.schema import TaskConfig
from farside.rl.tasks.addition import AdditionDataset, AdditionTask
from farside.rl.tasks.dataset import DatasetTask

KNOWN = ("addition", "reasoning_gym:<family>")

ADDITION_ITEMS = 1_000_000_000
MAX_DIGITS = 1000
"""Python refuses to print numbers past 4,300 digits, and nobody asks for such sums."""

GYM_ITEMS = 20_000
"""Size to ask of reasoning-gym: some families refuse more (word_ladder) or make every item at once (acre)."""


def make_task(config: TaskConfig) -> DatasetTask:
    """The task that ``config`` names.

    Raises:
        UserError: unknown name or family, missing package, or digits out of range.
    """
    if config.name == "addition":
        if not 1 <= config.digits <= MAX_DIGITS:
            raise UserError(f"task.digits={config.digits}: choose 1 to {MAX_DIGITS}")
        shares = (config.full_share, config.compact_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError(
                f"task.full_share={shares[0]}, task.compact_share={shares[1]}: choose shares of at most 1 in all"
            )
        return AdditionTask(AdditionDataset(config.digits, config.seed, ADDITION_ITEMS), *shares)
    package, colon, family = config.name.partition(":")
    if package == "reasoning_gym" and colon:
        return _reasoning_gym(config.name, family, config.seed)
    raise UserError(f"task.name={config.name}: unknown task; known: {', '.join(KNOWN)}")


def _reasoning_gym(name: str, family: str, seed: int) -> DatasetTask:
    try:
        gym = importlib.import_module("reasoning_gym")
        families = importlib.import_module("reasoning_gym.factory").DATASETS
    except ImportError as error:
        raise UserError(
            f"task.name={name} needs the reasoning-gym package ({error}): pip install reasoning-gym==0.1.25"
        ) from error
    if family not in families:
        near = difflib.get_close_matches(family, families, n=5) or sorted(families)
        raise UserError(f"task.name={name}: reasoning-gym has no family {family!r}; try {', '.join(near)}")
    return DatasetTask(name, gym.create_dataset(family, seed=seed, size=GYM_ITEMS))
