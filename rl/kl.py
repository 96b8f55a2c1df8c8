"""Distance from a reference policy: three estimates of the KL divergence, for the loss or for the reward."""

import torch
from torch import Tensor

from farside.configs.schema import KlConfig, KlEstimator, KlPlace
from farside.rl.loss import Objective, PolicyTokens


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per-token estimates k1, k2, k3 of KL(policy || ref) in nats, for tokens drawn from the policy.

    With d = logprob - ref_logprob: k1 = d (unbiased), k2 = d^2 / 2 (its gradient is the KL's), k3 = exp(-d)
    - 1 + d (unbiased, never negative). Schulman, "Approximating KL divergence" (2020).
    """
    d = logprobs - ref_logprobs
    return d, d.square() / 2, torch.expm1(-d) + d


def estimate(kind: KlEstimator, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return kl_estimates(logprobs, ref_logprobs)[list(KlEstimator).index(kind)]


def with_kl(objective: Objective, config: KlConfig) -> Objective:
    """The objective plus ``weight`` times the estimate, where it belongs into the loss (GRPO, arXiv 2402.03300, eq. 3).

    Metric: ``ref_kl``, k3.
    """
    if config.weight == 0 or config.place is not KlPlace.loss:
        return objective

    def penalised(tokens: PolicyTokens) -> tuple[Tensor, dict[str, Tensor]]:
        assert tokens.ref_logprobs is not None
        loss, metrics = objective(tokens)
        distance = estimate(config.estimator, tokens.logprobs, tokens.ref_logprobs)
        shown = estimate(KlEstimator.k3, tokens.logprobs.detach(), tokens.ref_logprobs)
        return loss + config.weight * distance, {**metrics, "ref_kl": shown}

    return penalised
