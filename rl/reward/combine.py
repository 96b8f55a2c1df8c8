"""The reward of a sample: the weighted verdict of the verifier plus the weighted score of the reward model."""

from collections.abc import Sequence
from dataclasses import replace

from farside.rl.reward.model import Judge
from farside.rl.reward.normalise import ScoreNormaliser, squashed
from farside.rl.reward.verifier import VerifierPool
from farside.rl.types import Completion, Mark, Score


class CombinedReward:
    """``verifier_weight`` for a correct answer, 0 for a wrong one, plus ``weight`` times the reward model's normalised
    score in (0, 1). normalise: None: by the model's own center and scale.

    A verifier error makes the sample invalid: it is masked and counted, never scored 0, whatever the weights. A
    ``Score`` tells the model's opinion by its own center and scale always, so that it can be followed over steps; of a
    model that judges steps it holds their probabilities too.
    """

    def __init__(
        self,
        verifier: VerifierPool,
        model: Judge | None,
        weight: float,
        verifier_weight: float = 1.0,
        normalise: ScoreNormaliser | None = None,
    ) -> None:
        self.verifier, self.model, self.weight, self.verifier_weight = verifier, model, weight, verifier_weight
        self.normalise = normalise
        self.last_error = ""

    def score(self, completions: Sequence[Completion]) -> list[Score]:
        verdicts = self.verifier.verify([(item.prompt, item.text) for item in completions])
        scores = []
        for verdict in verdicts:
            if verdict.mark is Mark.error:
                self.last_error = verdict.detail
            scores.append(
                Score(self.verifier_weight * (verdict.mark is Mark.correct), verdict.mark is not Mark.error, verdict)
            )
        return scores if self.model is None else self._judged(self.model, completions, scores)

    def record(self) -> list[float] | None:
        """What later scores depend on, for a checkpoint."""
        return self.normalise.record() if self.normalise else None

    def _judged(self, model: Judge, completions: Sequence[Completion], scores: Sequence[Score]) -> list[Score]:
        opinions = model.opinions(completions)
        told = [squashed(opinion.raw, model.center, model.scale) for opinion in opinions]
        paid = self.normalise([opinion.raw for opinion in opinions]) if self.normalise else told
        return [
            replace(score, reward=score.reward + self.weight * pay, reward_model=tell, steps=opinion.steps)
            for score, opinion, tell, pay in zip(scores, opinions, told, paid)
        ]
