"""Free-running decoding with a KV cache, greedy or sampled, on one process.

Left out: paging and continuous batching. Finished rows leave the batch, prompts are computed once for all
their samples. Shapes: P prompts, B rows, E model dim, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farside.configs.schema import RepetitionConfig
from farside.train.inference.cache import KVCache
from farside.train.inference.repetition import LoopDetector
from farside.train.model.transformer import Transformer

NO_LOOPS = RepetitionConfig(longest_period=0)
"""Nothing is looked for."""


@dataclass(frozen=True)
class Generated:
    """tokens after the prompt, with the stop token if it came; their log-probabilities at temperature 1, in nats."""

    tokens: list[int]
    logprobs: list[float]
    truncated: bool


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stop_token: int,
    uniforms: Tensor | None = None,
    temperature: float = 1.0,
    repetition: RepetitionConfig = NO_LOOPS,
) -> list[Generated]:
    """Continues every prompt until ``stop_token``, a loop of tokens or ``max_new_tokens``.

    uniforms: None decodes greedily; otherwise [P, samples, max_new_tokens] numbers in [0, 1), one a sampled
    token: its inverse-CDF draw. So a sample depends on its own numbers only, not on its neighbours.
    Returns P·samples results, a prompt's samples together.
    """
    device = model.output_weight.device
    samples = 1 if uniforms is None else uniforms.shape[1]
    draws = None if uniforms is None else uniforms.flatten(0, 1).to(device)  # [P, samples, N] -> [B, N]
    cache, x_BE = _prefill(model, prompts, max_new_tokens)
    active = torch.arange(len(prompts), device=device).repeat_interleave(samples)
    cache.select(active)
    x_BE = x_BE[active]
    active = torch.arange(len(active), device=device)
    tokens = torch.zeros(len(active), max_new_tokens, dtype=torch.long)
    logprobs = torch.zeros(len(active), max_new_tokens)
    counts = torch.zeros(len(active), dtype=torch.long)
    loops = LoopDetector(repetition) if repetition.longest_period else None
    if loops is not None:
        loops.enter(len(active))
    for position in range(max_new_tokens):
        noise = None if draws is None else draws[active, position]
        token_B, logprob_B = _choose(model.logits(x_BE), noise, temperature)
        where = active.cpu()
        tokens[where, position], logprobs[where, position] = token_B.cpu(), logprob_B.float().cpu()
        counts[where] += 1
        goes_on_B = token_B != stop_token
        if loops is not None:
            goes_on_B &= ~loops.step(token_B.cpu()).to(device)
        going = goes_on_B.nonzero().squeeze(-1)
        if position + 1 == max_new_tokens or not len(going):
            break
        if len(going) < len(active):
            cache.select(going)
            active, token_B = active[going], token_B[going]
            if loops is not None:
                loops.select(going.cpu())
        x_BE = model.hidden(token_B[:, None], cache.lengths_B[:, None], cache.decode)[:, 0]
        cache.lengths_B += 1
    return [
        Generated(
            tokens[row, :count].tolist(),
            logprobs[row, :count].tolist(),
            bool(tokens[row, count - 1] != stop_token),
        )
        for row, count in enumerate(counts.tolist())
    ]


def stream(
    model: Transformer,
    prompt: list[int],
    max_new_tokens: int,
    stop_token: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
) -> Iterator[int]:
    """The tokens that ``generate`` gives for one prompt, as they come; without the stop token.

    generator: None decodes greedily; otherwise the source of one uniform number a token, on the CPU.
    """
    with torch.inference_mode():
        cache, x_1E = _prefill(model, [prompt], max_new_tokens)
    for position in range(max_new_tokens):
        with torch.inference_mode():  # entered anew: a generator must not leave it on for its caller
            noise = None if generator is None else torch.rand(1, generator=generator).to(x_1E.device)
            token_1, _ = _choose(model.logits(x_1E), noise, temperature)
        token = int(token_1)
        if token == stop_token:
            return
        yield token
        if position + 1 < max_new_tokens:
            with torch.inference_mode():
                x_1E = model.hidden(token_1[:, None], cache.lengths_B[:, None], cache.decode)[:, 0]
                cache.lengths_B += 1


def _prefill(model: Transformer, prompts: Sequence[list[int]], room: int) -> tuple[KVCache, Tensor]:
    """The prompts' keys and values, and the hidden state [P, E] of each one's last token."""
    device = model.output_weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = int(lengths.max())
    padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
    cache = KVCache(model.config, len(prompts), longest + room, model.output_weight)
    positions = torch.arange(longest, device=device)[None]
    x_PSE = model.hidden(padded, positions, cache.prefill)
    cache.lengths_B = lengths
    return cache, x_PSE[torch.arange(len(prompts), device=device), lengths - 1]


def _choose(logits_BV: Tensor, uniform_B: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)).log_softmax(-1)
    if uniform_B is None:
        token_B = logprobs_BV.argmax(-1)
    else:
        cdf_BV = (logprobs_BV.double() / temperature).softmax(-1).cumsum(-1)
        token_B = torch.searchsorted(cdf_BV, uniform_B.double()[:, None] * cdf_BV[:, -1:], right=True).squeeze(-1)
        token_B = token_B.clamp(max=logits_BV.shape[-1] - 1)
    return token_B, logprobs_BV.gather(-1, token_B[:, None]).squeeze(-1)
