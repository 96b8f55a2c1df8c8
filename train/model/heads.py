"""What a head returns per token. Losses see these, never logits.

Shapes: B batch, S sequence, E model dim, V vocabulary, N = B·S tokens.
"""

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


def _score_chunk(x_NE: Tensor, weight_VE: Tensor, labels_N: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
    logits_NV = F.linear(x_NE, weight_VE)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))  # reductions in at least fp32
    if not entropy:
        return -F.cross_entropy(logits_NV, labels_N, reduction="none"), None
    logprobs_NV = logits_NV.log_softmax(-1)
    picked_N = logprobs_NV.gather(-1, labels_N[:, None]).squeeze(-1)
    return picked_N, -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def score_tokens(x_BSE: Tensor, weight_VE: Tensor, labels_BS: Tensor, chunk: int, entropy: bool) -> TokenOutputs:
    """Log-probability of each label, and the entropy of its distribution.

    At most ``chunk`` tokens have logits at once: more are done chunk by chunk and recomputed in the backward
    pass, so that memory does not grow with the sequence.
    """
    x_NE, labels_N = x_BSE.flatten(0, 1), labels_BS.flatten()
    if len(labels_N) <= chunk:
        pieces = [_score_chunk(x_NE, weight_VE, labels_N, entropy)]
    else:
        pieces = [
            checkpoint(_score_chunk, x, weight_VE, labels, entropy, use_reentrant=False, preserve_rng_state=False)
            for x, labels in zip(x_NE.split(chunk), labels_N.split(chunk))
        ]
    # clones: FSDP2 hooks the outputs, and a view would lose its hook to an in-place operation
    logprobs = torch.cat([piece[0] for piece in pieces]).view_as(labels_BS).clone()
    if not entropy:
        return TokenOutputs(logprobs)
    entropies = torch.cat([piece[1] for piece in pieces if piece[1] is not None])
    return TokenOutputs(logprobs, entropies.view_as(labels_BS).clone())
