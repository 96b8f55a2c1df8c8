"""Plans on disk: whole or made again, once for all, and without harm from a kill or a second builder."""

import json
import multiprocessing
import os
import signal
import stat
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import pytest

from farside.configs.errors import UserError
from farside.data import plan as plan_module
from farside.data.plan import HEADER, Plan, PlanStore, read_plan, write_plan

DESCRIBED = {"source": "en", "seq_len": 4}


def small(shift: int = 0) -> Plan:
    rows, starts, lengths = np.array([1, 0, 1, 2]), np.array([0, 5, 9, 12]) + shift, np.array([5, 4, 3, 2])
    return Plan.of_rows(rows, starts, lengths, {"epochs": 1})


def never() -> Plan:
    raise AssertionError("made again")


def equal(one: Plan, other: Plan) -> bool:
    arrays = ("row_starts", "starts", "lengths")
    return one.facts == other.facts and all(np.array_equal(getattr(one, a), getattr(other, a)) for a in arrays)


def test_pieces_are_sorted_by_row() -> None:
    plan = small()
    assert plan.row_starts.tolist() == [0, 1, 3, 4]
    assert plan.starts.tolist() == [5, 0, 9, 12]
    assert plan.lengths.tolist() == [4, 5, 3, 2]


def test_a_plan_is_made_once_and_mapped(tmp_path: Path) -> None:
    store = PlanStore(tmp_path / "plans", "data")
    plan = store.open(DESCRIBED, small)
    assert equal(plan, small())
    assert isinstance(plan.starts.base, np.memmap)
    assert not plan.starts.flags.writeable
    assert equal(store.open(DESCRIBED, never), plan)
    assert [path.suffix for path in sorted((tmp_path / "plans").iterdir())] == [".lock", ".plan"]
    file = next((tmp_path / "plans").glob("*.plan"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_the_name_depends_on_the_data_and_the_description(tmp_path: Path) -> None:
    stores = [PlanStore(tmp_path, "data"), PlanStore(tmp_path, "other data")]
    plans = [store.open({**DESCRIBED, "seed": seed}, lambda: small(3)) for store in stores for seed in (0, 1)]
    assert len(plans) == len(list(tmp_path.glob("*.plan"))) == 4


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[:-1]
    elif how == "longer":
        content += b"\0"
    elif how == "a flipped bit":
        content[-1] ^= 1
    elif how == "torn header":
        content = content[:40]
    elif how == "empty":
        content = bytearray()
    elif how == "another format":
        content = content.replace(b"packing plan 1", b"packing plan 0")
    elif how == "no plan":
        content = bytearray(b"[1]".ljust(len(content)))
    else:
        write_plan(path, "another plan's name", small(100))
        return
    path.write_bytes(content)


@pytest.mark.parametrize(
    "how",
    ["truncated", "longer", "a flipped bit", "torn header", "empty", "another format", "no plan", "foreign"],
)
def test_a_plan_that_is_not_whole_or_not_this_one_is_made_again(tmp_path: Path, how: str) -> None:
    store = PlanStore(tmp_path, "data")
    store.open(DESCRIBED, small)
    file = next(tmp_path.glob("*.plan"))
    damage(file, how)
    assert read_plan(file, file.stem) is None
    assert equal(store.open(DESCRIBED, small), small())
    assert equal(store.open(DESCRIBED, never), small())


def build(folder: Path, results: "SimpleQueue[int]", start: "multiprocessing.synchronize.Barrier") -> None:
    made: list[int] = []

    def make() -> Plan:
        made.append(1)
        return small()

    start.wait(30)
    assert equal(PlanStore(folder, "data").open(DESCRIBED, make), small())
    results.put(len(made))


def test_of_many_at_once_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results, start = context.SimpleQueue(), context.Barrier(4)
    processes = [context.Process(target=build, args=(tmp_path, results, start)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert sum(results.get() for _ in processes) == 1


def die_before_the_rename(folder: Path) -> None:
    plan_module.os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    PlanStore(folder, "data").open(DESCRIBED, small)


def test_a_killed_builder_leaves_no_plan_and_no_lock(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=die_before_the_rename, args=(tmp_path,))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert not list(tmp_path.glob("*.plan"))
    assert len(list(tmp_path.glob("*.unfinished"))) == 1, "it died while writing"
    assert equal(PlanStore(tmp_path, "data").open(DESCRIBED, small), small())


def test_a_failed_write_cleans_up_and_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"plans cannot be written \(No space left on device\); free"):
        PlanStore(tmp_path, "data").open(DESCRIBED, small)
    assert not list(tmp_path.glob("*.unfinished"))


def test_the_header_is_json_of_a_fixed_size(tmp_path: Path) -> None:
    PlanStore(tmp_path, "data").open(DESCRIBED, small)
    file = next(tmp_path.glob("*.plan"))
    header = json.loads(file.read_bytes()[:HEADER])
    assert (header["rows"], header["pieces"]) == (3, 4)
    assert file.stat().st_size == HEADER + 4 * 8 + 4 * 12
