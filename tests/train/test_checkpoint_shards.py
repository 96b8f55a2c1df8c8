"""Shards of several ranks: read whole and by boxes, by torch's own reader too, and written while training goes on."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from farside.configs.errors import UserError
from farside.configs.schema import CheckpointConfig
from farside.parallel.box import Box
from farside.train.checkpoint import format as checkpoint_format
from farside.train.checkpoint import index
from farside.train.checkpoint.format import read
from farside.train.checkpoint.retention import newest
from farside.train.checkpoint.store import CheckpointStore, SaveFailed
from tests.train.stand_in import SHAPES, STATE, RowEngine, whole, write_as_ranks

GOLDEN = Path(__file__).parent / "golden" / "step_00000003"


def store(directory: Path, asynchronous: bool = True, keep: int = 2) -> CheckpointStore:
    return CheckpointStore(directory, CheckpointConfig(keep=keep, asynchronous=asynchronous), None, {"model": "test"})


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
def test_whole_tensors_come_from_shards_of_any_number_of_ranks(tmp_path: Path, ranks: int) -> None:
    checkpoint = read(write_as_ranks(tmp_path / "step_00000001", 1, ranks))
    for group, prefix in (("model", ""), ("optimizer", "m.")):
        found = checkpoint.tensors(group)
        assert found.keys() == {prefix + name for name in SHAPES}
        assert all(torch.equal(value, whole(name, 1.0)) for name, value in found.items())
    for rank in range(4):  # and by rows, as four ranks cut them
        engine = RowEngine(0.0, rank, 4)
        engine.load_state_dict(checkpoint.reader("model"), checkpoint.reader("optimizer"), 5)
        assert engine.holds(1.0)


def test_one_rank_s_file_is_plain_safetensors(tmp_path: Path) -> None:
    path = write_as_ranks(tmp_path / "step_00000001", 1, 1)
    found = load_file(path / "model.safetensors")
    assert found.keys() == SHAPES.keys()
    assert all(torch.equal(value, whole(name, 1.0)) for name, value in found.items())


def test_torch_s_own_reader_reads_the_shards(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    path = write_as_ranks(tmp_path / "step_00000001", 1, 3)
    state = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)
    assert all(torch.equal(value, whole(name, 1.0)) for name, value in state.items())


def test_the_golden_checkpoint_of_format_2_still_loads() -> None:
    """Written by two ranks and committed: what a later farside must go on reading."""
    checkpoint = read(GOLDEN)
    assert (checkpoint.step, checkpoint.state) == (3, STATE)
    assert checkpoint.hash == "22e03d9f0b8bfccde293a2dd514d9b377ac91e5fd33e6451356db0ffca9a4d7a"
    assert all(torch.equal(value, whole(name, 2.5)) for name, value in checkpoint.tensors("model").items())
    assert all(torch.equal(value, whole(name, 2.5)) for name, value in checkpoint.tensors("optimizer").items())


@pytest.mark.parametrize(("version", "hint"), [(1, "the farside that wrote it"), (3, "update farside")])
def test_another_version_is_named(tmp_path: Path, version: int, hint: str) -> None:
    path = write_as_ranks(tmp_path / "step_00000001", 1, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": version}))
    with pytest.raises(UserError, match=f"format {version}, but this farside reads format 2; .*{hint}"):
        read(path)


@given(st.data())
def test_pieces_must_cover_a_tensor_exactly_once(data: st.DataObject) -> None:
    """A random division into boxes passes; with one box gone, twice there or moved, it does not."""
    shape = torch.Size(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    boxes = [Box.whole(shape)]
    for _ in range(data.draw(st.integers(1, 6))):
        box = boxes.pop(data.draw(st.integers(0, len(boxes) - 1)))
        dim = data.draw(st.integers(0, len(shape) - 1))
        cut = data.draw(st.integers(0, box.shape[dim]))
        for start, size in ((0, cut), (cut, box.shape[dim] - cut)):
            offset, part = list(box.offset), list(box.shape)
            offset[dim], part[dim] = offset[dim] + start, size
            boxes.append(Box(tuple(offset), tuple(part)))
    boxes = [box for box in boxes if box.numel]
    assert index._covers(boxes, shape)
    number = data.draw(st.integers(0, len(boxes) - 1))
    assert not index._covers(boxes[:number] + boxes[number + 1 :], shape)
    assert not index._covers([*boxes, boxes[number]], shape)
    moved = Box((boxes[number].offset[0] + 1, *boxes[number].offset[1:]), boxes[number].shape)
    assert not index._covers([*boxes[:number], moved, *boxes[number + 1 :]], shape)


def test_asynchronous_equals_synchronous_byte_for_byte(tmp_path: Path) -> None:
    """And training, which goes on at once, does not reach what is saved."""
    for name, asynchronous in (("a", True), ("b", False)):
        engine, kept = RowEngine(3.0), store(tmp_path / name, asynchronous)
        for step in (1, 2):
            kept.save(engine, step, {"tokens": step})
            engine.add_(0.5)
        kept.finish()
    for step in (1, 2):
        one, other = (tmp_path / name / "checkpoints" / f"step_{step:08d}" for name in ("a", "b"))
        assert {file.name: file.read_bytes() for file in one.iterdir()} == {
            file.name: file.read_bytes() for file in other.iterdir()
        }


def test_what_is_saved_is_the_moment_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing begins only after training changed every tensor and the progress."""
    go, original = threading.Event(), checkpoint_format.write_pieces

    def late(*arguments: Any) -> Any:
        assert go.wait(30)
        return original(*arguments)

    monkeypatch.setattr(checkpoint_format, "write_pieces", late)
    engine, kept, progress = RowEngine(3.0), store(tmp_path), {"list": [1]}
    kept.save(engine, 1, progress)
    engine.add_(1.0)
    progress["list"].append(2)
    assert newest(tmp_path) is None
    go.set()
    kept.finish()
    fresh = RowEngine(0.0)
    found = store(tmp_path).resume(fresh)
    assert fresh.holds(3.0)
    assert found is not None
    assert found.state["list"] == [1]


def test_never_two_saves_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, original = [0], [0], checkpoint_format.write_pieces

    def counted(*arguments: Any) -> Any:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        running[0] -= 1
        return original(*arguments)

    monkeypatch.setattr(checkpoint_format, "write_pieces", counted)
    engine, kept = RowEngine(1.0), store(tmp_path)
    for step in range(1, 5):
        kept.save(engine, step, {})
    kept.finish()
    assert most == [1]
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step_00000004"


def test_a_failure_behind_the_scenes_is_seen_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, kept = RowEngine(1.0), store(tmp_path)
    kept.save(engine, 1, {})
    kept.finish()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_format, "write_shard", broken)
        kept.save(engine, 2, {})
        deadline = time.monotonic() + 30
        while not kept.failed and time.monotonic() < deadline:
            time.sleep(0.001)
        assert kept.failed
        with pytest.raises(SaveFailed, match="step 2 not saved: rank 0: the disk is gone; the one before it"):
            kept.finish()
    assert not kept.failed
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    kept.save(engine, 2, {})  # the same step again
    kept.finish()
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step_00000002"


def broken(*arguments: Any) -> None:
    raise OSError("the disk is gone")
