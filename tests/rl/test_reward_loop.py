"""A reward model in the loop: what it pays, rewards of steps as advantages."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from farside.configs.errors import UserError
from farside.configs.schema import Algorithm, Config, LengthConfig, OveroptimisationConfig, ParallelConfig, ScoreNorm
from farside.parallel.mesh import ONE_RANK, ParallelDims
from farside.rl.advantage import process_normalised, progress_advantages, step_advantages
from farside.rl.experience import Experience
from farside.rl.learner import Learner
from farside.rl.replay import Replay
from farside.rl.reward.combine import CombinedReward
from farside.rl.reward.model import Opinion
from farside.rl.reward.normalise import ScoreNormaliser
from farside.rl.reward.train_reward import check as check_training
from farside.rl.train import check
from farside.rl.types import Completion, Mark, Prompt, Score, Verdict
from farside.train.engine.native import NativeEngine
from tests.ranks import Rank, RankPool
from tests.rl.policy import tensor
from tests.train.models import SMALL, small_config

NAN = math.nan


def item(length: int, index: int = 0) -> Completion:
    tokens = [(3 * index + 5 * place) % 37 for place in range(length)]
    return Completion(Prompt(index, "", ""), [1, 2 + index], tokens, [-1.0] * length, "", False, 0)


def scored(reward: float, steps: list[tuple[int, float]] | None, mark: Mark = Mark.wrong) -> Score:
    return Score(reward, mark is not Mark.error, Verdict(mark), None, steps)


def test_process_advantages_of_deepseekmath() -> None:
    """Golden: steps' rewards [1, 0] and [1, 1] give -1, -1.5 and 1, 0.5 (eps 0), at every token up to a step's end."""
    rewards = torch.tensor([[NAN, 1.0, NAN, 0.0, NAN], [1.0, 1.0, NAN, NAN, NAN]], dtype=torch.float64)
    found = step_advantages(rewards, 2, eps=0.0)
    wanted = tensor(-1, -1, -1.5, -1.5, 0), tensor(1, 0.5, 0, 0, 0)
    assert (found - torch.stack(wanted)).abs().max() < 1e-12


def test_progress_blames_the_step_that_went_wrong() -> None:
    """Changes 0, -1, 0 and 0, 0 of one group: mean -0.2, unbiased deviation sqrt(0.2)."""
    rewards = torch.tensor([[NAN, 1.0, 0.0, NAN, 0.0, NAN], [1.0, NAN, 1.0, NAN, NAN, NAN]], dtype=torch.float64)
    found = progress_advantages(rewards, 2, eps=0.0)
    right, wrong = 0.2 / math.sqrt(0.2), -0.8 / math.sqrt(0.2)
    wanted = tensor(right, right, wrong, right, right, 0), tensor(right, right, right, 0, 0, 0)
    assert (found - torch.stack(wanted)).abs().max() < 1e-12
    assert progress_advantages(rewards[1:], 1).tolist() == [[0.0] * 6], "all alike: nothing to tell"


def test_all_prompts_at_once_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    rewards = torch.where(draw(12, 9) < 0.4, draw(12, 9), NAN)
    found = step_advantages(rewards, 4)
    for first in range(0, 12, 4):
        group = rewards[first : first + 4]
        ends = torch.where(group.isnan(), -1, torch.arange(9))
        alone = process_normalised(group, ends, 9)
        assert (found[first : first + 4] - alone).abs().max() < 1e-12
        assert alone.abs().max() > 0.1


def experience(scores: Sequence[Score], lengths: Sequence[int]) -> Experience:
    return Experience.of([item(length) for length in lengths], scores, len(scores), lambda values: values)


def test_steps_of_scores_stand_at_their_tokens() -> None:
    scores = [scored(0.0, [(1, 1.0), (3, 0.0)]), scored(1.0, [(0, 1.0), (1, 1.0)]), scored(0.0, [(2, 9.0)], Mark.error)]
    seen = experience(scores, (4, 2, 3))
    found = seen.process_advantages()
    assert (found[0] - tensor(-1, -1, -1.5, -1.5)).abs().max() < 1e-5
    assert (found[1] - tensor(1, 0.5, 0, 0)).abs().max() < 1e-5
    assert found[2].tolist() == [0.0] * 4, "a step of an answer that could not be verified counts nowhere"
    none = experience([scored(0.0, None), scored(1.0, None)], (4, 2))
    assert none.step_rewards_NT is None
    assert none.process_advantages().tolist() == [[0.0] * 4] * 2


def test_the_learner_adds_weighed_advantages_of_steps() -> None:
    config = small_config(SMALL)
    config.rl.samples_per_prompt = 2
    items = [item(4), item(2, 1)]
    scores = [scored(0.0, [(1, 1.0), (3, 0.0)]), scored(1.0, [(0, 1.0), (1, 1.0)])]
    engine = NativeEngine(config, ONE_RANK, torch.device("cpu"), entropy=True)

    def advantages(weight: float) -> torch.Tensor:
        config.rl.process_weight = weight
        (batch,), _ = Learner(config, engine, Replay(None, 0.0)).batches(items, scores)
        return batch.extras["advantages"]

    outcome, both = advantages(0.0), advantages(0.5)
    assert outcome[0, 1:5].tolist() == pytest.approx([-math.sqrt(0.5)] * 4, abs=1e-5)
    assert (both - outcome)[0, 1:5].tolist() == pytest.approx([-0.5, -0.5, -0.75, -0.75], abs=1e-5)
    assert (both - outcome)[1, 1:5].tolist() == pytest.approx([0.5, 0.25, 0.0, 0.0], abs=1e-5)


def process_gradients(place: Rank, layout: ParallelConfig) -> dict[str, torch.Tensor]:
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    config = replace(small_config(SMALL), parallel=layout)
    config.rl.samples_per_prompt, config.rl.process_weight = 2, 0.7
    items = [item(3 + number, number // 2) for number in range(4)]
    scores = [scored(number / 3, [(1, number / 5), (2 + number, 0.3)]) for number in range(4)]
    engine = NativeEngine(config, mesh, torch.device("cpu"), entropy=True)
    share = 4 // mesh.dp_size
    mine = slice(mesh.dp_rank * share, (mesh.dp_rank + 1) * share)
    learner = Learner(config, engine, Replay(None, 0.0))
    batches, total = learner.batches(items[mine], scores[mine])
    engine.forward_backward(batches, learner.loss_fn, total)
    return {name: value.clone() for name, value in engine.named_gradients()}


@pytest.mark.parametrize("layout", [ParallelConfig(dp_shard=2), ParallelConfig(tp=2), ParallelConfig(cp=2)])
def test_gradients_of_process_rewards_on_two_ranks(ranks: RankPool, layout: ParallelConfig) -> None:
    whole = process_gradients(Rank(0, 1), ParallelConfig())
    assert max(value.abs().max() for value in whole.values()) > 1e-3
    for found in ranks.run(process_gradients, 2, layout):
        for name, value in whole.items():
            assert (found[name] - value).abs().max() <= 1e-10, name


class Fixed:
    """A judge, and a verifier that fails on the second answer."""

    center, scale, judges_steps = 1.0, 2.0, True

    def opinions(self, completions: Sequence[Completion]) -> list[Opinion]:
        return [Opinion(raw, [(0, 0.5)]) for raw in (9.0, 1.0)]

    def verify(self, items: Sequence[object]) -> list[Verdict]:
        return [Verdict(Mark.correct), Verdict(Mark.error, "killed")]


def test_a_clipped_reward_and_an_opinion_that_is_not() -> None:
    normalise = ScoreNormaliser(ScoreNorm.held_out, 1.0, 2.0, 1.5, lambda values: values)
    reward = CombinedReward(Fixed(), Fixed(), 0.5, 1.0, normalise)  # type: ignore[arg-type]
    first, second = reward.score([item(2), item(3)])
    sigmoid = lambda z: 1 / (1 + math.exp(-z))  # noqa: E731
    assert first.reward == pytest.approx(1.0 + 0.5 * sigmoid(1.5))
    assert first.reward_model == pytest.approx(sigmoid(4.0)), "what is watched has one measure at all steps"
    assert first.steps == [(0, 0.5)]
    assert not second.valid
    assert reward.last_error == "killed"
    assert reward.record() == normalise.record()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"process_weight": 0.5, "algorithm": Algorithm.k15}, "rl.process_weight gives tokens"),
        ({"samples_per_prompt": 1, "algorithm": Algorithm.ppo, "sampling_rounds": 2}, "rl.sampling_rounds compares"),
        (
            {"samples_per_prompt": 1, "algorithm": Algorithm.ppo, "length": LengthConfig(weight=0.1)},
            "rl.length.weight com",
        ),
        ({"prompts_per_step": 0}, "rl.prompts_per_step = 0; give at least 1"),
        ({"reward_model_clip": 0.0}, "rl.reward_model_clip = 0.0"),
        ({"verifier_weight": 0.0, "reward_model_weight": 0.0}, "rl.process_weight = 0.0; give none below 0"),
        ({"overoptimisation": OveroptimisationConfig(window=1)}, "rl.overoptimisation.window = 1"),
        ({"overoptimisation": OveroptimisationConfig(stop=5.0)}, "rl.overoptimisation.stop = 5.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, object], told: str) -> None:
    config = Config()
    for key, value in change.items():
        setattr(config.rl, key, value)
    with pytest.raises(UserError, match=told):
        check(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [("prompts", 0), ("held_out_prompts", 0), ("samples", 0), ("steps", 0), ("temperature", 0.0), ("margin", -1.0)],
)
def test_settings_of_a_reward_model_that_cannot_work(key: str, value: float) -> None:
    config = Config()
    check_training(config)
    setattr(config.reward, key, value)
    with pytest.raises(UserError, match=rf"^reward\.{key} = {value}; give"):
        check_training(config)
