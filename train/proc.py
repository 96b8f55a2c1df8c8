"""What Linux tells of another process. Elsewhere every process counts as alive and nothing more is known."""

import os
from pathlib import Path

STOPPED = "tT"
_STATES = {
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "D": "waits inside the kernel for a disk or device",
    "Z": "dead",
    "X": "dead",
}


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def started(pid: int) -> int:
    """When the process began, in ticks since the machine did; 0 if unknown."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def state(pid: int, began: int) -> str:
    """One letter as in ps, of the process that ``began`` then; X if it is gone."""
    if not os.path.isdir("/proc/self"):
        return "S"
    fields = _stat(pid)
    return fields[0] if fields and int(fields[19]) == began else "X"


def is_alive(pid: int, began: int) -> bool:
    return state(pid, began) not in "ZX"


def describe(letter: str) -> str:
    """Of a state that explains why nothing happens; empty for the others."""
    return _STATES.get(letter, "")
