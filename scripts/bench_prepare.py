"""Preparation: bytes a second by number of workers, and the time to find that nothing is to be done.

    python scripts/bench_prepare.py [MEGABYTES]

The text is the shipped corpora, again and again with a number before each piece; the tokenizer is made beforehand.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from farside.configs.schema import DataConfig, SourceConfig, SourceKind, TokenizerConfig
from farside.data.prepare import Prepared, prepare
from farside.data.tokenizer import Tokenizer

CORPORA = Path(__file__).resolve().parent.parent / "data" / "corpora"


def write(path: Path, megabytes: int) -> None:
    pieces = [piece for name in ("en", "zh") for piece in (CORPORA / name / "train.txt").read_text().split("\n\n")]
    documents = ["\n\n".join(pieces[start : start + 20]) for start in range(0, len(pieces), 20)]
    number = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            text = f"{number}\n{documents[number % len(documents)]}"
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            number += 1


def main(megabytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "text.jsonl", megabytes)
        texts = [(CORPORA / name / "haystack.txt").read_text() for name in ("en", "zh")]
        Tokenizer.train(texts, 3072).save(folder / "tokenizer.json")
        size = (folder / "text.jsonl").stat().st_size
        source = SourceConfig(kind=SourceKind.jsonl, path=str(folder / "text.jsonl"))
        tokenizer = TokenizerConfig(path=str(folder / "tokenizer.json"))
        time.sleep(2.1)  # a plan of a file this young is not kept
        for workers in (1, 2):
            config = DataConfig(str(folder / f"by-{workers}"), {"some": source}, tokenizer, workers=workers)
            started = time.perf_counter()
            data = Prepared(prepare(config))
            seconds = time.perf_counter() - started
            print(f"{workers} workers: {size / seconds / 1e6:.2f} MB/s, {seconds:.1f} s for {size / 1e6:.1f} MB")
            started = time.perf_counter()
            prepare(config)
            print(f"  again: {time.perf_counter() - started:.3f} s")
            started = time.perf_counter()
            data.check()
            print(f"  check: {time.perf_counter() - started:.3f} s for {len(data.tokens('some', 'train')):,} tokens")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 48)
