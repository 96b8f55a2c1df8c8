"""Preparation under fire: killed, out of disk, two at once, any number of workers. The result is the same bytes."""

import json
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from farside.configs.errors import UserError
from farside.configs.schema import DataConfig, SourceConfig, SourceKind, TokenizerConfig
from farside.data.prepare import Prepared, prepare
from tests.cli.terminal import Terminal
from tests.faults.driver import environment
from tests.mounts import small_disk

WORDS = re.split(" ", "the fox of course was never seen again by those who had told 12 tales about it 却说 孔明")
SHARD = 8_000
SHARDS = 26


def write_corpus(path: Path, documents: int, seed: int = 0) -> Path:
    chance = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(documents):
            text = " ".join(chance.choices(WORDS, k=chance.randint(20, 400)))
            file.write(json.dumps({"text": f"{number}: {text}"}) + "\n")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 200 KB."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "a.jsonl", 180)


def config_of(corpus: Path, folder: Path, workers: int = 1, shard: int = SHARD) -> DataConfig:
    source = SourceConfig(kind=SourceKind.jsonl, path=str(corpus))
    tokenizer = TokenizerConfig(400, needle_texts=0)
    return DataConfig(str(folder), {"some": source}, tokenizer, workers=workers, shard_bytes=shard)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    """Name and files of the uninterrupted preparation."""
    folder = prepare(config_of(corpus, tmp_path_factory.mktemp("expected")))
    Prepared(folder).check()
    return folder.name, content(folder)


def start(corpus: Path, folder: Path, workers: int = 1) -> BaseProcess:
    """A preparation of its own; what it says goes to a file named by its process."""

    def work() -> None:
        with (folder / f"said-{os.getpid()}").open("w") as file:
            print(prepare(config_of(corpus, folder, workers), lambda line: print(line, file=file)), file=file)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def finished_shards(folder: Path) -> dict[str, tuple[int, int]]:
    """(inode, time of writing) of every finished shard's token file."""
    found = {}
    for record in folder.glob("preparing-*/*.[0-9]*.json"):
        about = record.with_suffix(".bin").stat()
        found[record.name] = (about.st_ino, about.st_mtime_ns)
    return found


def wait_for(folder: Path, number: int, process: BaseProcess) -> None:
    while len(finished_shards(folder)) < number and process.is_alive():
        time.sleep(0.002)


def nothing_is_left(folder: Path) -> None:
    assert [path.name for path in folder.iterdir() if path.name.startswith("preparing")] == []


