"""GATE: decoding with a KV cache is what the model says without one; sampling is inverse-CDF, row by row."""

from dataclasses import replace

import pytest
import torch

from farside.configs.schema import ModelConfig
from farside.train.inference.cache import KVCache
from farside.train.inference.generate import _choose, generate, stream
from farside.train.model.transformer import Transformer
from tests.train.models import SMALL, logits_of, random_model

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5], [3, 5, 8], [9, 7, 9, 3, 2]]
NEVER = -1
"""A stop token that is not in the vocabulary."""
CONFIGS = {
    "gqa": SMALL,
    "one kv head, qk-norm, untied": replace(SMALL, num_key_value_heads=1, qk_norm=True, tie_word_embeddings=False),
    "no gqa": replace(SMALL, num_key_value_heads=4),
}


def greedy_without_cache(model: Transformer, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    tokens, logprobs = list(prompt), []
    for _ in range(count):
        distribution = logits_of(model, torch.tensor([tokens]))[0, -1].log_softmax(-1)
        tokens.append(int(distribution.argmax()))
        logprobs.append(float(distribution[tokens[-1]]))
    return tokens[len(prompt) :], logprobs


def teacher_forced(model: Transformer, prompt: list[int], answer: list[int]) -> torch.Tensor:
    distribution = logits_of(model, torch.tensor([prompt + answer]))[0].log_softmax(-1)
    places = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return distribution[places, torch.tensor(answer)]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_greedy_equals_uncached_argmax(config: ModelConfig) -> None:
    model = random_model(config)
    results = generate(model, PROMPTS, 12, NEVER)
    for prompt, result in zip(PROMPTS, results, strict=True):
        tokens, logprobs = greedy_without_cache(model, prompt, 12)
        assert result.tokens == tokens
        assert result.logprobs == pytest.approx(logprobs, abs=1e-6)  # kept in float32
        assert result.truncated
    assert len({tuple(result.tokens) for result in results}) == len(PROMPTS)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_cached_logits_equal_uncached_to_rounding(config: ModelConfig) -> None:
    """Ragged prompts, then forced tokens: every step's logits, rows of different lengths in one cache."""
    model = random_model(config)
    lengths = torch.tensor([len(prompt) for prompt in PROMPTS])
    longest, rows = int(lengths.max()), torch.arange(len(PROMPTS))
    forced = torch.randint(config.vocab_size, (len(PROMPTS), 6), generator=torch.Generator().manual_seed(2))
    padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in PROMPTS])
    cache = KVCache(config, len(PROMPTS), longest + 6, model.output_weight)
    hidden = model.hidden(padded, torch.arange(longest)[None], cache.prefill)[rows, lengths - 1]
    cache.lengths_B = lengths.clone()
    for step in range(6):
        for row, prompt in enumerate(PROMPTS):
            whole = torch.tensor([prompt + forced[row, :step].tolist()])
            assert (model.logits(hidden[row]) - logits_of(model, whole)[0, -1]).abs().max() <= 1e-12
        hidden = model.hidden(forced[:, step : step + 1], cache.lengths_B[:, None], cache.decode)[:, 0]
        cache.lengths_B += 1


def test_selected_rows_keep_their_history() -> None:
    model = random_model()
    cache = KVCache(SMALL, 3, 4, model.output_weight)
    cache.keys.copy_(torch.arange(3.0)[None, :, None, None, None].expand_as(cache.keys))
    cache.lengths_B = torch.tensor([4, 5, 6])
    cache.select(torch.tensor([2, 0, 0]))
    assert cache.keys[:, :, 0, 0, 0].tolist() == [[2.0, 0.0, 0.0]] * 2
    assert cache.lengths_B.tolist() == [6, 4, 4]


def test_stop_token_ends_a_row_and_only_it() -> None:
    model = random_model()
    free = generate(model, PROMPTS, 12, NEVER)
    stop = free[0].tokens[4]
    stopped = generate(model, PROMPTS, 12, stop)
    assert any(not result.truncated for result in stopped)
    assert {len(result.tokens) for result in stopped} != {12}
    for before, after in zip(free, stopped, strict=True):
        ends = stop in before.tokens
        expected = before.tokens[: before.tokens.index(stop) + 1] if ends else before.tokens
        assert after.tokens == expected
        assert after.truncated != ends
        assert len(after.logprobs) == len(after.tokens)


