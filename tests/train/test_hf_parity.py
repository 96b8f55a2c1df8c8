"""GATE: our decoder computes what Hugging Face's Llama and Qwen3 compute, with the same names and shapes.

Hugging Face casts RMSNorm and rotary embedding to fp32 whatever the model's type. The fp64 tests replace those
two forwards by fp64 ones, so that agreement is to rounding and not to the precision of a cast.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from farside.configs.rope import Rope
from farside.configs.schema import ModelConfig
from tests.train.models import SMALL, attend_within, logits_of, random_model

UNTIED = replace(SMALL, tie_word_embeddings=False)
CONFIGS = {
    "llama tied": SMALL,
    "llama untied, one kv head, theta 5e5": replace(UNTIED, num_key_value_heads=1, rope_theta=5e5, rms_norm_eps=1e-5),
    "llama, as many kv heads as heads": replace(SMALL, num_key_value_heads=4, head_dim=10),
    "qwen3 tied": replace(SMALL, qk_norm=True, head_dim=8, rope_theta=1e6),
    "qwen3 untied": replace(UNTIED, qk_norm=True),
}


def theirs(config: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    shared: dict[str, Any] = {
        key: value for key, value in vars(config).items() if key not in ("qk_norm", "rope_theta", "rope_scaling")
    } | {
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "max_position_embeddings": 512,
        "attn_implementation": "sdpa",
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**shared)) if config.qk_norm else LlamaForCausalLM(LlamaConfig(**shared))
    return model.to(dtype).eval()


@pytest.fixture
def fp64_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dim, base = self.config.head_dim, self.config.rope_parameters["rope_theta"]
        frequencies = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = position_ids[..., None].double() * frequencies
        both = torch.cat((angles, angles), dim=-1)
        return both.cos(), both.sin()

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_qwen3.Qwen3RMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", rotary)
    monkeypatch.setattr(modeling_qwen3.Qwen3RotaryEmbedding, "forward", rotary)


def pair(config: ModelConfig, dtype: torch.dtype) -> tuple[Any, Any]:
    """Ours with random weights, and theirs with the same."""
    ours, other = random_model(config, dtype), theirs(config, dtype)
    report = other.load_state_dict(ours.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert set(report.missing_keys) <= {"lm_head.weight"} if config.tie_word_embeddings else not report.missing_keys
    return ours, other


def tokens(config: ModelConfig) -> torch.Tensor:
    return torch.randint(config.vocab_size, (2, 23), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_parameter_names_and_shapes_are_hugging_faces(config: ModelConfig) -> None:
    ours = {name: tuple(p.shape) for name, p in random_model(config).named_parameters()}
    other = {name: tuple(p.shape) for name, p in theirs(config, torch.float32).named_parameters()}
    assert ours == other  # named_parameters lists tied weights once: there lm_head is not among them
    assert ("lm_head.weight" in ours) != config.tie_word_embeddings


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_equal_in_fp32(config: ModelConfig) -> None:
    ours, other = pair(config, torch.float32)
    with torch.no_grad():
        assert (logits_of(ours, tokens(config)) - other(tokens(config)).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.usefixtures("fp64_hugging_face")
def test_logits_equal_in_fp64(config: ModelConfig) -> None:
    ours, other = pair(config, torch.float64)
    with torch.no_grad():
        mine = logits_of(ours, tokens(config))
        assert mine.abs().max() > 0.5
        assert (mine - other(tokens(config)).logits).abs().max() <= 1e-10


@pytest.mark.usefixtures("fp64_hugging_face")
def test_a_stage_s_rope_replaces_the_configured_one() -> None:
    ours, _ = pair(SMALL, torch.float64)
    _, other = pair(replace(SMALL, rope_theta=80_000.0), torch.float64)
    other.load_state_dict(ours.state_dict(), strict=False)
    ours.rope = Rope(80_000.0)
    with torch.no_grad():
        assert (logits_of(ours, tokens(SMALL)) - other(tokens(SMALL)).logits).abs().max() <= 1e-10


@pytest.mark.parametrize("name", ["llama untied, one kv head, theta 5e5", "qwen3 tied"])
@pytest.mark.usefixtures("fp64_hugging_face")
def test_log_probabilities_and_gradients_equal_in_fp64(name: str) -> None:
    config = CONFIGS[name]
    ours, other = pair(config, torch.float64)
    row = tokens(config)
    inputs, labels = row[:, :-1], row[:, 1:]
    positions = torch.arange(inputs.shape[1]).expand_as(inputs)
    outputs = ours(inputs, positions, labels, attend_within(torch.zeros_like(inputs)))
    assert outputs.logprobs is not None
    expected = -F.cross_entropy(other(inputs).logits.flatten(0, 1), labels.flatten(), reduction="none")
    assert (outputs.logprobs.flatten() - expected).abs().max() <= 1e-10
    outputs.logprobs.sum().backward()
    expected.sum().backward()
    wanted: dict[str, nn.Parameter] = dict(other.named_parameters())
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert wanted[key].grad is not None
        scale = float(wanted[key].grad.abs().max())
        assert scale > 0
        assert (parameter.grad - wanted[key].grad).abs().max() <= 1e-10 * max(1.0, scale), key
