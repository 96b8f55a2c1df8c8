"""Types over the mesh: every layout passes on one process at its real degrees, planted bugs are rejected by name."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import spmd_types as spmd
import torch
from spmd_types.rulecheck import rulecheck
from torch import Tensor
from torch.nn import functional as F

from farside.configs.errors import UserError
from farside.configs.schema import (
    Config,
    ContextConfig,
    ContextKind,
    ContextLayout,
    ModelConfig,
    ParallelConfig,
    PipelineConfig,
    PipelineSchedule,
)
from farside.data.batch import Batch
from farside.parallel import comm, fsdp
from farside.parallel.context.documents import Documents
from farside.parallel.context.layout import Unshard, zigzag
from farside.parallel.context.ring import Ring
from farside.parallel.context.ulysses import Reorder
from farside.parallel.mesh import Mesh, ParallelDims
from farside.parallel.plan import ShardTable
from farside.parallel.tensor import ShardedTensors, WholeTensors
from farside.parallel.types import MeshTypes, TypeMismatch
from farside.train.engine.typecheck import check_loss, check_types, shrunken
from farside.train.loss import LossFn, WeightedSum, lm_loss
from farside.train.model.heads import Scores, TokenOutputs
from farside.train.model.mlp import ChunkedMLP, fill
from tests.parity.cells import Cell, config_of
from tests.parity.matrix import cover
from tests.ranks import Rank, RankPool

DENSE_70B = ModelConfig(
    vocab_size=128_256,
    hidden_size=8192,
    intermediate_size=28_672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
)


def production(
    degrees: tuple[int, int, int, int, int],
    kind: str = "ring",
    layout: str = "zigzag",
    ulysses: int = 1,
    schedule: str = "1f1b",
) -> Config:
    """degrees: dp_replicate, dp_shard, cp, tp, pp."""
    context = ContextConfig(ContextKind[kind], ContextLayout[layout])
    context.ulysses_degree = ulysses
    return Config(
        model=DENSE_70B, parallel=ParallelConfig(*degrees, context, PipelineConfig(PipelineSchedule[schedule]))
    )


PRODUCTION = [
    production((4, 256, 1, 1, 1)),
    production((2, 16, 8, 4, 1)),
    production((1, 8, 16, 8, 1), layout="balanced"),
    production((1, 8, 16, 8, 1), "hybrid", ulysses=8),
    production((1, 1, 128, 8, 1)),
    production((1, 16, 8, 8, 1), "ulysses"),
    production((2, 8, 8, 8, 1), "allgather", "contiguous"),
    production((1, 8, 2, 8, 8), schedule="interleaved"),
    production((1, 32, 1, 8, 4), schedule="zbv"),
    production((1, 2, 8, 8, 8), "hybrid", ulysses=4),
]


def name_of(config: Config) -> str:
    parallel = config.parallel
    degrees = (parallel.dp_replicate, parallel.dp_shard, parallel.cp, parallel.tp, parallel.pp)
    return f"{'x'.join(map(str, degrees))} {parallel.context.kind.value} {parallel.pipeline.schedule.value}"


@pytest.mark.parametrize("cell", cover(), ids=lambda cell: cell.name)
def test_every_layout_of_the_parity_matrix_passes(cell: Cell) -> None:
    lines = check_types(config_of(cell), cell.ranks)
    assert lines[-1].startswith("loss: ")
    assert len(lines) == 1 + cell.pp * (1 if cell.schedule == "1f1b" else 2)


@pytest.mark.parametrize("config", PRODUCTION, ids=name_of)
def test_production_layouts_pass(config: Config) -> None:
    assert config.parallel.ranks == 1024
    assert check_types(config, 1024)[-1].startswith("loss: ")


def test_what_is_typed_is_said() -> None:
    lines = check_types(production((1, 2, 2, 2, 2)), 16)
    assert lines == [
        "stage 1 of 2 (layer 0): hidden states dp V, cp V, tp V",
        "stage 2 of 2 (layer 1): hidden states dp V, cp V, tp V",
        "loss: dp V, cp I, tp I",
    ]


def test_chunked_mlps_pass_where_whole_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    config = production((1, 2, 2, 2, 2))
    chunked = replace(config, train=replace(config.train, mlp_chunk=5))
    assert check_types(chunked, 16) == check_types(config, 16)
    monkeypatch.setattr(ShardedTensors, "enter", lambda self, x: comm.gather_alike(x, 1, self.group))
    with pytest.raises(TypeMismatch, match="Invariant type on axis tp"):
        check_types(chunked, 16)


def test_one_rank_has_no_types() -> None:
    assert check_types(Config(), 1) == ["one rank: nothing is divided"]


def test_degrees_that_do_not_fit_are_said_before_any_group_exists() -> None:
    with pytest.raises(UserError, match="but 8 ranks were started"):
        check_types(production((1, 2, 1, 2, 1)), 8)
    with pytest.raises(UserError, match="does not divide model"):
        check_types(production((1, 1, 1, 16, 1)), 16)


# Planted bugs: at 2 ranks an axis, and with the groups of the mesh in hand.


def rejected(loss_of: Callable[[Mesh], LossFn] = lambda mesh: lm_loss, kind: str = "ring", head: str = "lm") -> str:
    """What the check says of dp2·cp2·tp2."""
    config = shrunken(production((1, 2, 2, 2, 1), kind))
    with comm.fake_ranks(8):
        mesh = ParallelDims.resolve(config.parallel, 8).build("cpu")
        with pytest.raises(TypeMismatch) as caught:
            check_loss(config, mesh, loss_of(mesh), head)
    return str(caught.value)


@pytest.mark.parametrize("norm", ["input_layernorm", "q_norm", "model.norm"])
def test_a_norm_gradient_not_reduced_over_tp(monkeypatch: pytest.MonkeyPatch, norm: str) -> None:
    """Megatron-LM#1464."""
    right = ShardTable.is_summed
    monkeypatch.setattr(ShardTable, "is_summed", lambda self, name: norm not in name and right(self, name))
    if norm == "q_norm":
        monkeypatch.setattr(DENSE_70B, "qk_norm", True)
    said = rejected()
    assert "Invariant type on axis tp cannot mix with other types" in said
    assert "tp: I" in said


