"""SingleRank against the explicit softmax: values and gradients, packed documents, grouped-query heads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farside.parallel.context import tiles
from farside.parallel.context.attention import SingleRank
from farside.parallel.context.documents import Documents
from farside.parallel.context.reference import reference_attention


def documents(lengths: list[list[int]]) -> Documents:
    """One list of document lengths a row; all rows have one sum."""
    rows = [torch.repeat_interleave(torch.arange(len(row)) + 5, torch.tensor(row)) for row in lengths]
    return Documents.of(torch.stack(rows))


def inputs(docs: Documents, heads: int, kv_heads: int, dim: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    rows, size = docs.ids_BS.shape
    shapes = [(rows, size, heads, dim), *[(rows, size, kv_heads, dim)] * 2, (rows, size, heads, dim)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@given(
    first=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    second=st.integers(0, 6),
    kv_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    dim=st.integers(1, 5),
)
def test_equals_reference_with_gradients(first: list[int], second: int, kv_heads: int, groups: int, dim: int) -> None:
    size = sum(first)
    second = second % size
    docs = documents([first, [size - second, second] if second else [size]])
    *qkv, weight = inputs(docs, kv_heads * groups, kv_heads, dim)
    found = []
    for attend in (SingleRank().attend, reference_attention):
        leaves = [x.clone().requires_grad_() for x in qkv]
        out = attend(*leaves, docs)
        (out * weight).sum().backward()
        found.append([out.detach(), *[x.grad for x in leaves]])
    for fast, slow in zip(*found):
        assert (fast - slow).abs().max() <= 1e-12


@pytest.mark.parametrize("lengths", [[[300, 212]], [[100, 300, 112], [512]]])
def test_long_documents_take_a_call_each_and_equal_the_reference(lengths: list[list[int]]) -> None:
    docs = documents(lengths)
    *qkv, weight = inputs(docs, 4, 2, 8)
    assert isinstance(SingleRank()._plan(docs), tiles.Steps)
    assert SingleRank()._plan(documents([[3, 5, 4]])).dtype == torch.bool
    found = []
    for attend in (SingleRank().attend, reference_attention):
        leaves = [x.clone().requires_grad_() for x in qkv]
        out = attend(*leaves, docs)
        (out * weight).sum().backward()
        found.append([out.detach(), *[x.grad for x in leaves]])
    for fast, slow in zip(*found):
        assert (fast - slow).abs().max() <= 1e-12


def test_padding_gives_zeros_and_no_nan_in_gradients() -> None:
    docs = Documents.of(torch.tensor([[0, 0, 0, -1, -1], [-1, -1, 1, 1, 1]]))
    q, k, v, weight = inputs(docs, 2, 1, 4)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = SingleRank().attend(*leaves, docs)
    (out * weight).sum().backward()
    for x in (out, *(x.grad for x in leaves)):
        assert (x[docs.ids_BS < 0] == 0).all()
        assert x.isfinite().all()


def test_reference_is_softmax_over_the_documents_past() -> None:
    """Written out by loops, so that the reference has a reference."""
    docs = documents([[3, 1, 4], [2, 6, 0]])
    q, k, v, _ = inputs(docs, 4, 2, 3)
    out = reference_attention(q, k, v, docs)
    for row in range(2):
        for place in range(8):
            first = int((docs.ids_BS[row] == docs.ids_BS[row, place]).nonzero()[0])
            for head in range(4):
                keys, values = (x[row, first : place + 1, head // 2] for x in (k, v))
                scores = torch.stack([(q[row, place, head] * key).sum() / 3**0.5 for key in keys])
                wanted = (scores.softmax(-1)[:, None] * values).sum(0)
                assert (out[row, place, head] - wanted).abs().max() <= 1e-12


def test_no_token_sees_another_document_or_the_future() -> None:
    docs = documents([[3, 5]])
    q, k, v, _ = inputs(docs, 2, 1, 4)
    before = SingleRank().attend(q, k, v, docs)
    k2, v2 = k.clone(), v.clone()
    k2[:, 5], v2[:, 5] = 50.0, -50.0
    after = SingleRank().attend(q, k2, v2, docs)
    changed = (before != after).flatten(2).any(-1)[0]
    assert changed.tolist() == [False] * 5 + [True] * 3


@pytest.mark.parametrize(("lengths", "single"), [([[4], [4]], True), ([[4], [1, 3]], False), ([[2, 2], [2, 2]], False)])
def test_documents_know_when_the_plain_kernel_is_exact(lengths: list[list[int]], single: bool) -> None:
    assert documents(lengths).single is single


def test_degree_one_is_the_identity_layout() -> None:
    x = torch.arange(6).view(1, 6)
    docs = documents([[6]])
    assert SingleRank().shard(x, docs) is x
    assert SingleRank().unshard(x, docs) is x
