"""Reads a folder that somebody else wrote: safetensors, JSON, and nothing that leads out of it or runs code."""

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from farside.configs.errors import UserError
from farside.exchange.export import INDEX, WEIGHTS

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MOST_BYTES = {INDEX: 1 << 28, "tokenizer.json": 1 << 28}
"""Of a JSON file; any other: 1 MiB."""
DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Old exports hold what RoPE's settings say already."""


def own_file(folder: Path, name: str) -> Path:
    """A regular file of the folder itself. Raises UserError for a name or a link that leads elsewhere."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise UserError(f"{folder}: {name!r} is no plain file name; nothing outside the folder is read")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: a link that leads out of the folder; put the file itself there")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a folder with config.json, tokenizer.json and safetensors")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Raises UserError for what is no JSON object, holds NaN, or is too large or too deep to be what its name says."""
    path = own_file(folder, name)
    most = MOST_BYTES.get(name, 1 << 20)
    if path.stat().st_size > most:
        raise UserError(f"{path}: larger than {most:,} bytes, which no such file is")

    def refuse(constant: str) -> None:
        raise ValueError(f"holds {constant}")

    try:
        value = json.loads(path.read_bytes(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no JSON ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: no JSON object")
    return value


def read_weights(folder: Path, shapes: Mapping[str, torch.Size], tied: str | None) -> dict[str, Tensor]:
    """The whole tensors named by ``shapes``, each as the file has it.

    tied: a name that may be there too, if it equals the embedding. Names, shapes and types of all files are checked
    before a tensor is read. Raises UserError naming the first that is missing, too many or misshapen.
    """
    places = _places(folder)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(_open(folder, name)) for name in sorted(set(places.values()))}
        for name, file in files.items():
            listed = {key for key, place in places.items() if place == name}
            for key in sorted(listed ^ set(file.keys())):
                missing = key in listed
                raise UserError(f"{folder / name}: tensor {key} is {'not in it' if missing else 'not in the index'}")
        wanted = {key for key in places if not DERIVED.fullmatch(key)} - {tied}
        for key in sorted(wanted ^ shapes.keys()):
            what = "missing" if key in shapes else "not of such a model"
            raise UserError(f"{folder}: tensor {key} is {what}; config.json and weights must belong together")
        for key in shapes:
            _check(folder, key, files[places[key]], shapes[key])
        weights = {key: files[places[key]].get_tensor(key) for key in shapes}
        if tied in places:
            embedding = weights["model.embed_tokens.weight"]
            _check(folder, str(tied), files[places[tied]], embedding.shape)
            if not torch.equal(files[places[tied]].get_tensor(tied), embedding):
                raise UserError(f"{folder}: {tied} differs from the embedding, but config.json ties them")
    return weights


def _places(folder: Path) -> dict[str, str]:
    """Tensor -> file. The single file goes first, as with Hugging Face."""
    if (folder / WEIGHTS).is_file() or (folder / WEIGHTS).is_symlink():
        with _open(folder, WEIGHTS) as file:
            return dict.fromkeys(file.keys(), WEIGHTS)
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{folder / pickles[0]}: a pickle, which runs its maker's code when it is read; farside reads "
                "safetensors only: ask for those, or convert it where you trust it"
            )
        raise UserError(f"{folder}: neither {WEIGHTS} nor {INDEX}; give a folder with safetensors")
    places = read_json(folder, INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{folder / INDEX}: no weight_map from tensors to files")
    for name in sorted(set(places.values())):
        if not name.endswith(".safetensors"):
            raise UserError(f"{folder / INDEX}: names {name!r}; farside reads .safetensors only")
        own_file(folder, name)
    return places


def _open(folder: Path, name: str) -> Any:
    path = own_file(folder, name)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: no safetensors ({' '.join(str(error).split())})") from error


def _check(folder: Path, key: str, file: Any, shape: torch.Size) -> None:
    told = file.get_slice(key)
    if list(told.get_shape()) != list(shape):
        raise UserError(f"{folder}: tensor {key} has shape {told.get_shape()}, but config.json makes it {list(shape)}")
    if told.get_dtype() not in FLOATS:
        raise UserError(f"{folder}: tensor {key} has type {told.get_dtype()}; farside reads {', '.join(FLOATS)}")
