"""Tensor and sequence parallelism, piece by piece, against the same computation on one process; fp64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from farside.parallel import comm
from farside.parallel.mesh import Mesh, ParallelDims
from farside.parallel.plan import ShardTable, part
from farside.parallel.tensor import ShardedTensors, TensorParallel, WholeTensors
from farside.train.model.heads import score_tokens
from tests.ranks import Rank, RankPool

B, L, E, WIDTH, VOCAB = 3, 8, 12, 20, 37
SHAPES = {
    "model.embed_tokens.weight": (VOCAB, E),
    "norm.weight": (E,),
    "x.up_proj.weight": (WIDTH, E),
    "x.down_proj.weight": (E, WIDTH),
    "lm_head.weight": (VOCAB, E),
    "score.weight": (2, E),
}


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCAB, (B, L), generator=generator)
    labels = torch.randint(VOCAB, (B, L), generator=generator)
    return tokens, labels, torch.rand(B, L, generator=generator, dtype=torch.float64)


def loss_of(tensors: TensorParallel, weight: dict[str, Tensor]) -> Tensor:
    """A look-up, a scaled MLP with residual, a vocabulary head with entropy and a scalar head."""
    tokens, labels, counted = inputs()
    x = tensors.embed(tokens, weight["model.embed_tokens.weight"], torch.float64)
    wide = F.silu(tensors.enter(x * weight["norm.weight"]) @ weight["x.up_proj.weight"].T)
    x = x + tensors.leave(wide @ weight["x.down_proj.weight"].T)
    values = tensors.unshard(x @ weight["score.weight"].T)
    scores = score_tokens(tensors.enter(x), weight["lm_head.weight"], labels, 5, True, None, tensors, VOCAB)
    assert scores.logprobs is not None
    assert scores.entropy is not None
    return (counted * (0.3 * scores.entropy - scores.logprobs)).sum() + values.square().sum()


def alone() -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: value.requires_grad_() for name, value in weights().items()}
    loss = loss_of(WholeTensors(), leaves)
    loss.backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def together(place: Rank) -> tuple[Tensor, dict[str, Tensor]]:
    group = torch.distributed.group.WORLD
    table = ShardTable(
        {name: torch.Size(shape) for name, shape in SHAPES.items()}, Mesh(ParallelDims(tp=place.world_size), tp=group)
    )
    leaves = {name: table.tensor_part(name, value).clone().requires_grad_() for name, value in weights().items()}
    loss = loss_of(ShardedTensors(group), leaves)
    loss.backward()
    gradients: dict[str, Tensor] = {}
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        gradients[name] = table.full(name, leaf.grad) if table.is_cut(name) else comm.sum_(leaf.grad, group)
    cut = {name: leaf.detach() for name, leaf in leaves.items() if leaf.ndim == 2}
    for name, value in table.gather(cut).items():
        assert torch.equal(value, weights()[name]), name
    return loss.detach(), gradients


@pytest.mark.parametrize("size", [2, 4])
def test_values_and_gradients_equal_one_process(ranks: RankPool, size: int) -> None:
    wanted_loss, wanted = alone()
    for loss, gradients in ranks.run(together, size):
        assert abs(loss - wanted_loss) <= 1e-12 * abs(wanted_loss)
        assert gradients.keys() == wanted.keys()
        for name, gradient in gradients.items():
            assert (gradient - wanted[name]).norm() <= 1e-12 * wanted[name].norm(), name


def test_the_last_rank_of_an_odd_vocabulary_holds_padding() -> None:
    assert [part(37, 2), part(37, 4), part(8, 4), part(1, 4)] == [19, 10, 2, 1]


EXTREME = torch.tensor([[0.0, 5.0, -3.0, 1.0], [900.0, -900.0, 0.0, 899.0]], dtype=torch.float64)
LABELS = torch.tensor([[1, 3]])


def extreme(place: Rank, shift: float) -> tuple[Tensor | None, Tensor | None]:
    """Scores of logits so large that their exponential overflows, with the label on either rank."""
    tensors = ShardedTensors(torch.distributed.group.WORLD) if place.world_size > 1 else WholeTensors()
    columns = 4 // place.world_size
    weight = (EXTREME + shift)[:, columns * place.rank :][:, :columns].T
    x = torch.eye(2, dtype=torch.float64)[None]
    outputs = score_tokens(x, weight, LABELS, 8, True, None, tensors, 4)
    return outputs.logprobs, outputs.entropy


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_scores_do_not_overflow(ranks: RankPool, shift: float) -> None:
    for found in ranks.run(extreme, 2, shift):
        for one, other in zip(found, extreme(Rank(0, 1), shift)):
            assert one is not None
            assert other is not None
            assert (one - other.nan_to_num(0.0)).abs().max() <= 1e-11


def unreduced(place: Rank) -> float:
    """The gradient of a norm weight that nobody sums over the ranks: what the engine must not forget."""
    group = torch.distributed.group.WORLD
    table = ShardTable(
        {name: torch.Size(shape) for name, shape in SHAPES.items()}, Mesh(ParallelDims(tp=place.world_size), tp=group)
    )
    leaves = {name: table.tensor_part(name, value).clone().requires_grad_() for name, value in weights().items()}
    loss_of(ShardedTensors(group), leaves).backward()
    gradient, wanted = leaves["norm.weight"].grad, alone()[1]["norm.weight"]
    assert gradient is not None
    return ((gradient - wanted).norm() / wanted.norm()).item()


def test_a_norm_gradient_without_its_sum_is_wrong(ranks: RankPool) -> None:
    """Megatron-LM's recurring bug (issue 1464): the check above would see it."""
    assert min(ranks.run(unreduced, 2)) > 0.1


def bf16(place: Rank, call: Callable[[Tensor, int, comm.Group], Tensor]) -> Tensor:
    x = torch.full((2, 4), 1.0 if place.rank == 0 else 2.0**-9, dtype=torch.bfloat16)
    return call(x, 1, torch.distributed.group.WORLD)


def test_low_precision_is_summed_in_fp32(ranks: RankPool) -> None:
    results = ranks.run(bf16, 4, comm.sum_scatter)
    assert results[0].dtype == torch.bfloat16
    assert results[0].shape == (2, 1)
    # 1 + 3·2^-9 rounds to 1 + 2^-7 in bf16; added one by one in bf16 each 2^-9 would be lost
    assert results[0][0, 0].item() == 1 + 2.0**-7
