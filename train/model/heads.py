"""What a head returns per token. Losses see these, never logits.

Shapes: B batch, S sequence, E model dim, V vocabulary (this rank's part, under tensor parallelism), N = B·S tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from farside.parallel import types
from farside.parallel.tensor import TensorParallel, WholeTensors

BLOCK = 128
"""Rows of logits that are turned into probabilities at once: the temporaries then stay in the cache."""


@dataclass(frozen=True)
class TokenOutputs:
    """logprobs, entropy: [B, S] of an lm head, in nats (entropy only if asked for); values: [B, S] of a scalar head."""

    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None

    @property
    def present(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> "TokenOutputs":
        """The same outputs with ``function`` applied to each that is there."""
        return TokenOutputs(**{name: function(value) for name, value in self.present.items()})


class Scores(torch.autograd.Function):
    """(log-probability of the label, entropy) [N] each, from hidden states and the output matrix.

    Ranks that hold parts of the vocabulary hold equal results; of the gradient of x, each holds the part that its rows
    give. labels_N count from this rank's first row: those outside 0..V-1 are other ranks' rows.

    Logits have x's type; all that is reduced from them is computed in at least fp32. Up to ``chunk`` tokens, the
    backward pass turns the logits into their gradient in place; beyond, they are computed again chunk by chunk. With
    p the softmax and H its entropy, d logprob/d logit = [label] - p and d H/d logit = -p (log p + H).
    """

    @staticmethod
    def spmd_typecheck(
        out: tuple[Tensor, Tensor], *, x_NE: Tensor, weight_VE: Tensor, labels_N: Tensor, tensors: TensorParallel
    ) -> None:
        types.type_scores(out, x_NE, weight_VE, labels_N, tensors.group)

    @staticmethod
    def forward(
        ctx: Any,
        x_NE: Tensor,
        weight_VE: Tensor,
        labels_N: Tensor,
        chunk: int,
        entropy: bool,
        tensors: TensorParallel,
    ) -> tuple[Tensor, Tensor]:
        precision = torch.promote_types(x_NE.dtype, torch.float32)
        picked_N, normaliser_N, entropy_N = x_NE.new_zeros(3, len(labels_N), dtype=precision)
        here_N = (labels_N >= 0) & (labels_N < len(weight_VE))
        labels_N = torch.where(here_N, labels_N, 0)
        kept = None
        for start in range(0, len(labels_N), chunk):
            logits_NV = F.linear(x_NE[start : start + chunk], weight_VE.to(x_NE.dtype))
            kept = logits_NV if len(labels_N) <= chunk else None
            for rows, block_NV in _blocks(logits_NV, precision, start):
                normaliser_N[rows] = block_NV.logsumexp(-1)
                picked_N[rows] = block_NV.gather(-1, labels_N[rows, None]).squeeze(-1)
                if entropy:
                    block_NV -= normaliser_N[rows, None]
                    entropy_N[rows] = -torch.linalg.vecdot(block_NV.exp(), block_NV)
        picked_N, normaliser_N, entropy_N = tensors.combine(picked_N * here_N, normaliser_N, entropy_N)
        ctx.save_for_backward(x_NE, weight_VE, labels_N, here_N, normaliser_N, entropy_N)
        ctx.chunk, ctx.entropy, ctx.logits = chunk, entropy, kept if any(ctx.needs_input_grad) else None
        return picked_N - normaliser_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        x_NE, weight_VE, labels_N, here_N, normaliser_N, entropy_N = ctx.saved_tensors
        d_logprobs_N, d_entropy_N = gradients
        precision = normaliser_N.dtype
        rounded_VE = weight_VE.to(x_NE.dtype)
        d_x_NE, d_weight_VE = torch.empty_like(x_NE), None
        for start in range(0, len(labels_N), ctx.chunk):
            x = x_NE[start : start + ctx.chunk]
            logits_NV = F.linear(x, rounded_VE) if ctx.logits is None else ctx.logits
            ctx.logits = None
            for rows, block_NV in _blocks(logits_NV, precision, start):
                block_NV -= normaliser_N[rows, None]
                factor_N1 = -d_logprobs_N[rows, None]
                if ctx.entropy:
                    factor_NV = (block_NV + entropy_N[rows, None]).mul_(-d_entropy_N[rows, None]).add_(factor_N1)
                    block_NV.exp_().mul_(factor_NV)
                else:
                    block_NV.exp_().mul_(factor_N1)
                block_NV.scatter_add_(-1, labels_N[rows, None], -factor_N1 * here_N[rows, None])
                logits_NV[rows.start - start : rows.stop - start] = block_NV
            torch.mm(logits_NV, rounded_VE, out=d_x_NE[start : start + ctx.chunk])
            piece_VE = (logits_NV.T @ x).to(precision)  # the weight may be bf16: chunks would add up in 8 bits
            d_weight_VE = piece_VE if d_weight_VE is None else d_weight_VE.add_(piece_VE)
        d_weight_VE = torch.zeros_like(weight_VE) if d_weight_VE is None else d_weight_VE.to(weight_VE.dtype)
        return d_x_NE, d_weight_VE, None, None, None, None


def _blocks(logits_NV: Tensor, precision: torch.dtype, start: int) -> Any:
    """(slice of the tokens, their logits as a copy in ``precision``) of a chunk that begins at token ``start``."""
    for first in range(0, len(logits_NV), BLOCK):
        block_NV = logits_NV[first : first + BLOCK]
        yield slice(start + first, start + first + len(block_NV)), block_NV.to(precision, copy=True)


def score_tokens(
    x_BSE: Tensor,
    weight_VE: Tensor,
    labels_BS: Tensor,
    chunk: int,
    entropy: bool,
    counted_N: Tensor | None = None,
    tensors: TensorParallel = WholeTensors(),  # noqa: B008 - it holds no state
    vocab_size: int | None = None,
) -> TokenOutputs:
    """Log-probability of each label, and the entropy of its distribution; 0 outside ``counted_N``.

    tensors, vocab_size: who holds which rows of the output matrix, and how many are no padding; None: all.

    At most ``chunk`` tokens have logits at once: more are done chunk by chunk and recomputed in the backward
    pass, so that memory does not grow with the sequence.
    """
    x_NE, labels_N = x_BSE.flatten(0, 1), labels_BS.flatten()
    if counted_N is not None:
        x_NE, labels_N = x_NE[counted_N], labels_N[counted_N]
    first = tensors.rank * len(weight_VE)
    weight_VE = weight_VE[: None if vocab_size is None else vocab_size - first]  # rows that pad the vocabulary are none
    scores = Scores.apply(x_NE, weight_VE, labels_N - first, chunk, entropy, tensors)

    def spread(values_N: Tensor) -> Tensor:
        if counted_N is not None:
            values_N = values_N.new_zeros(labels_BS.numel()).index_put((counted_N,), values_N)
        return values_N.view_as(labels_BS).clone()  # FSDP2 hooks outputs, and a view could lose its hook

    return TokenOutputs(spread(scores[0]), spread(scores[1]) if entropy else None)
