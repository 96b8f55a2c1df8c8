"""The loss of an RL step over the engine's seam: a policy loss on completions, next-token loss on replayed samples."""

from farside.data.batch import Batch
from farside.rl.loss import grpo_loss
from farside.train.loss import LossFn, WeightedSum, lm_loss
from farside.train.model.heads import TokenOutputs


def rl_loss(clip_low: float, clip_high: float, replay_weight: float) -> LossFn:
    """A batch with advantages gets GRPO's loss, any other the next-token loss; which it is, its extras say.

    replay_weight: weight of all replayed tokens, that of all completions being 1. The engine divides metrics by the
    weight of everything; they are reported per weight of their own kind: policy_loss, clip_share, kl, ratio and entropy
    of completions, replay_loss of replayed samples.
    """
    objective = grpo_loss(clip_low, clip_high)

    def policy(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
        assert outputs.logprobs is not None
        assert outputs.entropy is not None
        total, metrics = objective(
            outputs.logprobs, batch.extras["old_logprobs"], batch.extras["advantages"], batch.weights
        )
        sums = {
            "policy_loss": total.detach(),
            **metrics,
            "entropy": (batch.weights * outputs.entropy.detach()).sum(),
        }
        return WeightedSum(total, {name: (1 + replay_weight) * value for name, value in sums.items()})

    def loss(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
        if "advantages" in batch.extras:
            return policy(outputs, batch)
        total = lm_loss(outputs, batch).total
        return WeightedSum(total, {"replay_loss": (1 + 1 / replay_weight) * total.detach()})

    return loss
