"""``farside import hf``: foreign Llama or Qwen3 weights as a run directory that training starts from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from farside.chat import TOKENIZER
from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.layout import check_model
from farside.configs.rope import Rope
from farside.configs.schema import Config, ImportConfig, ModelConfig, RunConfig
from farside.data.chat import SPECIAL_TOKENS
from farside.data.tokenizer import Tokenizer
from farside.exchange.folder import write_folder
from farside.exchange.foreign import own_file, read_json, read_weights
from farside.settings import parse
from farside.train.checkpoint import format as checkpoint_format
from farside.train.console import say
from farside.train.model.hf import from_hf, parameter_shapes
from farside.train.phase import identity_of

EXPERIMENT = """\
# @package _global_
# {source} as farside's configuration; written by `farside import hf`.
# farside train --config-dir {out} experiment=imported KEY=VALUE
# or, in an experiment of your own beside it: defaults: [imported, _self_]
"""


def bring(words: list[str]) -> int:
    """Runs the command; returns the exit code. Raises UserError for a folder that is not such a model."""
    (source, out), settings = parse("import hf", words, ImportConfig, "FOLDER OUT_DIR")
    if not source.is_dir():
        raise UserError(
            f"{source}: no such folder; give one with config.json, tokenizer.json and safetensors; to download it: "
            "hf download NAME --local-dir FOLDER"
        )
    model, length = from_hf(read_json(source, "config.json"), str(source / "config.json"))
    check_model(model)
    tied = "lm_head.weight" if model.tie_word_embeddings else None
    weights = read_weights(source, parameter_shapes(model), tied)
    tokenizer = read_tokenizer(source)
    missing = tokenizer.vocab_size - model.vocab_size
    if missing > 0:
        if not settings.extend_vocab:
            raise UserError(
                f"{source}: the tokenizer has {tokenizer.vocab_size:,} tokens with farside's {len(SPECIAL_TOKENS)} "
                f"special ones, but the embedding {model.vocab_size:,} rows; extend_vocab=true adds {missing}"
            )
        model, weights = extended(model, weights, missing)
    write_folder(out, lambda folder: write_run(folder, model, length, weights, tokenizer, source, out.resolve()))
    say(f"{out}: train with --config-dir {out} experiment=imported, or with train.init_from={out}", indent=2)
    return 0


def read_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer with the special tokens of farside's formats, those that it lacks at the end."""
    read_json(folder, TOKENIZER)
    path = own_file(folder, TOKENIZER)
    return Tokenizer.adopt(path)


def extended(model: ModelConfig, weights: dict[str, Tensor], rows: int) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Further rows of the vocabulary, each the mean of the others: a new token then starts out likely as any."""
    larger = dict(weights)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            mean_1E = weights[name].double().mean(0, keepdim=True).to(weights[name].dtype)
            larger[name] = torch.cat([weights[name], mean_1E.expand(rows, -1)])
    return replace(model, vocab_size=model.vocab_size + rows), larger


def write_run(
    folder: Path,
    model: ModelConfig,
    length: int,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer,
    source: Path,
    out: Path,
) -> None:
    """A run directory with one checkpoint of step 0. out: where the folder will be."""
    tokenizer.save(folder / TOKENIZER)
    (folder / "config.yaml").write_text(compose.to_yaml(Config(run=RunConfig(name=out.name), model=model)))
    (folder / "experiment").mkdir()
    container = OmegaConf.to_container(OmegaConf.structured(model), enum_to_str=True)
    overrides: dict[str, Any] = {
        "model": container,
        "data": {"tokenizer": {"path": str(out / TOKENIZER)}},
        "train": {"init_from": str(out)},
    }
    text = EXPERIMENT.format(source=source.name, out=out) + OmegaConf.to_yaml(OmegaConf.create(overrides))
    (folder / "experiment" / "imported.yaml").write_text(text)
    state = {
        "identity": identity_of(model, tokenizer),
        **{"parent": None, "updates": 0, "step": 0, "tokens": 0, "trained_length": length, "stage": "import"},
        "rope": Rope.of_model(model).record(),
    }
    (folder / "checkpoints").mkdir()
    checkpoint_format.write(folder / "checkpoints" / "step_00000000", 0, {"model": weights}, state)
