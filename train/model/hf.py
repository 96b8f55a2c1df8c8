"""Our decoder's configuration as Hugging Face's, and back. Parameter names and shapes are Hugging Face's already.

``qk_norm`` decides the family: Qwen3 with it, Llama without. What RoPE computes is written in the words of
transformers 5 (``rope_parameters``) and of older readers (``rope_theta``, ``rope_scaling``): one that knows neither
would silently use a base of 10,000.
"""

import math
from typing import Any

import torch

from farside.configs.errors import UserError
from farside.configs.rope import Rope
from farside.configs.schema import ModelConfig, RopeKind, RopeScalingConfig
from farside.train.model.transformer import Transformer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SAME_NAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
"""Sizes that both call alike."""
MOST = {"num_hidden_layers": 10_000}
"""A foreign file must not make us build what no machine holds; other sizes cost nothing before weights are read."""
YARN_AS_OURS = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "mscale": None, "mscale_all_dim": None}
"""Settings of YaRN that we have at these values only (None: not given)."""


def parameter_shapes(model: ModelConfig) -> dict[str, torch.Size]:
    """Canonical name -> shape, in the model's order. A tied output matrix is not listed."""
    with torch.device("meta"):
        return {name: value.shape for name, value in Transformer(model).named_parameters()}


def to_hf(model: ModelConfig, rope: Rope, length: int, dtype: str, stop_token: int) -> dict[str, Any]:
    """What ``config.json`` says. length: longest sample trained on, in tokens. Raises UserError for a shape that
    Hugging Face's family cannot have."""
    family = "qwen3" if model.qk_norm else "llama"
    if family == "llama" and model.hidden_size % model.num_attention_heads:
        raise UserError(
            f"model.hidden_size = {model.hidden_size} is no multiple of model.num_attention_heads = "
            f"{model.num_attention_heads}, which transformers demands of a Llama (model.qk_norm=false)"
        )
    parameters = _rope_to_hf(rope, model.head_dim)
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        **{key: getattr(model, key) for key in SAME_NAME},
        "hidden_act": "silu",
        "rms_norm_eps": model.rms_norm_eps,
        "tie_word_embeddings": model.tie_word_embeddings,
        "initializer_range": model.initializer_range,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": length,
        "rope_parameters": parameters,
        "rope_theta": parameters["rope_theta"],
        "rope_scaling": None if scaling == {"rope_type": "default"} else scaling,
        "bos_token_id": None,
        "eos_token_id": stop_token,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    only = {"mlp_bias": False} if family == "llama" else {"use_sliding_window": False, "sliding_window": None}
    return config | only


def _rope_to_hf(rope: Rope, head_dim: int) -> dict[str, Any]:
    """rope_parameters that make transformers compute our frequencies."""
    if rope.kind is RopeKind.pi:
        return {"rope_type": "linear", "rope_theta": rope.theta, "factor": rope.factor}
    if rope.kind is RopeKind.ntk:  # it is a larger base; Hugging Face's own "dynamic" one grows with the prompt
        return {"rope_type": "default", "rope_theta": rope.theta * rope.factor ** (head_dim / (head_dim - 2))}
    if rope.kind is RopeKind.yarn:
        yarn = {"factor": rope.factor, "original_max_position_embeddings": rope.original_length}
        return {"rope_type": "yarn", "rope_theta": rope.theta, **yarn}
    return {"rope_type": "default", "rope_theta": rope.theta}


