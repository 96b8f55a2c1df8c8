"""From completions to gradients: alignment with the engine, weights, pairs, combined rewards."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from farside.configs.schema import Config, Dtype, TaskConfig
from farside.data.batch import Batch
from farside.data.tokenizer import Tokenizer
from farside.parallel.mesh import ParallelDims
from farside.rl.algorithms.base import Normalisation
from farside.rl.batches import AnswerRows
from farside.rl.loss import clipped_objective
from farside.rl.objective import rl_loss
from farside.rl.reward.combine import CombinedReward
from farside.rl.reward.model import RewardModel, bradley_terry_loss, normalisation
from farside.rl.reward.pairs import Pair, PairFeed, load_pairs, make_pairs, pair_batch, save_pairs, shape_of
from farside.rl.reward.process import Labelled
from farside.rl.reward.process_training import load_answers, save_answers
from farside.rl.reward.verifier import VerifierPool
from farside.rl.rollout.native import NativeRollout
from farside.rl.types import Completion, Mark, Prompt, Verdict
from farside.train.engine.native import NativeEngine

PROMPTS = [Prompt(7, "3+4=?", "7"), Prompt(2, "12+34=?", "46"), Prompt(9, "5+5=?", "10")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["<think>7+8=15 3+4+1=8</think>85<|end|> 0123456789 a text"] * 3, 300)


def make_engine(tokenizer: Tokenizer, head: str = "lm") -> NativeEngine:
    config = Config()
    config.model.hidden_size, config.model.intermediate_size, config.model.head_dim = 32, 48, 8
    config.model.vocab_size = tokenizer.vocab_size
    config.model.initializer_range = 0.3
    config.train.dtype = Dtype.float64
    mesh = ParallelDims.resolve(config.parallel, 1).build("cpu")
    return NativeEngine(config, mesh, torch.device("cpu"), head, entropy=True)


@pytest.fixture(scope="module")
def completions(tokenizer: Tokenizer) -> list[Completion]:
    rollout = NativeRollout(make_engine(tokenizer).replica(), tokenizer, step=4)
    return rollout.generate(PROMPTS, 4, 12, 1.0, seed=1)


def grpo_batches(completions: list[Completion], advantages: Tensor, valid: Tensor, micro_batch: int) -> list[Batch]:
    """advantages, valid: [N]. A token weighs 1/|o_i|, a sample whose verdict was an error nothing."""
    rows = AnswerRows(completions, micro_batch)
    lengths = torch.tensor([len(item.tokens) for item in completions])
    weights, shares = Normalisation.sample_mean.weights(lengths, valid, 12)
    assert shares.tolist() == valid.double().tolist()
    extras = {
        "old_logprobs": rows.sampled_logprobs,
        "advantages": rows.put(advantages[:, None].expand(-1, rows.longest)),
    }
    return rows.batches(weights, extras)


def test_rollout_and_training_agree_on_every_token(tokenizer: Tokenizer, completions: list[Completion]) -> None:
    engine = make_engine(tokenizer)
    batches = grpo_batches(completions, torch.zeros(12), torch.ones(12), micro_batch=5)
    assert [len(batch.tokens) for batch in batches] == [5, 5, 2]
    for batch, outputs in zip(batches, engine.token_outputs(batches)):
        counted = batch.weights > 0
        difference = (outputs.logprobs - batch.extras["old_logprobs"])[counted].abs().max()
        assert difference < 1e-5, "rollout log-probabilities are stored in float32"
    assert sum(batch.weight for batch in batches) == pytest.approx(12, abs=1e-5), "every sample weighs 1"


def test_invalid_samples_weigh_nothing(completions: list[Completion]) -> None:
    valid = torch.tensor([True] * 11 + [False])
    (batch,) = grpo_batches(completions, torch.zeros(12), valid, micro_batch=12)
    assert batch.weights[11].sum() == 0
    assert batch.weight == pytest.approx(11, abs=1e-5)


def test_gradient_does_not_depend_on_the_cut(tokenizer: Tokenizer, completions: list[Completion]) -> None:
    torch.manual_seed(0)
    advantages, valid = torch.randn(12, dtype=torch.float64), torch.ones(12)
    gradients = []
    for micro_batch in (12, 5, 1):
        engine = make_engine(tokenizer)
        batches = grpo_batches(completions, advantages, valid, micro_batch)
        outputs = engine.forward_backward(batches, rl_loss(clipped_objective(0.2, 0.2)), 12.0)
        gradients.append(torch.cat([p.grad.flatten() for p in engine.model.parameters() if p.grad is not None]))
        assert outputs.metrics["ratio"].item() == pytest.approx(1.0, abs=1e-5)
        assert outputs.metrics["entropy"] > 0
    assert gradients[0].norm() > 1e-3
    for other in gradients[1:]:
        # advantages and old log-probabilities travel in float32, alike in every cut
        assert (other - gradients[0]).norm() / gradients[0].norm() < 1e-6


def completion(prompt: Prompt, text: str, tokenizer: Tokenizer, truncated: bool = False) -> Completion:
    tokens = tokenizer.encode(text)
    return Completion(prompt, tokenizer.encode_prompt(prompt.question), tokens, [0.0] * len(tokens), text, truncated, 0)


def test_pairs_share_question_and_shape(tokenizer: Tokenizer, tmp_path: Path) -> None:
    right = completion(PROMPTS[1], "<think>6 4</think>46<|end|>", tokenizer)
    bare = completion(PROMPTS[1], "<think></think>46<|end|>", tokenizer)
    wrong = completion(PROMPTS[1], "<think>6 5</think>56<|end|>", tokenizer)
    cut = completion(PROMPTS[1], "<think>6 5 5 5", tokenizer, truncated=True)
    other = completion(PROMPTS[0], "<think>7</think>8<|end|>", tokenizer)
    marks = [Mark.correct, Mark.correct, Mark.wrong, Mark.wrong, Mark.wrong]
    pairs, mixed = make_pairs([right, bare, wrong, cut, other], [Verdict(mark) for mark in marks])
    assert [(pair.chosen.text, pair.rejected.text) for pair in pairs] == [(right.text, wrong.text)]
    assert mixed == [], "an answer with its like is not paired again; a cut one never"
    assert shape_of(right.text) == shape_of(wrong.text) != shape_of(bare.text)
    alike, mixed = make_pairs([bare, wrong], [Verdict(Mark.correct), Verdict(Mark.wrong)])
    assert alike == [], "formats differ"
    assert [(pair.chosen.text, pair.rejected.text) for pair in mixed] == [(bare.text, wrong.text)]
    bare_wrong = completion(PROMPTS[1], "<think></think>56<|end|>", tokenizer)
    answers, verdicts = [bare, bare_wrong], [Verdict(Mark.correct), Verdict(Mark.wrong)]
    assert len(make_pairs(answers, verdicts)[0]) == 1
    assert make_pairs(answers, verdicts, bare=False) == ([], [])
    errors = [Verdict(Mark.correct), Verdict(Mark.error, "timeout")]
    assert make_pairs([right, wrong], errors) == ([], []), "an error is not a wrong answer"
    save_pairs(tmp_path / "pairs.jsonl", {"train": pairs, "held_out": []})
    assert load_pairs(tmp_path / "pairs.jsonl") == {"train": pairs, "held_out": []}


def test_pair_stream_is_the_same_on_any_number_of_ranks(tokenizer: Tokenizer) -> None:
    answers = [completion(PROMPTS[1], f"<think></think>{number}<|end|>", tokenizer) for number in range(10, 40)]
    pairs = [Pair(chosen, rejected) for chosen, rejected in zip(answers[0::2], answers[1::2])]

    def rows(size: int) -> list[list[int]]:
        feeds = [PairFeed(pairs, 6, 2, seed=5, rank=rank, size=size) for rank in range(size)]
        return [
            row for step in range(5) for feed in feeds for batch in feed.step(step) for row in batch.tokens.tolist()
        ]

    assert rows(1) == rows(2) == rows(3)
    assert len({tuple(row) for row in rows(1)}) == 30, "an epoch visits every pair"


def test_bradley_terry_is_the_logistic_loss_of_mean_scores(tokenizer: Tokenizer) -> None:
    engine = make_engine(tokenizer, "scalar")
    answers = [completion(PROMPTS[1], f"<think>{'1' * n}</think>{n}<|end|>", tokenizer) for n in (1, 7, 3, 2)]
    pairs = [Pair(answers[0], answers[1]), Pair(answers[2], answers[3])]
    batch = pair_batch(pairs)
    scores = RewardModel(engine.replica()).raw_scores(answers)
    alone = torch.cat([RewardModel(engine.replica()).raw_scores([answer]) for answer in answers])
    assert (scores - alone).abs().max() < 1e-12, "padding does not matter"
    outputs = engine.forward_backward([batch], bradley_terry_loss, batch.weight)
    expected = -torch.nn.functional.logsigmoid(torch.stack([scores[0] - scores[1], scores[2] - scores[3]])).mean()
    assert outputs.loss.item() == pytest.approx(expected.item(), abs=1e-6), "weights travel in float32"
    ordered = ((scores[0] > scores[1]).double() + (scores[2] > scores[3]).double()) / 2
    assert outputs.metrics["accuracy"].item() == pytest.approx(ordered.item(), abs=1e-6)


def test_reward_is_verdict_plus_weighted_opinion(tokenizer: Tokenizer) -> None:
    answers = [
        completion(PROMPTS[0], "<think></think>7<|end|>", tokenizer),
        completion(PROMPTS[0], "<think></think>8<|end|>", tokenizer),
    ]
    model = RewardModel(make_engine(tokenizer, "scalar").replica())
    model = RewardModel(model.model, *normalisation(model.raw_scores(answers).numpy()))
    with VerifierPool(TaskConfig(), 5.0) as verifier:
        scores = CombinedReward(verifier, model, 0.25).score(answers)
        plain = CombinedReward(verifier, None, 0.25).score(answers)
        alone = CombinedReward(verifier, model, 0.5, verifier_weight=0.0).score(answers)
    opinions = ((model.raw_scores(answers) - model.center) / model.scale).sigmoid().tolist()
    assert 0 < min(opinions) < 0.5 < max(opinions) < 1
    assert [score.reward for score in scores] == pytest.approx([1 + 0.25 * opinions[0], 0.25 * opinions[1]])
    assert [score.reward for score in plain] == [1.0, 0.0]
    assert [score.reward for score in alone] == pytest.approx([0.5 * opinion for opinion in opinions])
    assert [score.verdict.mark for score in alone] == [Mark.correct, Mark.wrong], "still measured"


def test_a_verifier_error_masks_the_sample(tokenizer: Tokenizer) -> None:
    class Broken:
        def verify(self, items: list[tuple[Prompt, str]]) -> list[Verdict]:
            return [Verdict(Mark.error, "timeout after 5.0 s") for _ in items]

    for verifier_weight in (1.0, 0.0):
        reward = CombinedReward(Broken(), None, 0.0, verifier_weight)  # type: ignore[arg-type]
        (score,) = reward.score([completion(PROMPTS[0], "<think></think>7<|end|>", tokenizer)])
        assert not score.valid
        assert reward.last_error == "timeout after 5.0 s"


def test_samples_depend_on_seed_step_and_problem_only(tokenizer: Tokenizer, completions: list[Completion]) -> None:
    model = make_engine(tokenizer).replica()
    alone = NativeRollout(model, tokenizer, step=4).generate(PROMPTS[1:2], 4, 12, 1.0, seed=1)
    assert [item.tokens for item in alone] == [item.tokens for item in completions[4:8]]
    later = NativeRollout(model, tokenizer, step=5).generate(PROMPTS[1:2], 4, 12, 1.0, seed=1)
    assert [item.tokens for item in later] != [item.tokens for item in alone]
    greedy = NativeRollout(model, tokenizer).generate(PROMPTS, 1, 12, 0.0, seed=1)
    again = NativeRollout(model, tokenizer).generate(PROMPTS, 1, 12, 0.0, seed=2)
    assert greedy == again, "greedy decoding draws nothing"


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "\ud800", '"}\n{', "答え🦀"])
def test_whatever_a_policy_writes_is_kept(tokenizer: Tokenizer, tmp_path: Path, text: str) -> None:
    odd = replace(completion(PROMPTS[1], "<think></think>85<|end|>", tokenizer), text=text)
    pairs = {"train": [Pair(odd, odd)], "held_out": []}
    save_pairs(tmp_path / "pairs.jsonl", pairs)
    assert load_pairs(tmp_path / "pairs.jsonl") == pairs
    answers = {"train": [Labelled(odd, [0], [1.0])], "held_out": [], "corrupted": []}
    save_answers(tmp_path / "steps.jsonl", answers)
    assert load_answers(tmp_path / "steps.jsonl") == answers
