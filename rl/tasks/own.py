"""A task in Python of one's own: ``sft.task.name=python:MODULE:NAME``, where NAME(**options) makes a ``Dataset``."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from farside.configs.errors import UserError
from farside.configs.schema import TaskConfig
from farside.data.chat import END, END_THINK, THINK
from farside.rl.tasks.dataset import Dataset, DatasetTask
from farside.rl.tasks.levels import LeveledDataset, leveled
from farside.rl.types import Prompt


class OwnTask(DatasetTask):
    """Its data set may have ``work(entry, seed) -> str``: the scratch work of a worked answer."""

    def trace(self, prompt: Prompt, seed: int) -> str:
        entry = self._entry(prompt)
        dataset = self.dataset.level_of(entry) if isinstance(self.dataset, LeveledDataset) else self.dataset
        work: Callable[[dict[str, Any], int], str] = getattr(dataset, "work", lambda entry, seed: "")
        return f"{THINK}{work(entry, seed)}{END_THINK}{prompt.answer}{END}"


def make_own_task(config: TaskConfig, named: str) -> OwnTask:
    """Imports MODULE from the working directory or PYTHONPATH.

    Raises:
        UserError: no such module or name, options that it refuses, or no data set.
    """
    where = f"sft.task.name={config.name}"
    module, _, name = named.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last: nothing there takes the place of an installed module
    try:
        maker = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}: {error}; give python:MODULE:NAME, a module in the working directory or on PYTHONPATH and what "
            "makes a data set there"
        ) from error

    def make(key: str, options: dict[str, Any]) -> Dataset:
        try:
            dataset: Dataset = maker(**options)
        except (TypeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"sft.task.{key}={options}: {named} refuses it: {reason}") from error
        lacking = [method for method in ("__len__", "__getitem__", "score_answer") if not hasattr(dataset, method)]
        if lacking:
            raise UserError(f"{where}: what {named} makes has no {', '.join(lacking)}; docs/own.md shows a data set")
        if len(dataset) < 1:
            raise UserError(f"sft.task.{key}={options}: {named} makes a data set without problems")
        return dataset

    return OwnTask(config.name, leveled(config, make))
