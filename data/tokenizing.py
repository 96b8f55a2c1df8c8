"""Shards of text to shards of tokens, in worker processes that need neither torch nor this process's memory.

A worker is ``python -m farside.data.tokenizing TOKENIZER``: it reads jobs from stdin and answers each in one line of
JSON on stdout; when its parent is gone, stdin ends and so does it. A job is a line of JSON (prefix, content hash,
sizes of the documents) and the documents' bytes. A shard is finished once PREFIX.json stands beside its files: that
is written last.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from farside.configs.errors import UserError
from farside.data.indexed import IndexedWriter, dtype_for
from farside.data.tokenizer import Tokenizer

_BATCH = 1_000_000
"""Bytes encoded together: an encoding takes many times its text."""
SUFFIXES = (".bin", ".idx")


def beside(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenize(tokenizer: Tokenizer, prefix: Path, content: str, documents: Sequence[bytes]) -> None:
    """Writes a shard's files and its record, each by a rename: whoever else writes the same shard writes the same."""
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=prefix.parent) as folder:
        with IndexedWriter(Path(folder) / "shard", dtype_for(tokenizer.vocab_size)) as writer:
            for batch in _batches(documents):
                for ids in tokenizer.encode_batch([text.decode() for text in batch]):
                    writer.add([*ids, tokenizer.end_of_text])
            writer.finish()
        written = [Path(folder) / f"shard{suffix}" for suffix in SUFFIXES]
        record = {"content": content, "sha256": [hash_file(path) for path in written]}
        for path, suffix in zip(written, SUFFIXES):
            os.rename(path, beside(prefix, suffix))
        (Path(folder) / "record").write_text(json.dumps(record))
        os.rename(Path(folder) / "record", beside(prefix, ".json"))


def _batches(documents: Sequence[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for text in documents:
        if batch and size + len(text) > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def is_finished(prefix: Path, content: str) -> bool:
    """Whether a shard's files are those its record tells of, and made of this content."""
    try:
        record = json.loads(beside(prefix, ".json").read_text())
        return record == {"content": content, "sha256": [hash_file(beside(prefix, suffix)) for suffix in SUFFIXES]}
    except (OSError, ValueError):
        return False


class Pool:
    """``workers`` processes that tokenize; none for a single one: then it is done here. Use as a context manager.

    ``submit`` blocks while every worker has a job and another waits, so that memory holds a bounded number of shards.
    """

    def __init__(self, tokenizer: Path, workers: int) -> None:
        self.tokenizer, self.workers = tokenizer, workers
        self.processes: list[subprocess.Popen[bytes]] = []
        self.idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self.pending: list[Future[int]] = []
        self.here = Tokenizer.load(tokenizer) if workers == 1 else None
        self.threads = ThreadPoolExecutor(workers)

    def __enter__(self) -> "Pool":
        if self.here is None:
            quiet = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "farside.data.tokenizing", str(self.tokenizer)]
            for _ in range(self.workers):
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=quiet)
                self.processes.append(process)
                self.idle.put(process)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):  # what a killed worker did not read
                    pipe.close()

    def submit(self, prefix: Path, content: str, documents: Sequence[bytes]) -> Iterator[int]:
        """Yields the bytes of each shard that has been finished meanwhile. Raises what went wrong with one."""
        if self.here is not None:
            tokenize(self.here, prefix, content, documents)
            yield sum(map(len, documents))
            return
        self.pending.append(self.threads.submit(self._ask, prefix, content, documents))
        yield from self.finished(self.workers)

    def finished(self, leave: int = 0) -> Iterator[int]:
        """Waits until at most ``leave`` shards are in work, oldest first."""
        while len(self.pending) > leave:
            yield self.pending.pop(0).result()

    def _ask(self, prefix: Path, content: str, documents: Sequence[bytes]) -> int:
        process = self.idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        sizes = [len(text) for text in documents]
        job = {"prefix": str(prefix), "content": content, "sizes": sizes}
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.writelines(documents)
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        self.idle.put(process)
        if not answer:
            raise RuntimeError(f"a worker that tokenized {prefix} ended (exit code {process.wait()})")
        told = json.loads(answer)
        if "errno" in told:
            raise OSError(*told["errno"])
        if "wrong" in told:
            raise UserError(told["wrong"])
        return sum(sizes)


def serve(tokenizer: Tokenizer, jobs: BinaryIO, answers: BinaryIO) -> None:
    """A worker's life."""
    while line := jobs.readline():
        job = json.loads(line)
        documents = [jobs.read(size) for size in job["sizes"]]
        if [len(text) for text in documents] != job["sizes"]:
            return  # the parent died while it spoke
        answer: dict[str, Any] = {}
        try:
            tokenize(tokenizer, Path(job["prefix"]), job["content"], documents)
        except OSError as error:
            answer = {"errno": [error.errno, error.strerror, error.filename]}
        except UserError as error:
            answer = {"wrong": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent ends its workers
    with contextlib.suppress(BrokenPipeError):
        serve(Tokenizer.load(Path(sys.argv[1])), sys.stdin.buffer, sys.stdout.buffer)
