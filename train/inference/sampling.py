"""A token from logits: the likeliest, or an inverse-CDF draw. Shapes: B rows, V vocabulary."""

import torch
from torch import Tensor


def choose(logits_BV: Tensor, uniform_B: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """(token [B], its log-probability [B] at temperature 1, in nats).

    uniform_B: None takes the likeliest token; else numbers in [0, 1), whose token at ``temperature`` is drawn.
    """
    exact_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    if uniform_B is None or temperature == 1.0:
        probs_BV = exact_BV.softmax(-1)
        token_B = probs_BV.argmax(-1) if uniform_B is None else _draw(probs_BV, uniform_B)
        return token_B, probs_BV.gather(-1, token_B[:, None]).squeeze(-1).log()
    token_B = _draw((exact_BV / temperature).softmax(-1), uniform_B)
    return token_B, exact_BV.gather(-1, token_B[:, None]).squeeze(-1) - exact_BV.logsumexp(-1)


def _draw(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first token whose running sum is above the number's part of the whole: its own probability is not 0."""
    cdf_BV = probs_BV.cumsum(-1, dtype=torch.float64)
    whole_B1 = cdf_BV[:, -1:]
    # rounding may lift the target to the whole sum, beyond which there is no token
    target_B1 = torch.minimum(uniform_B[:, None] * whole_B1, whole_B1.nextafter(torch.zeros_like(whole_B1)))
    return torch.searchsorted(cdf_BV, target_B1, right=True).squeeze(-1)
