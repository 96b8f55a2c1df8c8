"""The loss is one scalar of the global batch: however tokens are chunked, packed, padded or dealt out."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from farside.configs.rope import Rope
from farside.configs.schema import ParallelConfig
from farside.data.batch import Batch, Sample, document_sample
from farside.parallel.mesh import ParallelDims
from farside.train.engine.native import NativeEngine
from farside.train.loss import lm_loss
from farside.train.model.heads import score_tokens
from tests.train.models import SMALL, logits_of, padded, random_batch, random_model, random_sample, small_config


def make_engine() -> NativeEngine:
    mesh = ParallelDims.resolve(ParallelConfig(), 1).build("cpu")
    return NativeEngine(small_config(), mesh, torch.device("cpu"))


def gradients_of(batches: list[Batch], total: float | None = None) -> tuple[float, dict[str, Tensor]]:
    engine = make_engine()
    outputs = engine.forward_backward(batches, lm_loss, total or sum(batch.weight for batch in batches))
    found = {name: p.grad for name, p in engine.model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(engine.model.parameters()))
    return outputs.loss.item(), found


def assert_equal(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=0, abs=1e-12)
    for name, gradient in one[1].items():
        assert (gradient - other[1][name]).abs().max() <= 1e-12, name


@given(
    tokens=st.integers(1, 30),
    chunk=st.integers(1, 31),
    entropy=st.booleans(),
)
def test_chunked_scores_equal_unchunked_with_gradient(tokens: int, chunk: int, entropy: bool) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, tokens, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(11, (2, tokens), generator=generator)
    scale = torch.randn(2, 2, tokens, generator=generator, dtype=torch.float64)
    found = []
    for size in (chunk, 10**6):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        outputs = score_tokens(a, b, labels, size, entropy)
        assert outputs.logprobs is not None
        assert (outputs.entropy is not None) == entropy
        values = [outputs.logprobs, *([outputs.entropy] if outputs.entropy is not None else [])]
        sum((value * scale[i]).sum() for i, value in enumerate(values)).backward()
        found.append([*[value.detach() for value in values], a.grad, b.grad])
    for one, other in zip(*found):
        assert (one - other).abs().max() <= 1e-12
    distribution = F.linear(x, weight).softmax(-1)
    assert (found[0][0] - distribution.gather(-1, labels[..., None])[..., 0].log()).abs().max() <= 1e-12
    if entropy:
        assert (found[0][1] + (distribution * distribution.log()).sum(-1)).abs().max() <= 1e-12


def test_chunks_of_a_bf16_output_matrix_add_up_in_fp32() -> None:
    """Under FSDP the matrix arrives in bf16: sums of many chunks in 8 bits would drift."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 512, 16, generator=generator), 0.3 * torch.randn(40, 16, generator=generator)
    x, weight, labels = x.bfloat16(), weight.bfloat16(), torch.randint(40, (1, 512), generator=generator)

    def error(chunk: int, exact: Tensor | None = None) -> Tensor:
        kind = torch.float64 if exact is None else torch.bfloat16
        leaf = weight.to(kind, copy=True).requires_grad_()
        scores = score_tokens(x.to(kind), leaf, labels, chunk, entropy=False).logprobs
        assert scores is not None
        scores.sum().backward()
        assert leaf.grad is not None
        return leaf.grad if exact is None else (leaf.grad.double() - exact).norm() / exact.norm()

    exact = error(512)
    assert error(4, exact) <= 1.5 * error(512, exact)  # 5 times it, if they added up in bf16


def test_loss_is_weighted_cross_entropy_over_the_global_weight() -> None:
    """Against a sum written out document by document, without packing, masks or our loss."""
    batch = random_batch(0, 5, 9)
    engine = make_engine()
    total = 0.0
    for row in range(5):
        for doc in batch.doc_ids[row].unique():
            here = batch.doc_ids[row] == doc
            logits = logits_of(engine.model, batch.tokens[row, here][None])[0]
            losses = F.cross_entropy(logits, batch.labels[row, here], reduction="none")
            total += (losses * batch.weights[row, here]).sum().item()
    found = engine.forward_backward([batch], lm_loss, batch.weight)
    assert found.loss.item() == pytest.approx(total / batch.weight, rel=0, abs=1e-12)


