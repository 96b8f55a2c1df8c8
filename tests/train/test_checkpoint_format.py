"""A checkpoint comes back bit for bit, or one line says which file is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from farside.configs.errors import UserError
from farside.configs.schema import CheckpointConfig
from farside.parallel.box import Box, Piece, Stored
from farside.train.checkpoint import format as checkpoint_format
from farside.train.checkpoint.format import MANIFEST, read, write
from farside.train.checkpoint.retention import newest
from farside.train.checkpoint.store import CheckpointStore
from farside.train.engine.base import EngineState

TENSORS = {
    "model": {"a.weight": torch.randn(5, 3, dtype=torch.float64), "b": torch.tensor([float("inf"), -0.0, 1e-45])},
    "optimizer": {"exp_avg.a.weight": torch.zeros(5, 3), "counts": torch.arange(4)},
}
STATE = {"tokens": 12, "loss": 0.1 + 0.2, "parent": None, "text": "远"}
FILES = ("model.safetensors", "optimizer.safetensors", "tensors.json", "state.json", MANIFEST)


class FakeEngine:
    """Only what the store asks of an engine."""

    def __init__(self, value: float) -> None:
        self.value = value

    def check_replicas(self) -> None:
        """Each rank holds its own."""

    def state_dict(self) -> EngineState:
        model, moment = (torch.full((3,), value) for value in (self.value, -self.value))
        box = Box.whole(model.shape)
        return EngineState({"w": Piece(model.shape, box, model)}, {"m.w": Piece(model.shape, box, moment)}, 5)

    def load_state_dict(self, model: Stored, optimizer: Stored, updates: int) -> None:
        box = Box.whole(model.shapes["w"])
        assert torch.equal(model.read("w", box), -optimizer.read("m.w", box))
        self.value, self.updates = model.read("w", box)[0].item(), updates


def store(directory: Path, keep: int = 2, **identity: Any) -> CheckpointStore:
    settings = CheckpointConfig(keep=keep, asynchronous=False)
    return CheckpointStore(directory, settings, None, identity or {"model.hidden_size": 8, "tokenizer": "abc"})


def test_round_trip_is_exact(tmp_path: Path) -> None:
    written = write(tmp_path / "step_00000007", 7, TENSORS, STATE)
    found = read(tmp_path / "step_00000007")
    assert found == written
    assert found.step == 7
    assert found.state == STATE
    for stem, named in TENSORS.items():
        loaded = found.tensors(stem)
        assert loaded.keys() == named.keys()
        for name, value in named.items():
            assert loaded[name].dtype == value.dtype
            assert loaded[name].numpy().tobytes() == value.numpy().tobytes()


def test_the_hash_pins_every_byte(tmp_path: Path) -> None:
    one = write(tmp_path / "a", 1, TENSORS, STATE).hash
    assert write(tmp_path / "b", 1, TENSORS, STATE).hash == one
    assert write(tmp_path / "c", 1, TENSORS, {**STATE, "tokens": 13}).hash != one
    assert write(tmp_path / "d", 2, TENSORS, STATE).hash != one


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x04
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flip a byte": flip,
    "truncate": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "lengthen": lambda file: file.write_bytes(file.read_bytes() + b"!"),
    "delete": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "a folder instead": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named(tmp_path: Path, name: str, damage: Callable[[Path], Any]) -> None:
    path = write(tmp_path / "step_00000007", 7, TENSORS, STATE).path
    damage(path / name)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert name in str(error.value) or name == MANIFEST  # a flip inside it may make another file the wrong one
    assert "\n" not in str(error.value)


def test_a_link_is_not_a_file_of_the_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "step_00000007", 7, TENSORS, STATE).path
    shutil.move(path / "model.safetensors", tmp_path / "elsewhere")
    (path / "model.safetensors").symlink_to("../elsewhere")
    with pytest.raises(UserError, match=r"model\.safetensors: corrupt"):
        read(path)


def test_no_flipped_bit_of_the_manifest_passes_for_another_manifest(tmp_path: Path) -> None:
    """Every byte: refused, or it was white space and the content is what was written."""
    written = write(tmp_path / "step_00000007", 7, {}, STATE)
    manifest = (written.path / MANIFEST).read_bytes()
    for place in range(len(manifest)):
        (written.path / MANIFEST).write_bytes(
            manifest[:place] + bytes([manifest[place] ^ 0x01]) + manifest[place + 1 :]
        )
        try:
            found = read(written.path)
        except UserError:
            continue
        assert manifest[place : place + 1].isspace()
        assert (found.step, found.state) == (written.step, written.state)


@pytest.mark.parametrize("name", ["stray.txt", "model.safetensors.bak", "more"])
def test_an_extra_file_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "step_00000007", 7, TENSORS, STATE).path
    (path / name).mkdir() if name == "more" else (path / name).write_text("")
    with pytest.raises(UserError, match=f"{name}: unlisted"):
        read(path)


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another format": lambda manifest: manifest.update(format=99),
    "another step": lambda manifest: manifest.update(step=8),
    "step is text": lambda manifest: manifest.update(step="x"),
    "no step": lambda manifest: manifest.pop("step"),
    "no files": lambda manifest: manifest.pop("files"),
    "files is a list": lambda manifest: manifest.update(files=[1]),
    "a file less": lambda manifest: manifest["files"].pop("state.json"),
    "a file more": lambda manifest: manifest["files"].update(ghost={"size": 0, "sha256": ""}),
    "an outside file": lambda manifest: manifest["files"].update({"../outside": {"size": 0, "sha256": ""}}),
    "another size": lambda manifest: manifest["files"]["model.safetensors"].update(size=1),
    "another hash": lambda manifest: manifest["files"]["model.safetensors"].update(sha256="0" * 64),
    "no hash": lambda manifest: manifest["files"]["model.safetensors"].pop("sha256"),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_manifest_is_refused(tmp_path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = write(tmp_path / "step_00000007", 7, TENSORS, STATE).path
    manifest = json.loads((path / MANIFEST).read_text())
    edit(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1))
    with pytest.raises(UserError, match="step_00000007") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a checkpoint"):
        read(tmp_path)


def test_unfinished_and_foreign_folders_are_invisible(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    store(tmp_path).save(FakeEngine(1.0), 3, {})
    folder = tmp_path / "checkpoints"
    for name in (".writing-step_00000009", "step_00000009", "step_backup", "notes"):
        (folder / name).mkdir()
    shutil.copytree(folder / "step_00000003", folder / ".writing-step_00000010")
    shutil.copytree(folder / "step_00000003", folder / "step_3x")
    assert newest(tmp_path) == folder / "step_00000003"


def test_a_failed_write_leaves_the_last_one_and_nothing_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path).save(FakeEngine(1.0), 3, {})

    def full(*arguments: Any) -> None:
        raise OSError("No space left on device")

    for broken in ("write_shard", "write_json", "sync_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_format, broken, full)
            with pytest.raises(OSError, match=r"step 4 not saved.*No space left"):
                store(tmp_path).save(FakeEngine(2.0), 4, {})
        assert newest(tmp_path) == tmp_path / "checkpoints" / "step_00000003"
    store(tmp_path).save(FakeEngine(2.0), 4, {})  # over the leftovers
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step_00000004"


def test_retention_keeps_the_newest_and_foreign_names(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_best").mkdir(parents=True)
    for step in (2, 4, 90, 100):
        store(tmp_path, keep=2).save(FakeEngine(step), step, {})
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000090", "step_00000100", "step_best"]


def test_resume_brings_everything_back(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.parent = "f00"
    first.save(FakeEngine(2.5), 6, {"tokens": 11})
    saved = read(tmp_path / "checkpoints" / "step_00000006")
    second, engine = store(tmp_path), FakeEngine(0.0)
    assert second.resume(engine) == saved
    assert (engine.value, engine.updates, second.parent) == (2.5, 5, "f00")
    child = store(tmp_path / "child")
    assert child.resume(engine) is None
    assert child.start_from(saved.path) == saved
    child.save(engine, 1, {})
    assert read(child.folder / "step_00000001").state["parent"] == saved.hash


def test_a_checkpoint_of_another_model_names_the_keys(tmp_path: Path) -> None:
    store(tmp_path).save(FakeEngine(1.0), 3, {})
    path = tmp_path / "checkpoints" / "step_00000003"
    other = store(tmp_path, **{"model.hidden_size": 16, "tokenizer": "abc", "model.new": True})
    for attempt in (lambda: other.resume(FakeEngine(0.0)), lambda: other.start_from(path)):
        with pytest.raises(UserError, match="another model") as error:
            attempt()
        assert "model.hidden_size: 8 there, 16 here" in str(error.value)
        assert "model.new: None there, True here" in str(error.value)
        assert "tokenizer" not in str(error.value).split("(")[1].split(")")[0]
        assert other.parent is None
