"""Which checkpoint each phase left and which one it started from: is the run one chain?"""

from dataclasses import dataclass
from typing import Any

from farside.report.read import PHASES, Run, mapping

_BRANCHES = ("reward", "rl")


@dataclass(frozen=True)
class Link:
    """A phase's checkpoint. ``source``: the phase whose hash is its parent, or None."""

    phase: str
    path: Any
    step: Any
    hash: Any
    parent: Any
    source: str | None
    intact: bool


def links_of(run: Run) -> list[Link]:
    """One link a phase that left a checkpoint, in order.

    A phase must start from the hash of the phase before it. What follows a branch may also name the phase that the
    branch left: a reward model, and RL where another RL follows, are no ancestors of the next one's weights.
    """
    links: list[Link] = []
    for phase in PHASES:
        checkpoint = mapping(run.summary(phase), "checkpoint")
        if not checkpoint:
            continue
        digest, parent = checkpoint.get("hash"), checkpoint.get("parent")
        source = next((link.phase for link in _may_start_from(links) if parent and link.hash == parent), None)
        # The first phase starts from nothing, or from a checkpoint of another run.
        intact = bool(digest) and (not links or source is not None)
        links.append(Link(phase, checkpoint.get("path"), checkpoint.get("step"), digest, parent, source, intact))
    return links


def _may_start_from(links: list[Link]) -> list[Link]:
    """The newest phase, and behind branches the phase that they left."""
    allowed: list[Link] = []
    for link in reversed(links):
        allowed.append(link)
        if link.phase not in _BRANCHES:
            break
    return allowed


def break_in(links: list[Link]) -> str | None:
    """A sentence naming the first broken link; None while the chain holds."""
    for before, link in zip([None, *links], links):
        if link.intact:
            continue
        if not link.hash:
            return f"{link.phase} recorded no hash of its checkpoint"
        assert before is not None  # only a later phase can have a wrong parent
        return f"{link.phase} did not start from the checkpoint of {before.phase}"
    return None


def phase_with_hash(links: list[Link], digest: Any) -> str | None:
    """The phase whose checkpoint has this hash."""
    return next((link.phase for link in links if digest and link.hash == digest), None)
