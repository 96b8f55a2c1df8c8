"""Every kind of source: its documents, its splits, and the one line for what is wrong with it."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as arrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from farside.configs.errors import UserError
from farside.configs.schema import SourceConfig, SourceKind
from farside.data.sources import SPLITS, Source
from tests.data.documents import read_source

TEXTS = [f"Document {number}: 文 and \u2028 more.\n" for number in range(200)]


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="\n") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": number, field: text}, ensure_ascii=number % 2 == 0) + "\n")
    return path


def write_parquet(path: Path, texts: list[str | None], field: str = "text") -> Path:
    parquet.write_table(arrow.table({"id": list(range(len(texts))), field: texts}), path, row_group_size=50)
    return path


def write_dataset(path: Path, texts: list[str], field: str = "text") -> Path:
    datasets.Dataset.from_dict({"id": list(range(len(texts))), field: texts}).save_to_disk(path)
    return path


def write_text(path: Path, texts: list[str]) -> Path:
    path.write_text("\n\f\n".join(texts), encoding="utf-8")
    return path


WRITERS: dict[str, tuple[SourceKind, str, Callable[[Path, list[str]], Path]]] = {
    "text": (SourceKind.text, "a.txt", write_text),
    "jsonl": (SourceKind.jsonl, "a.jsonl", write_jsonl),
    "gzipped jsonl": (SourceKind.jsonl, "a.jsonl.gz", write_jsonl),
    "parquet": (SourceKind.parquet, "a.parquet", write_parquet),
    "datasets": (SourceKind.datasets, "a", write_dataset),
}


@pytest.mark.parametrize("name", WRITERS)
def test_one_set_is_dealt_out_by_its_documents_hash(tmp_path: Path, name: str) -> None:
    kind, file, write = WRITERS[name]
    path = write(tmp_path / file, TEXTS)
    found = read_source("s", SourceConfig(kind=kind, path=str(path)))
    expected = [text.strip() if name == "text" else text for text in TEXTS]
    assert sorted(document for split in SPLITS for document in found[split]) == sorted(expected)
    for split, share in (("train", 0.85), ("validation", 0.05), ("haystack", 0.1)):
        assert [text for text in expected if text in found[split]] == found[split], "in the files' order"
        assert abs(len(found[split]) / 200 - share) < 0.06
    twice = write(tmp_path / f"twice-{file}", [*TEXTS[100:], *TEXTS])
    again = read_source("s", SourceConfig(kind=kind, path=str(twice)))
    for split in SPLITS:
        assert set(again[split]) == set(found[split]), "a document's split depends on nothing beside it"


def test_shares_decide_how_much(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    shares = {"train": 0.2, "validation": 0.5, "haystack": 0.3}
    found = read_source("s", SourceConfig(kind=SourceKind.jsonl, path=str(path), shares=shares))
    assert [abs(len(found[split]) / 200 - share) < 0.1 for split, share in shares.items()] == [True] * 3
    for wrong in ({"train": 1.0}, {**shares, "train": 0.3}, {"train": 0.7, "validation": 0.3, "haystack": 0.0}):
        with pytest.raises(UserError, match=r"data\.sources\.s\.shares: give train, validation, haystack"):
            Source("s", SourceConfig(kind=SourceKind.jsonl, path=str(path), shares=wrong))


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "datasets"])
def test_every_split_may_have_its_own_files_and_shares_no_document(tmp_path: Path, name: str) -> None:
    """Held-out splits keep what several hold; a glob's files come in order of name."""
    kind, file, write = WRITERS[name]
    for folder, parts in {"t": [["z", "both"], ["a", "dup", "a"]], "v": [["v", "dup"]], "h": [["h", "both"]]}.items():
        (tmp_path / folder).mkdir()
        for number, texts in enumerate(parts):
            write(tmp_path / folder / f"{number}-{file}", texts)
    splits = {
        "train": f"{tmp_path}/t/*{file[1:]}",
        "validation": f"{tmp_path}/v/0-{file}",
        "haystack": f"{tmp_path}/[h]/*",
    }
    found = read_source("s", SourceConfig(kind=kind, splits=splits))
    assert found == {"train": ["z", "a", "a"], "validation": ["v", "dup"], "haystack": ["h", "both"]}
    with pytest.raises(UserError, match=r"s\.splits: give train, validation, haystack, each once"):
        Source("s", SourceConfig(kind=kind, splits={"train": "x"}))
    with pytest.raises(UserError, match=r"s\.splits\.haystack: no .*nothing"):
        read_source("s", SourceConfig(kind=kind, splits={**splits, "haystack": str(tmp_path / "nothing*")}))


