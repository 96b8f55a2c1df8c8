"""The decoder's forward pass for inference: the same numbers as ``Transformer.hidden``, in fewer and larger kernels.

A step of decoding is short: what it costs beside its matrix products is the number of kernels. So matrices with one
input are one (query, key and value; gate and up), and rotations come from a table. Whatever is rounded there is rounded
here, so that bf16 decodes what bf16 trains.
The slow twin is the model itself (tests/train/test_generate.py).

Shapes: N tokens of any rows, E model dim, H heads, K key/value heads, D head dim, F ffn dim, V vocabulary.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from farside.configs.rope import Rope
from farside.configs.schema import ModelConfig
from farside.train.model.rope import apply_rope, rope_tables
from farside.train.model.transformer import Transformer

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_NHD, k_NKD, v_NKD) -> [N, H·D]"""


@dataclass(frozen=True)
class Layer:
    """Weights of a block. qk_norm: of each head of queries and keys, where they are normalised."""

    input_norm_E: Tensor
    qkv_PE: Tensor
    qk_norm_HKD: Tensor | None
    output_EP: Tensor
    mlp_norm_E: Tensor
    gate_up_FE: Tensor
    down_EF: Tensor


class Decoder:
    """An unsharded language model's weights, laid out for decoding; ``load`` replaces them in place.

    dtype: of weights and activations; a model that keeps its weights in another one is rounded as it would round them.
    """

    def __init__(self, config: ModelConfig, rope: Rope, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.rope, self.dtype, self.device = config, rope, dtype, device
        self.named: dict[str, Tensor] = {}
        """Canonical name -> where its values go. Those of a normalisation stand once for every head."""
        self.embed_VE = self._place(config.vocab_size, config.hidden_size, ["model.embed_tokens.weight"])
        self.layers = [self._layer(f"model.layers.{number}") for number in range(config.num_hidden_layers)]
        self.norm_E = self._place(config.hidden_size, None, ["model.norm.weight"])
        self.head_VE = self.embed_VE
        if not config.tie_word_embeddings:
            self.head_VE = self._place(config.vocab_size, config.hidden_size, ["lm_head.weight"])
        self.rotations = torch.empty(0)
        precision = torch.promote_types(dtype, torch.float32)
        self.eps = torch.tensor(config.rms_norm_eps, dtype=precision, device=device)

    @classmethod
    def of(cls, model: Transformer) -> "Decoder":
        """A copy of what the model holds now."""
        decoder = cls(model.config, model.rope, model.computed, model.output_weight.device)
        decoder.load(model.named_parameters())
        return decoder

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Whole weights by canonical name."""
        for name, value in weights:
            self.named[name].copy_(value)

    def _layer(self, name: str) -> Layer:
        config, dim = self.config, self.config.head_dim
        width, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        qk_norm = None
        if config.qk_norm:
            qk_norm = torch.empty(heads + groups, dim, dtype=self.dtype, device=self.device)
            self.named[f"{attention}.q_norm.weight"] = qk_norm[:heads]
            self.named[f"{attention}.k_norm.weight"] = qk_norm[heads:]
        projections = {f"{attention}.{part}_proj.weight": count for part, count in zip("qkv", (heads, groups, groups))}
        return Layer(
            self._place(width, None, [f"{name}.input_layernorm.weight"]),
            self._place([count * dim for count in projections.values()], width, list(projections)),
            qk_norm,
            self._place(width, heads * dim, [f"{attention}.o_proj.weight"]),
            self._place(width, None, [f"{name}.post_attention_layernorm.weight"]),
            self._place(
                [config.intermediate_size] * 2, width, [f"{mlp}.{part}_proj.weight" for part in ("gate", "up")]
            ),
            self._place(width, config.intermediate_size, [f"{mlp}.down_proj.weight"]),
        )

    def _place(self, rows: int | list[int], columns: int | None, names: list[str]) -> Tensor:
        """Room for the named weights, one below the other."""
        each = [rows] if isinstance(rows, int) else rows
        shape = [sum(each)] if columns is None else [sum(each), columns]
        whole = torch.empty(shape, dtype=self.dtype, device=self.device)
        self.named |= dict(zip(names, whole.split(each), strict=True))
        return whole

    def reserve(self, length: int) -> None:
        """Rotations of positions 0..length-1."""
        if len(self.rotations) < length:
            positions = torch.arange(length, device=self.device)[None]
            tables = rope_tables(positions, self.config.head_dim, self.rope, self.eps.dtype)
            self.rotations = torch.cat(tables, dim=-1)[0]  # [length, 1, 2 D]

    def hidden(self, tokens_N: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        """Normalised hidden states [N, E]. The positions must be reserved."""
        heads, groups, dim = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        cos_N1D, sin_N1D = self.rotations.index_select(0, positions_N).split(dim, dim=-1)
        x_NE = F.embedding(tokens_N, self.embed_VE)
        for number, layer in enumerate(self.layers):
            qkv = F.linear(self._norm(x_NE, layer.input_norm_E), layer.qkv_PE).view(-1, heads + 2 * groups, dim)
            qk = qkv[:, : heads + groups]
            if layer.qk_norm_HKD is not None:
                qk = self._norm(qk, layer.qk_norm_HKD)
            qk = apply_rope(qk, (cos_N1D, sin_N1D))
            attended = attend(number, qk[:, :heads], qk[:, heads:], qkv[:, heads + groups :])
            x_NE = F.linear(attended, layer.output_EP).add_(x_NE)
            gate_NF, up_NF = F.linear(self._norm(x_NE, layer.mlp_norm_E), layer.gate_up_FE).chunk(2, dim=-1)
            x_NE = F.linear(F.silu(gate_NF).mul_(up_NF), layer.down_EF).add_(x_NE)
        return self._norm(x_NE, self.norm_E)

    def logits(self, x_NE: Tensor) -> Tensor:
        return F.linear(x_NE, self.head_VE)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm in at least fp32, of x's type."""
        exact = x.to(self.eps.dtype)
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        scale = torch.addcmul(self.eps, length, length, value=1 / x.shape[-1]).rsqrt_()
        return (exact * scale).mul_(weight).to(x.dtype)
