"""Tensor parallelism with sequence parallelism (Megatron-LM, arXiv 1909.08053 and 2205.05198), by explicit collectives.

Inside a block each rank has all tokens and its share of heads, of the MLP's width or of the vocabulary; between the
blocks it has its share of the tokens. ``WholeTensors`` is the same seam at degree 1 and costs nothing.

What a rank holds of a parameter is said by ``farside.parallel.plan``; gradients of parameters that every rank holds
whole (norms) are partial sums here, summed once a step by the engine.

Shapes: B batch, L sequence of this context-parallel rank, T = L/tp, E model dim, N tokens, V vocabulary, v = rows of
the vocabulary here.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from farside.parallel import comm


class TensorParallel(Protocol):
    size: int

    def enter(self, x_BTE: Tensor) -> Tensor:
        """[B, T, E] -> [B, L, E]: all tokens, for a column-parallel product."""
        ...

    def leave(self, x_BLE: Tensor) -> Tensor:
        """[B, L, E] -> [B, T, E]: the sum of a row-parallel product's parts, cut into shares of the tokens."""
        ...

    def embed(self, tokens_BL: Tensor, weight_vE: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of a vocabulary-parallel embedding, in the type given: [B, T, E]."""
        ...

    def unshard(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [B, L, ...] for outputs that every rank goes on to treat alike."""
        ...

    def label_scores(
        self, logits_Nv: Tensor, labels_N: Tensor, *, vocab_size: int, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probability of each label and, if asked for, the entropy of each distribution over the whole
        vocabulary, in nats: [N] each."""
        ...


class WholeTensors:
    """Tensor-parallel degree 1."""

    size = 1

    def enter(self, x_BTE: Tensor) -> Tensor:
        return x_BTE

    def leave(self, x_BLE: Tensor) -> Tensor:
        return x_BLE

    def embed(self, tokens_BL: Tensor, weight_vE: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(tokens_BL, weight_vE).to(dtype)

    def unshard(self, x: Tensor) -> Tensor:
        return x

    def label_scores(
        self, logits_Nv: Tensor, labels_N: Tensor, *, vocab_size: int, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        if not entropy:
            return -F.cross_entropy(logits_Nv, labels_N, reduction="none"), None
        logprobs_NV = logits_Nv.log_softmax(-1)
        picked_N = logprobs_NV.gather(-1, labels_N[:, None]).squeeze(-1)
        return picked_N, -(logprobs_NV.exp() * logprobs_NV).sum(-1)


class ShardedTensors:
    """Tensor-parallel degree of ``group``."""

    def __init__(self, group: comm.Group) -> None:
        self.group, self.size, self.rank = group, comm.size(group), comm.rank(group)

    def enter(self, x_BTE: Tensor) -> Tensor:
        return comm.gather(x_BTE, 1, self.group)

    def leave(self, x_BLE: Tensor) -> Tensor:
        return comm.sum_scatter(x_BLE, 1, self.group)

    def embed(self, tokens_BL: Tensor, weight_vE: Tensor, dtype: torch.dtype) -> Tensor:
        rows = tokens_BL - self.rank * len(weight_vE)
        here = (rows >= 0) & (rows < len(weight_vE))
        # a look-up of row 0 for tokens that others hold, made zero: the gradient of row 0 gets exactly nothing
        x_BLE = F.embedding(torch.where(here, rows, 0), weight_vE).to(dtype) * here[..., None]
        return comm.sum_scatter(x_BLE, 1, self.group)

    def unshard(self, x: Tensor) -> Tensor:
        return comm.gather_alike(x, 1, self.group)

    def label_scores(
        self, logits_Nv: Tensor, labels_N: Tensor, *, vocab_size: int, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        first = self.rank * logits_Nv.shape[-1]
        spare = first + logits_Nv.shape[-1] - vocab_size
        if spare > 0:  # rows that pad the vocabulary to a multiple of tp are no tokens
            logits_Nv = F.pad(logits_Nv[:, :-spare], (0, spare), value=float("-inf"))
        logprobs_N, entropy_N = VocabParallelScores.apply(logits_Nv, labels_N - first, self.group)
        return logprobs_N, entropy_N if entropy else None


class VocabParallelScores(torch.autograd.Function):
    """(log-probability of the label, entropy) from logits cut over the vocabulary: V -> I on the group.

    rows_N: the label's column here; outside 0..v-1 where another rank holds it. Two small all-reduces forward, none
    backward: with S = sum exp(z - m), p = exp(z - m) / S and u = z - m, d logprob / dz = onehot - p and
    d entropy / dz = p (E[u] - u).
    """

    @staticmethod
    def forward(ctx, logits_Nv: Tensor, rows_N: Tensor, group: comm.Group) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        largest_N = comm.max_(logits_Nv.amax(-1), group)
        shifted_Nv = logits_Nv - largest_N[:, None]
        exp_Nv = shifted_Nv.exp()
        here_N = (rows_N >= 0) & (rows_N < logits_Nv.shape[-1])
        rows_N = torch.where(here_N, rows_N, 0)
        picked_N = torch.where(here_N, shifted_Nv.gather(-1, rows_N[:, None]).squeeze(-1), 0.0)
        weighted_Nv = torch.where(exp_Nv > 0, exp_Nv * shifted_Nv, 0.0)  # 0 · -inf of padding is 0 here
        total_N, picked_N, mean_N = comm.sum_(
            torch.stack([exp_Nv.sum(-1), picked_N, weighted_Nv.sum(-1)]), group
        ).unbind()
        mean_N = mean_N / total_N
        ctx.save_for_backward(exp_Nv / total_N[:, None], shifted_Nv, mean_N, rows_N, here_N)
        return picked_N - total_N.log(), total_N.log() - mean_N

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        of_logprob_N, of_entropy_N = gradients
        p_Nv, shifted_Nv, mean_N, rows_N, here_N = ctx.saved_tensors
        result_Nv = -p_Nv * of_logprob_N[:, None]
        result_Nv.scatter_add_(-1, rows_N[:, None], torch.where(here_N, of_logprob_N, 0.0)[:, None])
        if of_entropy_N.any():
            result_Nv += torch.where(p_Nv > 0, p_Nv * (mean_N[:, None] - shifted_Nv), 0.0) * of_entropy_N[:, None]
        return result_Nv, None, None
