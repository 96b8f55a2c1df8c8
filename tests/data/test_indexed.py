"""Token files in Megatron's format: exchanged with megatron-core both ways, damage named by file and byte."""

import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farside.configs.errors import UserError
from farside.data.indexed import HEADER, IndexedTokens, IndexedWriter, dtype_for

DOCUMENTS = [[5, 6, 7, 0], [0], [65_535, 1, 0], [9, 0]]


def write(prefix: Path, documents: list[list[int]], dtype: type = np.uint16) -> Path:
    with IndexedWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add(document)
        writer.finish()
    return prefix


def documents_of(found: IndexedTokens) -> list[list[int]]:
    return [found.tokens[start:end].tolist() for start, end in zip(found.offsets, found.offsets[1:])]


@given(st.lists(st.lists(st.integers(0, 65_535))), st.sampled_from([np.uint16, np.int32]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_documents_come_back(tmp_path: Path, documents: list[list[int]], dtype: type) -> None:
    found = IndexedTokens.open(write(tmp_path / "some.train", documents, dtype))
    assert documents_of(found) == documents
    assert found.lengths.tolist() == [len(document) for document in documents]
    assert (found.tokens.dtype, found.lengths.dtype, found.offsets.dtype) == (dtype, np.int32, np.int64)
    assert not found.tokens.flags.writeable
    assert len(found) == len(documents)


def test_one_file_continues_another(tmp_path: Path) -> None:
    parts = [IndexedTokens.open(write(tmp_path / name, part)) for name, part in (("a", DOCUMENTS), ("b", [[3, 0]]))]
    with IndexedWriter(tmp_path / "both", np.uint16) as writer:
        for part in parts:
            writer.extend(part)
        writer.finish()
    assert documents_of(IndexedTokens.open(tmp_path / "both")) == [*DOCUMENTS, [3, 0]]


def test_the_dtype_holds_the_vocabulary() -> None:
    assert [dtype_for(size) for size in (3072, 65_536, 65_537, 151_936)] == [np.uint16, np.uint16, np.int32, np.int32]


EXCHANGE = """
import sys, numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
folder = sys.argv[1]
for dtype in (numpy.uint16, numpy.int32):
    ours = IndexedDataset(f"{folder}/ours.{dtype.__name__}")
    print([sequence.tolist() for sequence in ours[:]], ours.document_indices.tolist(), ours[0].dtype)
    single = IndexedDatasetBuilder(f"{folder}/single.{dtype.__name__}.bin", dtype=dtype)
    for document in DOCUMENTS:
        single.add_document(torch.tensor(document), [len(document)])
    single.finalize(f"{folder}/single.{dtype.__name__}.idx")
    several = IndexedDatasetBuilder(f"{folder}/several.{dtype.__name__}.bin", dtype=dtype)
    several.add_item(torch.tensor(DOCUMENTS[0])); several.add_item(torch.tensor(DOCUMENTS[1])); several.end_document()
    several.add_document(torch.tensor(DOCUMENTS[2] + DOCUMENTS[3]), [3, 1, 1]); several.end_document()
    several.finalize(f"{folder}/several.{dtype.__name__}.idx")
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_files_are_exchanged_with_megatron(tmp_path: Path) -> None:
    """In a process of its own: importing megatron-core takes about 14 s."""
    kinds = (np.uint16, np.int32)
    for dtype in kinds:
        write(tmp_path / f"ours.{dtype.__name__}", DOCUMENTS, dtype)
    script = f"DOCUMENTS = {DOCUMENTS}\n{EXCHANGE}"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{DOCUMENTS} [0, 1, 2, 3, 4] {dtype.__name__}" for dtype in kinds]
    for dtype in kinds:
        theirs = IndexedTokens.open(tmp_path / f"single.{dtype.__name__}")
        assert documents_of(theirs) == DOCUMENTS
        for suffix in ("bin", "idx"):
            ours, single = (tmp_path / f"{name}.{dtype.__name__}.{suffix}" for name in ("ours", "single"))
            assert ours.read_bytes() == single.read_bytes()
        joined = IndexedTokens.open(tmp_path / f"several.{dtype.__name__}")
        assert documents_of(joined) == [DOCUMENTS[0] + DOCUMENTS[1], DOCUMENTS[2] + DOCUMENTS[3], []]
        assert joined.lengths.tolist() == [5, 5, 0]
        assert joined.lengths.dtype == np.int32


GOLDEN = bytes.fromhex(
    "4d4d49444944580000" "0100000000000000" "08" "0200000000000000" "0300000000000000"
    "0300000002000000" "0000000000000000" "0600000000000000" "0000000000000000" "0100000000000000" "0200000000000000"
)  # fmt: skip
"""What megatron-core 0.16.1 writes beside the documents [1, 2, 0] and [7, 0] in uint16."""


def test_the_index_is_megatrons_byte_for_byte(tmp_path: Path) -> None:
    prefix = write(tmp_path / "golden", [[1, 2, 0], [7, 0]])
    assert (tmp_path / "golden.idx").read_bytes() == GOLDEN
    assert (tmp_path / "golden.bin").read_bytes() == bytes.fromhex("01000200000007000000")
    several = GOLDEN[:26] + bytes.fromhex("0200000000000000") + GOLDEN[34:58] + struct.pack("<2q", 0, 2)
    (tmp_path / "golden.idx").write_bytes(several)
    assert documents_of(IndexedTokens.open(prefix)) == [[1, 2, 0, 7, 0]], "one document of two sequences"


BASE = HEADER.size
DAMAGE: dict[str, tuple[int, bytes, str]] = {
    "magic": (0, b"\x80", r"byte 0: .*not how an index"),
    "version": (9, b"\x02", r"byte 9: version 2"),
    "dtype": (17, b"\x07", r"byte 17: dtype code 7 is none of 4 .int32., 8 .uint16."),
    "sequences": (18, b"\x03", r"byte 18. tells of 3 sequences"),
    "a huge number of sequences": (18, b"\xff" * 8, r"tells of 18,446,744,073,709,551,615 sequences"),
    "bounds": (26, b"\x02", r"tells of 2 sequences and 2 bounds"),
    "a length": (BASE, b"\x02", r"byte 50: sequence 1 points to byte 6, but the lengths before it end at 4"),
    "a negative length": (BASE + 3, b"\xff", r"byte 34: sequence 0 has -\d"),
    "the last length": (BASE + 4, b"\x03", r"golden\.bin: ends at byte 10, but golden\.idx tells of 12 bytes"),
    "a pointer": (BASE + 8, b"\x01", r"byte 42: sequence 0 points to byte 1"),
    "the first bound": (BASE + 24, b"\x01", r"byte 58: documents cover sequences 1 to 2 of 2"),
    "the last bound": (BASE + 40, b"\x03", r"byte 74: documents cover sequences 0 to 3 of 2"),
    "a bound in the middle": (BASE + 32, b"\x09", r"byte 74: document 2 ends before it begins"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_by_file_and_byte(tmp_path: Path, name: str) -> None:
    prefix = write(tmp_path / "golden", [[1, 2, 0], [7, 0]])
    place, replaced, message = DAMAGE[name]
    (tmp_path / "golden.idx").write_bytes(GOLDEN[:place] + replaced + GOLDEN[place + len(replaced) :])
    with pytest.raises(UserError, match=message) as error:
        IndexedTokens.open(prefix)
    assert str(tmp_path / "golden") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_every_truncation_and_extension_is_refused(tmp_path: Path, suffix: str) -> None:
    prefix = write(tmp_path / "golden", [[1, 2, 0], [7, 0]])
    path = tmp_path / f"golden.{suffix}"
    whole = path.read_bytes()
    for content in [whole[:end] for end in range(len(whole))] + [whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"golden\.{suffix}: ends at byte {len(content)}"):
            IndexedTokens.open(prefix)
    path.unlink()
    with pytest.raises(UserError, match=rf"golden\.{suffix}: cannot be read"):
        IndexedTokens.open(prefix)


def test_a_pickle_is_not_even_looked_at(tmp_path: Path) -> None:
    prefix = write(tmp_path / "golden", [[1, 2, 0], [7, 0]])
    (tmp_path / "golden.idx").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR." * 9)
    with pytest.raises(UserError, match="byte 0"):
        IndexedTokens.open(prefix)
    assert not (tmp_path / "ran").exists()


OPEN = """
import resource, sys, time
from pathlib import Path
from farside.data.indexed import IndexedTokens
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started = peak(), time.perf_counter()
found = IndexedTokens.open(Path(sys.argv[1]))
seconds = time.perf_counter() - started
assert len(found) == int(sys.argv[2]) and int(found.tokens[-1]) == 0
print(seconds, peak() - before)
"""


@pytest.mark.timeout(60)
def test_a_billion_tokens_open_at_once(tmp_path: Path) -> None:
    """The tokens are a hole in the file; two million documents of five hundred. Neither torch nor Megatron comes in."""
    number, length = 2_000_000, 500
    with IndexedWriter(tmp_path / "long", np.uint16) as writer:
        writer.lengths.frombytes(np.full(number, length, dtype=np.int32).tobytes())
        writer.file.truncate(2 * number * length)
        writer.finish()
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", OPEN, str(tmp_path / "long"), str(number)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if line.endswith((" torch", " megatron"))]
    seconds, mebibytes = map(float, done.stdout.split())
    assert seconds < 1
    assert mebibytes < 200
    assert time.perf_counter() - started < 20
