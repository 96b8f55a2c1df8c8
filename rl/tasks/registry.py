"""Tasks by name. Imports no optional package before its task is asked for."""

import difflib
import importlib
from pathlib import Path
from typing import Any

from farside.configs.errors import UserError
from farside.configs.schema import TaskConfig
from farside.rl.reward.sandbox import Sandbox
from farside.rl.tasks.addition import AdditionDataset, AdditionTask
from farside.rl.tasks.code import CodeTask
from farside.rl.tasks.countdown import OPERATIONS, CountdownDataset, CountdownTask
from farside.rl.tasks.dataset import Dataset, DatasetTask, VerifiedTask
from farside.rl.tasks.formats import FORMATS
from farside.rl.tasks.levels import leveled
from farside.rl.tasks.own import make_own_task
from farside.rl.tasks.problems import ProblemTask

OWN_FORMS = ("reasoning_gym:<family>", "python:<module>:<name>", "code:<path>")
KNOWN = ("addition", "countdown", *OWN_FORMS, *(f"{form}:<path>" for form in FORMATS))

DRAWN_ITEMS = 1_000_000_000
"""Items of a task whose items cost nothing until they are asked for."""
MAX_DIGITS = 1000
"""Python refuses to print numbers past 4,300 digits, and nobody asks for such sums."""
MAX_NUMBERS, MAX_VALUE, MAX_TRIES = 12, 10**6, 1000
"""Beyond these a countdown problem is no longer one for a model's context."""

MIN_CODE_MB = 64
"""Python itself needs half of that."""

GYM_ITEMS = 20_000
"""Size to ask of reasoning-gym: some families refuse more (word_ladder) or make every item at once (acre)."""


def make_task(config: TaskConfig) -> VerifiedTask:
    """The task that ``config`` names.

    Raises:
        UserError: unknown name or family, missing package, or settings out of range.
    """
    if config.name == "addition":
        return _addition(config)
    if config.name == "countdown":
        return _countdown(config)
    package, colon, family = config.name.partition(":")
    if package == "reasoning_gym" and colon:
        return _reasoning_gym(config, family)
    if package == "python" and colon:
        return make_own_task(config, family)
    if colon and package in ("code", *FORMATS):
        path, held_out = _file("name", family), _file("held_out", config.held_out) if config.held_out else None
        if package == "code":
            return CodeTask(config.name, path, held_out, config.seed, _sandbox(config))
        return ProblemTask(config.name, FORMATS[package], path, held_out, config.seed)
    near = difflib.get_close_matches(package, [known.partition(":")[0] for known in KNOWN], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"sft.task.name={config.name}: unknown task{hint or ';'} known: {', '.join(KNOWN)}")


def _file(key: str, text: str) -> Path:
    """A file of problems; it is read when the first problem is asked for."""
    if not text or not (path := Path(text)).exists():
        raise UserError(f"sft.task.{key}: there is no file or folder {text!r}; name one with problems")
    return path


def _sandbox(config: TaskConfig) -> Sandbox:
    if config.code_seconds <= 0 or config.code_memory_mb < MIN_CODE_MB:
        raise UserError(
            f"sft.task.code_seconds={config.code_seconds}, sft.task.code_memory_mb={config.code_memory_mb}: "
            f"choose more than 0, and at least {MIN_CODE_MB}"
        )
    return Sandbox(config.code_isolated, config.code_seconds, config.code_memory_mb << 20)


def _addition(config: TaskConfig) -> DatasetTask:
    least = _least("digits", config.digits, config.min_digits, 1, MAX_DIGITS)
    dataset = AdditionDataset(config.digits, config.seed, DRAWN_ITEMS, least)
    return AdditionTask(dataset, *_shares(config))


def _countdown(config: TaskConfig) -> DatasetTask:
    least = _least("numbers", config.numbers, config.min_numbers, 2, MAX_NUMBERS)
    for key, value in (("largest", config.largest), ("largest_target", config.largest_target)):
        if not 1 <= value <= MAX_VALUE:
            raise UserError(f"sft.task.{key}={value}: choose 1 to {MAX_VALUE}")
    if not config.operations or set(config.operations) - set(OPERATIONS):
        raise UserError(f"sft.task.operations={config.operations!r}: choose from {OPERATIONS!r}")
    if not 0 <= config.tries <= MAX_TRIES:
        raise UserError(f"sft.task.tries={config.tries}: choose 0 to {MAX_TRIES}")
    sizes = (least, config.numbers, config.largest, config.largest_target)
    dataset = CountdownDataset(*sizes, config.operations, config.seed, DRAWN_ITEMS)
    task = CountdownTask(dataset, *_shares(config), config.tries, config.systematic, config.operations)
    try:
        task.prompt("held_out", 0)
    except ValueError as error:
        raise UserError(
            f"sft.task.largest_target={config.largest_target}: {error}; raise it or lower sft.task.numbers"
        ) from error
    return task


def _least(key: str, most: int, least: int | None, low: int, high: int) -> int:
    """The smallest difficulty: ``least``, or ``most`` if that is not given."""
    if not low <= most <= high:
        raise UserError(f"sft.task.{key}={most}: choose {low} to {high}")
    if least is not None and not low <= least <= most:
        raise UserError(f"sft.task.min_{key}={least}: choose {low} to sft.task.{key}={most}")
    return most if least is None else least


def _shares(config: TaskConfig) -> tuple[float, float]:
    shares = (config.full_share, config.compact_share)
    if min(shares) < 0 or sum(shares) > 1:
        raise UserError(
            f"sft.task.full_share={shares[0]}, sft.task.compact_share={shares[1]}: choose shares of at most 1 in all"
        )
    return shares


def _reasoning_gym(config: TaskConfig, family: str) -> DatasetTask:
    try:
        gym = importlib.import_module("reasoning_gym")
        families = importlib.import_module("reasoning_gym.factory").DATASETS
    except ImportError as error:
        raise UserError(
            f"sft.task.name={config.name} needs the reasoning-gym package ({error}): pip install reasoning-gym==0.1.25"
        ) from error
    if family not in families:
        near = difflib.get_close_matches(family, families, n=5) or sorted(families)
        raise UserError(f"sft.task.name={config.name}: reasoning-gym has no family {family!r}; try {', '.join(near)}")

    def make(key: str, options: dict[str, Any]) -> Dataset:
        try:
            return gym.create_dataset(family, **{"seed": config.seed, "size": GYM_ITEMS, **options})
        except (TypeError, ValueError, AssertionError) as error:  # it checks its settings with assert
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"sft.task.{key}={options}: reasoning-gym's {family} refuses it: {reason}") from error

    return DatasetTask(config.name, leveled(config, make))
