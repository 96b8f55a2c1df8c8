"""Composition: every experiment works, and wrong input is one line that names the key and the fix."""

from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import farside.configs
from farside.configs import compose
from farside.configs.compose import flat, from_yaml, load, to_yaml
from farside.configs.errors import UserError
from farside.configs.rope import Rope
from farside.configs.schema import Config, Dtype, OptimKind, RopeKind, RopeScalingConfig, SourceKind, StageConfig
from farside.configs.stages import pretrain_stages, sft_stages

FOLDER = Path(next(iter(farside.configs.__path__)))
EXPERIMENTS = sorted(path.stem for path in (FOLDER / "experiment").glob("*.yaml"))


@cache
def composed(name: str) -> Config:
    """To be left as it is."""
    return compose.compose([f"experiment={name}"])


def test_there_are_experiments() -> None:
    assert {"tiny", "smoke"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_into_stages(name: str) -> None:
    config = composed(name)
    assert isinstance(config, Config)
    assert config.run.dir == f"runs/{config.run.name}"
    assert pretrain_stages(config)
    assert sft_stages(config)[0].rope == pretrain_stages(config)[-1].rope
    assert config.model.vocab_size >= config.data.tokenizer.vocab_size


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_resolved_configuration_comes_back(name: str, tmp_path: Path) -> None:
    config = composed(name)
    assert from_yaml(to_yaml(config)) == config
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.stem)
def test_files_hold_overrides_of_known_keys_and_say_what_they_show(path: Path) -> None:
    lines = path.read_text().splitlines()
    if path.parent.name == "experiment":
        assert lines.pop(0) == "# @package _global_"
    assert lines[0].startswith("# "), "say in a comment what it is"
    node: Any = OmegaConf.to_container(OmegaConf.create(path.read_text()), resolve=False)
    own = {key for key in node if key not in ("defaults", "hydra")}
    if path.parent == FOLDER:
        assert not own, "a default lives in the schema and nowhere else"
    elif path.parent.name == "experiment":
        assert own <= {item.name for item in fields(Config)}


def test_the_schema_gives_every_key_a_default_and_composition_adds_only_data() -> None:
    def walk(kind: type) -> None:
        for item in fields(kind):
            if kind is StageConfig and item.name in ("name", "steps"):
                continue
            assert item.default is not MISSING or item.default_factory is not MISSING, f"{kind.__name__}.{item.name}"
            if item.default_factory is not MISSING and is_dataclass(item.default_factory):
                walk(item.default_factory)

    walk(Config)
    bare, composed = flat(Config()), flat(compose.compose([]))
    changed = {key for key in composed if composed[key] != bare.get(key)}
    assert all(key.startswith(("data.sources.", "data.mixture.")) for key in changed)


def test_overrides_reach_their_keys() -> None:
    config = compose.compose(
        ["experiment=tiny", "train.dtype=float64", "optim.kind=muon", "parallel.dp_shard=4", "data.mixture={en: 1}"]
    )
    assert (config.train.dtype, config.optim.kind, config.parallel.dp_shard) == (Dtype.float64, OptimKind.muon, 4)
    assert config.data.mixture["en"] == 1


