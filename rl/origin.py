"""What a file that is made once was made with: a note beside it, so that other settings do not go unnoticed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farside.configs import compose
from farside.configs.schema import Config
from farside.train.metrics import write_json


def settings_of(config: Config, *beginnings: str) -> dict[str, Any]:
    """Values by dotted key, of keys that begin with any of those."""
    return {key: value for key, value in compose.flat(config).items() if key.startswith(beginnings)}


def note(path: Path, settings: Mapping[str, Any]) -> None:
    """Written before ``path`` is."""
    write_json(_note_of(path), dict(settings))


def difference(path: Path, settings: Mapping[str, Any]) -> str:
    """What differs from when ``path`` was made, in one line that says what to do; empty if nothing does. What an older
    version did not note is not compared."""
    if not (path.is_file() and _note_of(path).is_file()):
        return ""
    earlier, now = json.loads(_note_of(path).read_text()), json.loads(json.dumps(settings))
    changed = [f"{key} = {earlier[key]!r}, now {now[key]!r}" for key in now if earlier.get(key, now[key]) != now[key]]
    if not changed:
        return ""
    return f"{path} was made with {', '.join(changed)}; give back what it was, use another run.dir, or delete the file"


def _note_of(path: Path) -> Path:
    return path.with_suffix(".made_with.json")
