"""Tokens a second of the data loader alone, beside megatron-core's GPTDataset and Hugging Face datasets; and what
opening a large index costs. The text is random documents of log-normal length (median 700 tokens).

    python scripts/bench_data.py [seq_len=4096] [documents=20000] [rounds=7]

Every contestant reads the same documents from page-cached files and gives shuffled rows as int64 tensors in batches of
8: tokens, labels, positions that restart in every document, and loss weights, but for what is said below. They take
turns within every round; a ratio is of one round, and the median over rounds is reported.

farside            document ids too; rows concatenated and cut, or packed by best fit
GPTDataset         index files built before; reset_position_ids, eod_mask_loss and no attention mask (its loop over
                   documents in Python is part of reset_position_ids). "plain": none of the two, so that masks and
                   positions are computed once and shared: less than the others give
datasets           rows concatenated and cut before, in Arrow with a shuffled index, with_format("numpy"), and
                   positions and weights computed for the batch in NumPy: what the others give. "tokens": from which
                   labels are cut, and nothing else: less than the others give. "run_clm": the columns that
                   transformers' example of that name makes (input_ids, attention_mask, labels), with_format("torch"),
                   stacked; no positions and no weights
"""

import itertools
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 50_000
END_OF_TEXT = 0


def main() -> None:
    settings = {"seq_len": 4096, "documents": 20_000, "rounds": 7}
    for word in sys.argv[1:]:
        key, value = word.split("=")
        settings[key] = int(value)
    seq_len = settings["seq_len"]
    with tempfile.TemporaryDirectory() as folder:
        tokens, offsets = documents(Path(folder) / "tokens.npy", settings["documents"])
        print(f"{len(tokens):,} tokens in {len(offsets) - 1:,} documents, rows of {seq_len:,}", flush=True)
        contestants = {
            "farside concatenate": ours(Path(folder), tokens, offsets, seq_len, "concatenate"),
            "farside best_fit": ours(Path(folder), tokens, offsets, seq_len, "best_fit"),
            "GPTDataset": gpt_dataset(Path(folder), tokens, offsets, seq_len, reset=True),
            "GPTDataset plain": gpt_dataset(Path(folder), tokens, offsets, seq_len, reset=False),
            "datasets": arrow(Path(folder), tokens, seq_len, "whole"),
            "datasets tokens": arrow(Path(folder), tokens, seq_len, "tokens"),
            "datasets run_clm": run_clm(Path(folder), tokens, seq_len),
        }
        race(contestants, seq_len, settings["rounds"])
    with tempfile.TemporaryDirectory() as folder:
        large_index(Path(folder))


def documents(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [T] memory-mapped uint16, offsets [N + 1]); each document ends with END_OF_TEXT."""
    generator = np.random.default_rng(0)
    lengths = np.maximum(2, generator.lognormal(np.log(700), 1.2, count).astype(np.int64))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = generator.integers(1, VOCABULARY, offsets[-1], dtype=np.uint16)
    tokens[offsets[1:] - 1] = END_OF_TEXT
    np.save(path, tokens)
    return np.load(path, mmap_mode="r", allow_pickle=False), offsets


def ours(folder: Path, tokens: np.ndarray, offsets: np.ndarray, seq_len: int, packing: str) -> Iterator[int]:
    """Yields the tokens of each step."""
    from farside.configs.schema import Packing
    from farside.data.loader import Loader
    from farside.data.mixture import Mixture
    from farside.data.pack import TextSource
    from farside.data.plan import PlanStore

    source = TextSource("text", tokens, END_OF_TEXT, 0)
    started = time.perf_counter()
    packed = source.packed(Packing(packing), {}, PlanStore(folder / "plans", "bench"))
    rows = packed.rows(seq_len)
    if packing == "best_fit":
        fill = 1 - packed.plan(seq_len).facts["padding_share"]
        seconds = time.perf_counter() - started
        print(f"plan: {rows:,} rows, {fill:.3%} full, made and written in {seconds:.2f} s", flush=True)
    loader = Loader(Mixture({"text": packed}, {"text": 1.0}, 0), seq_len, 8, 8, 0, 1)
    step = 0
    while True:
        (batch,) = loader.step(step)
        step += 1
        yield batch.tokens.numel()


def gpt_dataset(folder: Path, tokens: np.ndarray, offsets: np.ndarray, seq_len: int, reset: bool) -> Iterator[int]:
    warnings.simplefilter("ignore")
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        """What GPTDataset asks of one."""

        vocab_size, eod, pad, unique_identifiers = VOCABULARY, END_OF_TEXT, -1, {"kind": "none"}

    logging.getLogger("megatron").setLevel(logging.ERROR)
    prefix = str(folder / "megatron")
    if not os.path.exists(prefix + ".idx"):
        builder = IndexedDatasetBuilder(prefix + ".bin", dtype=np.uint16)
        for begin, end in itertools.pairwise(offsets):
            builder.add_document(np.asarray(tokens[begin:end]), [int(end - begin)])
        builder.finalize(prefix + ".idx")
    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=seq_len,
        split="1,0,0",
        path_to_cache=str(folder / f"cache{reset}"),
        tokenizer=Tokenizer(),
        reset_position_ids=reset,
        reset_attention_mask=False,
        eod_mask_loss=reset,
        create_attention_mask=False,
    )
    indexed = IndexedDataset(prefix)
    numbers = np.arange(len(offsets) - 1, dtype=np.int32)
    dataset = GPTDataset(indexed, prefix, numbers, None, Split.train, config)
    index = 0
    while True:
        rows = [dataset[(index + row) % len(dataset)] for row in range(8)]
        index += 8
        yield sum(stacked(rows)["tokens"].shape)


def stacked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As torch's default collation does."""
    import torch

    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def arrow(folder: Path, tokens: np.ndarray, seq_len: int, gives: str) -> Iterator[int]:
    import torch

    def row(start: int) -> dict[str, np.ndarray]:
        return {"tokens": np.asarray(tokens[start : start + seq_len + 1]).astype(np.int64)}

    size = seq_len + 1
    dataset, count = made(folder / f"arrow-{gives}", tokens, seq_len, row, {"tokens": ("int64", size)}, "numpy")
    places = np.arange(size)[None]
    index = 0
    while True:
        numbers = [(index + offset) % count for offset in range(8)]
        index += 8
        rows = np.stack([dataset[number]["tokens"] for number in numbers])
        batch = torch.from_numpy(rows)
        found, _labels = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        if gives == "whole":
            first = np.zeros(rows.shape, dtype=bool)
            first[:, 1:] = rows[:, :-1] == END_OF_TEXT
            starts = np.maximum.accumulate(np.where(first, places, 0), axis=1)
            _positions = torch.from_numpy((places - starts)[:, :-1])
            _documents = torch.from_numpy(first.cumsum(axis=1)[:, :-1])
            _weights = torch.from_numpy((~first[:, 1:]).astype(np.float32))
        yield found.numel()


