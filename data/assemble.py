"""Shards to token files: tokenize those that are not finished, then join each split's."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from farside.configs.errors import UserError
from farside.configs.schema import DataConfig
from farside.data.indexed import IndexedTokens, IndexedWriter, dtype_for
from farside.data.progress import Bar
from farside.data.shards import Digest, Plan, cut
from farside.data.sources import SPLITS, Source
from farside.data.tokenizing import Pool, is_finished


def _shard(folder: Path, name: str, split: str, number: int) -> Path:
    return folder / f"{name}.{split}.{number:06d}"


def tokenize_missing(
    config: DataConfig, sources: dict[str, Source], plans: dict[str, Plan], folder: Path, bar: Bar
) -> None:
    """Every shard that is not finished. Sources with nothing left are not read again."""
    left: dict[str, set[Path]] = {}
    total = missing = 0
    for name, plan in plans.items():
        left[name] = set()
        for split in SPLITS:
            for number, shard in enumerate(plan[split].shards):
                prefix, total = _shard(folder, name, split, number), total + shard.bytes
                if not is_finished(prefix, shard.sha256):
                    left[name].add(prefix)
                    missing += shard.bytes
    # processes pay off from about a shard each
    workers = min(config.workers or len(os.sched_getaffinity(0)), 1 + missing // (config.shard_bytes + 1))
    bar.begin("tokenizing", total, total - missing)
    with Pool(folder / "tokenizer.json", workers) as pool:
        for name, source in sources.items():
            if left[name]:
                for prefix, content, documents in _jobs(source, plans[name], config.shard_bytes, folder, name):
                    if prefix in left[name]:
                        for size in pool.submit(prefix, content, documents):
                            bar.advance(size)
        for size in pool.finished():
            bar.advance(size)


def _jobs(
    source: Source, plan: Plan, shard_bytes: int, folder: Path, name: str
) -> Iterator[tuple[Path, str, list[bytes]]]:
    """(prefix, content hash, documents) of every shard, as planned. Raises UserError if the text is another now."""
    numbers = dict.fromkeys(SPLITS, 0)
    for split, documents in cut(source, shard_bytes):
        digest = Digest()
        for text in documents:
            digest.add(text)
        number = numbers[split]
        if number >= len(plan[split].shards) or plan[split].shards[number] != digest.shard():
            raise UserError(f"{source.key}: its text changed while it was prepared; prepare again")
        numbers[split] += 1
        yield _shard(folder, name, split, number), plan[split].shards[number].sha256, documents
    if numbers != {split: len(plan[split].shards) for split in SPLITS}:
        raise UserError(f"{source.key}: its text changed while it was prepared; prepare again")


def join(
    unfinished: Path, ready: Path, plans: dict[str, Plan], vocab_size: int, say: Callable[[str], None]
) -> dict[str, dict[str, int]]:
    """Every split's shards as one token file in ``ready``; returns counts by source."""
    counts: dict[str, dict[str, int]] = {}
    for name, plan in plans.items():
        counts[name] = {}
        for split in SPLITS:
            with IndexedWriter(ready / f"{name}.{split}", dtype_for(vocab_size)) as writer:
                for number in range(len(plan[split].shards)):
                    writer.extend(IndexedTokens.open(_shard(unfinished, name, split, number)))
                writer.finish()
            assert len(writer.lengths) == plan[split].documents
            found = {"tokens": sum(writer.lengths), "documents": plan[split].documents, "bytes": plan[split].bytes}
            counts[name] |= {f"{split}_{what}": number for what, number in found.items()}
        say(f"{name}: {counts[name]['train_tokens']:,} training tokens")
    return counts
