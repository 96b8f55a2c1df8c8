"""What a resumed run may change and what it may not, by name, with both values, in one line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from farside.configs.errors import UserError
from farside.configs.schema import CheckpointConfig, Config, MixtureUnit, OptimKind, SourceConfig, StageConfig
from farside.configs.stages import pretrain_stages
from farside.train.checkpoint.contract import changes, check, contract
from farside.train.checkpoint.store import CheckpointStore
from tests.train.stand_in import RowEngine

Change = Callable[[Config], Any]


def config_of(staged: bool, change: Change | None = None) -> Config:
    config = Config()
    config.data.mixture = {"en": 1.0}
    config.train.steps = 100
    if staged:
        config.stages = [
            StageConfig(name="short", steps=40, seq_len=64, mixture={"en": 1.0}),
            StageConfig(name="long", steps=60, seq_len=128),
        ]
    if change is not None:
        change(config)
    return config


def agreed(config: Config, fingerprint: str = "f00") -> dict[str, Any]:
    return contract(config, fingerprint, "stages" if config.stages else "data", pretrain_stages(config))


FREE: dict[str, Change] = {
    "learning rate": lambda config: setattr(config.optim, "lr", 1.0),
    "weight decay": lambda config: setattr(config.optim, "weight_decay", 0.5),
    "schedule": lambda config: setattr(config.schedule, "warmup_steps", 7),
    "more steps": lambda config: setattr(config.train, "steps", 500),
    "fewer steps": lambda config: setattr(config.train, "steps", 60),
    "mesh": lambda config: setattr(config.parallel, "dp_shard", 4),
    "micro-batch": lambda config: setattr(config.data, "micro_batch_size", 1),
    "evaluation": lambda config: setattr(config.eval, "every", 3),
    "logging": lambda config: setattr(config.logging, "every", 9),
    "checkpoints": lambda config: setattr(config.checkpoint, "every", 9),
}
HELD: dict[str, tuple[Change, str]] = {
    "seed": (lambda config: setattr(config.train, "seed", 7), "train.seed: 0 there, 7 here"),
    "data seed": (lambda config: setattr(config.data, "seed", 7), "data.seed: 0 there, 7 here"),
    "length": (lambda config: setattr(config.data, "seq_len", 16), "data.seq_len: "),
    "global batch": (lambda config: setattr(config.data, "global_batch_size", 99), "data.global_batch_size: "),
    "mixture": (lambda config: config.data.mixture.update(zh=2.0), "'zh': 2.0} here"),
    "needles": (lambda config: setattr(config.data.needle, "needles", 9), "data.needle.needles: "),
    "unit of a mixture": (
        lambda config: setattr(config.data, "mixture_unit", MixtureUnit.token),
        "data.mixture_unit: ",
    ),
    "RoPE": (lambda config: setattr(config.model, "rope_theta", 1e6), "data.rope: {'theta': 10000.0"),
    "too few steps": (lambda config: setattr(config.train, "steps", 40), "train.steps: 100 there, 40 here"),
}


@pytest.mark.parametrize("change", FREE.values(), ids=FREE)
def test_what_is_free_passes(change: Change) -> None:
    check(agreed(config_of(False)), agreed(config_of(False, change)), 50, [], "here")


@pytest.mark.parametrize(("change", "told"), HELD.values(), ids=HELD)
def test_what_is_held_is_named_with_both_values(change: Change, told: str) -> None:
    saved, ours = agreed(config_of(False)), agreed(config_of(False, change))
    with pytest.raises(UserError) as caught:
        check(saved, ours, 50, [], "here")
    line = str(caught.value)
    assert told in line
    assert "\n" not in line
    forced = line.partition("checkpoint.force=[")[2].rstrip("]")
    check(saved, ours, 50, forced.split(","), "here")
    if forced in ("data.seq_len", "data.global_batch_size", "data.mixture", "data.rope"):
        check(saved, ours, 0, [], "here")  # before the first step nothing hangs on it


def test_what_an_older_farside_did_not_note_is_not_held() -> None:
    saved, ours = agreed(config_of(False)), agreed(config_of(False, HELD["RoPE"][0]))
    del saved["samples"], saved["stages"][0]["rope"]
    check(saved, ours, 50, [], "here")
    check(saved, agreed(config_of(False, HELD["needles"][0])), 50, [], "here")


def test_epochs_of_a_source_are_held() -> None:
    def with_epochs(most: float | None) -> dict[str, Any]:
        return agreed(config_of(False, lambda c: c.data.sources.update(en=SourceConfig(max_epochs=most))))

    with pytest.raises(UserError, match=r"data\.sources\.en\.max_epochs: None there, 2\.0 here"):
        check(with_epochs(None), with_epochs(2.0), 50, [], "here")


def test_another_optimizer_cannot_be_forced() -> None:
    """Its moments are not there."""
    saved = agreed(config_of(False))
    ours = agreed(config_of(False, lambda config: setattr(config.optim, "kind", OptimKind.muon)))
    with pytest.raises(
        UserError, match=r"optim\.kind: adamw there, muon here\); use the values there or another run\.dir$"
    ):
        check(saved, ours, 50, [], "here")
    with pytest.raises(UserError, match=r"checkpoint\.force names optim\.kind; what can be forced is data\."):
        check(saved, ours, 50, ["optim.kind"], "here")


def test_all_differences_are_told_at_once() -> None:
    def change(config: Config) -> None:
        config.train.seed, config.data.seq_len = 7, 16

    with pytest.raises(UserError, match=r"data\.seq_len: .* here; train\.seed: .*force=\[data\.seq_len,train\.seed\]"):
        check(agreed(config_of(False)), agreed(config_of(False, change)), 50, [], "here")
    with pytest.raises(UserError, match=r"\(train\.seed: "):
        check(agreed(config_of(False)), agreed(config_of(False, change)), 50, ["data.seq_len"], "here")


def test_other_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.fingerprint: f00 there, ba5 here"):
        check(agreed(config_of(False)), agreed(config_of(False), "ba5"), 50, [], "here")


def test_a_forced_key_must_exist() -> None:
    saved = agreed(config_of(False))
    with pytest.raises(UserError, match=r"checkpoint\.force names data\.sead; what can be forced is .*data\.seed"):
        check(saved, saved, 50, ["data.sead"], "here")


def stage(config: Config, number: int, **values: Any) -> None:
    config.stages[number] = replace(config.stages[number], **values)


@pytest.mark.parametrize(
    ("step", "change", "told"),
    [
        (40, lambda config: stage(config, 1, seq_len=256, global_batch_size=2), None),  # not begun
        (40, lambda config: stage(config, 0, steps=50), None),  # it may go on
        (41, lambda config: stage(config, 0, steps=50), "stages.short.steps: 40 there, 50 here"),
        (41, lambda config: stage(config, 1, steps=500), None),
        (41, lambda config: stage(config, 1, seq_len=256), "stages.long.seq_len: 128 there, 256 here"),
        (10, lambda config: stage(config, 0, seq_len=32), "stages.short.seq_len: 64 there, 32 here"),
        (41, lambda config: config.stages.append(StageConfig(name="more", steps=5)), None),
        (41, lambda config: config.stages.pop(), "stages.long.seq_len: 128 there, None here"),
        (41, lambda config: stage(config, 0, name="other"), "stages.other.seq_len: None there, 64 here"),
    ],
)
def test_stages_that_have_begun_are_held(step: int, change: Change, told: str | None) -> None:
    saved, ours = agreed(config_of(True)), agreed(config_of(True, change))
    if told is None:
        check(saved, ours, step, [], "here")
        return
    with pytest.raises(UserError) as caught:
        check(saved, ours, step, [], "here")
    assert told in str(caught.value)


def test_what_changed_freely_is_told_and_recorded(tmp_path: Path) -> None:
    ours = agreed(config_of(False, FREE["learning rate"]))
    assert changes(agreed(config_of(False)), ours) == f"optim.lr {Config().optim.lr} -> 1.0"
    for values in (agreed(config_of(False)), ours):
        store = CheckpointStore(tmp_path, CheckpointConfig(), None, {"model": "test"}, values)
        engine = RowEngine(1.0)
        found = store.resume(engine)
        store.save(engine, 1 if found is None else 2, {})
        store.finish()
    assert found is not None
    assert store.changed(found) == f" (changed: optim.lr {Config().optim.lr} -> 1.0)"
    again = CheckpointStore(tmp_path, CheckpointConfig(), None, {"model": "test"}, ours).resume(RowEngine(0.0))
    assert again is not None
    assert again.state["contract"]["settings"]["optim.lr"] == 1.0
    held = agreed(config_of(False, HELD["seed"][0]))
    with pytest.raises(UserError, match=r"step_00000002: this run began otherwise \(train\.seed: 0 there, 7 here\)"):
        CheckpointStore(tmp_path, CheckpointConfig(), None, {"model": "test"}, held).resume(RowEngine(0.0))
    forced = CheckpointConfig(force=["train.seed"])
    assert CheckpointStore(tmp_path, forced, None, {"model": "test"}, held).resume(RowEngine(0.0)) is not None
