"""Muon against its published numbers and a plain transcription, AdamW against torch's own, clipping by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from farside.configs.schema import OptimConfig, OptimKind
from farside.train.optim.build import Optimizer, clip_gradients
from farside.train.optim.muon import orthogonalise
from tests.train.models import InMemory, random_model, table_of

GO = torch.tensor(False)
"""Do not skip."""


def with_singular_values(values: Tensor, rows: int, cols: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0] for size in (rows, cols))
    count = len(values)
    return u[:, :count] @ torch.diag(values) @ v[:, :count].T


@pytest.mark.parametrize(("rows", "cols"), [(40, 40), (40, 64), (64, 40)])
def test_singular_values_move_towards_one(rows: int, cols: int) -> None:
    """The iteration divides by the norm, so the values are made to have norm 1: all of them in 0.005..1."""
    rest = torch.logspace(math.log10(0.005), math.log10(0.2), 39, dtype=torch.float64)
    values = torch.cat([rest, (1 - rest.square().sum()).sqrt()[None]])
    found = torch.linalg.svdvals(orthogonalise(with_singular_values(values, rows, cols)))
    assert found.min() >= 0.68
    assert found.max() <= 1.16


@pytest.mark.parametrize(("start", "golden"), [(1.0, 0.696), (0.1, 0.712)])
def test_five_steps_have_the_golden_values(start: float, golden: float) -> None:
    """A rank-one matrix has its only singular value at 1; a second one of 0.995 puts the first at 0.1."""
    rest = [] if start == 1.0 else [math.sqrt(1 - start**2)]
    matrix = with_singular_values(torch.tensor([*rest, start], dtype=torch.float64), 6, 9)
    u, _, v = torch.linalg.svd(matrix)
    place = len(rest)
    found = (u[:, place] @ orthogonalise(matrix) @ v[place]).item()
    assert found == pytest.approx(golden, abs=5e-4)


def test_orthogonalise_keeps_directions_and_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(3, 8, 5, generator=generator, dtype=torch.float64)
    whole = orthogonalise(batch)
    for matrix, result in zip(batch, whole):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        polynomial = s / s.norm()
        for _ in range(5):
            polynomial = 3.4445 * polynomial - 4.7750 * polynomial**3 + 2.0315 * polynomial**5
        assert (result - u @ torch.diag(polynomial) @ v).abs().max() < 1e-12
        assert (orthogonalise(matrix.T).T - result).abs().max() < 1e-12


@pytest.mark.parametrize(("rows", "cols"), [(96, 96), (64, 160), (160, 64)])
def test_update_has_rms_near_one_fifth(rows: int, cols: int) -> None:
    """0.2 times the RMS of singular values, which five steps leave within 0.68..1.16 (exactly 0.2 if all were 1)."""
    layers = nn.ModuleList([nn.Linear(cols, rows, dtype=torch.float64)])
    model = nn.ModuleDict({"model": nn.ModuleDict({"layers": layers})})
    optimizer = Optimizer(
        dict(model.named_parameters()), OptimConfig(kind=OptimKind.muon, weight_decay=0.0), table_of(model)
    )
    set_gradients(model, 2)
    weight = model.get_parameter("model.layers.0.weight")
    before = weight.detach().clone()
    assert weight.grad is not None
    optimizer.step(1.0, GO)
    rms = (weight.detach() - before).square().mean().sqrt().item()
    assert rms == pytest.approx(0.2, rel=0.16)
    update = (weight.detach() - before) / orthogonalise(weight.grad)
    assert torch.allclose(update, torch.full_like(update, -0.2 * max(rows, cols) ** 0.5))


def test_muon_equals_its_formula_over_steps() -> None:
    """Momentum, Nesterov, decoupled decay, for the matrices inside blocks; AdamW for all others."""
    model, mirror = random_model(), random_model()
    optimizer = Optimizer(
        dict(model.named_parameters()), OptimConfig(kind=OptimKind.muon, weight_decay=0.3), table_of(model)
    )
    inner = [name for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    assert len(inner) == 14
    assert optimizer.muon is not None
    assert sorted(optimizer.muon.named) == sorted(inner)
    weights = {name: p.detach().clone() for name, p in mirror.named_parameters()}
    momenta = {name: torch.zeros_like(weights[name]) for name in inner}
    for step in range(3):
        set_gradients(model, step)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        lr = 0.1 / (step + 1)
        optimizer.step(lr, GO)
        for name in inner:
            momenta[name] = 0.95 * momenta[name] + gradients[name]
            update = orthogonalise(0.95 * momenta[name] + gradients[name])
            weights[name] -= lr * (0.2 * max(update.shape) ** 0.5 * update + 0.3 * weights[name])
    for name in inner:
        assert (model.get_parameter(name) - weights[name]).abs().max() < 1e-12, name


def optimizer_of(model: nn.Module, config: OptimConfig) -> Optimizer:
    return Optimizer(dict(model.named_parameters()), config, table_of(model))


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def test_adamw_equals_its_formula_and_decays_matrices_only() -> None:
    model, mirror = random_model(), random_model()
    config = OptimConfig(weight_decay=0.3, betas=(0.8, 0.9), eps=1e-3)
    optimizer = optimizer_of(model, config)
    assert optimizer.muon is None
    weights = {name: p.detach().clone() for name, p in mirror.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in weights.items()}
    second = {name: torch.zeros_like(value) for name, value in weights.items()}
    for step in range(1, 4):
        set_gradients(model, step)
        for name, p in model.named_parameters():
            assert p.grad is not None
            first[name] = 0.8 * first[name] + 0.2 * p.grad
            second[name] = 0.9 * second[name] + 0.1 * p.grad**2
        optimizer.step(0.01 * step, GO)
        for name, value in weights.items():
            decay = 0.3 if value.ndim == 2 else 0.0
            corrected = first[name] / (1 - 0.8**step) / ((second[name] / (1 - 0.9**step)).sqrt() + 1e-3)
            weights[name] = value - 0.01 * step * (corrected + decay * value)
    for name, p in model.named_parameters():
        assert (p - weights[name]).abs().max() < 1e-12, name


@pytest.mark.parametrize("kind", OptimKind)
def test_optimizer_state_survives_a_round_trip(kind: OptimKind) -> None:
    model, other = random_model(), random_model(seed=5)
    config = OptimConfig(kind=kind)
    optimizer, copy = (
        optimizer_of(model, config),
        optimizer_of(other, config),
    )
    for step in range(2):
        set_gradients(model, step)
        optimizer.step(0.01, GO)
    other.load_state_dict(model.state_dict())
    moments = {
        f"{moment}.{name}": value.clone()
        for moment, named in optimizer.state().items()
        for name, value in named.items()
    }
    copy.load_state(InMemory(moments), optimizer.updates)
    for target in (model, other):
        set_gradients(target, 9)
    optimizer.step(0.01, GO)
    copy.step(0.01, GO)
    assert copy.updates == optimizer.updates == 3
    for mine, theirs in zip(model.parameters(), other.parameters()):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clipping_scales_to_the_norm_of_all_parameters(max_norm: float) -> None:
    model = random_model()
    set_gradients(model, 0)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    wanted = torch.cat([gradient.flatten() for gradient in before]).norm()
    found = clip_gradients(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, max_norm, table_of(model)
    )
    assert found.item() == pytest.approx(wanted.item(), rel=1e-14)
    scale = min(1.0, max_norm / wanted.item())
    for gradient, p in zip(before, model.parameters()):
        assert p.grad is not None
        assert torch.allclose(p.grad, gradient * scale, rtol=1e-11)
