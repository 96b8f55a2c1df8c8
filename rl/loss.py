"""Policy objectives as pure functions of per-token tensors. Shapes: B rows, S positions.

They return a loss per token. The sum over tokens with weights, divided by a global total, makes the one scalar: an
algorithm's normalisation lies in the weights, so that the result cannot depend on how the batch is cut. What is
defined per sequence stands at each of its tokens, whose weights sum to the sequence's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from farside.data.batch import Batch
from farside.rl.sequences import Sequences
from farside.train.model.heads import TokenOutputs


@dataclass(frozen=True)
class PolicyTokens:
    """[B, S] each; where ``weights`` is 0 all else is 0 too, whatever it held, so that nothing of it can become NaN.

    logprobs: of the policy in training, with gradient. old_logprobs: of the policy before the iteration's updates.
    sampler_logprobs: of the engine that sampled, where it is told apart from the one that trains. ref_logprobs: of the
    frozen reference.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    sequences: Sequences
    sampler_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None

    @classmethod
    def of(cls, outputs: TokenOutputs, batch: Batch) -> "PolicyTokens":
        """Raises ValueError if extras are not of the batch's shape."""
        assert outputs.logprobs is not None
        shapes = {tuple(tensor.shape) for tensor in (outputs.logprobs, batch.weights, *batch.extras.values())}
        if len(shapes) != 1:
            raise ValueError(f"expected log-probabilities, weights and extras of one shape, got {sorted(shapes)}")
        # chosen before any exponential: 0 * inf of a padding token would be NaN, in the gradient too
        counted = batch.weights != 0
        own = {name: value for name, value in batch.extras.items() if name in cls.__dataclass_fields__}
        extras = {name: torch.where(counted, value, 0.0).detach() for name, value in own.items()}
        logprobs = torch.where(counted, outputs.logprobs, 0.0)
        return cls(logprobs, weights=batch.weights, sequences=Sequences(batch.doc_ids, counted), **extras)

    @property
    def log_ratio(self) -> Tensor:
        return self.logprobs - self.old_logprobs


Objective = Callable[[PolicyTokens], tuple[Tensor, dict[str, Tensor]]]
"""Returns the loss [B, S] of each token, and metrics [B, S] to be averaged with the same weights."""


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float, dual: float | None = None) -> Tensor:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A): PPO, arXiv 1707.06347, eq. 7.

    low != high is DAPO's clip-higher (arXiv 2503.14476, eq. 10). dual: of a token with A < 0 the loss is at most
    dual * -A (dual clip, arXiv 1912.09729, eq. 5).
    """
    bounded = ratio.clamp(1 - low, 1 + high)
    loss = -torch.minimum(ratio * advantages, bounded * advantages)
    return loss if dual is None else torch.where(advantages < 0, torch.minimum(loss, -dual * advantages), loss)


def clipped_objective(low: float, high: float, dual: float | None = None, whole: bool = False) -> Objective:
    """``clipped`` with rho of each token, or, if ``whole``, with the geometric mean of its sequence's.

    Metrics: ``clip_share`` tokens whose gradient the clip cut off, ``ratio`` rho.

    Raises:
        ValueError: low outside [0, 1), high negative, or dual not above 1.
    """
    if not 0 <= low < 1 or high < 0:
        raise ValueError(f"clip_low={low} must be in [0, 1), clip_high={high} at least 0")
    if dual is not None and dual <= 1:
        raise ValueError(f"clip_dual={dual} must be above 1")

    def objective(tokens: PolicyTokens) -> tuple[Tensor, dict[str, Tensor]]:
        ratio = (tokens.sequences.mean(tokens.log_ratio) if whole else tokens.log_ratio).exp()
        with torch.no_grad():
            good, bad = tokens.advantages > 0, tokens.advantages < 0
            cut = (good & (ratio > 1 + high)) | (bad & (ratio < 1 - low))
            if dual is not None:
                cut |= bad & (ratio > dual)
        return clipped(ratio, tokens.advantages, low, high, dual), {"clip_share": cut, "ratio": ratio.detach()}

    return objective
