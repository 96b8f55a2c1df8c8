"""The checkpoints of one run directory: save, resume, keep the newest."""

import shutil
from pathlib import Path
from typing import Any

from farside.configs.errors import UserError
from farside.parallel import comm
from farside.train.checkpoint import format as checkpoint_format
from farside.train.checkpoint.format import MANIFEST, Checkpoint
from farside.train.engine.base import Engine, EngineState


def complete(run_dir: Path) -> list[Path]:
    """Complete checkpoint folders, unverified, oldest first. Leftovers of a killed save and foreign names are
    invisible."""
    folders = [path for path in (run_dir / "checkpoints").glob("step_*") if (path / MANIFEST).is_file()]
    return [path for _, path in sorted((int(path.name[5:]), path) for path in folders if path.name[5:].isdigit())]


def newest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint folder, unverified; None if there is none."""
    return next(reversed(complete(run_dir)), None)


class CheckpointStore:
    """Saves an engine's state and a JSON state under ``checkpoints/step_00000120`` of a run directory.

    Rank 0 of ``group`` writes; every rank takes part. identity: what a checkpoint must agree on to be loaded
    (architecture, tokenizer); it is stored in the state. parent: hash of the checkpoint this run started from.
    """

    def __init__(self, run_dir: Path, keep: int, group: comm.Group, identity: dict[str, Any]) -> None:
        self.folder, self.keep, self.group, self.identity = run_dir / "checkpoints", keep, group, identity
        self.run_dir = run_dir
        self.parent: str | None = None

    def save(self, engine: Engine, step: int, progress: dict[str, Any]) -> Checkpoint:
        """Collective. A failure on rank 0 is raised on all ranks."""
        state = engine.state_dict()
        result: Checkpoint | str = ""
        if comm.rank(self.group) == 0:
            try:
                result = self._write(state, step, progress)
            except OSError as error:
                result = f"checkpoint of step {step} not saved: {error}; the one before it is untouched"
        result = comm.broadcast_object(result, self.group)
        if isinstance(result, str):
            raise OSError(result)
        return result

    def _write(self, state: EngineState, step: int, progress: dict[str, Any]) -> Checkpoint:
        tensors = {"model": state.model, "optimizer": state.optimizer}
        described = {"identity": self.identity, "parent": self.parent, "updates": state.updates, **progress}
        path = self.folder / f"step_{step:08d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if newest(self.run_dir) == path:  # asked to stop right after a save: to replace it would risk it
            return checkpoint_format.read(path)
        checkpoint = checkpoint_format.write(path, step, tensors, described)
        for old in complete(self.run_dir)[: -self.keep]:
            shutil.rmtree(old)
        return checkpoint

    def resume(self, engine: Engine) -> Checkpoint | None:
        """Loads the newest checkpoint of this run, or returns None. Raises UserError if it is corrupt or of
        another model."""
        path = newest(self.run_dir)
        if path is None:
            return None
        checkpoint = checkpoint_format.read(path)
        self._check(checkpoint)
        state = EngineState(checkpoint.tensors("model"), checkpoint.tensors("optimizer"), checkpoint.state["updates"])
        engine.load_state_dict(state)
        self.parent = checkpoint.state["parent"]
        return checkpoint

    def start_from(self, path: Path) -> Checkpoint:
        """A verified foreign checkpoint to take weights from; it becomes the parent. path: itself, or a run directory,
        whose newest is meant."""
        if not (path / MANIFEST).is_file():
            path = newest(path) or path
        checkpoint = checkpoint_format.read(path)
        self._check(checkpoint)
        self.parent = checkpoint.hash
        return checkpoint

    def _check(self, checkpoint: Checkpoint) -> None:
        theirs, ours = checkpoint.state["identity"], self.identity
        different = [
            f"{key}: {theirs.get(key)} there, {ours.get(key)} here"
            for key in sorted(theirs.keys() | ours.keys())
            if theirs.get(key) != ours.get(key)
        ]
        if different:
            raise UserError(
                f"{checkpoint.path}: checkpoint of another model ({'; '.join(different)}); "
                "use the configuration it was trained with, or another run.dir"
            )
