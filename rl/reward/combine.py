"""The reward of a sample: the weighted verdict of the verifier plus the weighted score of the reward model."""

from collections.abc import Sequence

from farside.rl.reward.model import RewardModel
from farside.rl.reward.verifier import VerifierPool
from farside.rl.types import Completion, Mark, Score


class CombinedReward:
    """``verifier_weight`` for a correct answer, 0 for a wrong one, plus ``weight`` times the reward model's score in
    (0, 1).

    A verifier error makes the sample invalid: it is masked and counted, never scored 0, whatever the weights.
    """

    def __init__(
        self, verifier: VerifierPool, model: RewardModel | None, weight: float, verifier_weight: float = 1.0
    ) -> None:
        self.verifier, self.model, self.weight, self.verifier_weight = verifier, model, weight, verifier_weight
        self.last_error = ""

    def score(self, completions: Sequence[Completion]) -> list[Score]:
        verdicts = self.verifier.verify([(item.prompt, item.text) for item in completions])
        opinions = self.model.scores(completions) if self.model else [None] * len(completions)
        scores = []
        for verdict, opinion in zip(verdicts, opinions):
            if verdict.mark is Mark.error:
                self.last_error = verdict.detail
            reward = self.verifier_weight * (verdict.mark is Mark.correct) + self.weight * (opinion or 0.0)
            scores.append(Score(reward, verdict.mark is not Mark.error, verdict, opinion))
        return scores
