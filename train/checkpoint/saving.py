"""One save under way on one rank: a thread writes private copies while training goes on.

The thread runs no collective, which might meet one of the training's. Ranks tell each other what they wrote through
files in the unfinished folder; rank 0's thread waits for them and makes the folder a checkpoint.
"""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from farside.parallel.box import Piece
from farside.train.checkpoint import format as checkpoint_format
from farside.train.checkpoint.files import read_json, write_json

Groups = Mapping[str, Mapping[str, Piece]]
POLL_SECONDS = 0.005


class Snapshot:
    """Private copies of pieces on the CPU, in memory that the next save uses again."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, str], Tensor] = {}

    def take(self, groups: Groups) -> Groups:
        """What is done to the tensors afterwards does not reach the copies."""
        copied = {
            group: {
                name: replace(piece, values=self._copy((group, name), piece.values)) for name, piece in held.items()
            }
            for group, held in groups.items()
        }
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return copied

    def _copy(self, key: tuple[str, str], values: Tensor) -> Tensor:
        buffer = self.buffers.get(key)
        if buffer is None or buffer.shape != values.shape or buffer.dtype != values.dtype:
            # pinned, so that the copy from a GPU runs at the bus's speed
            buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
            self.buffers[key] = buffer
        return buffer.copy_(values, non_blocking=True)


class Saving:
    """Rank ``number`` of ``count`` writes its pieces; ``problem`` is why it could not, as one line."""

    def __init__(
        self,
        path: Path,
        step: int,
        groups: Groups,
        state: dict[str, Any],
        place: tuple[int, int],
        afterwards: Callable[[], None],
    ) -> None:
        self.path, self.step, self.groups, self.state = path, step, groups, state
        self.folder = checkpoint_format.unfinished_of(path)
        (self.number, self.count), self.afterwards = place, afterwards
        self.problem: str | None = None
        self._written, self._abandoned = threading.Event(), threading.Event()
        # a daemon: a rank that must end does not wait for it, and an unfinished folder is invisible
        self.thread = threading.Thread(target=self._run, name=f"save step {step}", daemon=True)
        self.thread.start()

    def wait_written(self) -> None:
        """Until this rank's own pieces are on disk, or could not be written."""
        self._written.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Until nothing is left to do here: on rank 0, until the checkpoint is there."""
        self.thread.join(seconds)

    def abandon(self) -> None:
        """Another rank failed: rank 0 need not wait for it."""
        self._abandoned.set()
        self.thread.join()

    def _run(self) -> None:
        try:
            told = checkpoint_format.write_pieces(self.folder, self.groups, self.number, self.count)
            if self.number > 0:
                self._tell(told)
            self._written.set()
            if self.number == 0 and self._hear(told):
                checkpoint_format.publish(self.path, self.step, told, self.state)
                self.afterwards()
        except Exception as error:  # of whatever kind: it must reach the training, which raises it on all ranks
            self.problem = f"rank {self.number}: {' '.join(str(error).split()) or type(error).__name__}"
        finally:
            self._written.set()

    def _tell(self, told: dict[str, Any]) -> None:
        unfinished = self.folder / f".{told_name(self.number)}"
        write_json(unfinished, told)
        os.rename(unfinished, self.folder / told_name(self.number))  # it is there only as a whole

    def _hear(self, told: dict[str, Any]) -> bool:
        """Adds what the other ranks told; returns whether all did before the save was abandoned."""
        for number in range(1, self.count):
            file = self.folder / told_name(number)
            while not file.is_file():
                if self._abandoned.wait(POLL_SECONDS):
                    return False
            told.update(read_json(file))
            file.unlink()
        return True


def told_name(number: int) -> str:
    return f"told-{number:05d}.json"
