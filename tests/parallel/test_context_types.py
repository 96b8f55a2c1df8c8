"""Types per mesh axis: every kind passes at 1,024 ranks on one process, and planted mistakes are rejected."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from spmd_types import P, R, SpmdTypeError, V, assert_type, get_axis_local_type
from spmd_types.checker import typecheck
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from farside.parallel.context.build import KINDS, build
from tests.parallel.contexts import documents

DOCS = documents(((20, 44, -64),))
SIZE = {"dp": 64, "ring": 8, "ulysses": 2}


@pytest.fixture(scope="module")
def groups() -> Iterator[dict[str, dist.ProcessGroup]]:
    """1,024 ranks that exist in name only; this process is rank 0."""
    dist.init_process_group("fake", rank=0, world_size=1024, store=FakeStore())
    mesh = init_device_mesh("cpu", tuple(SIZE.values()), mesh_dim_names=tuple(SIZE))
    cp = mesh["ring", "ulysses"]._flatten("cp").get_group()
    yield {name: mesh.get_group(name) for name in SIZE} | {"cp": cp}
    dist.destroy_process_group()


Groups = dict[str, dist.ProcessGroup]


def attend(groups: Groups, kind: str, kv_types: dict, q_types: dict) -> tuple[torch.Tensor, list]:
    """Output and the groups of the context, under the type checker. Without a type given, those of the context are V
    and dp is R."""
    context = build(kind, "zigzag", groups["cp"], groups["ring"], groups["ulysses"])
    axes = ["ring", "ulysses"] if kind == "hybrid" else ["cp"]
    tensors = [torch.randn(1, 8, heads, 4, requires_grad=True) for heads in (16, 2, 2)]
    with typecheck(local=True):
        for tensor, types in zip(tensors, (q_types, kv_types, kv_types)):
            assert_type(tensor, {groups[axis]: types.get(axis, V) for axis in axes})
            assert_type(tensor, {groups["dp"]: types.get("dp", R)})
        return context.attend(*tensors, DOCS), [groups[axis] for axis in axes]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_types_at_1024_ranks(groups: Groups, kind: str) -> None:
    out, own = attend(groups, kind, {"dp": V}, {"dp": V})
    assert all(get_axis_local_type(out, group) is V for group in [*own, groups["dp"]])


@pytest.mark.parametrize("kind", KINDS)
def test_keys_that_every_rank_holds_alike_are_rejected(groups: Groups, kind: str) -> None:
    """Planted: keys already gathered (or never sharded) go into a context that would send them round again."""
    with pytest.raises(SpmdTypeError):
        attend(groups, kind, {"cp": R, "ring": R, "ulysses": R}, {})


@pytest.mark.parametrize("kind", KINDS)
def test_queries_that_await_a_reduction_are_rejected(groups: Groups, kind: str) -> None:
    """Planted: a projection's sum over another axis was left out; softmax of a part is not a part of the softmax."""
    with pytest.raises(SpmdTypeError):
        attend(groups, kind, {}, {"dp": P})


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_is_not_replicated(groups: Groups, kind: str) -> None:
    """Planted: a loss that counts on the same output everywhere, as if nothing were sharded."""
    out, own = attend(groups, kind, {}, {})
    with pytest.raises(SpmdTypeError), typecheck(local=True):
        assert_type(out, {own[0]: R})
