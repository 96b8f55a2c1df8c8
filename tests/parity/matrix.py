"""The cells of the parity matrix: every mesh below, crossed with the other choices by a covering design.

Every two values of every two factors (the mesh is one of them) meet in at least one cell, unless they cannot.
"""

from itertools import combinations
from typing import Any

from tests.parity.cells import Cell

MESHES: dict[str, dict[str, int]] = {
    "dp_shard2": {"dp_shard": 2},
    "dp_shard4": {"dp_shard": 4},
    "dp_replicate2": {"dp_replicate": 2},
    "dp_replicate4": {"dp_replicate": 4},
    "tp2": {"tp": 2},
    "tp4": {"tp": 4},
    "cp2": {"cp": 2},
    "cp4": {"cp": 4},
    "pp2": {"pp": 2},
    "pp4": {"pp": 4},
    "dp_replicate2·dp_shard2": {"dp_replicate": 2, "dp_shard": 2},
    "dp_shard2·tp2": {"dp_shard": 2, "tp": 2},
    "dp_replicate2·tp2": {"dp_replicate": 2, "tp": 2},
    "dp_shard2·cp2": {"dp_shard": 2, "cp": 2},
    "dp_replicate2·cp2": {"dp_replicate": 2, "cp": 2},
    "dp_shard2·pp2": {"dp_shard": 2, "pp": 2},
    "dp_replicate2·pp2": {"dp_replicate": 2, "pp": 2},
    "tp2·cp2": {"tp": 2, "cp": 2},
    "tp2·pp2": {"tp": 2, "pp": 2},
    "cp2·pp2": {"cp": 2, "pp": 2},
    "tp2·cp4": {"tp": 2, "cp": 4},
    "tp2·cp2·pp2": {"tp": 2, "cp": 2, "pp": 2},
    "dp_shard2·tp2·cp2": {"dp_shard": 2, "tp": 2, "cp": 2},
    "dp_shard2·tp2·pp2": {"dp_shard": 2, "tp": 2, "pp": 2},
    "dp_shard2·cp2·pp2": {"dp_shard": 2, "cp": 2, "pp": 2},
    "dp_replicate2·tp2·cp2": {"dp_replicate": 2, "tp": 2, "cp": 2},
    "dp_replicate2·dp_shard2·tp2": {"dp_replicate": 2, "dp_shard": 2, "tp": 2},
    "dp_replicate2·dp_shard2·cp2": {"dp_replicate": 2, "dp_shard": 2, "cp": 2},
    "dp_replicate2·dp_shard2·pp2": {"dp_replicate": 2, "dp_shard": 2, "pp": 2},
}

FACTORS: dict[str, tuple[Any, ...]] = {
    "mesh": tuple(MESHES),
    "kind": ("ring", "allgather", "ulysses", "hybrid"),
    "layout": ("contiguous", "zigzag", "balanced"),
    "documents": ("one", "odd", "padded"),
    "weights": ("all", "half"),
    "tied": (True, False),
    "pieces": (1, 3),
    "optimizer": ("adamw", "muon"),
    "schedule": ("1f1b", "interleaved", "zbv"),
}


SHORT = (
    Cell(tp=2),
    Cell(tp=4, tied=False, optimizer="muon", pieces=3),
    Cell(cp=2, kind="allgather", layout="contiguous", documents="padded", tied=False),
    Cell(cp=2, kind="ulysses", layout="balanced", optimizer="muon"),
    Cell(cp=4, kind="hybrid", documents="one", pieces=3),
    Cell(cp=4, documents="padded", weights="half"),
    Cell(pp=2, pieces=3),
    Cell(pp=2, schedule="interleaved", tied=False, optimizer="muon", weights="half"),
    Cell(pp=4, optimizer="muon"),
    Cell(dp_shard=2, tp=2, weights="half", optimizer="muon"),
    Cell(dp_shard=2, cp=2, layout="balanced", pieces=3),
    Cell(dp_replicate=2, cp=2, optimizer="muon", tied=False),
    Cell(dp_shard=2, pp=2, schedule="zbv", optimizer="muon"),
    Cell(cp=2, tp=2, optimizer="muon", documents="padded"),
    Cell(tp=2, pp=2, schedule="interleaved", pieces=2),
    Cell(cp=2, pp=2, documents="padded", layout="balanced", tied=False),
)
"""For the normal tests: every axis and pair of axes, every kind, layout and schedule, on at most four ranks."""

