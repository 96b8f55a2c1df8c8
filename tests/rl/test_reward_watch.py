"""Over-optimisation: the score of a reward model against the verifier's word, drift, and what a checkpoint keeps."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from farside.configs.schema import OveroptimisationConfig, ParallelConfig
from farside.parallel.mesh import ONE_RANK, ParallelDims
from farside.rl.reward.model import Opinion
from farside.rl.reward.overoptimisation import Drift, Examination, Overoptimisation, Watch, repetition
from farside.rl.types import Completion, Mark, Prompt, Verdict
from farside.train.engine.native import NativeEngine
from tests.ranks import Rank, RankPool
from tests.train.models import SMALL, logits_of, small_config


def item(length: int, index: int = 0) -> Completion:
    tokens = [(3 * index + 5 * place) % 37 for place in range(length)]
    return Completion(Prompt(index, "", ""), [1, 2 + index], tokens, [-1.0] * length, "", False, 0)


class Indexed:
    """A judge that likes later problems."""

    center, scale, judges_steps = 1.0, 2.0, False

    def opinions(self, completions: Sequence[Completion]) -> list[Opinion]:
        return [Opinion(float(each.prompt.index)) for each in completions]


def follow(watch: Watch, proxies: Sequence[float], truths: Sequence[float]) -> list[str]:
    alarms = []
    for step, (proxy, truth) in enumerate(zip(proxies, truths), 1):
        watch.observe(step, proxy, truth)
        alarms.append(watch.alarm)
    return alarms


RISING = [0.4 + 0.01 * step for step in range(20)]
FALLING = [0.5] * 8 + [0.5 - 0.01 * step for step in range(12)]


def test_alarm_when_the_score_rises_while_accuracy_falls() -> None:
    config = OveroptimisationConfig(window=4, warn=0.02, stop=0.08)
    watch = Watch(config)
    alarms = follow(watch, RISING, FALLING)
    first = alarms.index("warn")
    assert FALLING[0] - FALLING[first] < 0.05, "before five points are lost"
    assert alarms[first:] == ["warn"] * alarms.count("warn") + ["stop"] * alarms.count("stop")
    assert alarms.count("stop") > 0
    assert "sampled accuracy fell from 50.0% to" in watch.cause
    assert set(follow(Watch(config), RISING[::-1], FALLING)) == {""}, "both fall: a bad policy, not a bad model"
    assert set(follow(Watch(config), RISING, FALLING[::-1])) == {""}, "both rise"
    assert set(follow(Watch(replace(config, warn=None, stop=None)), RISING, FALLING)) == {""}


def test_noise_is_no_alarm() -> None:
    """A loss of 4 points within a spread of 20."""
    noise = [0.5, 0.7, 0.5, 0.7] * 4
    lower = [0.46, 0.66, 0.46, 0.66]
    config = OveroptimisationConfig(window=4, warn=0.02)
    assert set(follow(Watch(config), RISING, noise + lower)) == {""}
    still = [0.6] * 16 + [0.56] * 4
    assert follow(Watch(config), RISING, still)[-1] == "warn"


def test_the_watch_goes_on_from_a_checkpoint() -> None:
    config = OveroptimisationConfig(window=4, warn=0.02, stop=0.08)
    whole = Watch(config)
    follow(whole, RISING, FALLING)
    for cut in (2, 9, 15):
        first = Watch(config)
        follow(first, RISING[:cut], FALLING[:cut])
        second = Watch(config, first.record())
        for step in range(cut, 20):
            second.observe(step + 1, RISING[step], FALLING[step])
        assert second.record() == whole.record()
    assert whole.alarm == "stop"
    again = Watch(replace(config, stop=None), whole.record())
    assert again.alarm == "warn", "or nobody could go on"
    again.observe(21, 0.6, 0.3)
    assert again.alarm == "warn"


def test_news_is_told_once() -> None:
    config = OveroptimisationConfig(window=4, warn=0.02, stop=0.08)
    loop = Overoptimisation(Watch(config), Drift(None, ONE_RANK, torch.device("cpu"), 4), Indexed(), every=100)
    told, stopped = [], []
    for step, (proxy, truth) in enumerate(zip(RISING, FALLING), 1):
        record = loop.observe(step, {"reward_model": proxy, "accuracy": truth}, [item(3)])
        told.append(bool(loop.news))
        stopped.append(loop.gives_up)
        assert record.get("overoptimisation", "") == (loop.watch.alarm if loop.watch else "")
    assert sum(told) == 2, "the warning, then the stop"
    assert stopped.index(True) == [index for index, new in enumerate(told) if new][1]
    seldom = Overoptimisation(Watch(config), Drift(None, ONE_RANK, torch.device("cpu"), 4), Indexed(), every=0)
    assert "repetition" not in seldom.observe(1, {"reward_model": 0.5, "accuracy": 0.5}, [item(3)])
    nothing = Overoptimisation(None, None, None, 1)
    assert nothing.observe(1, {}, []) == nothing.examine(1, []) == {}
    assert (nothing.news, nothing.gives_up, nothing.record()) == ("", False, None)


def test_held_out_answers_tell_by_the_problems_whose_mark_changed() -> None:
    """McNemar: 30 of 400 lost and none won is 5.5 standard errors; 130 lost and 100 won, as much in all, is 2.0."""
    config = OveroptimisationConfig(window=4, warn=0.02)
    right, fewer = "1" * 300 + "0" * 100, "1" * 270 + "0" * 130
    other = "0" * 130 + "1" * 270
    for marks, alarm in ((fewer, "warn"), (other, "")):
        watch = Watch(config)
        assert "overoptimisation" not in watch.examine(Examination(0, 0.4, right))
        found = watch.examine(Examination(5, 0.5, marks))
        assert found["held_out_lost"] == pytest.approx(30 / 400)
        assert watch.alarm == found.get("overoptimisation", "") == alarm
    watch = Watch(config)
    watch.examine(Examination(0, 0.4, right))
    watch.examine(Examination(5, 0.5, fewer))
    assert "from step 0 to 5" in watch.cause
    assert "held-out accuracy fell from 75.0% to 67.5%" in watch.cause
    assert watch.observe(6, 0.5, 0.5) == {}, "the window is not full"
    assert (watch.alarm, watch.worse) == ("warn", False), "it holds until the next evaluation"
    assert Watch(config, watch.record()).record() == watch.record()
    watch.examine(Examination(10, 0.3, fewer))
    assert watch.alarm == "", "the score has fallen too"


def examine(place: Rank, layout: ParallelConfig) -> dict[str, object]:
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    answered = [
        (item(2, index), Verdict(Mark.correct if index < 2 else Mark.wrong))
        for index in range(place.rank, 4, place.world_size)
    ]
    loop = Overoptimisation(
        Watch(OveroptimisationConfig()), Drift(None, mesh, torch.device("cpu"), 4), Indexed(), every=1
    )
    assert loop.examine(3, answered)["held_out_reward_model"] > 0
    record = loop.record()
    assert record is not None
    return record


def test_an_examination_does_not_depend_on_the_ranks(ranks: RankPool) -> None:
    whole = examine(Rank(0, 1), ParallelConfig())
    assert whole["best_answers"]["right"] == "1100"  # type: ignore[index]
    assert ranks.run(examine, 2, ParallelConfig(dp_shard=2)) == [whole, whole]


def test_repetition_by_hand() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([1, 2, 3]) == 0.0
    assert repetition([1, 2, 1, 2, 1, 2, 1]) == pytest.approx(1 - 2 / 4)


def test_divergence_from_the_start() -> None:
    """Samples' log-probabilities less the start's, summed over an answer's tokens: slow twin from token_outputs."""
    start = NativeEngine(small_config(SMALL), ONE_RANK, torch.device("cpu"))
    items = [item(3), item(6, 1), item(4, 2)]
    drift = Drift(start, ONE_RANK, torch.device("cpu"), 2)
    found = drift.describe(items)["kl_start"]
    model = start.replica()
    wanted = 0.0
    for each in items:
        whole = torch.tensor([[*each.prompt_tokens, *each.tokens]])
        logprobs = logits_of(model, whole).log_softmax(-1)[0]
        for place, token in enumerate(each.tokens):
            wanted += each.logprobs[place] - logprobs[len(each.prompt_tokens) - 1 + place, token].item()
    assert found == pytest.approx(wanted / 3, abs=1e-4), "rows travel in float32"
    own = [replace(each, logprobs=[0.0] * len(each.tokens)) for each in items]
    assert drift.describe(own)["kl_start"] > found
