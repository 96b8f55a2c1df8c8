"""Whatever happens to the files of a checkpoint, by chance or on purpose, loading says which file is wrong."""

import hashlib
import json
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farside.configs.errors import UserError
from farside.train.checkpoint.format import MANIFEST, read
from tests.train.stand_in import write_as_ranks

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three ranks: six shards, three JSON files."""
    return write_as_ranks(tmp_path_factory.mktemp("original") / "step_00000001", 1, 3)


def content(path: Path) -> dict[str, Any]:
    """Everything that a checkpoint says."""
    found = read(path)
    tensors = {
        group: {n: t.numpy().tobytes() for n, t in found.tensors(group).items()} for group in sorted(found.groups)
    }
    return {"step": found.step, "state": found.state, **tensors}


# Each changes the folder and returns the names of the files of which one must be named.
Damage = Callable[[Path, random.Random], list[str]]


def flip(path: Path, dice: random.Random) -> list[str]:
    file = pick(path, dice)
    data = bytearray(file.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    file.write_bytes(data)
    return [file.name]


def cut(path: Path, dice: random.Random) -> list[str]:
    file = pick(path, dice)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: dice.choice([size - 1, size // 2, 0])])
    return [file.name]


def delete(path: Path, dice: random.Random) -> list[str]:
    file = pick(path, dice)
    file.unlink()
    return [file.name]


def swap(path: Path, dice: random.Random) -> list[str]:
    one, other = dice.sample(sorted(path.glob("*.safetensors")), 2)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    return [one.name, other.name]


def duplicate(path: Path, dice: random.Random) -> list[str]:
    """A rank's file in another's place, or beside them."""
    one, other = dice.sample(sorted(path.glob("*.safetensors")), 2)
    target = dice.choice([other, path / "model-00004-of-00003.safetensors", path / f"{one.name}.bak"])
    shutil.copy(one, target)
    return [target.name]


def extra(path: Path, dice: random.Random) -> list[str]:
    name = dice.choice(["notes.txt", ".hidden", "model.safetensors", "told-00001.json", "folder"])
    (path / name).mkdir() if name == "folder" else (path / name).write_bytes(dice.randbytes(dice.randrange(40)))
    return [name]


def edit(path: Path, dice: random.Random) -> list[str]:
    """Another digit in a JSON file, which stays JSON."""
    file = dice.choice(sorted(path.glob("*.json")))
    text = file.read_text()
    place = dice.choice([at for at, letter in enumerate(text) if letter in "123456789"])
    file.write_text(text[:place] + dice.choice([d for d in "123456789" if d != text[place]]) + text[place + 1 :])
    return [file.name]


def pick(path: Path, dice: random.Random) -> Path:
    return dice.choice(sorted(path.iterdir()))


KINDS: list[Damage] = [flip, cut, delete, swap, duplicate, extra, edit]


def hurt_and_read(original: Path, copy: Path, seed: int) -> None:
    dice = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    shutil.copytree(original, copy)
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    names = kind(copy, dice)
    if {file.name: file.read_bytes() if file.is_file() else b"" for file in copy.iterdir()} == before:
        raise AssertionError(f"{kind.__name__} with seed {seed} changed nothing")
    try:
        found = content(copy)
    except UserError as error:
        said = str(error)
        # a wrong manifest may call any of the others wrong
        assert MANIFEST in names or any(str(copy / name) in said for name in names), f"seed {seed}: {said}"
        assert str(copy) in said
        assert "\n" not in said
    else:  # not an accept if it says the same: white space, or the case of a \u escape
        assert MANIFEST in names, f"seed {seed}: {kind.__name__} of {names} went unnoticed"
        assert found == content(original), f"seed {seed}: another checkpoint was accepted"
    shutil.rmtree(copy)


@pytest.mark.timeout(60)
def test_280_mutations_and_none_is_accepted(original: Path, tmp_path: Path) -> None:
    for seed in range(280):
        hurt_and_read(original, tmp_path / "step_00000001", seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_7000_mutations_and_none_is_accepted(original: Path, tmp_path: Path) -> None:
    for seed in range(280, 7280):
        hurt_and_read(original, tmp_path / "step_00000001", seed)


# Hostile files: the manifest is made to agree with them, so that hashes do not save us.


def forge(original: Path, path: Path, name: str, data: bytes, size: int | None = None) -> Path:
    """A copy in which a file has other content (and, sparse, another size) and the manifest says so."""
    shutil.copytree(original, path)
    with (path / name).open("wb") as stream:
        stream.write(data)
        stream.truncate(size or len(data))
    manifest = json.loads((path / MANIFEST).read_text())
    with (path / name).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    manifest["files"][name] = {"size": (path / name).stat().st_size, "sha256": digest}
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


def shard(header: dict[str, Any] | bytes, data: int = 96, length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(encoded) if length is None else length).to_bytes(8, "little") + encoded + bytes(data)


def tensor(shape: list[int], offsets: list[int], dtype: str = "F64") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = {
    "a.weight": tensor([3, 3], [0, 72]),
    "b.weight": tensor([2, 2], [72, 104]),
    "norm.weight": tensor([2], [104, 120]),
}
HEADERS: dict[str, bytes] = {
    "a header of 2^63 bytes": shard(GOOD, 120, 1 << 63),
    "a header longer than the file": shard(GOOD, 120, 1 << 20),
    "no header at all": b"",
    "a length without header": (64).to_bytes(8, "little"),
    "no JSON": shard(b"not JSON at all!", 120),
    "JSON of depth 100,000": shard(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 120),
    "NaN": shard(b'{"a.weight":{"dtype":"F64","shape":[NaN,3],"data_offsets":[0,72]}}', 72),
    "overlapping": shard({**GOOD, "b.weight": tensor([2, 2], [40, 72])}, 120),
    "out of range": shard({**GOOD, "norm.weight": tensor([2], [104, 1 << 40])}, 120),
    "negative": shard({**GOOD, "norm.weight": tensor([2], [-16, 0])}, 120),
    "backwards": shard({**GOOD, "norm.weight": tensor([2], [120, 104])}, 120),
    "a shape whose product overflows": shard({**GOOD, "a.weight": tensor([1 << 62, 1 << 62], [0, 72])}, 120),
    "a huge shape of no bytes": shard({**GOOD, "a.weight": tensor([1 << 40, 0], [0, 0])}, 120),
    "another type": shard({**GOOD, "a.weight": tensor([3, 3], [0, 36], "F32")}, 84),
    "an unknown type": shard({**GOOD, "a.weight": tensor([3, 3], [0, 72], "F1024")}, 120),
    "another shape": shard({**GOOD, "a.weight": tensor([9, 1], [0, 72])}, 120),
    "a name with a path": shard(
        {**{k: v for k, v in GOOD.items() if k != "a.weight"}, "../../x": GOOD["a.weight"]}, 120
    ),
    "a name too many": shard({**GOOD, "more": tensor([1], [120, 128])}, 128),
    "a name too few": shard({"a.weight": GOOD["a.weight"]}, 72),
    "a name twice": shard(json.dumps(GOOD).replace('"b.weight"', '"a.weight"').encode(), 120),
    "bytes left over": shard(GOOD, 121),
}


def refused(path: Path, name: str) -> None:
    """One line that names the file, soon and without much memory."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        content(path)
    assert str(path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.monotonic() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "KiB"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", HEADERS)
def test_a_hostile_shard_is_refused(original: Path, tmp_path: Path, case: str) -> None:
    refused(forge(original, tmp_path / "step_00000001", SHARD, HEADERS[case]), SHARD)


@pytest.mark.timeout(60)
def test_a_header_of_more_than_100_megabytes_is_refused(original: Path, tmp_path: Path) -> None:
    data = (100_000_001).to_bytes(8, "little") + b"{"
    refused(forge(original, tmp_path / "step_00000001", SHARD, data, 100_000_200), SHARD)


def edited(file: Path, change: Callable[[dict[str, Any]], Any]) -> bytes:
    value = json.loads(file.read_text())
    change(value)
    return json.dumps(value).encode()


def a_weight(index: dict[str, Any]) -> dict[str, Any]:
    return index["model"]["tensors"]["a.weight"]


INDEXES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a piece gone": lambda index: a_weight(index)["pieces"].pop(),
    "a piece twice": lambda index: a_weight(index)["pieces"].append(a_weight(index)["pieces"][0]),
    "pieces that overlap": lambda index: a_weight(index)["pieces"][1].__setitem__(1, [2, 0]),
    "a huge shape": lambda index: a_weight(index).update(shape=[1 << 40, 1 << 40]),
    "a huge piece of a huge shape": lambda index: a_weight(index).update(
        shape=[1 << 40, 3], pieces=[[0, [0, 0], [1 << 40, 3]]]
    ),
    "an overflowing shape": lambda index: a_weight(index).update(shape=[1 << 62, 1 << 62]),
    "a negative offset": lambda index: a_weight(index)["pieces"][0].__setitem__(1, [-1, 0]),
    "a fraction": lambda index: a_weight(index)["pieces"][0].__setitem__(1, [0.0, 0]),
    "true for a count": lambda index: a_weight(index)["pieces"][0].__setitem__(0, True),
    "a file number out of range": lambda index: a_weight(index)["pieces"][0].__setitem__(0, 99),
    "a negative file number": lambda index: a_weight(index)["pieces"][0].__setitem__(0, -1),
    "another type": lambda index: a_weight(index).update(dtype="F32"),
    "an unknown type": lambda index: a_weight(index).update(dtype="os.system"),
    "an outside file": lambda index: index["model"]["files"].__setitem__(0, "../../../etc/passwd"),
    "an absolute file": lambda index: index["model"]["files"].__setitem__(0, "/etc/passwd"),
    "another name": lambda index: index["model"]["tensors"].update(x=index["model"]["tensors"].pop("a.weight")),
    "a group less": lambda index: index.pop("optimizer"),
    "no files": lambda index: index["model"].pop("files"),
    "a list": lambda index: index.update(model=[1, 2]),
    "grids of many cells": lambda index: a_weight(index).update(
        shape=[5000, 5000], pieces=[[0, [n, n], [1, 5000]] for n in range(5000)]
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", INDEXES)
def test_a_hostile_index_is_refused(original: Path, tmp_path: Path, case: str) -> None:
    path = tmp_path / "step_00000001"
    forge(original, path, "tensors.json", edited(original / "tensors.json", INDEXES[case]))
    with pytest.raises(UserError) as caught:
        read(path)
    # the index itself, or the shard that does not hold what it says
    assert "tensors.json" in str(caught.value) or str(path / "model-0000") in str(caught.value)


DEEP = b"[" * 100_000 + b"]" * 100_000
TEXTS: dict[str, bytes] = {
    "depth 100,000": DEEP,
    "depth 100,000 of objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "NaN": b'{"format": 2, "step": NaN, "files": {}, "model": NaN}',
    "Infinity": b'{"format": 2, "step": 1e999, "files": Infinity}',
    "a number of 5,000 digits": b'{"step": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"format": 2, "step": 1, "step": 1, "files": {}}',
    "a list": b"[1, 2, 3]",
    "null": b"null",
    "a text": b'"manifest"',
    "nothing": b"",
    "no UTF-8": b"\xff\xfe\x00",
    "a lone surrogate": b'{"\\ud800": "\\ud800"}',
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [MANIFEST, "tensors.json", "state.json"])
@pytest.mark.parametrize("case", TEXTS)
def test_hostile_json_is_refused(original: Path, tmp_path: Path, name: str, case: str) -> None:
    path = tmp_path / "step_00000001"
    if name == MANIFEST:
        shutil.copytree(original, path)
        (path / MANIFEST).write_bytes(TEXTS[case])
    else:
        forge(original, path, name, TEXTS[case])
    if name == "state.json" and case == "a lone surrogate":
        assert read(path).state == {"\ud800": "\ud800"}, "it is JSON, and a state may hold any"
        return
    refused(path, name)


@pytest.mark.parametrize("bad", ["../../etc/passwd", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\nb", "a\0b"])
def test_a_manifest_that_lists_other_places_is_refused(original: Path, tmp_path: Path, bad: str) -> None:
    path = tmp_path / "step_00000001"
    shutil.copytree(original, path)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][bad] = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))
    refused(path, MANIFEST)


@pytest.mark.parametrize("size", [-1, 1 << 63, True, 1.5, "1", None])
def test_a_size_that_is_none_is_refused(original: Path, tmp_path: Path, size: Any) -> None:
    path = tmp_path / "step_00000001"
    shutil.copytree(original, path)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][SHARD]["size"] = size
    (path / MANIFEST).write_text(json.dumps(manifest))
    refused(path, SHARD if size == 1 << 63 else MANIFEST)


def test_a_json_file_of_a_terabyte_is_not_read(original: Path, tmp_path: Path) -> None:
    path = tmp_path / "step_00000001"
    shutil.copytree(original, path)
    with (path / MANIFEST).open("r+b") as stream:
        stream.truncate(1 << 40)  # sparse: it costs nothing
    refused(path, MANIFEST)
