"""A flipped bit in one of several equal copies of the weights is found, and the rank that holds it is named."""

from pathlib import Path

import numpy as np
import pytest
import torch

from farside.configs.schema import Config
from farside.parallel import fsdp
from farside.parallel.mesh import ParallelDims
from farside.parallel.replicas import bits_hash, odd_ones_out
from farside.train.engine.native import NativeEngine
from tests.ranks import Rank, RankPool
from tests.train.looping import Ran, config_of, parallel, train

NORM, MATRIX = "model.layers.0.input_layernorm.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8])
def test_any_flipped_bit_and_any_exchange_changes_the_hash(dtype: torch.dtype) -> None:
    values = torch.arange(1, 41).view(5, 8).to(dtype)
    whole = int(bits_hash(values))
    for element in range(values.numel()):
        for bit in range(8 * values.element_size()):
            hurt = values.clone()
            byte, mask = element * values.element_size() + bit // 8, 1 << bit % 8
            hurt.view(torch.uint8).flatten()[byte] ^= mask
            assert int(bits_hash(hurt)) != whole
    assert int(bits_hash(values.T.contiguous())) != whole
    assert int(bits_hash(values.clone())) == whole
    assert int(bits_hash(values[:0])) == 1


def test_chunks_do_not_change_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole = int(bits_hash(values))
    monkeypatch.setattr("farside.parallel.replicas.CHUNK", 7)
    assert int(bits_hash(values)) == whole


def test_who_is_alone() -> None:
    ranks = np.array([4, 5, 6, 7])
    assert odd_ones_out(np.array([1, 1, 1, 1]), ranks) is None
    assert odd_ones_out(np.array([1, 1, 9, 1]), ranks) == ([6], [4, 5, 7])
    assert odd_ones_out(np.array([1, 9, 9, 1]), ranks) == ([4, 5, 6, 7], [])
    assert odd_ones_out(np.array([3]), ranks[:1]) is None


def flip(place: Rank, degrees: dict[str, int], victim: int, name: str, tie: bool = False) -> str:
    """Flips the lowest bit of one element on one rank; what the comparison says, there and before."""
    config: Config = config_of(1, parallel(**degrees))
    config.model.num_hidden_layers, config.model.tie_word_embeddings = 4, tie
    mesh = ParallelDims.resolve(config.parallel, place.world_size).build("cpu")
    engine = NativeEngine(config, mesh, torch.device("cpu"))
    engine.check_replicas()
    for held, parameter in engine.weights.everywhere():
        if held == name and place.rank == victim:
            fsdp.local(parameter.data).view(torch.uint8).flatten()[0] ^= 1
    try:
        engine.check_replicas()
    except RuntimeError as error:
        return str(error)
    return ""


LAST = "model.embed_tokens.weight"
CASES = {
    "dp_replicate4": ({"dp_replicate": 4}, 2, MATRIX, False, f"rank 2 holds other bits of {MATRIX} than ranks 0, 1, 3"),
    "tp4 norm": ({"tp": 4}, 3, NORM, False, f"rank 3 holds other bits of {NORM} than ranks 0, 1, 2"),
    "tp4 matrix": ({"tp": 4}, 3, MATRIX, False, ""),  # every rank has its own part: nobody to compare with
    "fsdp4": ({"dp_shard": 4}, 1, MATRIX, False, ""),
    "dp_replicate2 shard2": (
        *({"dp_replicate": 2, "dp_shard": 2}, 3, MATRIX, False),
        f"ranks 1, 3 hold different bits of {MATRIX} (whose are right nobody can tell)",
    ),
    "dp_replicate2 tp2 norm": (
        *({"dp_replicate": 2, "tp": 2}, 1, NORM, False),
        f"rank 1 holds other bits of {NORM} than ranks 0, 2, 3",
    ),
    "dp_replicate2 tp2 matrix": (
        *({"dp_replicate": 2, "tp": 2}, 1, MATRIX, False),
        f"ranks 1, 3 hold different bits of {MATRIX}",
    ),
    "pp2 tied": ({"pp": 2}, 1, LAST, True, f"ranks 0, 1 hold different bits of {LAST}"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", CASES)
def test_a_flipped_bit_is_found_where_there_is_another_copy(ranks: RankPool, case: str) -> None:
    degrees, victim, name, tie, wanted = CASES[case]
    size = int(np.prod(list(degrees.values())))
    told = ranks.run(flip, size, degrees, victim, name, tie)
    assert len(set(told)) == 1, "all ranks say the same"
    assert told[0].startswith(wanted)
    assert bool(told[0]) == bool(wanted)


def run_with_a_flip(place: Rank, run_dir: Path, every: int) -> Ran:
    """Six steps, a checkpoint after every fourth; after three a bit of rank 1 flips."""
    config = config_of(6, parallel(dp_replicate=2))
    config.train.guard.compare_replicas = every
    step = NativeEngine.step

    def hurt(engine: NativeEngine, *args: object) -> object:
        stats = step(engine, *args)  # type: ignore[arg-type]
        if place.rank == 1 and engine.optimizer.updates == 3:
            fsdp.local(dict(engine.weights.everywhere())[NORM].data).view(torch.uint8)[0] ^= 1
        return stats

    NativeEngine.step = hurt  # type: ignore[method-assign, assignment]
    try:
        return train(place, run_dir, config, {})
    finally:
        NativeEngine.step = step  # type: ignore[method-assign]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("every", [1, 5, 0])
def test_a_run_ends_before_it_saves_what_it_cannot_trust(ranks: RankPool, tmp_path: Path, every: int) -> None:
    results = ranks.run(run_with_a_flip, 2, tmp_path, every)
    for ran in results:
        assert ("hold different bits" in ran.error) == bool(every)
        assert bool(ran.checkpoints) == (not every)
    assert results[0].metrics[-1]["step"] == {1: 3, 5: 4, 0: 6}[every]
