"""Context parallelism against the reference: one case, run by every rank of a pool."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from farside.parallel import comm
from farside.parallel.context import layout
from farside.parallel.context.attention import ContextParallel
from farside.parallel.context.build import build
from farside.parallel.context.documents import Documents
from farside.parallel.context.reference import reference_attention
from tests.ranks import Rank

layout.LAYOUTS["fine"] = lambda docs, ranks: layout.balanced(docs, ranks, smallest=1)  # balanced, for short sequences


@dataclass(frozen=True)
class Case:
    """rows: for every row the lengths of its documents; a negative length is padding. ulysses: of a hybrid."""

    kind: str
    layout: str
    rows: tuple[tuple[int, ...], ...]
    heads: int = 4
    kv_heads: int = 2
    dim: int = 8
    dtype: torch.dtype = torch.float64
    ulysses: int = 2


@dataclass(frozen=True)
class Errors:
    """Of out, dq, dk and dv on this rank.

    relative: largest difference over the largest value anywhere. by_token: the mean over tokens of the difference's
    norm over the token's own, which late tokens, small after averaging over many keys, cannot hide from.
    dirty: padding that is not exactly zero.
    """

    relative: tuple[float, ...]
    by_token: tuple[float, ...]
    dirty: bool


def documents(rows: tuple[tuple[int, ...], ...]) -> Documents:
    ids = []
    for row in rows:
        numbers = [7 + number if length > 0 else -1 for number, length in enumerate(row)]
        ids.append(torch.repeat_interleave(torch.tensor(numbers), torch.tensor([abs(length) for length in row])))
    return Documents.of(torch.stack(ids))


def inputs(case: Case, docs: Documents) -> tuple[Tensor, ...]:
    """q, k, v and the weight of the output in the loss, the same on all ranks, with values of the case's dtype."""
    generator = torch.Generator().manual_seed(0)
    rows, size = docs.ids_BS.shape
    heads = (case.heads, case.kv_heads, case.kv_heads, case.heads)
    shapes = [(rows, size, count, case.dim) for count in heads]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype) for shape in shapes)


def make_context(case: Case, world_size: int) -> ContextParallel:
    """Collective."""
    if world_size == 1:
        return build(case.kind, case.layout, None)
    if case.kind != "hybrid":
        return build(case.kind, case.layout, dist.group.WORLD)
    ulysses = min(case.ulysses, world_size)
    mesh = init_device_mesh("cpu", (world_size // ulysses, ulysses), mesh_dim_names=("ring", "ulysses"))
    return build(case.kind, case.layout, dist.group.WORLD, mesh.get_group("ring"), mesh.get_group("ulysses"))


def reference(case: Case) -> list[Tensor]:
    """out, dq, dk, dv of one process in fp64."""
    docs = documents(case.rows)
    *qkv, weight = (x.double() for x in inputs(case, docs))
    leaves = [x.requires_grad_() for x in qkv]
    out = reference_attention(*leaves, docs)
    (out * weight).sum().backward()
    return [out.detach(), *(x.grad for x in leaves)]


def measure(case: Case, context: ContextParallel) -> Errors:
    docs = documents(case.rows)
    *qkv, weight = (context.shard(x, docs) for x in inputs(case, docs))
    leaves = [x.detach().clone().requires_grad_() for x in qkv]
    out = context.attend(*leaves, docs)
    (out * weight).sum().backward()
    padding = context.shard(docs.ids_BS, docs) < 0
    relative, by_token, dirty = [], [], False
    for ours, truth in zip([out.detach(), *(x.grad for x in leaves)], reference(case)):
        assert ours.dtype == case.dtype
        wanted = context.shard(truth, docs)
        difference = ours.double() - wanted
        relative.append((difference.abs().max() / truth.abs().max().clamp_min(1e-30)).item())
        size = wanted.flatten(2).norm(dim=2)
        # clamped: the first token of a document has a gradient of exactly zero for its query
        by_token.append((difference.flatten(2).norm(dim=2) / size.clamp_min(1e-3 * size.mean())).mean().item())
        dirty |= bool(ours[padding].any())  # NaN counts as not zero
    return Errors(tuple(relative), tuple(by_token), dirty)


def measure_cases(place: Rank, cases: list[Case]) -> list[Errors]:
    contexts: dict[tuple[str, str, int], ContextParallel] = {}
    errors = []
    for case in cases:
        key = (case.kind, case.layout, case.ulysses)
        if key not in contexts:
            contexts[key] = make_context(case, place.world_size)
        errors.append(measure(case, contexts[key]))
    return errors


def measure_bytes(place: Rank, cases: list[Case]) -> list[tuple[tuple[dict, dict], tuple[dict, dict]]]:
    """For every case the (forward, backward) bytes counted, and those of the formula."""
    results = []
    for case in cases:
        context, docs = make_context(case, place.world_size), documents(case.rows)
        *qkv, weight = (context.shard(x, docs) for x in inputs(case, docs))
        leaves = [x.detach().clone().requires_grad_() for x in qkv]
        with comm.count_bytes() as forward:
            out = context.attend(*leaves, docs)
        with comm.count_bytes() as backward:
            (out * weight).sum().backward()
        rows, size = docs.ids_BS.shape
        formula = context.bytes_sent(rows, size, case.heads, case.kv_heads, case.dim, case.dtype)
        results.append(((dict(forward), dict(backward)), formula))
    return results
