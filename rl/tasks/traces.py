"""Conversations for the supervised warm start, generated from a task's training split.

``python -m farside.rl.tasks.traces KEY=VALUE ...`` writes them into run.dir: for a warm start under a bare torchrun.
"""

import json
import os
import sys
from pathlib import Path

from farside.configs import compose
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


def main(words: list[str]) -> int:
    """Returns the exit code."""
    try:
        config = compose.compose(words)
        directory = Path(config.run.dir)
        directory.mkdir(parents=True, exist_ok=True)
        print(write_traces(config, directory))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