def from_hf(config: dict[str, Any], where: str) -> tuple[ModelConfig, int]:
    """The model that a foreign ``config.json`` describes, with its RoPE, and the length it was made for, in tokens.

    Nothing named in the file is imported or run. Raises UserError, led to by ``where``, for the first key that asks for
    what our decoder does not compute.
    """
    family = config.get("model_type")
    if family not in ARCHITECTURES:
        raise UserError(f"{where}: model_type = {family!r}; farside reads {' and '.join(ARCHITECTURES)}")
    _refuse_unsupported(config, family, where)
    sizes = {key: _size(config, key, where) for key in SAME_NAME if key not in ("num_key_value_heads", "head_dim")}
    heads = sizes["num_attention_heads"]
    sizes["num_key_value_heads"] = _size(config, "num_key_value_heads", where, heads)
    # where it is not said: Qwen3's own default, or an even share of the width
    head_dim = 128 if family == "qwen3" else sizes["hidden_size"] // heads
    sizes["head_dim"] = _size(config, "head_dim", where, head_dim)
    length = _size(config, "max_position_embeddings", where, 32768 if family == "qwen3" else 2048)
    theta, scaling = _rope_from_hf(config, length, where)
    model = ModelConfig(
        **sizes,
        qk_norm=family == "qwen3",
        tie_word_embeddings=_flag(config, "tie_word_embeddings", where),
        rms_norm_eps=_number(config, "rms_norm_eps", where, 1e-6),
        initializer_range=_number(config, "initializer_range", where, 0.02),
        rope_theta=theta,
        rope_scaling=scaling,
    )
    Rope.of_model(model)
    return model, length


def _refuse_unsupported(config: dict[str, Any], family: str, where: str) -> None:
    wanted = ARCHITECTURES[family]
    if config.get("architectures", [wanted]) != [wanted]:
        raise UserError(f"{where}: architectures = {config['architectures']!r}; farside reads {wanted} only")
    for key in ("auto_map", "trust_remote_code"):
        if config.get(key):
            raise UserError(f"{where}: {key} asks for code of the folder's own, which farside never runs; remove it")
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if _flag(config, key, where):
            raise UserError(f"{where}: {key} = true; farside's decoder has no such thing")
    if family == "llama" and config.get("sliding_window") is not None:
        raise UserError(
            f"{where}: sliding_window = {config['sliding_window']!r}; attention here sees all that is before"
        )
    layers = config.get("layer_types") or []
    if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
        raise UserError(f"{where}: layer_types names more than full_attention; attention here sees all that is before")
    for key in ("num_experts", "num_local_experts", "quantization_config"):
        if config.get(key):
            raise UserError(f"{where}: {key} = {_short(config[key])}; farside's decoder has no such thing")
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: hidden_act = {config['hidden_act']!r}; farside computes silu (SwiGLU)")


def _rope_from_hf(config: dict[str, Any], length: int, where: str) -> tuple[float, RopeScalingConfig]:
    """Both spellings: rope_parameters of transformers 5, rope_theta and rope_scaling of those before."""
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(key) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{where}: {key} is no mapping")
    theta = _number(rope if "rope_theta" in rope else config, "rope_theta", where, 10000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    for holder in (rope, config):
        if holder.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            raise UserError(
                f"{where}: partial_rotary_factor = {holder['partial_rotary_factor']!r}; all is rotated here"
            )
    if kind == "default":
        return theta, RopeScalingConfig()
    if kind not in ("linear", "yarn"):
        raise UserError(f"{where}: {key}.rope_type = {_short(kind)}; farside computes default, linear and yarn")
    factor = _number(rope, "factor", where)
    if kind == "linear":
        return theta, RopeScalingConfig(RopeKind.pi, factor)
    for name, value in YARN_AS_OURS.items():
        if rope.get(name) not in (value, None):
            raise UserError(f"{where}: {key}.{name} = {_short(rope[name])}; farside's yarn has {value}")
    ours = 0.1 * math.log(factor) + 1 if factor > 0 else 1.0
    if not math.isclose(_number(rope, "attention_factor", where, ours), ours, rel_tol=1e-6):
        raise UserError(
            f"{where}: {key}.attention_factor = {rope['attention_factor']!r}; farside's yarn has {ours:.6g}"
        )
    original = _size(rope, "original_max_position_embeddings", where, length)
    return theta, RopeScalingConfig(RopeKind.yarn, factor, original)


def _size(config: dict[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    most = MOST.get(key, 1 << 24)
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(f"{where}: {key} = {_short(value)}; it must be a whole number from 1 to {most:,}")
    return value


def _number(config: dict[str, Any], key: str, where: str, default: float | None = None) -> float:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise UserError(f"{where}: {key} = {_short(value)}; it must be a number above 0")
    return float(value)


def _flag(config: dict[str, Any], key: str, where: str) -> bool:
    value = config.get(key)
    if value not in (None, True, False):
        raise UserError(f"{where}: {key} = {_short(value)}; it must be true or false")
    return bool(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