def test_packed_rows_equal_separate_padded_rows() -> None:
    generator = np.random.default_rng(3)
    documents = []
    for length in (4, 7, 2, 5):
        row = generator.integers(SMALL.vocab_size, size=length)
        documents.append((row, generator.uniform(0.1, 2.0, size=length).astype(np.float32)))

    def row_of(chosen: list[tuple[np.ndarray, np.ndarray]], seq_len: int) -> Sample:
        starts = np.concatenate([np.arange(len(tokens)) == 0 for tokens, _ in chosen])
        tokens, weights = (np.concatenate(parts) for parts in zip(*chosen))
        return document_sample(*padded(tokens, weights, starts, seq_len + 1))

    packed = gradients_of([double(Batch.of([row_of(documents, 18)]))])
    apart = gradients_of([double(Batch.of([row_of([document], 12) for document in documents]))])
    singly = gradients_of([double(Batch.of([row_of([document], 7)])) for document in documents])
    assert packed[0] > 1.0
    assert_equal(packed, apart)
    assert_equal(packed, singly)


def double(batch: Batch) -> Batch:
    return replace(batch, weights=batch.weights.double())


@given(st.lists(st.integers(0, 8), min_size=1, max_size=3))
def test_any_cut_into_micro_batches_gives_one_gradient(cuts: list[int]) -> None:
    batch = random_batch(1, 8, 6)
    ends = sorted({*cuts, 0, 8})
    names = ("tokens", "labels", "weights", "positions", "doc_ids")
    pieces = [Batch(**{n: getattr(batch, n)[a:b] for n in names}) for a, b in pairwise(ends)]
    assert_equal(gradients_of(pieces), gradients_of([batch]))


def test_weightless_tokens_do_not_matter() -> None:
    generator = np.random.default_rng(4)
    samples = [random_sample(generator, [5, 4], SMALL.vocab_size) for _ in range(2)]
    batch = double(Batch.of(samples))
    assert (batch.weights[:, 4] == 0).all(), "the first token of a document is no label"
    scrambled = replace(batch, labels=torch.where(batch.weights == 0, 0, batch.labels))
    assert_equal(gradients_of([scrambled]), gradients_of([batch]))


def test_scalar_head_and_entropy_outputs() -> None:
    mesh = ParallelDims.resolve(ParallelConfig(), 1).build("cpu")
    batch = random_batch(2, 3, 6)
    with_entropy = NativeEngine(small_config(), mesh, torch.device("cpu"), entropy=True).token_outputs([batch])[0]
    plain = make_engine().token_outputs([batch])[0]
    assert with_entropy.logprobs is not None
    assert plain.logprobs is not None
    assert (with_entropy.logprobs - plain.logprobs).abs().max() <= 1e-12
    assert with_entropy.entropy is not None
    assert plain.entropy is None
    scalar = NativeEngine(small_config(), mesh, torch.device("cpu"), head="scalar")
    assert "score.weight" in dict(scalar.named_weights())
    values = scalar.token_outputs([batch])[0].values
    assert values is not None
    assert values.shape == batch.tokens.shape


def test_replica_for_decoding_equals_the_trained_model() -> None:
    engine = make_engine()
    engine.set_rope(Rope(123.0))
    tokens = torch.tensor([[1, 2, 3]])
    copy = engine.replica()
    assert torch.equal(logits_of(copy, tokens), logits_of(engine.model, tokens))
    assert not any(p.requires_grad for p in copy.parameters())
    assert not torch.equal(logits_of(random_model(), tokens), logits_of(copy, tokens))


def test_tokens_that_do_not_count_cost_no_logits_and_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(11, (2, 9), generator=generator)
    every = score_tokens(x, weight, labels, 4, entropy=True)
    for counted in (torch.tensor([0, 5, 6, 17]), torch.arange(18), torch.arange(0)):
        found = score_tokens(x, weight, labels, 3, entropy=True, counted_N=counted)
        for one, other in ((found.logprobs, every.logprobs), (found.entropy, every.entropy)):
            assert one is not None
            assert other is not None
            wanted = torch.zeros(18, dtype=torch.float64)
            wanted[counted] = other.flatten()[counted]
            assert (one.flatten() - wanted).abs().max() <= 1e-12
