"""What a head returns per token. Losses see these, never logits.

Shapes: B batch, S sequence, E model dim, V vocabulary, N = B·S tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class TokenOutputs:
    """logprobs, entropy: [B, S] of an lm head, in nats (entropy only if asked for); values: [B, S] of a scalar head."""

    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "TokenOutputs":
        """The same outputs with ``function`` applied to each that is there."""
        present = {name: value for name, value in vars(self).items() if value is not None}
        return TokenOutputs(**{name: function(value) for name, value in present.items()})


LabelScores = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(logits [N, V] of this rank's vocabulary, labels [N]) -> log-probability and, if asked for, entropy, [N] each."""


def _score_chunk(x_NE: Tensor, weight_VE: Tensor, labels_N: Tensor, score: LabelScores) -> tuple[Tensor, Tensor | None]:
    logits_NV = F.linear(x_NE, weight_VE.to(x_NE.dtype))
    return score(logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)), labels_N)  # sums in at least fp32


def score_tokens(
    x_BSE: Tensor,
    weight_VE: Tensor,
    labels_BS: Tensor,
    score: LabelScores,
    chunk: int,
    counted_N: Tensor | None = None,
) -> TokenOutputs:
    """Log-probability of each label and what else ``score`` gives; 0 outside ``counted_N``.

    At most ``chunk`` tokens have logits at once: more are done chunk by chunk and recomputed in the backward
    pass, so that memory does not grow with the sequence.
    """
    x_NE, labels_N = x_BSE.flatten(0, 1), labels_BS.flatten()
    if counted_N is not None:
        x_NE, labels_N = x_NE[counted_N], labels_N[counted_N]
    if len(labels_N) <= chunk:
        pieces = [_score_chunk(x_NE, weight_VE, labels_N, score)]
    else:
        pieces = [
            checkpoint(_score_chunk, x, weight_VE, labels, score, use_reentrant=False, preserve_rng_state=False)
            for x, labels in zip(x_NE.split(chunk), labels_N.split(chunk))
        ]

    def spread(parts: list[Tensor]) -> Tensor:
        values_N = torch.cat(parts)
        if counted_N is not None:
            values_N = values_N.new_zeros(labels_BS.numel()).index_put((counted_N,), values_N)
        return values_N.view_as(labels_BS).clone()  # FSDP2 hooks outputs, and a view could lose its hook

    logprobs = spread([piece[0] for piece in pieces])
    entropies = [piece[1] for piece in pieces if piece[1] is not None]
    return TokenOutputs(logprobs, spread(entropies) if entropies else None)
