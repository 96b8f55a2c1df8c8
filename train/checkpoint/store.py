"""The checkpoints of one run directory: save, resume, keep the newest."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from farside.configs.errors import UserError
from farside.configs.schema import CheckpointConfig
from farside.parallel import comm
from farside.train.checkpoint import contract
from farside.train.checkpoint import format as checkpoint_format
from farside.train.checkpoint.files import CorruptCheckpoint
from farside.train.checkpoint.format import MANIFEST, STATE, Checkpoint
from farside.train.checkpoint.retention import (
    complete,
    fields_of_step,
    folder_name,
    lack_of_room,
    newest,
    prune,
    require_room,
    set_aside,
)
from farside.train.checkpoint.saving import Groups, Saving, Snapshot
from farside.train.console import say
from farside.train.engine.base import Stateful

T = TypeVar("T")
OWN_KEYS = ("identity", "parent", "updates", "contract", "metrics")
"""Of a checkpoint's state: what the store itself puts there."""


class SaveFailed(OSError):
    """A checkpoint could not be written; the one before it is untouched. Raised alike on all ranks."""


class CheckpointStore:
    """Saves an engine's state and a JSON state under ``checkpoints/step_00000120`` of a run directory.

    Every rank of ``group`` writes its own pieces, rank 0 makes them a checkpoint. identity: what a checkpoint must
    agree on to be loaded (architecture, tokenizer); it is stored in the state. contract: what a resumed run must agree
    on besides (``farside.train.checkpoint.contract``). parent: hash of the checkpoint this run started from.
    """

    def __init__(
        self,
        run_dir: Path,
        settings: CheckpointConfig,
        group: comm.Group,
        identity: dict[str, Any],
        contract: Mapping[str, Any] | None = None,
    ) -> None:
        self.run_dir, self.folder, self.settings, self.group = run_dir, run_dir / "checkpoints", settings, group
        self.identity, self.contract = identity, contract
        self.parent: str | None = None
        self.last: tuple[int, dict[str, Any]] | None = None
        """Step and progress of the newest checkpoint, once this process wrote or loaded it."""
        self.warned = False
        """That keep_best names what metrics.jsonl lacks."""
        self.bytes = 0
        """Of the tensors of all ranks, once a state has been seen."""
        self.snapshot = Snapshot()
        self.saving: Saving | None = None
        """Under way, alike on all ranks: it ends in ``finish``, which is collective."""

    @property
    def failed(self) -> bool:
        """Whether a save has failed on this rank. When any rank says so, all are to call ``finish``, which raises."""
        return self.saving is not None and self.saving.problem is not None

    def save(self, engine: Stateful, step: int, progress: dict[str, Any]) -> None:
        """Starts to save, or does it all if not asynchronous. Collective; a save under way is finished first.

        Raises SaveFailed on all ranks for what fails on one, here or from ``finish``; ReplicasDiffer before anything
        is written.
        """
        self.finish()
        engine.check_replicas()
        progress = json.loads(json.dumps(progress, allow_nan=False))  # a copy, of what may be saved at all
        if self.last == (step, progress):  # asked to stop right after a save
            return
        path = self.folder / folder_name(step)
        state = engine.state_dict()
        described = json.loads(json.dumps(self._describe(step, state.updates, progress), sort_keys=True))
        groups: Groups = {"model": state.model, "optimizer": state.optimizer}
        self._count(groups)
        self._raise_together(step, self._attempt(lambda: self._begin(path)))
        if self.settings.asynchronous:
            groups = self.snapshot.take(groups)
        place = comm.rank(self.group), comm.size(self.group)
        self.saving = Saving(path, step, groups, described, place, self._remove_old)
        if not self.settings.asynchronous:
            self.finish()

    def finish(self) -> None:
        """Waits for the save under way, if there is one. Collective. Raises SaveFailed on all ranks."""
        saving = self.saving
        if saving is None:
            return
        saving.wait_written()
        problem = self._first(saving.problem)
        if problem is None:  # all pieces are on disk: rank 0 comes to an end
            saving.wait()
            problem = comm.broadcast_object(saving.problem, self.group)
        saving.abandon()
        self.saving = None
        self._raise_together(saving.step, problem)
        self.last = saving.step, _progress_of(saving.state)

    def let_end(self, seconds: float = 10.0) -> None:
        """For a rank that must end with an error: gives the save under way a moment. No communication."""
        if self.saving is not None:
            self.saving.wait(seconds)

    def _describe(self, step: int, updates: int, progress: dict[str, Any]) -> dict[str, Any]:
        described = {"identity": self.identity, "parent": self.parent, "updates": updates, **progress}
        if self.contract is not None:
            described["contract"] = dict(self.contract)
        if self.settings.keep_best is not None and comm.rank(self.group) == 0:
            name = self.settings.keep_best
            described["metrics"] = {name: self._metric(name, step)}
        return described

    def _metric(self, name: str, step: int) -> float | None:
        fields = fields_of_step(self.run_dir, step)
        if name not in fields and not self.warned:
            self.warned = True
            known = f"it has {', '.join(sorted(fields))}" if fields else "it has none"
            say(
                f"warning: checkpoint.keep_best={name}: no such number in metrics.jsonl at step {step} ({known}); "
                "a checkpoint without it cannot be the best",
                indent=2,
            )
        return fields.get(name)

    def _begin(self, path: Path) -> None:
        if comm.rank(self.group) == 0:
            require_room(path.parent, self.bytes)
            checkpoint_format.begin(path)

    def _remove_old(self) -> None:
        """On rank 0, once the new one is there, which a failure here does not undo."""
        try:
            prune(self.run_dir, self.settings)
        except OSError as error:
            say(f"warning: old checkpoints stay: {' '.join(str(error).split())}", indent=2)

    def _attempt(self, action: Callable[[], None]) -> str | None:
        """The first problem of any rank with it, as one line. Collective."""
        problem = None
        try:
            action()
        except OSError as error:
            problem = f"rank {comm.rank(self.group)}: {' '.join(str(error).split())}"
        return self._first(problem)

    def _first(self, problem: str | None) -> str | None:
        found = comm.gather_objects(problem, self.group)
        return next((problem for problem in found if problem is not None), None)

    def _raise_together(self, step: int, problem: str | None) -> None:
        """problem: alike on all ranks."""
        if problem is None:
            return
        if comm.rank(self.group) == 0:
            shutil.rmtree(checkpoint_format.unfinished_of(self.folder / folder_name(step)), ignore_errors=True)
        raise SaveFailed(f"checkpoint of step {step} not saved: {problem}; the one before it is untouched")

    def _count(self, groups: Groups) -> None:
        if self.bytes == 0:
            mine = sum(piece.values.nbytes for held in groups.values() for piece in held.values())
            self.bytes = sum(comm.gather_objects(mine, self.group))

    def preflight(self, engine: Stateful) -> None:
        """Before the first step: raises UserError unless the disk has room for one checkpoint more than are kept, and
        takes the memory of the copies. Collective."""
        state = engine.state_dict()
        groups = {"model": state.model, "optimizer": state.optimizer}
        self._count(groups)
        if self.settings.asynchronous:
            self.snapshot.take(groups)
        problem = None
        if comm.rank(self.group) == 0:
            problem = lack_of_room(self.run_dir, self.settings, self.bytes)
        problem = comm.broadcast_object(problem, self.group)
        if problem:
            raise UserError(problem)

    def resume(self, engine: Stateful) -> Checkpoint | None:
        """Loads the newest checkpoint of this run that is whole, or returns None if there is none at all. Collective.

        Corrupt ones are set aside, with a warning. Raises UserError if all are corrupt, or for another model or
        contract.
        """
        self.finish()
        corrupt: list[tuple[Path, CorruptCheckpoint]] = []
        for path in comm.broadcast_object(self._newest_first(), self.group):
            try:
                checkpoint = self._verified(path)
            except CorruptCheckpoint as error:
                corrupt.append((path, error))
                continue
            self._check(checkpoint)
            self._load(checkpoint, engine)
            self.parent, self.last = _told(checkpoint, "parent"), (checkpoint.step, _progress_of(checkpoint.state))
            if comm.rank(self.group) == 0:
                for damaged, wrong in corrupt:
                    say(f"warning: {set_aside(damaged, wrong)}; going on from step {checkpoint.step}", indent=2)
            return checkpoint
        if corrupt:
            raise corrupt[0][1]
        return None

    def _newest_first(self) -> list[Path]:
        """On rank 0, which speaks for all: they need not see the same folder at the same moment."""
        if comm.rank(self.group) > 0:
            return []
        checkpoint_format.recover(self.folder)
        return complete(self.run_dir)[::-1]

    def _load(self, checkpoint: Checkpoint, engine: Stateful) -> None:
        if self.contract is not None:
            theirs = _told(checkpoint, "contract")
            contract.check(theirs, self.contract, checkpoint.step, self.settings.force, checkpoint.path)
        readers, updates = (checkpoint.reader("model"), checkpoint.reader("optimizer")), _told(checkpoint, "updates")
        self._share_verdict(lambda: engine.load_state_dict(*readers, updates))

    def changed(self, checkpoint: Checkpoint) -> str:
        """What was changed freely since, to be printed behind its name; empty if nothing."""
        changed = contract.changes(checkpoint.state["contract"], self.contract) if self.contract else ""
        return f" (changed: {changed})" if changed else ""

    def start_from(self, path: Path) -> Checkpoint:
        """A verified foreign checkpoint to take weights from; it becomes the parent. path: itself, or a run directory,
        whose newest is meant. Collective."""
        if not (path / MANIFEST).is_file():
            # as rank 0 sees it: its own run may still be saving there
            path = comm.broadcast_object(newest(path), self.group) or path
        checkpoint = self._verified(path)
        self._check(checkpoint)
        self.parent = checkpoint.hash
        return checkpoint

    def _verified(self, path: Path) -> Checkpoint:
        """Each rank hashes its share of the files; all raise the same CorruptCheckpoint if one is wrong."""

        def verify() -> Checkpoint:
            checkpoint = checkpoint_format.load(path)
            checkpoint.verify(comm.rank(self.group), comm.size(self.group))
            return checkpoint

        return self._share_verdict(verify)

    def _share_verdict(self, action: Callable[[], T]) -> T:
        """What the action gives here; the first UserError of any rank is raised on all. Collective."""
        result: T | None = None
        problem: UserError | None = None
        try:
            result = action()
        except UserError as error:
            problem = error
        for found in comm.gather_objects(problem, self.group):
            if found is not None:
                raise found
        return cast(T, result)

    def _check(self, checkpoint: Checkpoint) -> None:
        theirs, ours = _told(checkpoint, "identity"), self.identity
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


def _progress_of(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in OWN_KEYS}


def _told(checkpoint: Checkpoint, key: str) -> Any:
    """Of the state what a run's own checkpoint has; an imported model's, to start from, lacks some."""
    if key not in checkpoint.state:
        raise UserError(
            f"{checkpoint.path / STATE}: no {key}: a run cannot go on from here; name it as train.init_from"
        )
    return checkpoint.state[key]
