"""Corrections for a sampler whose log-probabilities are not the trainer's: other kernels, precision, or staleness.

The advantage of a token that the sampler drew is worth w = pi_trainer(token) / pi_sampler(token) tokens of the policy
before the update; both log-probabilities are constants of the iteration.
"""

import torch
from torch import Tensor

from farside.configs.schema import Correction, CorrectionConfig
from farside.rl.loss import Objective, PolicyTokens


def correction_weights(
    kind: Correction, old_logprobs: Tensor, sampler_logprobs: Tensor, low: float, high: float
) -> Tensor:
    """[B, S] factors of the tokens' losses.

    tis: min(w, high), truncated importance sampling (Yao et al., "Your efficient RL framework secretly brings you
    off-policy RL training", 2025; after Ionides 2008). icepop: w where low <= w <= high, else 0: tokens that the two
    disagree on teach nothing (Ling team, "Every Step Evolves", arXiv 2510.18855, eq. 3).
    """
    w = (old_logprobs - sampler_logprobs).exp()
    if kind is Correction.tis:
        return w.clamp(max=high)
    assert kind is Correction.icepop
    return torch.where((w >= low) & (w <= high), w, 0.0)


def corrected(objective: Objective, config: CorrectionConfig) -> Objective:
    """The objective with each token's loss times its factor. Divisors stay: a masked token still counts in a mean.

    Metrics: ``mismatch_kl`` the k3 estimate of KL(sampler || trainer) in nats, ``correction`` the mean factor.
    """
    if config.kind is Correction.none:
        return objective

    def changed(tokens: PolicyTokens) -> tuple[Tensor, dict[str, Tensor]]:
        assert tokens.sampler_logprobs is not None
        loss, metrics = objective(tokens)
        old, sampler = tokens.old_logprobs, tokens.sampler_logprobs
        factors = correction_weights(config.kind, old, sampler, config.low, config.high)
        mismatch = (old - sampler).expm1() - (old - sampler)
        return factors * loss, {**metrics, "mismatch_kl": mismatch, "correction": factors}

    return changed
