"""The loss of an RL step over the engine's seam: a policy loss on completions, next-token loss on replayed samples."""

from farside.data.batch import Batch
from farside.rl.kl import kl_estimates
from farside.rl.loss import Objective, PolicyTokens
from farside.train.loss import LossFn, WeightedSum, lm_loss
from farside.train.model.heads import TokenOutputs


def rl_loss(objective: Objective, replay_weight: float = 0.0, entropy_weight: float = 0.0) -> LossFn:
    """A batch with advantages gets the objective, any other the next-token loss; which it is, its extras say.

    replay_weight: weight of all replayed tokens, that of all completions being 1. entropy_weight: what a nat of a
    token's entropy takes from its loss (the bonus of A3C, arXiv 1602.01783, section 4). The engine divides metrics by
    the weight of everything; they are reported per weight of their own kind: policy_loss, kl (k3 estimate of
    KL(old || new) in nats: the samples are the old policy's), entropy and the objective's own of completions,
    replay_loss of replayed samples.
    """

    def policy(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
        assert outputs.entropy is not None
        tokens = PolicyTokens.of(outputs, batch)
        loss, metrics = objective(tokens)
        total = (batch.weights * (loss - entropy_weight * outputs.entropy)).sum()
        shown = {
            **metrics,
            "kl": kl_estimates(tokens.old_logprobs, tokens.logprobs.detach())[2],
            "entropy": outputs.entropy.detach(),
        }
        sums = {
            "policy_loss": total.detach(),
            **{name: (batch.weights * value).sum() for name, value in shown.items()},
        }
        return WeightedSum(total, {name: (1 + replay_weight) * value for name, value in sums.items()})

    def loss(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
        if "advantages" in batch.extras:
            return policy(outputs, batch)
        total = lm_loss(outputs, batch).total
        return WeightedSum(total, {"replay_loss": (1 + 1 / replay_weight) * total.detach()})

    return loss
