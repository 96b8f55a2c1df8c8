"""Advantages from rewards. P prompts, G samples per prompt, N = P·G samples, T tokens of the longest answer."""

from collections.abc import Callable

import torch
from torch import Tensor

EPS = 1e-6
"""Added to the standard deviation, as in verl, slime, SkyRL, ROLL and NeMo-RL; TRL has 1e-4, OpenRLHF
1e-9."""
VARIANCE_FLOOR = 1e-8
"""Of a whole batch, as in OpenRLHF."""

SumFloats = Callable[[list[float]], list[float]]
"""Sums over the ranks that hold different samples."""


def _groups(rewards_PG: Tensor, valid_PG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(count [P, 1], rewards minus the mean [P, G], whether a group tells anything [P, 1]), over valid samples."""
    if rewards_PG.shape != valid_PG.shape or rewards_PG.dim() != 2:
        raise ValueError(f"rewards {tuple(rewards_PG.shape)}, valid {tuple(valid_PG.shape)}: expected two [P, G]")
    if valid_PG.dtype != torch.bool:
        raise ValueError(f"valid must be bool, is {valid_PG.dtype}")
    rewards_PG = rewards_PG.detach()
    zero = torch.zeros_like(rewards_PG)
    count_P1 = valid_PG.sum(1, keepdim=True).to(rewards_PG.dtype)
    kept_PG = torch.where(valid_PG, rewards_PG, zero)
    mean_P1 = kept_PG.sum(1, keepdim=True) / count_P1.clamp(min=1)
    return count_P1, torch.where(valid_PG, rewards_PG - mean_P1, zero), telling(rewards_PG, valid_PG)[:, None]


def telling(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """[P] bool: groups with two valid samples of different reward; the others give advantages of 0."""
    lowest_P = rewards_PG.masked_fill(~valid_PG, torch.inf).amin(1)
    highest_P = rewards_PG.masked_fill(~valid_PG, -torch.inf).amax(1)
    return (valid_PG.sum(1) >= 2) & (highest_P > lowest_P)


def group_normalised(rewards_PG: Tensor, valid_PG: Tensor, eps: float = EPS) -> Tensor:
    """GRPO's advantage (r - mean) / (std + eps) within each prompt's group (DeepSeekMath, section 4.1.2).

    std is the unbiased one (divides by n - 1), as in every implementation known to us; the paper does not
    say. Only valid samples count in mean and std, and whatever their reward holds (NaN too), invalid ones
    get 0. So do all samples of a group with fewer than two valid ones or with equal rewards: exactly 0, no
    rounding residue.

    Args:
        rewards_PG: [P, G] floating.
        valid_PG: [P, G] bool.

    Returns:
        [P, G], dtype of the rewards, no gradient.
    """
    count_P1, centred_PG, tells_P1 = _groups(rewards_PG, valid_PG)
    std_P1 = (centred_PG.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt()
    return torch.where(tells_P1, centred_PG / (std_P1 + eps), 0.0)


def group_centred(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """r - mean within each group; shapes and zeros as ``group_normalised`` (Dr.GRPO, arXiv 2503.20783)."""
    _, centred_PG, tells_P1 = _groups(rewards_PG, valid_PG)
    return torch.where(tells_P1, centred_PG, 0.0)


def leave_one_out(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """r_i minus the mean of the group's others, which is n / (n - 1) (r_i - mean); else as ``group_normalised``."""
    count_P1, centred_PG, tells_P1 = _groups(rewards_PG, valid_PG)
    return torch.where(tells_P1, centred_PG * (count_P1 / (count_P1 - 1).clamp(min=1)), 0.0)


def log_partition(rewards_PG: Tensor, valid_PG: Tensor, tau: float) -> Tensor:
    """[P, 1]: tau log mean exp(r / tau) over a group's valid samples, tau log Z of Kimi k1.5 (arXiv 2501.12599, eq. 2).

    Between the mean (tau to infinity) and the largest reward (tau to 0). -inf for a group without valid samples.
    """
    scaled_PG = (rewards_PG.detach() / tau).masked_fill(~valid_PG, -torch.inf)
    count_P1 = valid_PG.sum(1, keepdim=True).to(rewards_PG.dtype)
    return tau * (scaled_PG.logsumexp(1, keepdim=True) - count_P1.log())


def mirror_centred(rewards_PG: Tensor, valid_PG: Tensor, tau: float) -> Tensor:
    """r - tau log Z within each group; zeros as ``group_normalised``."""
    _, centred_PG, tells_P1 = _groups(rewards_PG, valid_PG)
    centred_PG = torch.where(valid_PG, rewards_PG.detach() - log_partition(rewards_PG, valid_PG, tau), centred_PG)
    return torch.where(tells_P1, centred_PG, 0.0)


def batch_normalised(values_NT: Tensor, counted_NT: Tensor, total: SumFloats) -> Tensor:
    """(x - mean) / std over all counted tokens of all ranks, population variance; 0 elsewhere (REINFORCE++)."""
    kept_NT = torch.where(counted_NT, values_NT, 0.0)
    sums = total([kept_NT.double().sum().item(), float(counted_NT.sum())])
    count = max(sums[1], 1.0)
    centred_NT = torch.where(counted_NT, values_NT - sums[0] / count, 0.0)
    variance = total([centred_NT.double().square().sum().item()])[0] / count
    return centred_NT / max(variance, VARIANCE_FLOOR) ** 0.5


def rewards_to_go(rewards_NT: Tensor, gamma: float) -> Tensor:
    """[N, T]: sum over s >= t of gamma^(s - t) r_s."""
    sums_NT, later_N = torch.zeros_like(rewards_NT), torch.zeros_like(rewards_NT[:, 0])
    for t in reversed(range(rewards_NT.shape[1])):
        later_N = rewards_NT[:, t] + gamma * later_N
        sums_NT[:, t] = later_N
    return sums_NT


def process_normalised(step_rewards_GK: Tensor, step_ends_GK: Tensor, tokens: int, eps: float = EPS) -> Tensor:
    """[G, tokens]: GRPO's advantages from rewards of steps (DeepSeekMath, arXiv 2402.03300, section 4.1.3).

    step_rewards_GK: of up to K steps of each of one prompt's answers. step_ends_GK: the index of a step's last token;
    -1: no such step. All the group's step rewards are normalised together, and a token's advantage is the sum of those
    of the steps that end at it or later.
    """
    steps_GK = step_ends_GK >= 0
    flat_1K = group_normalised(step_rewards_GK.reshape(1, -1), steps_GK.reshape(1, -1), eps)
    ends_GK1, at_T = step_ends_GK[..., None], torch.arange(tokens)
    return (flat_1K.view_as(step_rewards_GK)[..., None] * (ends_GK1 >= at_T)).sum(1)


def step_advantages(step_rewards_NT: Tensor, samples_per_prompt: int, eps: float = EPS) -> Tensor:
    """[N, T]: ``process_normalised`` of every prompt's samples at once, from rewards that stand at steps' last tokens;
    NaN: no step ends there."""
    steps_NT = ~step_rewards_NT.isnan()
    shape = (-1, samples_per_prompt * step_rewards_NT.shape[1])
    normalised = group_normalised(step_rewards_NT.reshape(shape), steps_NT.reshape(shape), eps)
    return normalised.view_as(step_rewards_NT).flip(1).cumsum(1).flip(1)


def progress_advantages(step_rewards_NT: Tensor, samples_per_prompt: int, eps: float = EPS) -> Tensor:
    """[N, T]: at each token by how much its own step changes the reward (before the first it is 1: nothing is wrong),
    normalised over all steps of the prompt's samples. Shapes as ``step_advantages``.

    After a mistake all steps are wrong; their sum to go would blame each for it, this blames the step that made it
    (progress as the reward of a step: arXiv 2410.08146).
    """
    changes_NT = torch.full_like(step_rewards_NT, torch.nan)
    ends_N = [(~row.isnan()).nonzero().flatten() for row in step_rewards_NT]
    for change, row, ends in zip(changes_NT, step_rewards_NT, ends_N):
        change[ends] = row[ends].diff(prepend=row.new_ones(1))
    steps_NT = ~changes_NT.isnan()
    shape = (-1, samples_per_prompt * changes_NT.shape[1])
    normalised = group_normalised(changes_NT.reshape(shape), steps_NT.reshape(shape), eps).view_as(changes_NT)
    found_NT = torch.zeros_like(normalised)
    for found, row, ends in zip(found_NT, normalised, ends_N):
        starts = [0, *(end + 1 for end in ends.tolist())]
        for start, end in zip(starts, ends.tolist()):
            found[start : end + 1] = row[end]
    return found_NT
