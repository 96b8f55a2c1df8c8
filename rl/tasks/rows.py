"""Rows out of a file of problems: JSONL, JSON, Parquet, or a Hugging Face data set saved to disk."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from farside.configs.errors import UserError

Row = dict[str, Any]


def read_rows(key: str, path: Path) -> Iterator[tuple[str, Row]]:
    """(where, row) of each row: where names it for messages, e.g. "task.name: sums.jsonl line 3".

    A folder is a data set that ``datasets`` saved; .parquet and .json (one list) by their names; else JSONL, whose
    blank lines are left out.

    Raises:
        UserError: the file cannot be read, or a row is no object.
    """
    try:
        if path.is_dir():
            yield from _saved(key, path)
        elif path.suffix == ".parquet":
            yield from _parquet(key, path)
        elif path.suffix == ".json":
            yield from _json(key, path)
        else:
            yield from _jsonl(key, path)
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read ({error.strerror or error}); name a file of problems") from error


def _jsonl(key: str, path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{key}: {path} line {number}"
                yield where, _object(where, _parsed(where, line))


def _json(key: str, path: Path) -> Iterator[tuple[str, Row]]:
    rows = _parsed(f"{key}: {path}", path.read_bytes())
    if not isinstance(rows, list):
        raise UserError(f"{key}: {path} is no list of problems; make it one, or a .jsonl file")
    for number, row in enumerate(rows):
        where = f"{key}: {path} row {number}"
        yield where, _object(where, row)


def _parsed(where: str, text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"{where} is no JSON ({error}); mend or remove it") from error


def _object(where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where} is no object with named fields but {type(row).__name__}; mend or remove it")
    return row


def _parquet(key: str, path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except arrow.ArrowException as error:
        raise UserError(f"{key}: {path} is no Parquet file ({error}); mend or remove it") from error
    yield from ((f"{key}: {path} row {number}", row) for number, row in enumerate(rows))


def _saved(key: str, path: Path) -> Iterator[tuple[str, Row]]:
    import datasets

    try:
        found: Any = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise UserError(f"{key}: {path} is no data set that `datasets` saved; name its folder") from error
    if isinstance(found, datasets.DatasetDict):
        names = list(found)
        raise UserError(f"{key}: {path} holds the splits {', '.join(names)}; name one of them: {path / names[0]}")
    yield from ((f"{key}: {path} row {number}", dict(row)) for number, row in enumerate(found))