@pytest.mark.parametrize("axis", ["dp", "cp"])
def test_parameters_that_fsdp_does_not_sum_over_an_axis(monkeypatch: pytest.MonkeyPatch, axis: str) -> None:
    monkeypatch.setattr(fsdp, "SUMMED_AXES", tuple({"dp", "cp"} - {axis}))
    assert f"Invariant type on axis {axis} cannot mix with other types" in rejected()


@pytest.mark.parametrize("axis", ["dp", "cp", "tp"])
@pytest.mark.parametrize("gradient", ["R", "I"])
def test_a_loss_averaged_twice(axis: str, gradient: str) -> None:
    """It is averaged over an axis already; summed once more, by the engine or because the axis's ranks are one loss to
    it (Megatron-LM#7452), it would count as often as there are ranks."""

    def loss_of(mesh: Mesh) -> LossFn:
        def loss(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
            total, group = lm_loss(outputs, batch).total, getattr(mesh, axis)
            src = spmd.V if axis == "dp" else spmd.P
            return WeightedSum(spmd.all_reduce(total, group, src=src, dst=getattr(spmd, gradient)) / comm.size(group))

        return loss

    said = rejected(loss_of)
    assert said.startswith("loss: ")
    if axis == "dp":
        assert f"is {gradient} on axis dp and must be V" in said
    else:
        assert f"axis {axis}" in said
        assert "I" in said


def test_a_loss_summed_in_place_behind_autograd() -> None:
    def loss_of(mesh: Mesh) -> LossFn:
        return lambda outputs, batch: WeightedSum(comm.sum_(lm_loss(outputs, batch).total, mesh.dp))

    assert "all_reduce: expected input type P on axis dp, got V" in rejected(loss_of)


def gathered(gather: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attention with all keys and values, gathered by ``gather``."""

    def attend(self: Ring, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        k, v = gather(k, 1, self.group), gather(v, 1, self.group)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)

    return attend


def test_a_ring_without_the_reduction_of_its_keys_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank's queries add to the gradient of every key; here each rank keeps what its own queries gave."""
    monkeypatch.setattr(Ring, "attend", gathered(comm.gather_alike))
    said = rejected()
    assert "Invariant type on axis cp cannot mix with other types" in said
    assert "scaled_dot_product_attention" in said


def test_the_same_with_the_reduction_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ring, "attend", gathered(comm.gather))
    assert check_types(production((1, 2, 2, 2, 1)), 8)


def merged(reduces: bool) -> Callable[..., Tensor]:
    """All queries against this rank's keys: a summand of the output (its logsumexps left aside)."""

    def attend(self: Ring, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (comm.gather(q, 1, self.group), k, v))
        part = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)
        if reduces:
            return comm.sum_scatter(part, 1, self.group)
        return spmd.reinterpret(part, self.group, src=spmd.V, dst=spmd.P).narrow(1, 0, k.shape[2])

    return attend


