"""``farside export hf``: a checkpoint as a folder that transformers (and what reads its folders) loads as it is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from farside.chat import TALKING, find, find_tokenizer
from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.rope import Rope
from farside.configs.schema import Config, ExportConfig, ModelConfig
from farside.data.chat import END_OF_TEXT, SPECIAL_TOKENS, TEMPLATE
from farside.data.tokenizer import Tokenizer
from farside.exchange.card import model_card
from farside.exchange.folder import write_folder
from farside.settings import parse
from farside.train.checkpoint import format as checkpoint_format
from farside.train.checkpoint.format import Checkpoint
from farside.train.console import say
from farside.train.model.hf import parameter_shapes, to_hf

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def export(words: list[str]) -> int:
    """Runs the command; returns the exit code. Raises UserError for a wrong path, setting or model."""
    (source, out), settings = parse("export hf", words, ExportConfig, "CHECKPOINT_OR_RUN_DIR OUT_DIR")
    if settings.max_shard_bytes < 1:
        raise UserError(f"farside export hf: max_shard_bytes = {settings.max_shard_bytes}; give at least 1")
    checkpoint = checkpoint_format.read(find(source))
    run_dir = checkpoint.path.resolve().parent.parent
    config = compose.load(run_dir / "config.yaml")
    tokenizer = find_tokenizer(config, run_dir, checkpoint.state["identity"]["tokenizer"])
    write_folder(out, lambda folder: write_hf(folder, checkpoint, config, tokenizer, settings, run_dir))
    say(f"{out}: step {checkpoint.step:,} of {checkpoint.path.parent.parent}", indent=2)
    return 0


def write_hf(
    folder: Path, checkpoint: Checkpoint, config: Config, tokenizer: Tokenizer, settings: ExportConfig, run_dir: Path
) -> None:
    """All files of the exported model."""
    model, rope = model_of(checkpoint, config), Rope.from_record(checkpoint.state["rope"])
    weights = weights_of(checkpoint, model, settings)
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    talks = checkpoint.state["stage"] in TALKING
    stop = tokenizer.end if talks else tokenizer.end_of_text
    described = to_hf(model, rope, checkpoint.state["trained_length"], dtype, stop)
    _write_json(folder / "config.json", described)
    pad = tokenizer.end_of_text
    _write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": stop, "pad_token_id": pad})
    write_tokenizer(folder, tokenizer, stop, described["max_position_embeddings"])
    write_weights(folder, weights, settings.max_shard_bytes)
    (folder / "README.md").write_text(model_card(run_dir, checkpoint, config, described, weights, talks))


def model_of(checkpoint: Checkpoint, config: Config) -> ModelConfig:
    """The architecture that the checkpoint says it has; a run's configuration may have been edited since."""
    kept = {
        key.removeprefix("model."): value
        for key, value in checkpoint.state["identity"].items()
        if key.startswith("model.")
    }
    return ModelConfig(**{**vars(config.model), **kept})


def weights_of(checkpoint: Checkpoint, model: ModelConfig, settings: ExportConfig) -> dict[str, Tensor]:
    """Whole tensors in the model's order, rounded if asked for."""
    tensors = checkpoint.tensors("model")
    if "score.weight" in tensors:
        raise UserError(
            f"{checkpoint.path}: a reward model. Its score is the mean of a scalar head over an answer's tokens, which "
            "no class of transformers computes (theirs read the last token); export a checkpoint of pretrain, sft or rl"
        )
    shapes = parameter_shapes(model)
    assert shapes == {name: tensors[name].shape for name in shapes}, "a verified checkpoint fits its identity"
    dtype = getattr(torch, settings.dtype.value) if settings.dtype else None
    return {name: tensors[name].to(dtype).contiguous() for name in shapes}


def write_tokenizer(folder: Path, tokenizer: Tokenizer, stop_token: int, length: int) -> None:
    """The tokenizer as it is, and what tells transformers to change nothing about it."""
    tokenizer.save(folder / "tokenizer.json")
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # a Llama or Qwen class would rebuild it with their own rules
        "eos_token": tokenizer.backend.id_to_token(stop_token),
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "added_tokens_decoder": {
            str(tokenizer.id(token)): {
                "content": token,
                **dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False),
                "special": True,
            }
            for token in SPECIAL_TOKENS
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
    }
    _write_json(folder / "tokenizer_config.json", described)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def write_weights(folder: Path, weights: dict[str, Tensor], max_shard_bytes: int) -> None:
    """One file, or several and the index that names each tensor's, as Hugging Face's loaders expect them."""
    shards = list(_shards(weights, max_shard_bytes))
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [WEIGHTS]
    for name, shard in zip(names, shards):
        try:
            save_file(shard, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:  # its own word for a full disk
            raise OSError(str(error)) from error
    if len(shards) > 1:
        total = sum(map(_bytes, weights.values()))
        places = {key: name for name, shard in zip(names, shards) for key in shard}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _shards(weights: dict[str, Tensor], most: int) -> Iterator[dict[str, Tensor]]:
    """Tensors in order, cut where the next would not fit."""
    shard: dict[str, Tensor] = {}
    for name, value in weights.items():
        if shard and sum(map(_bytes, shard.values())) + _bytes(value) > most:
            yield shard
            shard = {}
        shard[name] = value
    yield shard


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