def test_a_stop_token_in_the_last_place_is_not_truncated() -> None:
    model = random_model()
    free = generate(model, PROMPTS[:1], 5, NEVER)[0]
    last = free.tokens[-1]
    count = free.tokens.index(last) + 1
    assert not generate(model, PROMPTS[:1], count, last)[0].truncated


@torch.no_grad()
def test_samples_are_independent_of_their_neighbours_and_logprobs_are_teacher_forced() -> None:
    model = random_model()
    uniforms = torch.rand(len(PROMPTS), 3, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    together = generate(model, PROMPTS, 10, 7, uniforms, temperature=1.3)
    assert len({tuple(result.tokens) for result in together}) > len(PROMPTS)
    for place, prompt in enumerate(PROMPTS):
        for sample in range(3):
            alone = generate(model, [prompt], 10, 7, uniforms[place, sample][None, None], temperature=1.3)
            result = together[3 * place + sample]
            assert alone[0].tokens == result.tokens
            expected = teacher_forced(model, prompt, result.tokens)
            assert torch.allclose(torch.tensor(result.logprobs).double(), expected, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_inverse_cdf(temperature: float) -> None:
    """An even grid of uniforms hits each token as often as its probability says, to one grid step."""
    model = random_model(replace(SMALL, vocab_size=5))
    count = 4000
    grid = ((torch.arange(count, dtype=torch.float64) + 0.5) / count)[None, :, None]
    drawn = torch.tensor([result.tokens[0] for result in generate(model, [[1, 2]], 1, NEVER, grid, temperature)])
    wanted = (logits_of(model, torch.tensor([[1, 2]]))[0, -1] / temperature).softmax(-1)
    counts = torch.bincount(drawn, minlength=5)
    assert int((counts > 0).sum()) == 5
    assert (counts - count * wanted).abs().max() <= 1.0
    assert (drawn.diff() >= 0).all()  # inverse CDF: larger uniforms give later tokens


@torch.no_grad()
def test_sampled_pairs_have_the_model_s_joint_distribution() -> None:
    model = random_model(replace(SMALL, vocab_size=3))
    uniforms = torch.rand(1, 20_000, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    drawn = torch.tensor([result.tokens for result in generate(model, [[1]], 2, NEVER, uniforms)])
    shares = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9) / len(drawn)
    first = logits_of(model, torch.tensor([[1]]))[0, -1].softmax(-1)
    second = logits_of(model, torch.tensor([[1, token] for token in range(3)]))[:, -1].softmax(-1)
    wanted = (first[:, None] * second).flatten()
    assert (shares - wanted).abs().max() < 5 * 0.5 / len(drawn) ** 0.5  # five standard deviations at most


def test_the_ends_of_the_unit_interval_are_tokens() -> None:
    model = random_model()
    uniforms = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)[None, :, None]
    low, high = generate(model, [[1]], 1, NEVER, uniforms)
    assert low.tokens == [0]
    assert high.tokens == [SMALL.vocab_size - 1]


def test_impossible_tokens_are_never_drawn() -> None:
    """At the very edges of the distribution's steps, too."""
    never = float("-inf")
    logits = torch.tensor([[never, 0.0, never, 0.0, never]], dtype=torch.float64).expand(3, -1)
    tokens, logprobs = _choose(logits, torch.tensor([0.0, 0.5, 1.0 - 2**-53], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [1, 3, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_stream_gives_what_generate_gives(config: ModelConfig) -> None:
    model = random_model(config)
    for prompt in PROMPTS:
        with torch.no_grad():
            greedy = generate(model, [prompt], 12, NEVER)[0].tokens
            stop = greedy[5]
            uniforms = torch.rand(12, generator=torch.Generator().manual_seed(3))
            sampled = generate(model, [prompt], 12, NEVER, uniforms[None, None], 0.7)[0].tokens
        assert list(stream(model, prompt, 12, NEVER)) == greedy
        assert list(stream(model, prompt, 12, stop)) == greedy[: greedy.index(stop)]
        assert list(stream(model, prompt, 12, NEVER, torch.Generator().manual_seed(3), 0.7)) == sampled
    assert not torch.is_inference_mode_enabled()
