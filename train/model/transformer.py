"""The decoder: Llama and Qwen3 families, parameter names and shapes those of Hugging Face.

Left out on purpose: dropout, biases, parallel blocks: neither family has them. The model knows nothing of
ranks; attention is handed in as ``attend(layer, q, k, v)``, so that training, context parallelism and
KV-cached decoding share this one forward, and what tensor parallelism needs as ``tensors``.

Shapes: B batch, S sequence (local, under context parallelism), T = S/tp tokens between the blocks, H heads, K
key/value heads (of this rank, under tensor parallelism), D head dim, E model dim, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farside.configs.rope import Rope
from farside.configs.schema import ModelConfig
from farside.parallel.plan import part as rows_of_part
from farside.parallel.tensor import TensorParallel, WholeTensors
from farside.train.model.heads import TokenOutputs, score_tokens
from farside.train.model.mlp import MLP, Linear
from farside.train.model.norm import RMSNorm
from farside.train.model.rope import apply_rope, rope_tables

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_BSHD, k_BSKD, v_BSKD) -> [B, S, H, D]"""


class Attention(nn.Module):
    """Grouped-query attention with RoPE and optional QK-norm (Qwen3)."""

    def __init__(self, config: ModelConfig, tensors: TensorParallel) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        heads, kv_heads = (
            config.num_attention_heads * config.head_dim // tensors.size,
            config.num_key_value_heads * config.head_dim // tensors.size,
        )
        self.q_proj = Linear(config.hidden_size, heads, bias=False)
        self.k_proj = Linear(config.hidden_size, kv_heads, bias=False)
        self.v_proj = Linear(config.hidden_size, kv_heads, bias=False)
        self.o_proj = Linear(heads, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def project(self, x_BSE: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [B, S, H, D] and keys, and values [B, S, K, D]."""
        per_head = (*x_BSE.shape[:-1], -1, self.head_dim)
        q_BSHD = apply_rope(self.q_norm(self.q_proj(x_BSE).view(per_head)), tables)
        k_BSKD = apply_rope(self.k_norm(self.k_proj(x_BSE).view(per_head)), tables)
        return q_BSHD, k_BSKD, self.v_proj(x_BSE).view(per_head)


class Block(nn.Module):
    """Attention between two parts that see one token at a time.

    Each part, and the whole, is called through an attribute, so that ``train/model/wrap.py`` can put compilation and
    recomputation around it without a change of parameter names, and inside whatever FSDP hooks to ``forward``.
    """

    def __init__(self, config: ModelConfig, layer: int, tensors: TensorParallel) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, tensors)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, tensors)
        self.tensors = tensors
        self.before_attention: Callable[..., tuple[Tensor, Tensor, Tensor]] = self._before_attention
        self.before_mlp: Callable[..., tuple[Tensor, Tensor]] = self._before_mlp
        self.after_attention: Callable[..., Tensor] = self._after_attention
        self.whole: Callable[..., Tensor] = self._whole

    def forward(self, x_BTE: Tensor, tables: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        return self.whole(x_BTE, tables, attend)

    def _whole(self, x_BTE: Tensor, tables: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        attended_BSHD = attend(self.layer, *self.before_attention(x_BTE, tables))
        return self.after_attention(x_BTE, attended_BSHD)

    def _before_attention(self, x_BTE: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn.project(self.tensors.enter(self.input_layernorm(x_BTE)), tables)

    def _after_attention(self, x_BTE: Tensor, attended_BSHD: Tensor) -> Tensor:
        x_BTE, x_BSE = self.before_mlp(x_BTE, attended_BSHD)
        return x_BTE + self.tensors.leave(self.mlp(x_BSE))

    def _before_mlp(self, x_BTE: Tensor, attended_BSHD: Tensor) -> tuple[Tensor, Tensor]:
        x_BTE = x_BTE + self.tensors.leave(self.self_attn.o_proj(attended_BSHD.flatten(-2)))
        return x_BTE, self.tensors.enter(self.post_attention_layernorm(x_BTE))


@dataclass(frozen=True)
class Part:
    """What of the model a pipeline stage holds. first: it embeds tokens; last: it normalises and scores."""

    layers: range
    first: bool = True
    last: bool = True


class Decoder(nn.Module):
    """Of a part, the modules that it holds, under the names that they have in the whole."""

    def __init__(self, config: ModelConfig, tensors: TensorParallel, part: Part, scores_by_embedding: bool) -> None:
        super().__init__()
        if part.first or (part.last and scores_by_embedding):
            self.embed_tokens = nn.Embedding(rows_of_part(config.vocab_size, tensors.size), config.hidden_size)
        self.layers = nn.ModuleDict({str(layer): Block(config, layer, tensors) for layer in part.layers})
        if part.last:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """A decoder with a head: "lm" over the vocabulary, or "scalar" (reward, value) named ``score`` as in
    Hugging Face's sequence classifiers.

    rope: the rotary embedding in use; a stage of context extension sets another.
    dtype: precision of the computation where it is not that of the parameters.
    """

    def __init__(
        self,
        config: ModelConfig,
        head: str = "lm",
        loss_chunk: int = 8192,
        dtype: torch.dtype | None = None,
        tensors: TensorParallel = WholeTensors(),  # noqa: B008 - it holds no state
        part: Part | None = None,
    ) -> None:
        super().__init__()
        self.part = part or Part(range(config.num_hidden_layers))
        self.config, self.head, self.loss_chunk, self.dtype, self.tensors = config, head, loss_chunk, dtype, tensors
        self.rope = Rope.of_model(config)
        self.model = Decoder(config, tensors, self.part, head == "lm" and config.tie_word_embeddings)
        if not self.part.last:
            return
        if head == "scalar":
            self.score = Linear(config.hidden_size, 1, bias=False)
        elif not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, rows_of_part(config.vocab_size, tensors.size), bias=False)

    @property
    def output_weight(self) -> Tensor:
        """[V, E] (of this rank's part of the vocabulary), or [1, E] of a scalar head."""
        if self.head == "scalar":
            return self.score.weight
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    @property
    def exact(self) -> list[nn.Module]:
        """Modules whose weights are used as they are kept, whatever activations are: a scalar head's."""
        return [self.score] if self.head == "scalar" and self.part.last else []

    @property
    def computed(self) -> torch.dtype:
        """Type of activations."""
        return self.dtype or next(self.parameters()).dtype

    def hidden(self, x: Tensor, positions_BS: Tensor, attend: Attend) -> Tensor:
        """From tokens [B, S] (the first part) or hidden states [B, T, E] to hidden states, normalised by the last."""
        x_BTE = self.tensors.embed(x, self.model.embed_tokens.weight, self.computed) if self.part.first else x
        precision = torch.promote_types(x_BTE.dtype, torch.float32)  # a position's angle needs more than 8 bits
        tables = rope_tables(positions_BS, self.config.head_dim, self.rope, precision)
        for block in self.model.layers.values():
            x_BTE = block(x_BTE, tables, attend)
        return self.model.norm(x_BTE) if self.part.last else x_BTE

    def forward(
        self,
        tokens_BS: Tensor,
        positions_BS: Tensor,
        labels_BS: Tensor,
        attend: Attend,
        entropy: bool = False,
        counted_N: Tensor | None = None,
    ) -> TokenOutputs:
        """Per-token outputs for the labels; full logits exist for ``loss_chunk`` tokens at a time only.

        counted_N: flat numbers of the positions that are looked at; the others get log-probability 0 and cost no
        logits. None: all of them.
        """
        return self.outputs(self.hidden(tokens_BS, positions_BS, attend), labels_BS, entropy, counted_N)

    def outputs(
        self, x_BTE: Tensor, labels_BS: Tensor, entropy: bool = False, counted_N: Tensor | None = None
    ) -> TokenOutputs:
        """The second half of ``forward``: from normalised hidden states."""
        if self.head == "scalar":
            exact_BTE = x_BTE.to(torch.promote_types(x_BTE.dtype, torch.float32))
            values_BT = self.score(exact_BTE).squeeze(-1)
            return TokenOutputs(values=self.tensors.unshard(values_BT).clone())  # no view: as in score_tokens
        return score_tokens(
            self.tensors.enter(x_BTE),
            self.output_weight,
            labels_BS,
            self.loss_chunk,
            entropy,
            counted_N,
            self.tensors,
            self.config.vocab_size,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., E] -> [..., V]; for inference, on the few positions that are sampled from."""
        return F.linear(hidden, self.output_weight.to(hidden.dtype))