def test_a_source_is_added_on_the_command_line() -> None:
    word = '+data.sources.web={kind: jsonl, path: "/corpus/a b/*.jsonl.gz", field: content, splits: {train: x}}'
    config = compose.compose(["experiment=tiny", word, "data.sources.web.language=zh"])
    source = config.data.sources["web"]
    assert (source.kind, source.path, source.field) == (SourceKind.jsonl, "/corpus/a b/*.jsonl.gz", "content")
    assert (source.splits, source.language) == ({"train": "x"}, "zh")
    assert set(config.data.sources) > {"web"}
    with pytest.raises(UserError, match=r"^data\.sources\.web\.pth: no such key"):
        compose.compose(["experiment=tiny", "+data.sources.web={pth: /corpus}"])
    with pytest.raises(UserError, match=r"^data\.sources\.web: a new source is one"):
        compose.compose(["experiment=tiny", "+data.sources.web={path: /a},{path: /b}"])


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.lrr=1", ["optim.lrr: no such key", "did you mean optim.lr?"]),
        ("train.stepz=1", ["train.stepz: no such key", "did you mean train.steps?"]),
        ("modle.hidden_size=8", ["modle", "did you mean model"]),
        ("quux.flob=1", ["quux", "no such key", "--cfg job"]),
        ("train.steps=many", ["train.steps", "many", "Integer"]),
        ("optim.lr=fast", ["optim.lr", "fast", "Float"]),
        ("train.dtype=float8", ["train.dtype", "float8", "float64"]),
        ("model.qk_norm=7x", ["model.qk_norm", "7x"]),
        ("experiment=nope", ["experiment=nope: no such option", "tiny", "smoke"]),
        ("data=nope", ["data=nope: no such option", "real"]),
        ("stages=[{name: a, steps: 1, sequence: 3}]", ["sequence"]),
        ("train.steps=[", ["train.steps=["]),
    ],
)
def test_wrong_input_is_one_line_with_key_and_fix(override: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        compose.compose([override])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    for part in parts:
        assert part in str(error.value)


def test_a_missing_or_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml: no such configuration"):
        load(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("train: {stepz: 3}\n")
    with pytest.raises(UserError, match=r"config\.yaml: .*train\.stepz: no such key; did you mean train\.steps"):
        load(tmp_path / "config.yaml")


def test_rope_scaling_is_set_for_the_model_a_stage_and_an_evaluation() -> None:
    stage = "{name: long, steps: 1, rope_scaling: {kind: ntk, factor: 2}}"
    config = compose.compose(
        [
            "experiment=tiny",
            "model.rope_scaling.kind=yarn",
            "model.rope_scaling.factor=4",
            "model.rope_scaling.original_length=64",
            f"stages=[{stage}]",
            "stages.0.rope_scaling.factor=3",
            "eval.rope_scaling.kind=pi",
            "eval.rope_scaling.factor=8",
        ]
    )
    again = from_yaml(to_yaml(config))
    assert Rope.of_model(again.model) == Rope(1e4, RopeKind.yarn, 4.0, 64)
    assert pretrain_stages(again)[0].rope == Rope(1e4, RopeKind.ntk, 3.0)
    assert again.eval.rope_scaling == RopeScalingConfig(RopeKind.pi, 8.0)


def test_a_sweep_of_one_point_has_a_folder_of_its_own() -> None:
    assert compose.point_name([]) == "point"
    plan = compose.plan_sweep(["-m", "experiment=tiny", "optim.lr=1e-3"])
    assert plan.points == ["point"]


OWN = {
    "typo": (
        "# @package _global_\ntrain: {stepz: 3}\n",
        r"/typo\.yaml: train\.stepz: .*did you mean train\.steps\?",
    ),
    "nowhere": ("train: {steps: 3}\n", "begins with the line '# @package _global_'"),
    "torn": ("train: {steps: 3\nfoo: [\n", r"not YAML: .*torn\.yaml.*line 1"),
    "stage": ("# @package _global_\nstages: [{name: a, seqlen: 9}]\n", r"stages\[\]\.seqlen: .*stages\[\]\.seq_len\?"),
}


@pytest.mark.parametrize("name", OWN)
def test_mistakes_in_an_experiment_of_ones_own_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / f"{name}.yaml").write_text(OWN[name][0])
    with pytest.raises(UserError, match=OWN[name][1]):
        compose.compose([f"experiment={name}"], str(tmp_path))


def test_an_experiment_and_data_of_ones_own(tmp_path: Path) -> None:
    for folder, text in {
        "experiment": "# @package _global_\ndefaults: [tiny, {override /data: web}, _self_]\ntrain: {steps: 3}\n",
        "data": "sources: {web: {kind: text, path: web.txt}}\nmixture: {web: 1.0}\n",
    }.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "web.yaml").write_text(text)
    config = compose.compose(["experiment=web"], str(tmp_path))
    assert config.train.steps == 3
    assert list(config.data.sources) == ["web"]
    assert config.data.mixture == {"web": 1.0}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.mixture.web=1", r"a new entry begins with \+, such as \+data\.mixture\.web=0\.5"),
        ("stages.0.lr=1", r"stages\[0\]: there is no such stage"),
        ("stages=[{name: a, seqlen: 9}]", r"did you mean stages\[\]\.seq_len\?"),
        ("tiny", r"did you mean experiment=tiny\?"),
    ],
)
def test_frequent_mistakes_get_their_hint(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose.compose(["experiment=proof", word])


def test_flags_may_stand_anywhere() -> None:
    words = ["experiment=tiny", "--cfg", "job", "-m", "optim.lr=1e-3,2e-3", "--config-dir=own", "x=-1"]
    assert compose.flags_first(words) == [
        *("--cfg", "job", "-m", "--config-dir=own"),
        *("experiment=tiny", "optim.lr=1e-3,2e-3", "x=-1"),
    ]
    for word in ("--optim.lr=1", "-optim.lr"):
        with pytest.raises(UserError, match=r"no dashes; did you mean optim\.lr=.+\?"):
            compose.flags_first([word])
