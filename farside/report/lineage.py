"""Which checkpoint each phase left and which one it started from: is the run one chain?"""

from dataclasses import dataclass
from typing import Any

from farside.report.read import PHASES, Run, mapping


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

    A phase must start from the hash of the phase before it. Policy training after a reward model may also
    name the policy's own phase: the reward model is a branch beside the policy, no ancestor of its weights.
    """
    links: list[Link] = []
    for phase in PHASES:
        checkpoint = mapping(run.summary(phase), "checkpoint")
        if not checkpoint:
            continue
        digest, parent = checkpoint.get("hash"), checkpoint.get("parent")
        allowed = links[-1:]
        if allowed and allowed[0].phase == "reward":
            allowed = links[-2:]
        source = next((link.phase for link in reversed(allowed) if parent and link.hash == parent), None)
        # The first phase starts from nothing, or from a checkpoint of another run.
        intact = bool(digest) and (not links or source is not None)
        links.append(Link(phase, checkpoint.get("path"), checkpoint.get("step"), digest, parent, source, intact))
    return links


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
