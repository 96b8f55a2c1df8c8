"""From names and groups to a context: the only place that knows all kinds."""

from collections.abc import Callable

from farside.configs.errors import UserError
from farside.parallel import comm
from farside.parallel.context.allgather import AllGather
from farside.parallel.context.attention import ContextParallel, SingleRank
from farside.parallel.context.hybrid import Hybrid, Ulysses
from farside.parallel.context.layout import check_length
from farside.parallel.context.ring import Ring
from farside.parallel.context.ulysses import check_heads

KINDS = ("ring", "allgather", "ulysses", "hybrid")


def build(
    kind: str, layout: str, group: comm.Group, ring: comm.Group = None, ulysses: comm.Group = None
) -> ContextParallel:
    """The context of this rank. group: all context-parallel ranks; ring, ulysses: the two axes of a hybrid.

    ``check`` has seen the same names: here they are right.
    """
    if comm.size(group) == 1:
        return SingleRank()
    if kind == "hybrid":
        return Hybrid(layout, group, ring, ulysses)
    kinds: dict[str, Callable[[str, comm.Group], ContextParallel]]
    kinds = {"ring": Ring, "allgather": AllGather, "ulysses": Ulysses}
    return kinds[kind](layout, group)


def check(kind: str, layout: str, ranks: int, ulysses_ranks: int, size: int, heads: int, kv_heads: int) -> None:
    """Raises UserError where the numbers do not divide. Pure: call it before any process group exists.

    ranks: degree of context parallelism. ulysses_ranks: of a hybrid, how many of them divide the heads.
    size: tokens of a sequence.
    """
    if ranks == 1:
        return
    if kind not in KINDS:
        raise UserError(f"parallel.context.kind: one of {', '.join(KINDS)}, got {kind}")
    check_length(layout, size, ranks)
    if kind == "ulysses":
        check_heads(heads, kv_heads, ranks)
    if kind == "hybrid":
        if ranks % ulysses_ranks:
            raise UserError(
                f"parallel.context: hybrid needs cp = {ranks} divisible by its ulysses ranks, {ulysses_ranks}"
            )
        check_heads(heads, kv_heads, ulysses_ranks)
