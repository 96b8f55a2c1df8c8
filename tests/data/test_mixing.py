"""From configuration to mixtures: shares by token and temperature, epochs over stages, and what was drawn."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farside.configs.errors import UserError
from farside.configs.rope import Rope
from farside.configs.schema import DataConfig, MixtureUnit, ModelConfig, Packing, SourceConfig
from farside.configs.stages import Stage
from farside.data.drawn import drawn
from farside.data.joined import Joined
from farside.data.mixing import StageMixture, asked_shares, stage_mixtures
from farside.data.order import rng
from farside.data.pack import TextSource, document_offsets
from farside.data.plan import PlanStore
from farside.data.synthetic.copy import CopySource

TOKENS = {"small": 4_000, "large": 16_000}


def text(name: str, length: int = 40) -> TextSource:
    """Documents of ``length`` tokens, and every tenth five times as long; 0 ends each."""
    lengths = np.resize([length] * 9 + [5 * length], 10_000)
    offsets = np.cumsum(lengths)
    offsets = np.append(offsets[offsets < TOKENS[name]], TOKENS[name])
    tokens = rng(name).integers(1, 99, TOKENS[name])
    tokens[offsets - 1] = 0
    return TextSource(name, tokens, 0, 0)


def stage(index: int, steps: int, seq_len: int = 32, **fields: Any) -> Stage:
    mixture = fields.pop("mixture", {"small": 0.5, "large": 0.5})
    fields = {"packing": Packing.best_fit, "lengths": {}, **fields}
    return Stage(
        index, f"s{index}", 0, steps, seq_len, Rope.of_model(ModelConfig()), 1.0, 8, 8, mixture, eval=False, **fields
    )


def mixtures(folder: Path, stages: list[Stage], most: float | None = None, **config: Any) -> list[StageMixture]:
    sources = {"small": text("small"), "large": text("large"), "copy": CopySource(np.arange(500), 500, 0)}
    limits = {"small": SourceConfig(max_epochs=most)}
    return stage_mixtures(DataConfig(sources=limits, **config), stages, sources, PlanStore(folder, "data"))


def test_max_epochs_holds_over_stages_and_the_rest_goes_to_the_others(tmp_path: Path) -> None:
    """Half of the rows would read the small source (125 rows of 32) more than four times."""
    stages = [stage(0, 20), stage(1, 40, 48), stage(2, 40), stage(3, 20, packing=Packing.concatenate)]
    planned = mixtures(tmp_path, stages, most=2.5)
    found = drawn(planned)
    epochs = [found[number]["entries"]["small"]["epochs"] for number in range(4)]
    assert sum(epochs) <= 2.5
    assert sum(epochs) > 2.4
    assert epochs[3] == 0
    assert found[3]["entries"]["large"]["share_of_rows"] == 1
    assert found[0]["entries"]["small"]["share_of_rows"] == pytest.approx(0.5, abs=0.05)


def test_a_stage_of_equal_rows_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    """Over both stages no row of the first epoch comes twice."""
    planned = mixtures(tmp_path, [stage(0, 32), stage(1, 30)])
    seen = [one.mixture.locate(index) for one in planned for index in range(one.samples)]
    assert len(set(seen)) == len(seen)
    assert planned[0].mixture.seed != planned[1].mixture.seed
    other = mixtures(tmp_path, [stage(0, 32), stage(1, 30, packing=Packing.length_bucketed)])
    assert min(own for name, own in map(other[1].mixture.locate, range(200)) if name == "large") == 0


def test_too_few_epochs_and_unknown_entries_name_the_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stage 's0': 4,000 samples asked for, but max_epochs .* leaves 2\d\d"):
        mixtures(tmp_path, [stage(0, 500, mixture={"small": 1.0})], most=2)
    with pytest.raises(UserError, match="stage 's0': mixture names 'none'; there are copy, large, small"):
        mixtures(tmp_path, [stage(0, 1, mixture={"none": 1.0})])
    with pytest.raises(UserError, match=r"stage 's1': data\.lengths: source 'large' has no document"):
        mixtures(tmp_path, [stage(0, 1), stage(1, 1, lengths={5000: 1.0})])


def test_shares_by_token_give_a_padded_source_its_due(tmp_path: Path) -> None:
    """Documents of 40 and 200 tokens leave padding in rows of 48, and copying leaves none."""
    wide = {"packing": Packing.length_bucketed, "mixture": {"small": 0.5, "copy": 0.5}, "seq_len": 47}
    by_row, by_token = (
        drawn(mixtures(tmp_path, [stage(0, 128, **wide)], mixture_unit=unit))[0]["entries"]["small"]
        for unit in MixtureUnit
    )
    assert by_row["share_of_rows"] == pytest.approx(0.5, abs=0.01)
    assert by_row["share_of_tokens"] < 0.48
    assert by_token["share_of_tokens"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 1e9])
def test_temperature_flattens_sizes_and_leaves_synthetic_entries_alone(temperature: float) -> None:
    sources: Any = {"small": text("small"), "large": text("large"), "copy": CopySource(np.arange(500), 500, 0)}
    asked = asked_shares({"small": 3, "large": 5, "copy": 2}, sources, temperature)
    assert asked["copy"] == pytest.approx(0.2)
    assert sum(asked.values()) == pytest.approx(1)
    assert asked["large"] / asked["small"] == pytest.approx(4 ** (1 / temperature))


def test_what_is_drawn_is_what_the_loader_gives(tmp_path: Path) -> None:
    """Counted sample by sample: rows, predicted tokens and the share of long documents."""
    first = stage(0, 47, lengths={0: 0.4, 100: 0.6}, mixture={"small": 0.3, "large": 0.5, "copy": 0.2})
    planned = mixtures(tmp_path, [first])[0]
    entries = drawn([planned])[0]["entries"]
    rows = dict.fromkeys(entries, 0)
    for index in range(planned.samples):
        rows[planned.mixture.locate(index)[0]] += 1
    assert rows == {name: entry["rows"] for name, entry in entries.items()}
    assert rows["large"] / planned.samples == pytest.approx(0.5, abs=0.02)
    assert entries["large"]["lengths"]["100"] == {"asked": 0.6, "drawn": pytest.approx(0.6, abs=0.02)}
    source = planned.source("large")
    epoch = range(source.rows(32))  # type: ignore[attr-defined]
    assert sum((source.sample(index, 32).weights > 0).sum() for index in epoch) == pytest.approx(
        source.predicted(32) * len(epoch)  # type: ignore[attr-defined]
    )
    assert math.isclose(sum(entry["share_of_tokens"] for entry in entries.values()), 1)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_documents_are_found_by_their_ends(at_once: int) -> None:
    assert document_offsets(np.array([5, 0, 0, 7, 0]), 0, at_once).tolist() == [0, 2, 3, 5]
    assert document_offsets(np.array([5, 0, 7]), 0, at_once).tolist() == [0, 2, 3], "the last one may be open"


def test_joined_arrays_read_as_one() -> None:
    parts = [np.arange(3), np.arange(3, 3), np.arange(3, 9), np.arange(9, 10)]
    joined = Joined(parts)
    assert len(joined) == 10
    for start in range(11):
        for stop in range(start, 11):
            assert joined[start:stop].tolist() == list(range(start, stop))
