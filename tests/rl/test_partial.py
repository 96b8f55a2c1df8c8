"""GATE: answers cut into iterations are the uncut ones; an iteration decodes half as long; no group is late or lost."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farside.configs.errors import UserError
from farside.configs.schema import Config, CurriculumConfig, ParallelConfig
from farside.data.order import rng
from farside.data.tokenizer import Tokenizer
from farside.parallel.mesh import ONE_RANK, ParallelDims
from farside.rl.algorithms.base import Normalisation
from farside.rl.batches import AnswerRows
from farside.rl.collect import Collected, Collector
from farside.rl.learner import Learner
from farside.rl.replay import Replay
from farside.rl.rollout.flight import Draft, Flight, choose
from farside.rl.rollout.native import NativeRollout
from farside.rl.train import check_algorithm
from farside.rl.types import Completion, Mark, Prompt, Score, Segment, Verdict
from farside.train.engine.native import NativeEngine
from farside.train.guard import Guard
from farside.train.liveness import Pulse
from farside.train.model.transformer import Transformer
from farside.train.runtime import Runtime
from tests.ranks import Rank, RankPool
from tests.train.models import SMALL, logits_of, random_model, small_config

PROMPTS, SAMPLES, LONGEST = 4, 4, 256


class Problems:
    def prompt(self, split: str, index: int) -> Prompt:
        return Prompt(index, f"{index}+{index}=?", "")


class Right:
    last_error = ""

    def score(self, completions: Sequence[Completion]) -> list[Score]:
        return [Score(float(len(item.tokens)), True, Verdict(Mark.correct)) for item in completions]


class HeavyTail:
    """Answers whose lengths are log-normal: the median is a sixteenth of the longest allowed. Token k of one is k."""

    step = 0

    def length(self, flight: Flight, number: int) -> int:
        drawn = rng("length", flight.prompt.index, number).lognormal(math.log(LONGEST / 16), 1.0)
        return min(max(int(drawn), 1), LONGEST)

    def extend(self, flights: Sequence[Flight], budget: int, max_new_tokens: int, temperature: float, seed: int) -> int:
        steps = 0
        for flight in flights:
            for number, draft in enumerate(flight.drafts):
                left = self.length(flight, number) - len(draft.tokens)
                count = min(budget, left)
                if count:
                    draft.extend(list(range(len(draft.tokens), len(draft.tokens) + count)), [0.0] * count, self.step)
                draft.done = count == left
                steps = max(steps, count)
        return steps

    def completions(self, flight: Flight) -> list[Completion]:
        return [
            Completion(flight.prompt, [1], draft.tokens, draft.logprobs, "", False, draft.segments[-1].policy_step)
            for draft in flight.drafts
        ]


def collector(
    folder: Path, rollout: Any, place: Rank | None = None, layout: ParallelConfig | None = None, **rl: Any
) -> Collector:
    place, layout = place or Rank(0, 1), layout or ParallelConfig()
    config = replace(small_config(SMALL), parallel=layout)
    sizes = {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "max_new_tokens": LONGEST}
    config.rl = replace(config.rl, **{**sizes, **rl})
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    nothing: Any = None
    runtime = Runtime(config, mesh, torch.device("cpu"), folder, None, nothing, Pulse(folder, place.rank, 60.0, 60.0))
    return Collector(runtime, rollout, Problems(), Right())  # type: ignore[arg-type]


def iterations(collector: Collector, count: int, first: int = 0, problems: int = 0) -> list[Collected]:
    found = []
    for step in range(first, first + count):
        collector.rollout.step = step  # type: ignore[attr-defined]
        found.append(collector.collect(step, problems))
        problems += found[-1].problems
    return found


def indices(found: Sequence[Collected]) -> list[list[int]]:
    return [[group[0][0].prompt.index for group in one.groups] for one in found]


@given(
    rounds=st.lists(st.integers(1, 12), min_size=1, max_size=60),
    wanted=st.integers(1, 4),
    most=st.integers(0, 5),
)
def test_no_group_is_late_lost_or_learnt_twice(rounds: list[int], wanted: int, most: int) -> None:
    """rounds: how many a problem takes. The loop is ``Collector._partial``'s."""
    flights: list[Flight] = []
    had: dict[int, int] = {}
    learnt: list[int] = []
    started = 0
    for step in range(20):
        while (chosen := choose(flights, wanted, step, most)) is None:
            if len(flights) <= wanted * most:
                flights += [Flight(Prompt(started + k, "", ""), step, [Draft()]) for k in range(wanted)]
                started += wanted
            for flight in flights:
                had[flight.prompt.index] = had.get(flight.prompt.index, 0) + 1
                flight.drafts[0].done = had[flight.prompt.index] >= rounds[flight.prompt.index % len(rounds)]
        flights = [flight for flight in flights if flight not in chosen]
        assert len(chosen) == wanted
        assert all(step - flight.started <= most for flight in chosen)
        assert all(flight.done for flight in chosen)
        learnt += [flight.prompt.index for flight in chosen]
    assert len(set(learnt)) == len(learnt)
    assert sorted(learnt + [flight.prompt.index for flight in flights]) == list(range(started))