def test_a_data_set_with_splits(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_dict({"body": [name, "both"]}) for name in ("a", "b", "c")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    config = SourceConfig(kind=SourceKind.datasets, path=str(tmp_path / "set"), field="body")
    config.splits = {"train": "a", "validation": "b", "haystack": "c"}
    assert read_source("s", config) == {"train": ["a"], "validation": ["b"], "haystack": ["c", "both"]}
    config.splits["train"] = "d"
    with pytest.raises(UserError, match="has no split 'd'; there are a, b, c"):
        read_source("s", config)
    config.splits = {}
    with pytest.raises(UserError, match="has no split 'train'; there are a, b, c"):
        read_source("s", config)


def test_no_hub_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data\.sources\.s\.path: no data set 'some/name' \(") as error:
        read_source("s", SourceConfig(kind=SourceKind.datasets, path="some/name"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a.train", "a b"])
def test_a_name_must_do_for_a_file(name: str) -> None:
    with pytest.raises(UserError, match="letters, digits, _ and - only"):
        Source(name, SourceConfig(kind=SourceKind.python_stdlib))


@given(st.text(alphabet="ab\n\f\r 文", max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_streamed_text_is_split_as_whole_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    whole = [part.strip() for part in path.read_text(encoding="utf-8").split("\n\f\n")]
    config = SourceConfig(path=str(path))
    documents = [part for part in whole if part]
    if documents:
        assert list(Source("s", config)._read([path])) == documents
    else:
        with pytest.raises(UserError, match="is empty"):
            list(Source("s", config)._read([path]))


def line(record: object) -> bytes:
    return json.dumps(record).encode() + b"\n"


GOOD = line({"text": "Good."})
BAD_JSONL: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "is empty"),
    "bad UTF-8": (GOOD + b'{"text": "\xff"}\n', r"line 2 is not UTF-8 \(byte 10 of the line\)"),
    "no JSON": (GOOD + b"{'text': 1}\n", "line 2 is no JSON"),
    "deep JSON": (GOOD + b"[" * 100_000 + b"\n", "line 2 is no JSON"),
    "no object": (GOOD * 2 + b"[1]\n", r"line 3 has no field 'text' \(there: list\)"),
    "no field": (line({"body": "x", "id": 1}), r"line 1 has no field 'text' \(there: body, id\).*s\.field"),
    "a number": (GOOD + b"\n" + line({"text": 7}), "line 3: field 'text' is no text but int"),
    "null": (line({"text": None}), "line 1: field 'text' is no text but NoneType"),
    "blank": (GOOD + line({"text": " \n"}), "line 2: the document is empty"),
    "half a character": (b'{"text": "a\\ud83d"}\n', r"line 1 holds half a character \(at 1\)"),
}


def refused(kind: SourceKind, path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_source("s", SourceConfig(kind=kind, path=str(path)))
    assert str(path) in str(error.value)
    assert "data.sources.s" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BAD_JSONL)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_jsonl_names_the_line(tmp_path: Path, name: str, suffix: str) -> None:
    content, message = BAD_JSONL[name]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    refused(SourceKind.jsonl, path, message)


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl.gz", TEXTS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    refused(SourceKind.jsonl, path, r"is cut off or damaged after line \d+")
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 255]) + whole[101:])
    refused(SourceKind.jsonl, path, r"is cut off or damaged after line \d+|is no JSON|cannot be read|not UTF-8")
    path.write_bytes(b"plain")
    refused(SourceKind.jsonl, path, "cannot be read .*gzip")


def test_bad_parquet_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, [*TEXTS[:70], None])
    refused(SourceKind.parquet, path, "row 70: field 'text' is no text but NoneType")
    write_parquet(path, [*TEXTS[:3], "  "])
    refused(SourceKind.parquet, path, "row 3: the document is empty")
    write_parquet(path, [])
    refused(SourceKind.parquet, path, "is no text|is empty")
    write_parquet(path, TEXTS[:2], "body")
    refused(SourceKind.parquet, path, r"has no column 'text' \(there: id, body\)")
    bad = arrow.array([b"fine", b"\xff"], arrow.binary()).view(arrow.string())
    parquet.write_table(arrow.table({"text": bad}), path)
    refused(SourceKind.parquet, path, r"row 1 is not UTF-8 \(byte 0 of the text\)")
    path.write_bytes(path.read_bytes()[:-9])
    refused(SourceKind.parquet, path, "no sound Parquet")


