"""GATE: decoding with a KV cache is what the model says without one; sampling is inverse-CDF, row by row."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from farside.configs.schema import ModelConfig
from farside.train.inference.cache import KVCache, Prefixes
from farside.train.inference.decoder import Decoder
from farside.train.inference.generate import Request, decode, generate, stream
from farside.train.inference.sampling import choose
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
    decoder = Decoder.of(model)
    decoder.reserve(longest + 6)
    cache = KVCache(config, len(PROMPTS), longest + 6, decoder.embed_VE)
    prefixes = Prefixes(len(PROMPTS), longest)
    positions = torch.arange(longest).expand_as(padded)
    hidden = decoder.hidden(padded.flatten(), positions.flatten(), prefixes.attend)
    hidden = hidden.view(len(PROMPTS), longest, -1)[rows, lengths - 1]
    cache.put(0, prefixes, range(len(PROMPTS)), lengths.tolist())
    for number in range(6):
        for row, prompt in enumerate(PROMPTS):
            whole = torch.tensor([prompt + forced[row, :number].tolist()])
            assert (decoder.logits(hidden[row]) - logits_of(model, whole)[0, -1]).abs().max() <= 1e-12
        step = cache.append(len(PROMPTS))
        hidden = decoder.hidden(forced[:, number], step.positions_N, step.attend)


def test_moved_slots_keep_their_history() -> None:
    cache = KVCache(SMALL, 3, 4, random_model().output_weight)
    cache.keys.copy_(torch.arange(3.0)[None, :, None, None, None].expand_as(cache.keys))
    cache.lengths[:] = 2, 3, 4
    cache.move([2], [0])
    assert cache.keys[:, :, 0, 0, 0].tolist() == [[2.0, 1.0, 2.0]] * 2
    assert cache.lengths.tolist() == [4, 3, 4]


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


def traced(requests: list[Request], slots: int | None, stop: int = 7) -> tuple[list[list[int]], torch.Tensor, int]:
    run = decode(Decoder.of(random_model()), requests, stop, 1.3, slots)
    assert not any(len(item.tokens) != len(item.logprobs) for item in run.answers)
    logprobs = torch.tensor([value for item in run.answers for value in item.logprobs], dtype=torch.float64)
    return [item.tokens for item in run.answers], logprobs, run.steps


@pytest.mark.parametrize("slots", [1, 3, 5])
def test_answers_are_the_same_whatever_the_slots(slots: int) -> None:
    """Limits and stop tokens free slots at different times; samples of a prompt enter apart."""
    uniforms = torch.rand(len(PROMPTS), 4, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64).numpy()
    limits = [[16, 1, 5, 9], [2, 2, 11, 3], [1, 16, 16, 2], [7, 4, 1, 1]]
    requests = [
        Request(prompt, limit, draws)
        for prompt, rows, row_limits in zip(PROMPTS, uniforms, limits)
        for draws, limit in zip(rows, row_limits)
    ]
    wanted, logprobs, fewest = traced(requests, None)
    tokens, found, steps = traced(requests, slots)
    assert tokens == wanted
    assert (found - logprobs).abs().max() < 1e-12
    lengths = [len(answer) for answer in tokens]
    assert len(set(lengths)) > 4
    assert fewest == max(lengths)
    assert sum(lengths) / slots <= steps < sum(lengths) / slots + max(lengths), "a slot is never left empty"


def test_samples_of_a_prompt_share_its_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    hidden = Decoder.hidden

    def counted(self: Decoder, tokens: torch.Tensor, *more: Any) -> torch.Tensor:
        seen.append(len(tokens))
        return hidden(self, tokens, *more)

    monkeypatch.setattr(Decoder, "hidden", counted)
    uniforms = torch.rand(7, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64).numpy()
    traced([Request(PROMPTS[0], 1, draws) for draws in uniforms[:4]] + [Request(PROMPTS[2], 1, uniforms[4])], 2)
    assert seen == [len(PROMPTS[0]), len(PROMPTS[2])], "four samples entered two slots twice"


@torch.no_grad()
def test_an_answer_cut_and_continued_is_the_uncut_one() -> None:
    model = random_model()
    draws = torch.rand(10, generator=torch.Generator().manual_seed(3), dtype=torch.float64).numpy()
    (whole,), _, _ = traced([Request(PROMPTS[0], 10, draws)], None, NEVER)
    (first,), _, _ = traced([Request(PROMPTS[0], 4, draws)], None, NEVER)
    (rest,), _, _ = traced([Request(PROMPTS[0] + first, 6, draws[4:])], None, NEVER)
    assert first + rest == whole
    assert model.config == SMALL


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_the_decoder_is_the_model_in_fp32(config: ModelConfig) -> None:
    """The slow twin: the whole sequence at once, by the model that trains."""
    model = random_model(config, torch.float32)
    uniforms = torch.rand(len(PROMPTS), 3, 24, generator=torch.Generator().manual_seed(3))
    answers = generate(model, PROMPTS, 24, NEVER, uniforms)
    for number, answer in enumerate(answers):
        expected = teacher_forced(model, PROMPTS[number // 3], answer.tokens)
        assert torch.allclose(torch.tensor(answer.logprobs), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_bf16_is_rounded_where_the_model_rounds() -> None:
    """One token at a time, the model's own way; it knows nothing of the decoder's layout."""
    model = random_model(CONFIGS["one kv head, qk-norm, untied"], torch.float32).to(torch.bfloat16)
    tokens = torch.tensor(PROMPTS[0])
    decoder, prefixes = Decoder.of(model), Prefixes(1, len(tokens))
    decoder.reserve(len(tokens))
    ours = decoder.logits(decoder.hidden(tokens, torch.arange(len(tokens)), prefixes.attend))
    theirs = logits_of(model, tokens[None])[0]
    assert (ours - theirs).abs().max() <= 2**-6 * theirs.abs().max(), "one rounding of the largest"


def test_loaded_weights_replace_all_others() -> None:
    for config in CONFIGS.values():
        one, other = random_model(config, seed=0), random_model(config, seed=1)
        decoder = Decoder.of(one)
        decoder.load(other.named_parameters())
        run = decode(decoder, [Request(prompt, 8) for prompt in PROMPTS], NEVER)
        assert run.answers == generate(other, PROMPTS, 8, NEVER)
        assert run.answers != generate(one, PROMPTS, 8, NEVER)


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
    tokens, logprobs = choose(logits, torch.tensor([0.0, 0.5, 1.0 - 2**-53], dtype=torch.float64), 1.0)
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
