"""Every algorithm's gradient, from rewards on, however the batch is cut: micro-batches, packing, padding, ranks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from farside.configs.schema import Algorithm, Config, Correction, GuardConfig, KlPlace, ParallelConfig
from farside.data.batch import Batch
from farside.parallel.mesh import ONE_RANK, Mesh, ParallelDims
from farside.rl.learner import Learner
from farside.rl.replay import Replay
from farside.rl.types import Completion, Mark, Prompt, Score, Verdict
from farside.train.engine.base import Judge
from farside.train.engine.native import NativeEngine
from farside.train.guard import Guard
from farside.train.liveness import Pulse
from tests.ranks import Rank, RankPool
from tests.train.models import SMALL, small_config

PROMPTS, SAMPLES = 4, 3
BOUND = 1e-10
CASES = [
    *(name.value for name in Algorithm),
    "grpo+tis",
    "dapo+icepop",
    "gspo+kl",
    "reinforce_pp+klreward",
    "ppo+klreward",
]
COVER = ["gspo+kl", "ppo+klreward", "k2"]
CRITIC = "critic."
ONE = ParallelConfig()
LAYOUTS = {"dp": ParallelConfig(dp_shard=2), "cp": ParallelConfig(cp=2), "tp": ParallelConfig(tp=2)}

Seen = dict[str, tuple[float, dict[str, Tensor]]]


def configured(case: str) -> Config:
    name, _, extra = case.partition("+")
    config = small_config(SMALL)
    config.rl.algorithm = Algorithm[name]
    config.rl.samples_per_prompt, config.rl.max_new_tokens, config.rl.tau = SAMPLES, 9, 0.3
    config.rl.gae_lambda, config.rl.gamma = 0.9, 0.97
    if name == "gspo":
        config.rl.clip_low = config.rl.clip_high = 0.1  # its own are so narrow that noise would leave nothing to clip
    if extra in ("tis", "icepop"):
        config.rl.correction = replace(config.rl.correction, kind=Correction[extra], low=0.9, high=1.1)
    elif extra:
        place = KlPlace.reward if extra == "klreward" else KlPlace.loss
        config.rl.kl = replace(config.rl.kl, weight=0.2, place=place)
    return config


def engine_of(config: Config, mesh: Mesh, layout: ParallelConfig, seed: int) -> NativeEngine:
    config = replace(config, parallel=layout, train=replace(config.train, seed=seed))
    return NativeEngine(config, mesh, torch.device("cpu"), entropy=True)


def critic_of(config: Config, mesh: Mesh, layout: ParallelConfig) -> NativeEngine | None:
    if config.rl.algorithm is not Algorithm.ppo:
        return None
    config = replace(config, parallel=layout, train=replace(config.train, seed=2))
    return NativeEngine(config, mesh, torch.device("cpu"), "scalar")


def samples() -> tuple[list[Completion], list[Score]]:
    """Random answers with the policy's log-probabilities, off by as much as an update or two would move them."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda low, high, count: torch.randint(low, high, (count,), generator=generator).tolist()  # noqa: E731
    items, scores = [], []
    for number in range(PROMPTS * SAMPLES):
        length = draw(1, 9, 1)[0]
        prompt = [1 + number // SAMPLES, *range(2, 4 + number // SAMPLES)]
        items.append(Completion(Prompt(number, "", ""), prompt, draw(0, 37, length), [0.0] * length, "", False, 0))
        mark = Mark.error if number == 4 else (Mark.wrong, Mark.correct)[draw(0, 2, 1)[0]]
        scores.append(Score((mark is Mark.correct) + number / 50, mark is not Mark.error, Verdict(mark)))
    config = configured("grpo")
    learner = Learner(config, engine_of(config, ONE_RANK, ONE, 0), Replay(None, 0.0))
    batches, _ = learner.batches(items, scores)
    # all tokens, also those of the invalid sample, need a log-probability
    batches = [replace(batch, weights=torch.ones_like(batch.weights)) for batch in batches]
    logprobs = learner.logprobs(learner.engine, batches)[0]
    noisy = logprobs + 0.2 * torch.randn(logprobs.shape, generator=generator, dtype=torch.float64)
    start = [len(item.prompt_tokens) - 1 for item in items]
    return [
        replace(item, logprobs=row[first : first + len(item.tokens)].tolist())
        for item, first, row in zip(items, start, noisy)
    ], scores


def packed(batches: list[Batch]) -> list[Batch]:
    """All rows of a batch behind one another in two rows, each a document of its own; padding is left out."""
    results = []
    for batch in batches:
        lengths = [int(row.nonzero().max()) + 1 if row.any() else 1 for row in batch.weights]
        halves = torch.arange(len(lengths)).tensor_split(2)
        size = max(sum(lengths[row] for row in half.tolist()) for half in halves)

        def lay(values: Tensor, lengths: list[int] = lengths, halves: tuple[Tensor, ...] = halves) -> list[Tensor]:
            return [torch.cat([values[row, : lengths[row]] for row in half.tolist()]) for half in halves]

        def whole(rows: list[Tensor], fill: int = 0, size: int = size) -> Tensor:
            return torch.stack([F.pad(row, (0, size - len(row)), value=fill) for row in rows])

        numbers = torch.arange(len(lengths))[:, None].expand_as(batch.tokens)
        kept = {name: whole(lay(getattr(batch, name))) for name in ("tokens", "labels", "weights", "positions")}
        extras = {name: whole(lay(value)) for name, value in batch.extras.items()}
        results.append(Batch(**kept, doc_ids=whole(lay(numbers), -1), extras=extras))
    return results


def gradients(
    place: Rank,
    layout: ParallelConfig,
    cases: list[str],
    items: list[Completion],
    scores: list[Score],
    micro_batch: int = 12,
    cut: str = "",
) -> Seen:
    """case -> (loss, whole gradients) of what each data-parallel rank brings of the samples."""
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    seen: Seen = {}
    for case in cases:
        config = configured(case)
        config.rl.micro_batch_size = micro_batch
        engine = engine_of(config, mesh, layout, 0)
        reference = engine_of(config, mesh, layout, 1) if config.rl.kl.weight else None
        learner = Learner(config, engine, Replay(None, 0.0), reference, critic_of(config, mesh, layout))
        share = len(items) // engine.mesh.dp_size
        mine = slice(engine.mesh.dp_rank * share, (engine.mesh.dp_rank + 1) * share)
        batches, total = learner.batches(items[mine], scores[mine])
        if cut == "packed":
            batches = packed(batches)
        elif cut == "padded":
            batches = [batch.padded_to_multiple(32) for batch in batches]
        outputs = engine.forward_backward(batches, learner.loss_fn, total)
        seen[case] = outputs.loss.item(), {name: value.clone() for name, value in engine.named_gradients()}
        if learner.critic is not None:
            critic, told = learner.critic, torch.tensor(learner.critic.explained_variance(batches))
            critic.engine.forward_backward(batches, critic.loss_fn, total)
            theirs = {f"{CRITIC}{name}": value.clone() for name, value in critic.engine.named_gradients()}
            seen[case][1].update({**theirs, "explained variance": told})
    return seen


def assert_same(found: Seen, wanted: Seen) -> None:
    for case, (loss, grads) in wanted.items():
        assert found[case][0] == pytest.approx(loss, rel=0, abs=BOUND), case
        assert max(value.abs().max() for value in grads.values()) > 1e-3, case
        for name, value in grads.items():
            assert (found[case][1][name] - value).abs().max() <= BOUND, (case, name)


@pytest.fixture(scope="module")
def drawn() -> tuple[list[Completion], list[Score]]:
    return samples()


@pytest.fixture(scope="module")
def alone(drawn: tuple[list[Completion], list[Score]]) -> Seen:
    return gradients(Rank(0, 1), ONE, CASES, *drawn)


def test_the_algorithms_differ(alone: Seen) -> None:
    policies = [[value for name, value in grads.items() if name.startswith("model.")] for _, grads in alone.values()]
    flat = [torch.cat([value.flatten() for value in values]) for values in policies]
    different = {tuple((vector / vector.norm()).mul(1e6).round().tolist()) for vector in flat}
    assert len(different) == len(CASES) - 1, "k15 and k2 have one direction, all others their own"


@pytest.mark.parametrize(("micro_batch", "cut"), [(5, ""), (1, ""), (12, "packed"), (7, "packed"), (12, "padded")])
def test_cuts_on_one_rank(alone: Seen, drawn: tuple[list[Completion], list[Score]], micro_batch: int, cut: str) -> None:
    assert_same(gradients(Rank(0, 1), ONE, CASES, *drawn, micro_batch, cut), alone)


@pytest.mark.parametrize("axis", LAYOUTS)
@pytest.mark.parametrize("cases", [COVER, pytest.param(CASES, marks=pytest.mark.slow)], ids=["cover", "all"])
def test_two_ranks(
    alone: Seen, drawn: tuple[list[Completion], list[Score]], ranks: RankPool, axis: str, cases: list[str]
) -> None:
    cut = "packed" if axis == "cp" else ""
    for seen in ranks.run(gradients, 2, LAYOUTS[axis], cases, *drawn, 5, cut):
        assert_same(seen, {case: alone[case] for case in cases})


def update(tmp_path: Path, name: str, updates: int = 1, lr: float = 0.0, guard: Guard | None = None) -> dict[str, Any]:
    """What the loop is told of one iteration."""
    config = configured(name)
    config.rl.updates_per_step = updates
    learner = Learner(config, engine_of(config, ONE_RANK, ONE, 0), Replay(None, 0.0))
    guard = guard or Guard(config.train.guard)
    return learner.update(*samples(), 0, lr, guard, Pulse(tmp_path, 0, 60.0, 60.0))


def test_metrics_are_means_over_tokens_whatever_the_divisor(tmp_path: Path) -> None:
    """dr_grpo divides by the longest possible answer, dapo by the tokens; every token weighs alike in both."""
    one, other = update(tmp_path, "dapo"), update(tmp_path, "dr_grpo")
    for name in ("entropy", "kl"):
        assert other[name] == pytest.approx(one[name], rel=1e-12)
        assert one[name] > 0


class FirstIsBad(Guard):
    """Skips the first update that it sees."""

    seen = 0

    def judge(self, loss: Tensor) -> Judge:
        self.seen += 1
        return lambda norm: torch.tensor(self.seen == 1)


def test_an_update_that_was_skipped_is_told(tmp_path: Path) -> None:
    told = update(tmp_path, "grpo", 2, 1e-3, FirstIsBad(GuardConfig()))
    assert told["skipped"] == "spike"
    assert "skipped" not in update(tmp_path, "grpo", 2, 1e-3)


def test_the_critic_is_shown_outcomes_and_what_it_expected(tmp_path: Path) -> None:
    """With gamma and lambda 1 the return of every token is the answer's reward; what is invalid weighs nothing."""
    config = configured("ppo")
    config.rl.gamma = config.rl.gae_lambda = 1.0
    config.rl.micro_batch_size, config.rl.updates_per_step, config.rl.critic.lr = 5, 8, 3e-2
    learner = Learner(
        config, engine_of(config, ONE_RANK, ONE, 0), Replay(None, 0.0), critic=critic_of(config, ONE_RANK, ONE)
    )
    assert learner.critic is not None
    items, scores = samples()
    batches, total = learner.batches(items, scores)
    outputs = learner.critic.engine.token_outputs(batches)
    counted = 0
    for number, (item, score) in enumerate(zip(items, scores)):
        part, row = divmod(number, 5)
        batch, start = batches[part], len(item.prompt_tokens) - 1
        answer = slice(start, start + len(item.tokens))
        assert (batch.weights[row] != 0).sum() == (len(item.tokens) if score.valid else 0)
        if score.valid:
            counted += len(item.tokens)
            assert batch.weights[row, answer].tolist() == [1.0] * len(item.tokens)
            assert batch.extras["returns"][row, answer].tolist() == pytest.approx([score.reward] * len(item.tokens))
            values = outputs[part].values
            assert values is not None
            assert torch.equal(batch.extras["old_values"][row, answer], values[row, answer])
    assert total == counted
    told = learner.update(items, scores, 0, 0.0, Guard(config.train.guard), Pulse(tmp_path, 0, 60.0, 60.0))
    assert {"value_loss", "value_clip_share", "critic_grad_norm", "policy_loss"} <= told.keys()
    again = learner.update(items, scores, 0, 0.0, Guard(config.train.guard), Pulse(tmp_path, 0, 60.0, 60.0))
    assert again["explained_variance"] > told["explained_variance"]
    assert again["value_loss"] < told["value_loss"]


def test_the_policy_waits_while_the_critic_warms_up() -> None:
    config = configured("ppo")
    config.rl.critic.warmup_steps, config.rl.lr = 3, 0.5
    learner = Learner(
        config, engine_of(config, ONE_RANK, ONE, 0), Replay(None, 0.0), critic=critic_of(config, ONE_RANK, ONE)
    )
    assert [learner.lr(step) > 0 for step in range(5)] == [False, False, False, True, True]