def run_clm(folder: Path, tokens: np.ndarray, seq_len: int) -> Iterator[int]:
    def row(start: int) -> dict[str, np.ndarray]:
        ids = np.asarray(tokens[start : start + seq_len])
        return {
            "input_ids": ids.astype(np.int32),
            "attention_mask": np.ones(seq_len, dtype=np.int8),
            "labels": ids.astype(np.int64),
        }

    columns = {
        name: (kind, seq_len)
        for name, kind in (("input_ids", "int32"), ("attention_mask", "int8"), ("labels", "int64"))
    }
    dataset, count = made(folder / "arrow-run_clm", tokens, seq_len, row, columns, "torch")
    index = 0
    while True:
        rows = [dataset[(index + offset) % count] for offset in range(8)]
        index += 8
        yield stacked(rows)["input_ids"].numel()


def made(
    folder: Path,
    tokens: np.ndarray,
    seq_len: int,
    row: Callable[[int], dict[str, np.ndarray]],
    columns: dict[str, tuple[str, int]],
    kind: str,
) -> tuple[Any, int]:
    """(shuffled dataset in that format, its rows); columns: name -> (element, length)."""
    import datasets

    datasets.disable_progress_bars()
    count = (len(tokens) - 1) // seq_len
    features = datasets.Features(
        {name: datasets.Sequence(datasets.Value(value), length=length) for name, (value, length) in columns.items()}
    )
    dataset = datasets.Dataset.from_generator(
        lambda: (row(number * seq_len) for number in range(count)), features=features, cache_dir=str(folder)
    )
    return dataset.shuffle(seed=0).with_format(kind), count


def race(contestants: dict[str, Iterator[int]], seq_len: int, rounds: int, seconds: float = 1.0) -> None:
    for contestant in contestants.values():
        next(contestant)  # builds what it needs
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            started, seen = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - started) < seconds:
                next(contestant)
                seen += 8 * seq_len
            speeds[name].append(seen / elapsed)
    for name, found in speeds.items():
        ratios = {
            other: statistics.median(a / b for a, b in zip(found, speeds[other]))
            for other in speeds
            if name.startswith("farside") and not other.startswith("farside")
        }
        told = ", ".join(f"{ratio:.2f}x {other}" for other, ratio in ratios.items())
        print(f"{name}: {told + '; ' if told else ''}{statistics.median(found) / 1e6:.1f} M tokens/s", flush=True)


OPEN = """
import sys, time
import numpy as np
from pathlib import Path
import farside.train.phase
from farside.configs.schema import Packing
from farside.data.pack import TextSource
from farside.data.packed import PackedSource
from farside.data.plan import PlanStore
def held():
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024
folder, before = Path(sys.argv[1]), held()
started = time.perf_counter()
tokens, offsets = (np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("tokens", "offsets"))
source = PackedSource("text", tokens, offsets, 0, Packing.best_fit, {}, 0, PlanStore(folder / "plans", "large"))
source.sample(12345, 4096)
seconds = time.perf_counter() - started
print(seconds, held() - before)
"""


def large_index(folder: Path, size: int = 1_000_000_000) -> None:
    """A billion tokens (a sparse file of zeros) in about 670,000 documents: plan, and open in a process of its own."""
    generator = np.random.default_rng(0)
    lengths = np.maximum(2, generator.lognormal(np.log(700), 1.2, size // 1000).astype(np.int64))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    offsets = np.append(offsets[offsets < size], size)
    np.save(folder / "offsets.npy", offsets)
    np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.uint16, (size,)).flush()
    for what in ("made and opened", "opened"):
        done = subprocess.run(
            [sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True
        ).stdout.split()
        print(
            f"{size:,} tokens, {len(offsets) - 1:,} documents: plan {what} in {float(done[0]):.2f} s, "
            f"{float(done[1]):.0f} MB more held",
            flush=True,
        )


if __name__ == "__main__":
    main()
