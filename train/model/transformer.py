"""The decoder: Llama and Qwen3 families, parameter names and shapes those of Hugging Face.

Left out on purpose: dropout, biases, parallel blocks: neither family has them. The model knows nothing of
ranks; attention is handed in as ``attend(layer, q, k, v)``, so that training, context parallelism and
KV-cached decoding share this one forward.

Shapes: B batch, S sequence (local, under context parallelism), H heads, K key/value heads, D head dim,
E model dim, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farside.configs.rope import Rope
from farside.configs.schema import ModelConfig
from farside.train.model.heads import TokenOutputs, score_tokens
from farside.train.model.norm import RMSNorm
from farside.train.model.rope import apply_rope, rope_tables

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_BSHD, k_BSKD, v_BSKD) -> [B, S, H, D]"""


class Linear(nn.Linear):
    """Computes in the precision of its input; a weight kept in another one is rounded for the product.

    So weights can stay float32 where the computation is in bfloat16, and their gradients add up in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Grouped-query attention with RoPE and optional QK-norm (Qwen3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        heads, kv_heads = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
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


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BSE: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BSE)) * self.up_proj(x_BSE))


class Block(nn.Module):
    """Attention between two parts that see one token at a time.

    Each part, and the whole, is called through an attribute, so that ``train/model/wrap.py`` can put compilation and
    recomputation around it without a change of parameter names, and inside whatever FSDP hooks to ``forward``.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.before_attention: Callable[..., tuple[Tensor, Tensor, Tensor]] = self._before_attention
        self.after_attention: Callable[..., Tensor] = self._after_attention
        self.whole: Callable[..., Tensor] = self._whole

    def forward(self, x_BSE: Tensor, tables: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        return self.whole(x_BSE, tables, attend)

    def _whole(self, x_BSE: Tensor, tables: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        attended_BSHD = attend(self.layer, *self.before_attention(x_BSE, tables))
        return self.after_attention(x_BSE, attended_BSHD)

    def _before_attention(self, x_BSE: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn.project(self.input_layernorm(x_BSE), tables)

    def _after_attention(self, x_BSE: Tensor, attended_BSHD: Tensor) -> Tensor:
        x_BSE = x_BSE + self.self_attn.o_proj(attended_BSHD.flatten(-2))
        return x_BSE + self.mlp(self.post_attention_layernorm(x_BSE))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """A decoder with a head: "lm" over the vocabulary, or "scalar" (reward, value) named ``score`` as in
    Hugging Face's sequence classifiers.

    rope: the rotary embedding in use; a stage of context extension sets another.
    dtype: precision of the computation where it is not that of the parameters.
    """

    def __init__(
        self, config: ModelConfig, head: str = "lm", loss_chunk: int = 8192, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config, self.head, self.loss_chunk, self.dtype = config, head, loss_chunk, dtype
        self.rope = Rope.of_model(config)
        self.model = Decoder(config)
        if head == "scalar":
            self.score = Linear(config.hidden_size, 1, bias=False)
        elif not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def output_weight(self) -> Tensor:
        """[V, E], or [1, E] of a scalar head."""
        if self.head == "scalar":
            return self.score.weight
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def hidden(self, tokens_BS: Tensor, positions_BS: Tensor, attend: Attend) -> Tensor:
        """Normalised hidden states [B, S, E]."""
        x_BSE = self.model.embed_tokens(tokens_BS)
        x_BSE = x_BSE.to(self.dtype or x_BSE.dtype)
        precision = torch.promote_types(x_BSE.dtype, torch.float32)  # a position's angle needs more than 8 bits
        tables = rope_tables(positions_BS, self.config.head_dim, self.rope, precision)
        for block in self.model.layers:
            x_BSE = block(x_BSE, tables, attend)
        return self.model.norm(x_BSE)

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
        x_BSE = self.hidden(tokens_BS, positions_BS, attend)
        if self.head == "scalar":
            weight_1E = self.output_weight
            return TokenOutputs(
                values=F.linear(x_BSE.to(torch.promote_types(x_BSE.dtype, weight_1E.dtype)), weight_1E).squeeze(-1)
            )
        return score_tokens(x_BSE, self.output_weight, labels_BS, self.loss_chunk, entropy, counted_N)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., E] -> [..., V]; for inference, on the few positions that are sampled from."""
        return F.linear(hidden, self.output_weight.to(hidden.dtype))
