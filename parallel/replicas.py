"""Do ranks that hold the same weights hold the same bits? A flipped bit in one replica's memory changes no shape and
raises nothing: the replicas drift apart, and what is saved depends on who saves it.

R replicas (dp_replicate), F fsdp ranks, T tp ranks, P pipeline stages, N parameters.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from farside.parallel import comm, fsdp
from farside.parallel.plan import ShardTable

CHUNK = 1 << 22
"""Elements hashed at once: bounds the 64-bit temporaries."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ReplicasDiffer(RuntimeError):
    """Ranks that should hold the same weights do not."""


def bits_hash(tensor: Tensor) -> Tensor:
    """A scalar int64 of all bits: sum of element times an odd number of its own, modulo 2^64, plus one more than the
    number of elements. A change of one element always changes it; on the tensor's device, without waiting for it."""
    bits = tensor.detach().contiguous().view(INTEGERS[tensor.element_size()]).flatten()
    total = torch.full((), bits.numel() + 1, dtype=torch.int64, device=bits.device)
    for first in range(0, bits.numel(), CHUNK):
        part = bits[first : first + CHUNK].long()
        odd = torch.arange(first, first + len(part), device=bits.device) * 0x2545F4914F6CDD1C + 1
        total += (part * odd).sum()
    return total


def check_replicas(parameters: Iterable[tuple[str, Tensor]], table: ShardTable) -> None:
    """Raises ReplicasDiffer on all ranks, naming the rank that is alone with its bits. Collective over the world.

    parameters: all that this rank holds, by canonical name, tied copies too.
    """
    mesh = table.mesh
    if mesh.device_mesh is None:
        return
    held = dict(parameters)
    absent = torch.zeros((), dtype=torch.int64, device=next(iter(held.values())).device)
    hashes = torch.stack([bits_hash(fsdp.local(held[name])) if name in held else absent for name in table.shapes])
    ranks = mesh.device_mesh.mesh.numpy()  # [P, R, F, T]
    every = comm.all_gather(hashes, mesh.world).cpu().numpy().reshape(*ranks.shape, len(table.shapes))
    suspects: dict[str, tuple[list[int], list[int]]] = {}
    for place, name in enumerate(table.shapes):
        same = (0, 1) if table.is_cut(name) else (0, 1, 3)  # the axes along which all hold the same
        alike, who = (_rows(array, same) for array in (every[..., place], ranks))
        for values, members in zip(alike, who):
            if odd := odd_ones_out(values[values != 0], members[values != 0]):
                suspects.setdefault(name, odd)
    if suspects:
        name, (wrong, others) = next(iter(suspects.items()))
        more = f" and {len(suspects) - 1} more" if len(suspects) > 1 else ""
        against = f"than {_told(others)}" if others else "(whose are right nobody can tell)"
        verb, kind = "holds" if len(wrong) == 1 else "hold", "other" if others else "different"
        raise ReplicasDiffer(
            f"{_told(wrong)} {verb} {kind} bits of {name}{more} {against}: a fault of memory or of a link"
        )


def _rows(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """[P, R, F, T] -> a row for each group of ranks that hold the same."""
    others = [axis for axis in range(array.ndim) if axis not in axes]
    return array.transpose(*others, *axes).reshape(-1, int(np.prod([array.shape[axis] for axis in axes])))


def odd_ones_out(values: np.ndarray, ranks: np.ndarray) -> tuple[list[int], list[int]] | None:
    """(ranks against the majority, the majority); (all, nobody) where there is none; None where all agree."""
    found, counts = np.unique(values, return_counts=True)
    if len(found) <= 1:
        return None
    if 2 * counts.max() <= len(values):
        return sorted(ranks.tolist()), []
    right = values == found[counts.argmax()]
    return sorted(ranks[~right].tolist()), sorted(ranks[right].tolist())


def _told(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
