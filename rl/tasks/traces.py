"""Conversations for the supervised warm start, generated from a task's training split."""

import json
import os
from pathlib import Path

from farside.configs.errors import UserError
from farside.configs.schema import Config
from farside.data.chat import TRACES
from farside.rl.origin import difference, note, settings_of
from farside.rl.tasks.registry import make_task


def write_traces(config: Config, directory: Path) -> Path:
    """The conversations to learn from: those of sft.conversations, else ``sft.traces`` worked answers, written to
    traces.jsonl unless they are there; the same ones every time.

    Raises:
        UserError: it is there, but of other settings.
    """
    if config.sft.conversations is not None:
        return Path(config.sft.conversations)
    path = directory / TRACES
    settings = settings_of(config, "sft.task.", "sft.traces")
    if changed := difference(path, settings):
        raise UserError(changed)
    if path.is_file():
        return path
    note(path, settings)
    task = make_task(config.sft.task)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", encoding="utf-8") as stream:
        for index in range(config.sft.traces):
            prompt = task.prompt("train", index)
            record = {"question": prompt.question, "response": task.trace(prompt, seed=index)}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.replace(unfinished, path)
    return path