def test_bad_data_sets_are_named(tmp_path: Path) -> None:
    refused(
        SourceKind.datasets, write_dataset(tmp_path / "body", TEXTS, "body"), r"has no field 'text' \(there: id, body"
    )
    refused(SourceKind.datasets, write_dataset(tmp_path / "blank", ["a", " "]), "row 1: the document is empty")
    (tmp_path / "none").mkdir()
    refused(SourceKind.datasets, tmp_path / "none", "no data set")


def test_bad_text_names_the_byte_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for place in (0, 8191, 8192, 1 << 20, (1 << 20) + 5):
        path.write_bytes(b"a" * place + b"\xe6\x96")
        refused(SourceKind.text, path, rf"is not UTF-8 \(byte {place}\)")


@pytest.mark.parametrize("kind", [SourceKind.jsonl, SourceKind.parquet, SourceKind.repositories, SourceKind.text])
def test_missing_files_name_the_key(tmp_path: Path, kind: SourceKind) -> None:
    refused(kind, tmp_path / "nowhere.x", r"data\.sources\.s\.path: no ")


def test_a_split_without_documents_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:1])
    with pytest.raises(UserError, match=r"no document for .*; give more documents.* or other shares"):
        read_source("s", SourceConfig(kind=SourceKind.jsonl, path=str(path)))


def write_repository(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


FILES: dict[str, bytes | str] = {
    "src/b.py": "print('b')\n",
    "src/a.py": "print('ä')\n",
    "src/a/z.py": "z = 1",
    "README.md": "Read me.",
    ".git/config": "secret",
    "node_modules/x/index.js": "vendored",
    "deep/vendor/y.go": "vendored",
    "logo.png": b"\x89PNG\0\0",
    "latin.txt": b"caf\xe9",
    "blank.py": " \n",
    "poetry.lock": "made",
    "huge.py": "x" * 1000,
}
READ_FIRST = "# file: README.md\nRead me.\n# file: src/a/z.py\nz = 1"
WHOLE = READ_FIRST + "\n# file: src/a.py\nprint('ä')\n# file: src/b.py\nprint('b')"


def repositories(path: Path, **more: int) -> list[str]:
    config = SourceConfig(kind=SourceKind.repositories, path=str(path), max_file_bytes=500)
    for key, value in more.items():
        setattr(config, key, value)
    source = Source("s", config)
    return list(source._read(source._find(config.path, "path")))


def test_a_repository_is_one_document(tmp_path: Path) -> None:
    one = write_repository(tmp_path / "all" / "one", FILES)
    (one / "link.py").symlink_to(one / "README.md")
    (one / "loop").symlink_to(one)
    assert repositories(one) == [WHOLE]
    write_repository(tmp_path / "all" / "two", {"main.c": "int main;"})
    assert repositories(tmp_path / "all") == [WHOLE, "# file: main.c\nint main;"]
    assert repositories(one, max_bytes=60) == [READ_FIRST]
    odd = os.fsencode(tmp_path / "all" / "two") + b"/\xff.c"
    with open(odd, "w") as file:
        file.write("odd")
    assert repositories(tmp_path / "all")[1:] == ["# file: main.c\nint main;\n# file: \ufffd.c\nodd"]


def test_what_is_no_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no folder"):
        repositories(tmp_path)
    write_repository(tmp_path / "empty", {"logo.png": b"\0"})
    with pytest.raises(UserError, match=r"empty holds no text file"):
        repositories(tmp_path)


def test_repositories_in_splits(tmp_path: Path) -> None:
    for split in SPLITS:
        write_repository(tmp_path / split / "some", {"name.txt": split})
    splits = {split: str(tmp_path / split) for split in SPLITS}
    found = read_source("s", SourceConfig(kind=SourceKind.repositories, splits=splits))
    assert found == {split: [f"# file: name.txt\n{split}"] for split in SPLITS}