def test_a_ring_without_the_reduction_of_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ring, "attend", merged(reduces=False))
    said = rejected()
    assert "Partial type on axis cp" in said
    monkeypatch.setattr(Ring, "attend", merged(reduces=True))
    assert check_types(production((1, 2, 2, 2, 1)), 8)


@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_a_column_product_whose_inputs_gradient_is_not_reduced(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    monkeypatch.setattr(ShardedTensors, "enter", lambda self, x: comm.gather_alike(x, 1, self.group))
    said = rejected(head=head)
    assert "Invariant type on axis tp cannot mix with other types" in said


def test_the_vocabulary_head_wants_hidden_states_whose_gradients_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    def enter(self: ShardedTensors, x: Tensor) -> Tensor:
        entered.append(x)  # twice a layer, then before the head
        return (comm.gather if len(entered) <= 4 else comm.gather_alike)(x, 1, self.group)

    monkeypatch.setattr(ShardedTensors, "enter", enter)
    said = rejected()
    assert len(entered) == 5
    assert "type mismatch on axis tp: tensor has I, expected R" in said


def test_the_scalar_head_passes() -> None:
    config = shrunken(production((1, 2, 2, 2, 2)))

    def loss(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
        assert outputs.values is not None
        return WeightedSum((batch.weights * outputs.values).sum())

    with comm.fake_ranks(16):
        mesh = ParallelDims.resolve(config.parallel, 16).build("cpu")
        assert check_loss(config, mesh, loss, "scalar")[-1] == "loss: dp V, cp I, tp I"


# The rules themselves: what a type claims of values and gradients, on gloo ranks and in spmd_types' simulation.


def scores_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_NE, weight_VE = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (6, 8))
    return x_NE, weight_VE, torch.randint(8, (6,), generator=generator), torch.randn(2, 6, generator=generator).double()


def typed_scores(place: Rank) -> tuple[list[Tensor], list[dict[str, str]], Tensor, Tensor]:
    """Outputs, their types, and the gradients of x and of this rank's rows, with the checker watching."""
    x_NE, weight_VE, labels_N, factors_2N = scores_inputs()
    group = torch.distributed.group.WORLD if place.world_size > 1 else None
    types, tensors = MeshTypes(Mesh(ParallelDims(tp=place.world_size), tp=group)), ShardedTensors(group)
    x_NE.requires_grad_()
    weight_VE = weight_VE.chunk(place.world_size)[place.rank].clone().requires_grad_()
    labels_N = labels_N - place.rank * len(weight_VE)
    for tensor, kind in ((x_NE, "R"), (weight_VE, "V"), (labels_N, "V")):
        types.mark(tensor, {"tp": kind})
    if group is None:
        outputs = Scores.apply(x_NE, weight_VE, labels_N, 4, True, WholeTensors())
    else:
        with types.checking():
            outputs = Scores.apply(x_NE, weight_VE, labels_N, 4, True, tensors)
    sum((factor * output).sum() for factor, output in zip(factors_2N, outputs)).backward()
    return [output.detach() for output in outputs], [types.of(output) for output in outputs], x_NE.grad, weight_VE.grad


def test_label_scores_keep_what_their_types_promise(ranks: RankPool) -> None:
    """I: equal on all ranks, with equal gradients; x R: the ranks' gradients sum up; weight V: each has its own."""
    wanted, _, wanted_x, wanted_weight = typed_scores(Rank(0, 1))
    found = ranks.run(typed_scores, 2)
    for outputs, kinds, _, _ in found:
        assert kinds == [{"tp": "I"}, {"tp": "I"}]
        for output, other, true in zip(outputs, found[0][0], wanted):
            assert torch.equal(output, other)
            assert (output - true).abs().max() < 1e-13
    assert (sum(each[2] for each in found) - wanted_x).abs().max() < 1e-13
    assert (torch.cat([each[3] for each in found]) - wanted_weight).abs().max() < 1e-13


def typed_unshard(place: Rank) -> tuple[Tensor, dict[str, str], bool]:
    """The whole, its type, and whether the gradient is this rank's slots of the whole's."""
    group = torch.distributed.group.WORLD
    types = MeshTypes(Mesh(ParallelDims(cp=2), cp=group))
    whole_BS = torch.arange(16.0).view(2, 8)
    layout = zigzag(Documents.of(torch.zeros(2, 8, dtype=torch.long)), 2)
    x_BL = layout.shard(whole_BS, place.rank).requires_grad_()
    types.mark(x_BL, {"cp": "V"})
    with types.checking():
        joined_BS = Unshard.apply(x_BL, layout, group)
    (joined_BS * whole_BS).sum().backward()
    assert x_BL.grad is not None
    return joined_BS.detach(), types.of(joined_BS), torch.equal(x_BL.grad, x_BL.detach())


def test_unshard_keeps_what_its_type_promises(ranks: RankPool) -> None:
    for joined_BS, kind, own in ranks.run(typed_unshard, 2):
        assert torch.equal(joined_BS, torch.arange(16.0).view(2, 8))
        assert kind == {"cp": "I"}
        assert own


@pytest.fixture
def no_philox(monkeypatch: pytest.MonkeyPatch) -> None:
    """rulecheck draws summands with an operator that torch 2.13 lacks on CPU; without it, it takes a generator."""
    monkeypatch.delattr("torch.func._random.normal")


@pytest.mark.parametrize("tokens", [spmd.S(0), spmd.R, spmd.I], ids=str)
def test_the_rule_of_label_scores_holds_for_sharded_tokens(tokens: Any) -> None:
    """On every axis but tp: sharded tokens give sharded scores, whole ones whole scores."""
    x_NE, weight_VE, labels_N, _ = scores_inputs()
    kinds = {"x_NE": tokens, "weight_VE": spmd.I if tokens is spmd.I else spmd.R, "labels_N": tokens}
    placements = {name: {"dp": kind} for name, kind in kinds.items()}
    rulecheck(Scores, (x_NE, weight_VE, labels_N, 4, True, WholeTensors()), placements, mesh={"dp": 2})


@pytest.mark.usefixtures("no_philox")
def test_scores_of_a_summand_are_rejected() -> None:
    x_NE, weight_VE, labels_N, _ = scores_inputs()
    placements = {"x_NE": {"dp": spmd.P}, "weight_VE": {"dp": spmd.R}, "labels_N": {"dp": spmd.R}}
    with pytest.raises(spmd.SpmdTypeError, match="Partial"):
        rulecheck(Scores, (x_NE, weight_VE, labels_N, 4, True, WholeTensors()), placements, mesh={"dp": 2})


class FilledMLP(ChunkedMLP):
    """The function with the output that its caller fills in."""

    @staticmethod
    def forward(ctx: Any, x_NE: Tensor, gate_FE: Tensor, up_FE: Tensor, down_EF: Tensor, chunk: int) -> Tensor:
        out_NE = torch.empty_like(x_NE)
        fill(out_NE, x_NE, gate_FE, up_FE, down_EF, chunk)
        return out_NE


MLP_CUTS = {
    "tokens": (spmd.S(0), spmd.R, spmd.R, spmd.R),
    "width": (spmd.R, spmd.S(0), spmd.S(0), spmd.S(1)),
    "nothing": (spmd.I, spmd.I, spmd.I, spmd.I),
}


@pytest.mark.usefixtures("no_philox")
@pytest.mark.parametrize("cut", MLP_CUTS)
def test_the_rule_of_a_chunked_mlp_holds(cut: str) -> None:
    """Cut tokens give cut outputs; of a cut width, each rank's output is a summand."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in ((6, 4), (8, 4), (8, 4), (4, 8))]
    names = ("x_NE", "gate_FE", "up_FE", "down_EF")
    placements = {name: {"tp": kind} for name, kind in zip(names, MLP_CUTS[cut], strict=True)}
    rulecheck(FilledMLP, (*tensors, 4), placements, mesh={"tp": 2})
    with pytest.raises(spmd.SpmdTypeError, match="Partial"):
        rulecheck(FilledMLP, (*tensors, 4), {**placements, "x_NE": {"tp": spmd.P}}, mesh={"tp": 2})


@pytest.mark.usefixtures("no_philox")
@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("kind", [spmd.R, spmd.I, spmd.P, spmd.S(2)], ids=str)
def test_the_rule_of_reorder_holds(kind: Any, back: bool) -> None:
    x_BM, order_BM = torch.randn(2, 6, 4), torch.stack([torch.randperm(6) for _ in range(2)])
    rulecheck(Reorder, (x_BM, order_BM, back), {"x_BM": {"tp": kind}, "order_BM": {"tp": spmd.R}}, mesh={"tp": 2})