class Witness:
    """Notes which shards are tokenized."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from farside.data import tokenizing

        original, self.done = tokenizing.tokenize, set[str]()

        def seen(tokenizer: Any, prefix: Path, *rest: Any) -> None:
            self.done.add(f"{prefix.name}.json")
            original(tokenizer, prefix, *rest)

        monkeypatch.setattr(tokenizing, "tokenize", seen)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", [3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(11) if seed != 3)])
def test_kill_costs_only_what_was_in_work(
    corpus: Path, expected: tuple[str, dict[str, bytes]], tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent alone is killed, at a random moment after a random number of shards."""
    chance = random.Random(seed)
    process = start(corpus, tmp_path, workers=1 + seed % 2)
    wait_for(tmp_path, chance.randint(0, 24), process)
    time.sleep(chance.random() * 0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    time.sleep(0.3)  # its workers end by themselves
    kept = finished_shards(tmp_path)
    witness = Witness(monkeypatch)
    folder = prepare(config_of(corpus, tmp_path))
    assert witness.done
    assert not witness.done & kept.keys(), "a finished shard was done again"
    assert len(witness.done) + len(kept) == SHARDS
    assert (folder.name, content(folder)) == expected
    nothing_is_left(tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("workers", "shard"), [(2, SHARD), (1, 3_000), (3, 40_000), (1, 10**9)])
def test_neither_workers_nor_shards_change_a_byte(
    corpus: Path, expected: tuple[str, dict[str, bytes]], tmp_path: Path, workers: int, shard: int
) -> None:
    folder = prepare(config_of(corpus, tmp_path, workers, shard))
    assert (folder.name, content(folder)) == expected


@pytest.mark.timeout(60)
def test_two_at_once(corpus: Path, expected: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    """One works, the other waits for the same folder."""
    processes = [start(corpus, tmp_path) for _ in range(2)]
    for process in processes:
        process.join()
    said = [path.read_text() for path in tmp_path.glob("said-*")]
    assert [process.exitcode for process in processes] == [0, 0], said
    assert sum("training a tokenizer" in text for text in said) == 1, said
    assert {text.splitlines()[-1] for text in said} == {str(tmp_path / expected[0])}
    assert content(tmp_path / expected[0]) == expected[1]
    nothing_is_left(tmp_path)


@pytest.fixture
def begun(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ten finished shards, in ``preparing-...``."""
    from farside.data import tokenizing

    with monkeypatch.context() as patch:
        original, calls = tokenizing.tokenize, [0]

        def full(*arguments: Any) -> None:
            calls[0] += 1
            if calls[0] > 10:
                raise OSError(28, "No space left on device", str(arguments[1]))
            original(*arguments)

        patch.setattr(tokenizing, "tokenize", full)
        with pytest.raises(UserError, match=r"No space left on device.*goes on from the finished shards") as error:
            prepare(config_of(corpus, tmp_path))
        assert "\n" not in str(error.value)
    assert len(finished_shards(tmp_path)) == 10
    return tmp_path


DAMAGE = {"torn .bin": (".bin", -1), "torn .idx": (".idx", -1), "gone": (".bin", None), "no record": (".json", None)}


@pytest.mark.timeout(30)
def test_a_damaged_shard_is_done_again(
    corpus: Path, expected: tuple[str, dict[str, bytes]], begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = sorted(begun.glob("preparing-*/*.[0-9]*.json"))
    for record, (suffix, change) in zip(kept, DAMAGE.values()):
        path = record.with_suffix(suffix)
        if change is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:change])
    flipped = kept[5].with_suffix(".bin")
    flipped.write_bytes(bytes([flipped.read_bytes()[0] ^ 1]) + flipped.read_bytes()[1:])
    kept[6].write_text(kept[7].read_text())  # of another shard
    witness = Witness(monkeypatch)
    folder = prepare(config_of(corpus, begun))
    assert content(folder) == expected[1]
    assert witness.done & {record.name for record in kept} == {kept[i].name for i in (0, 1, 2, 3, 5, 6)}


@pytest.mark.timeout(30)
def test_other_shards_of_an_earlier_size_are_not_taken(
    corpus: Path, expected: tuple[str, dict[str, bytes]], begun: Path
) -> None:
    assert content(prepare(config_of(corpus, begun, shard=SHARD // 2))) == expected[1]


@pytest.mark.timeout(60)
def test_a_full_disk_keeps_what_is_finished(
    corpus: Path, expected: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """A real one, met by worker processes, where root may mount one; elsewhere a limit on the size of files."""
    disk = tmp_path / "disk"
    with small_disk(disk, 1) as mounted:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(750_000))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(
                UserError, match=r"data\.dir .*(No space left on device|File too large).*make room"
            ) as error:
                prepare(config_of(corpus, disk, workers=2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "\n" not in str(error.value)
        kept = finished_shards(disk)
        assert kept or not mounted
        ballast.unlink()
        folder = prepare(config_of(corpus, disk))
        assert content(folder) == expected[1]


@pytest.mark.timeout(30)
def test_a_worker_that_dies_is_told_of(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"a worker that tokenized .* ended"):
        prepare(config_of(corpus, tmp_path, workers=2))


@pytest.mark.timeout(30)
def test_unchanged_sources_are_not_read_again_and_changed_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from farside.data import shards

    path = write_corpus(tmp_path / "a.jsonl", 60)
    config = config_of(path, tmp_path / "prepared")
    monkeypatch.setattr(shards, "_RACY_NANOSECONDS", 10_000_000)
    time.sleep(0.02)
    folder = prepare(config)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "make_plan", None)
        assert prepare(config) == folder
    about = path.stat()
    text = path.read_text()
    path.write_text(text.replace("fox", "dog", 1))  # as long as before, and as old
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert path.stat().st_size == about.st_size
    other = prepare(config)
    assert other != folder
    Prepared(other).check()
    for plan in (tmp_path / "prepared" / "plans").iterdir():
        plan.write_text("[]")
    assert prepare(config) == other, "a damaged plan is made again"


@pytest.mark.timeout(30)
def test_a_text_that_changes_while_it_is_prepared_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from farside.data import prepare as module

    path = write_corpus(tmp_path / "a.jsonl", 60)
    original = module._tokenizer

    def changing(*arguments: Any) -> Any:
        tokenizer = original(*arguments)
        write_corpus(path, 60, seed=1)
        return tokenizer

    monkeypatch.setattr(module, "_tokenizer", changing)
    with pytest.raises(UserError, match=r"data\.sources\.some: its text changed while it was prepared"):
        prepare(config_of(path, tmp_path / "prepared"))


MEMORY = """
import resource, sys
from pathlib import Path
from farside.data.shards import make_plan
from farside.data.sources import Source
from farside.configs.schema import SourceConfig, SourceKind
source = Source("some", SourceConfig(kind=SourceKind.jsonl, path=sys.argv[1]))
plan = make_plan(source, 1_000_000, lambda size: None)
print(sum(part.bytes for part in plan.values()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    small, large = (write_corpus(tmp_path / f"{number}.jsonl", number) for number in (10_000, 100_000))
    found = []
    for path in (small, large):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(path)], env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found.append(tuple(map(int, done.stdout.split())))
    grown = [after - before for before, after in zip(*found)]
    assert grown[0] > 80_000_000
    assert grown[1] < 0.15 * grown[0]


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "a.jsonl", 20_000)
    source = f"{{kind: jsonl, path: '{path}'}}"
    words = ["data", "prepare", "experiment=tiny", f"data.dir={tmp_path / 'prepared'}", f"+data.sources.some={source}"]
    with Terminal([*words, "data.shard_bytes=1000000"], tmp_path) as terminal:
        assert terminal.wait() == 0, terminal.text
    assert re.search(r"tokenizing .*━.* MB", terminal.text), terminal.text
    assert str(tmp_path / "prepared") in terminal.lines[-1]
