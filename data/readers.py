"""Documents out of files, one at a time: text, JSONL (also gzipped), Parquet, and Hugging Face data sets.

Whatever is wrong with a file is a UserError that names it and the line (from 1), row (from 0) or byte.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from farside.configs.errors import UserError
from farside.configs.schema import SourceConfig, SourceKind

DOCUMENT_BREAK = "\f\n"
"""A line of its own between two documents of a text file."""
_ROWS = 64
"""Rows of a table in memory at once."""


def read_files(key: str, files: list[Path], config: SourceConfig) -> Iterator[str]:
    """Documents of the files in order. key: of the configuration, for messages."""
    for path in files:
        documents = 0
        try:
            for document in _read_file(key, path, config):
                documents += 1
                yield document
        except OSError as error:
            raise UserError(f"{key}: {path} cannot be read ({error.strerror or error}); mend or remove it") from error
        if not documents:
            raise UserError(f"{key}: {path} is empty; put text there or remove the source")


def _read_file(key: str, path: Path, config: SourceConfig) -> Iterator[str]:
    if config.kind is SourceKind.text:
        return _text(key, path)
    if config.kind is SourceKind.jsonl:
        return _jsonl(key, path, config.field)
    assert config.kind is SourceKind.parquet
    return _parquet(key, path, config.field)


def _text(key: str, path: Path) -> Iterator[str]:
    """Blank documents are left out."""
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line == DOCUMENT_BREAK:
                    if document := "".join(lines).strip():
                        yield document
                    lines = []
                else:
                    lines.append(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {path} is not UTF-8 (byte {_first_bad_byte(path)}); convert it") from error
    if document := "".join(lines).strip():
        yield document


def _first_bad_byte(path: Path) -> int:
    """The text layer tells only where in its buffer."""
    decoder, place = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(1 << 20)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                return place - pending + error.start
            assert chunk, "the file was not UTF-8"
            place += len(chunk)


def _jsonl(key: str, path: Path, field: str) -> Iterator[str]:
    number = 0
    with cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _checked(_field_of(line, field, f"{key}: {path} line {number}"), field, path, number, key)
        except (EOFError, zlib.error) as error:
            raise UserError(f"{key}: {path} is cut off or damaged after line {number} ({error}); mend it") from error


def _field_of(line: bytes, field: str, where: str) -> Any:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 (byte {error.start} of the line); convert it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error}); mend or remove it") from error
    if not isinstance(record, dict) or field not in record:
        there = ", ".join(sorted(record)[:8]) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{where} has no field {field!r} (there: {there}); name another in {where.split(':')[0]}.field")
    return record[field]


def _checked(text: Any, field: str, path: object, place: int, key: str, unit: str = "line") -> str:
    where = f"{key}: {path} {unit} {place}"
    if not isinstance(text, str):
        raise UserError(f"{where}: field {field!r} is no text but {type(text).__name__}; mend or remove it")
    if not text.strip():
        raise UserError(f"{where}: the document is empty; remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
        raise UserError(f"{where} holds half a character (at {error.start}); mend or remove it") from error
    return text


def _parquet(key: str, path: Path, field: str) -> Iterator[str]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                there = ", ".join(columns[:8])
                raise UserError(f"{key}: {path} has no column {field!r} (there: {there}); name another in {key}.field")
            yield from _rows(file.iter_batches(_ROWS, columns=[field]), key, path, field)
    except arrow.ArrowException as error:
        raise UserError(f"{key}: {path} is no sound Parquet ({' '.join(str(error).split())}); mend it") from error


def _rows(batches: Iterable[Any], key: str, path: object, field: str) -> Iterator[str]:
    """batches: Arrow record batches or tables of which the first column is the field."""
    place = 0
    for batch in batches:
        for value in batch.column(0):
            try:
                text = value.as_py()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{key}: {path} row {place} is not UTF-8 (byte {error.start} of the text); convert it"
                ) from error
            yield _checked(text, field, path, place, key, "row")
            place += 1


def read_datasets(key: str, config: SourceConfig, folder: Path | None, split: str | None) -> Iterator[str]:
    """Rows of a data set: of ``folder`` as save_to_disk writes it, else of the hub. No code of a data set is ever run.

    split: the data set's own; None: its only one, or train.
    """
    import datasets

    where = str(folder) if folder else config.path
    try:
        if folder:
            found: Any = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(config.path, config.subset or None)
    except Exception as error:  # whatever the hub, its client or a foreign folder brings up
        cause = " ".join(str(error).split())
        raise UserError(
            f"{key}.path: no data set {where!r} ({type(error).__name__}: {cause}); name a folder of save_to_disk or a "
            "data set on a hub that can be reached"
        ) from error
    if isinstance(found, dict):
        wanted = split or (next(iter(found)) if len(found) == 1 else "train")
        if wanted not in found:
            raise UserError(f"{key}.splits: {where} has no split {wanted!r}; there are {', '.join(sorted(found))}")
        found = found[wanted]
    elif split is not None:
        raise UserError(f"{key}.splits: {where} is one set without splits; leave splits out, and shares deal it out")
    if config.field not in found.column_names:
        there = ", ".join(found.column_names[:8])
        raise UserError(f"{key}: {where} has no field {config.field!r} (there: {there}); name another in {key}.field")
    if not len(found):
        raise UserError(f"{key}: {where} is empty; put text there or remove the source")
    batches = found.select_columns([config.field]).with_format("arrow").iter(batch_size=_ROWS)
    yield from _rows(batches, key, where, config.field)
