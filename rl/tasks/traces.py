"""Conversations for the supervised warm start, generated from a task's training split."""

import json
import os
from pathlib import Path

from farside.configs.schema import SftConfig
from farside.data.chat import TRACES
from farside.rl.tasks.registry import make_task


def write_traces(config: SftConfig, directory: Path) -> Path:
    """Writes ``config.traces`` worked answers to traces.jsonl unless it is there; the same ones every time."""
    path = directory / TRACES
    if path.is_file():
        return path
    task = make_task(config.task)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", encoding="utf-8") as stream:
        for index in range(config.traces):
            prompt = task.prompt("train", index)
            record = {"question": prompt.question, "response": task.trace(prompt, seed=index)}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.replace(unfinished, path)
    return path