MEMORY = (
    Cell(dp_shard=2, tp=2, chunk=7, recompute="full", offload=True, pieces=2),
    Cell(cp=2, pp=2, schedule="interleaved", chunk=5, recompute="full", offload=True),
    Cell(dp_shard=2, pp=2, schedule="zbv", chunk=7),
    Cell(dp_shard=2, chunk=100, recompute="selective", optimizer="muon"),
    Cell(tp=2, cp=2, chunk=5),
    Cell(dp_replicate=2, cp=2, kind="ulysses", chunk=9, recompute="selective", pieces=3),
    Cell(tp=2, pp=2, chunk=7, recompute="full", tied=False, documents="padded"),
    Cell(tp=4, recompute="full", offload=True, chunk=11, weights="half"),
    Cell(dp_shard=2, tp=2, cp=2, recompute="full", chunk=3, layout="balanced"),
)
"""Ways to keep less memory, on every axis."""


def low_precision() -> list[Cell]:
    """fp32 and bf16 on every axis alone and on the largest rings."""
    meshes = (
        {"dp_shard": 2},
        {"tp": 2},
        {"tp": 4},
        {"cp": 2},
        {"cp": 4},
        {"cp": 8},
        {"pp": 2},
        {"tp": 2, "cp": 2, "pp": 2},
    )
    return [Cell(**mesh, dtype=dtype) for dtype in ("float32", "bfloat16") for mesh in ({}, *meshes)]


def allowed(choice: dict[str, Any]) -> bool:
    """Whether the values chosen so far can be one cell; what a mesh without the axis does not use is fixed."""
    if "mesh" not in choice:
        return True
    mesh = MESHES[choice["mesh"]]
    cp, pp = mesh.get("cp", 1), mesh.get("pp", 1)
    if cp == 1 and (choice.get("kind", "ring") != "ring" or choice.get("layout", "zigzag") != "zigzag"):
        return False
    if pp == 1 and choice.get("schedule", "1f1b") != "1f1b":
        return False
    if pp == 4 and choice.get("schedule", "1f1b") != "1f1b":  # eight stages for four layers
        return False
    return not (choice.get("kind") == "ulysses" and cp * mesh.get("tp", 1) > 8)


def cover() -> list[Cell]:
    """Greedy: as long as two values have not met, a cell is built around them that brings most others together."""
    names = list(FACTORS)
    missing = {
        ((one, a), (two, b))
        for one, two in combinations(names, 2)
        for a in FACTORS[one]
        for b in FACTORS[two]
        if completes({one: a, two: b})
    }
    cells = []
    while missing:
        first = min(missing, key=lambda pair: (names.index(pair[0][0]), str(pair)))
        choice = dict(first)
        for name in names:
            if name not in choice:
                options = [value for value in FACTORS[name] if completes({**choice, name: value})]
                choice[name] = max(options, key=lambda value: sum(p in missing for p in pairs({**choice, name: value})))
        missing -= set(pairs(choice))
        cells.append(
            Cell(**MESHES[choice["mesh"]], **{name: value for name, value in choice.items() if name != "mesh"})
        )
    return sorted(cells, key=lambda cell: (cell.ranks, cell.name))


def completes(choice: dict[str, Any]) -> bool:
    """Whether some cell has these values."""
    if not allowed(choice):
        return False
    if "mesh" in choice:
        return True
    return any(allowed({**choice, "mesh": mesh}) for mesh in MESHES)


def pairs(choice: dict[str, Any]) -> list[Any]:
    items = [(name, choice[name]) for name in FACTORS if name in choice]
    return list(combinations(items, 2))