def test_an_iteration_decodes_at_most_half_as_long(tmp_path: Path) -> None:
    uncut = []
    for step in range(40):  # what it takes to finish every answer of prompts_per_step problems
        flights = [Flight.start(Prompt(step * PROMPTS + k, "", ""), SAMPLES, step) for k in range(PROMPTS)]
        uncut.append(HeavyTail().extend(flights, LONGEST, LONGEST, 1.0, 0))
    partial = iterations(collector(tmp_path, HeavyTail(), partial_tokens=LONGEST // 16, max_staleness=8), 40)
    steps = [one.shown["decode_steps"] for one in partial]
    assert sum(steps) <= 0.5 * sum(uncut)
    assert np.median(steps[8:]) <= 0.5 * np.median(uncut), "when the first have been waited for"
    assert max(one.shown["staleness"] for one in partial) <= 8
    assert 0 < np.mean([one.shown["old_share"] for one in partial[1:]]) < 1
    assert all(len(one.groups) == PROMPTS for one in partial), "a batch is always as large"
    # the order of problems may change; none is left behind
    problems = sorted(index for one in indices(partial) for index in one)
    assert problems[: 32 * PROMPTS] == list(range(32 * PROMPTS))


def share(place: Rank, folder: Path, layout: ParallelConfig) -> tuple[list[Collected], list[dict[str, Any]]]:
    work = collector(folder, HeavyTail(), place, layout, partial_tokens=24)
    return iterations(work, 6), work.record()


def test_the_same_groups_whatever_the_mesh(ranks: RankPool, tmp_path: Path) -> None:
    ((alone, record),) = ranks.run(share, 1, tmp_path, ParallelConfig())
    assert record, "some are under way"
    for layout in (ParallelConfig(dp_shard=2), ParallelConfig(dp_replicate=2)):
        found = ranks.run(share, 2, tmp_path, layout)
        together = [[index for part in parts for index in part] for parts in zip(*(indices(part) for part, _ in found))]
        assert together == indices(alone)
        assert [one.problems for one in found[0][0]] == [one.problems for one in alone]
        assert [one.shown for one in found[1][0]] == [one.shown for one in alone]
        assert found[0][1] == found[1][1] == record, "every rank could save them"


def test_answers_under_way_survive_a_checkpoint(tmp_path: Path) -> None:
    whole = collector(tmp_path, HeavyTail(), partial_tokens=24)
    wanted = iterations(whole, 6)
    hurt = collector(tmp_path, HeavyTail(), partial_tokens=24)
    before = iterations(hurt, 3)
    kept = json.loads(json.dumps(hurt.record()))
    again = collector(tmp_path, HeavyTail(), partial_tokens=24)
    again.load(kept)
    after = iterations(again, 3, 3, sum(one.problems for one in before))
    assert before + after == wanted
    assert again.record() == whole.record()
    with pytest.raises(UserError, match=r"rl\.partial_tokens = 0, but the checkpoint holds \d+ groups"):
        collector(tmp_path, HeavyTail()).load(kept)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["<think>7+8=15</think>15<|end|> 0123456789 a text"] * 3, 280)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    return random_model(replace(SMALL, vocab_size=tokenizer.vocab_size))


def teacher_forced(model: Transformer, prompt: list[int], answer: list[int]) -> torch.Tensor:
    with torch.no_grad():
        distribution = logits_of(model, torch.tensor([prompt + answer]))[0].log_softmax(-1)
    return distribution[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)


class Noted(NativeRollout):
    """Remembers when a problem was begun: that names its random numbers."""

    def completions(self, flight: Flight) -> list[Completion]:
        vars(self).setdefault("started", {})[flight.prompt.index] = flight.started
        return super().completions(flight)


@pytest.mark.parametrize("slots", [None, 5])
def test_cut_answers_are_the_uncut_ones(
    tmp_path: Path, tokenizer: Tokenizer, model: Transformer, slots: int | None
) -> None:
    """Weights are frozen. Every answer, its log-probabilities and how it ended; and which policy drew what."""
    rollout = Noted(model, tokenizer, slots=slots)
    work = collector(tmp_path, rollout, partial_tokens=12, max_staleness=3, max_new_tokens=60)
    seed, cut, truncated = work.runtime.config.train.seed, 0, 0
    for step, one in enumerate(iterations(work, 4)):
        for group in one.groups:
            prompt = group[0][0].prompt
            begun = vars(rollout)["started"][prompt.index]
            uncut = NativeRollout(model, tokenizer, begun).generate([prompt], SAMPLES, 60, 1.0, seed)
            for (item, _), true in zip(group, uncut, strict=True):
                assert item.tokens == true.tokens
                assert item.logprobs == pytest.approx(true.logprobs, abs=1e-6)
                assert (item.text, item.truncated) == (true.text, true.truncated)
                steps = [part.policy_step for part in item.segments]
                assert steps == sorted(set(steps))
                assert not steps or steps[0] == begun
                assert item.policy_step <= step
                cut += len(steps) > 1
                truncated += item.truncated
    assert cut > 10
    assert 0 < truncated < 4 * PROMPTS * SAMPLES


def test_a_segment_holds_what_its_policy_said(tmp_path: Path, tokenizer: Tokenizer, model: Transformer) -> None:
    """Weights change every iteration: each token's log-probability is that of the policy of its segment."""
    policies = [random_model(model.config, seed=seed) for seed in range(4)]
    rollout = NativeRollout(policies[0], tokenizer)
    work = collector(tmp_path, rollout, partial_tokens=12, max_staleness=3, max_new_tokens=60, learn_old_segments=False)
    problems = mixed = 0
    for step, policy in enumerate(policies):
        rollout.load_weights(policy.named_parameters(), step)
        found = work.collect(step, problems)
        problems += found.problems
        for item in found.completions:
            parts = item.segments or [Segment(item.policy_step, 0)]
            for part, end in zip(parts, [*(later.start for later in parts[1:]), len(item.tokens)], strict=True):
                spoken = teacher_forced(policies[part.policy_step], item.prompt_tokens, item.tokens)
                assert item.logprobs[part.start : end] == pytest.approx(spoken[part.start : end].tolist(), abs=1e-5)
            old = [part for part in parts if part.policy_step < step]
            fresh = [part.start for part in parts if part.policy_step == step]
            assert item.unlearnt == (fresh[0] if fresh else len(item.tokens) if old else 0)
            mixed += bool(old and fresh)
    assert mixed


@torch.no_grad()
def test_old_segments_carry_no_loss_where_that_is_asked_for() -> None:
    def item(length: int, unlearnt: int) -> Completion:
        return Completion(
            Prompt(0, "", ""), [1, 2], [3] * length, [0.0] * length, "", False, 5, [Segment(4, 0)], unlearnt
        )

    rows = AnswerRows([item(4, 3), item(2, 0), item(3, 3)], 3)
    lengths = torch.tensor([1, 2, 1])
    weights, _ = Normalisation.sample_mean.weights(lengths, torch.ones(3, dtype=torch.bool), 8)
    (batch,) = rows.batches(weights, {"old_logprobs": rows.sampled_logprobs})
    assert batch.weights.tolist() == [[0, 0, 0, 0, 1], [0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rollout_batch", 0, r"rl\.rollout_batch = 0; give at least 1, or null"),
        ("partial_tokens", -1, r"rl\.partial_tokens = -1; give at least 0"),
        ("max_staleness", -1, r"rl\.max_staleness = -1; give at least 0"),
        ("sampling_rounds", 2, r"rl\.partial_tokens = 8: .* use rl\.sampling_rounds=1"),
    ],
)
def test_settings_that_cannot_be_are_refused(key: str, value: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_algorithm(replace(Config().rl, **{"partial_tokens": 8, key: value}))


def test_a_lower_limit_ends_what_is_already_longer(tmp_path: Path, tokenizer: Tokenizer, model: Transformer) -> None:
    """Resumed with a smaller max_new_tokens, an iteration comes to an end."""
    longer = collector(tmp_path, NativeRollout(model, tokenizer), partial_tokens=12, max_staleness=3, max_new_tokens=60)
    iterations(longer, 1)
    record = json.loads(json.dumps(longer.record()))
    assert max(len(draft["tokens"]) for flight in record for draft in flight["drafts"] if not draft["done"]) > 10
    shorter = collector(
        tmp_path, NativeRollout(model, tokenizer), partial_tokens=12, max_staleness=3, max_new_tokens=10
    )
    shorter.load(record)
    assert len(iterations(shorter, 3)) == 3


def test_answers_under_way_belong_to_their_problem(tmp_path: Path) -> None:
    work = collector(tmp_path, HeavyTail(), partial_tokens=24)
    iterations(work, 2)
    record = json.loads(json.dumps(work.record()))
    assert record
    record[0]["question"] = "1+1=?"
    with pytest.raises(UserError, match=r"sft\.task: problem \d+, whose answers are under way, was '1\+1=\?' and is"):
        work.load(record)
    del record[0]["question"]  # as older versions wrote it
    work.load(record)


def taught(tmp_path: Path, items: Sequence[Completion], rewards: Sequence[float]) -> tuple[dict[str, Any], Learner]:
    config = small_config(SMALL)
    config.rl.samples_per_prompt, config.rl.lr = 2, 1e-2
    engine = NativeEngine(config, ONE_RANK, torch.device("cpu"), entropy=True)
    learner = Learner(config, engine, Replay(None, 0.0))
    right = [Score(reward, True, Verdict(Mark.correct)) for reward in rewards]
    guard, pulse = Guard(config.train.guard), Pulse(tmp_path, 0, 60.0, 60.0)
    fresh = [replace(item, unlearnt=0) for item in items]
    learner.update(fresh, right, 0, 1e-2, guard, pulse)  # moments that an empty step would go on with
    before = {name: value.clone() for name, value in engine.named_weights()}
    told = learner.update(items, right, 1, 1e-2, guard, pulse)
    told["moved"] = max((value - before[name]).abs().max().item() for name, value in engine.named_weights())
    return told, learner


def under_way(number: int, length: int, unlearnt: int) -> Completion:
    return Completion(
        Prompt(number // 2, "", ""), [1, 2 + number], [3] * length, [-1.0] * length, "", False, 5, [], unlearnt
    )


def test_an_iteration_of_old_tokens_alone_changes_nothing(tmp_path: Path) -> None:
    old = [under_way(number, 3 + number, 3 + number) for number in range(4)]
    told, _ = taught(tmp_path, old, [1.0, 0.0, 0.0, 1.0])
    assert (told["skipped"], told["moved"]) == ("empty", 0.0)
    told, _ = taught(tmp_path, [replace(old[0], unlearnt=1), *old[1:]], [1.0, 0.0, 0.0, 1.0])
    assert "skipped" not in told
    assert told["moved"] > 0


def test_an_answer_without_a_learnt_token_counts_nowhere(tmp_path: Path) -> None:
    """The divisor is of what has tokens left; an answer weighs the same over those."""
    items = [under_way(0, 4, 1), under_way(1, 4, 4), under_way(2, 5, 0), under_way(3, 2, 2)]
    _, learner = taught(tmp_path, items, [1.0, 0.0, 0.0, 1.0])
    scores = [Score(reward, True, Verdict(Mark.correct)) for reward in (1.0, 0.0, 0.0, 1.0)]
    (batch,), total = learner.batches(items, scores)
    assert total == 2.0
    assert batch.weights.sum(1).tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0])
    assert batch.weights.max(1).values.tolist() == pytest.approx([1 / 3, 0.0, 1 / 5, 0.0])


def test_problems_under_way_come_from_the_pool(tmp_path: Path) -> None:
    """A pool must suffice for all that one iteration may begin, and those are different problems."""
    pool = CurriculumConfig(pool=3 * PROMPTS, prioritised=True)
    work = collector(tmp_path, HeavyTail(), partial_tokens=16, max_staleness=2, curriculum=pool)
    problems = 0
    for step in range(6):
        work.rollout.step = step  # type: ignore[attr-defined]
        found = work.collect(step, problems)
        problems += found.problems
        begun = [item.prompt.index for item in work.flights if item.started == step]
        assert len(set(begun)) == len(begun)
        assert max(group[0][0].prompt.index for group in found.groups) < 3 * PROMPTS
        work.curriculum.note(found.sampled)
    assert problems > 3 * PROMPTS, "problems come again"
    with pytest.raises(UserError, match=r"rl\.curriculum\.pool = 12: 12 problems can be drawn, but .* need 16"):
        collector(tmp_path, HeavyTail(), partial_tokens=16, max_staleness=3, curriculum=pool)
