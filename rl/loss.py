"""Policy losses as pure functions of per-token tensors of equal shape.

They return weighted sums. The caller divides by the global sum of weights, so that the result cannot depend
on how the batch is cut; GRPO's 1/|o_i| per sample is carried by the weights.
"""

from collections.abc import Callable

import torch
from torch import Tensor

PolicyLoss = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(logprobs, old_logprobs, advantages, weights) -> (sum of weight * loss, weighted sums of metrics)."""


def grpo_loss(clip_low: float, clip_high: float) -> PolicyLoss:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) with rho = exp(logprob - old_logprob).

    DeepSeekMath, eq. 3 without its KL term; clip_low != clip_high is DAPO's clip-higher, eq. 10. Tokens of
    weight 0 contribute exactly zero to sums and gradient, whatever else they hold.

    Metrics, each a detached weighted sum: ``clip_share`` tokens whose gradient the clip cut off, ``kl`` k3
    estimate of KL(old || new) in nats (the samples are the old policy's), ``ratio`` rho.

    Raises:
        ValueError: clip_low outside [0, 1) or clip_high negative; the returned function: shapes differ.
    """
    if not 0 <= clip_low < 1 or clip_high < 0:
        raise ValueError(f"clip_low={clip_low} must be in [0, 1), clip_high={clip_high} at least 0")

    def loss(
        logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        shapes = {tuple(tensor.shape) for tensor in (logprobs, old_logprobs, advantages, weights)}
        if len(shapes) != 1:
            raise ValueError(f"expected four tensors of one shape, got {sorted(shapes)}")
        # Chosen before the exponential: 0 * inf of a padding token would be NaN, in the gradient too.
        counted = weights != 0
        logprobs = torch.where(counted, logprobs, 0.0)
        old_logprobs = torch.where(counted, old_logprobs, 0.0).detach()
        advantages = torch.where(counted, advantages, 0.0).detach()
        ratio = (logprobs - old_logprobs).exp()
        clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
        per_token = -torch.minimum(ratio * advantages, clipped * advantages)
        with torch.no_grad():
            cut = ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
            metrics = {
                "clip_share": (weights * cut).sum(),
                "kl": (weights * kl_estimates(old_logprobs, logprobs)[2]).sum(),
                "ratio": (weights * ratio).sum(),
            }
        return (weights * per_token).sum(), metrics

    return loss


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per-token estimates k1, k2, k3 of KL(policy || ref) in nats, for tokens drawn from the policy.

    With d = logprob - ref_logprob: k1 = d (unbiased), k2 = d^2 / 2 (its gradient is the KL's), k3 = exp(-d)
    - 1 + d (unbiased, never negative). Schulman, "Approximating KL divergence" (2020).
    """
    d = logprobs - ref_logprobs
    return d, d.square() / 2, torch.expm1(-d) + d
