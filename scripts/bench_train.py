"""Our training step against a plain loop of transformers' LlamaForCausalLM and torch's AdamW, alternating in one run.

    python scripts/bench_train.py [--rounds 5] [--threads 2] [--dtype float32|bfloat16] [--clock wall|cpu]

One architecture (4 layers, width 512, vocabulary 8,192), 4 rows of 1,024 tokens. A ratio is theirs over ours in one
round, the median of the rounds; above 1 we are faster. The bound is what the step would take if it were nothing but
its matrix products and attention, each at the rate measured here for its shapes. Their loop does not clip.
--clock cpu counts this process's processor seconds: with --threads 1, what other jobs take does not show.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from farside.configs.schema import Config, Dtype, ModelConfig, ParallelConfig
from farside.data.batch import Batch
from farside.parallel.mesh import ParallelDims
from farside.train.engine.native import NativeEngine
from farside.train.loss import lm_loss
from farside.train.model.flops import flops_per_token
from farside.train.precision import COMPUTED

ROWS, LENGTH = 4, 1024
MODEL = ModelConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=64,
    tie_word_embeddings=False,
)
CPU = torch.device("cpu")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def our_step(tokens: Tensor, dtype: Dtype, compile: bool) -> Callable[[], float]:
    """The product's step, as ``farside train`` runs it."""
    config = Config(model=MODEL, train=replace(Config().train, dtype=dtype, compile=compile))
    engine = NativeEngine(config, ParallelDims.resolve(ParallelConfig(), 1).build("cpu"), CPU)
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(ROWS, LENGTH), positions, torch.zeros_like(positions))

    def step() -> float:
        outputs = engine.forward_backward([batch], lm_loss, batch.weight)
        engine.step(1e-4)
        return outputs.loss.item()

    return step


def their_step(tokens: Tensor, dtype: Dtype, compile: bool) -> Callable[[], float]:
    """What a user of transformers writes; bf16 is autocast over fp32 weights."""
    shared = {key: value for key, value in vars(MODEL).items() if not key.startswith(("rope", "qk"))}
    config = LlamaConfig(**shared, max_position_embeddings=LENGTH, use_cache=False, attn_implementation="sdpa")
    model = LlamaForCausalLM(config)
    forward = torch.compile(model) if compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is Dtype.bfloat16):
            loss = forward(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def seconds_of(clock: Callable[[], float], call: Callable[[], object], repetitions: int = 3) -> float:
    """Median, after one call to warm up."""
    call()
    times = []
    for _ in range(repetitions):
        start = clock()
        call()
        times.append(clock() - start)
    return statistics.median(times)


def matmul_peak(clock: Callable[[], float], dtype: torch.dtype, size: int = 2048) -> float:
    a, b = (torch.randn(size, size, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / seconds_of(clock, lambda: a @ b, 7)


def lower_bound(clock: Callable[[], float], dtype: torch.dtype) -> float:
    """Seconds of a step's matrix products and attention alone, forward and backward."""
    width, heads = MODEL.hidden_size, MODEL.num_attention_heads * MODEL.head_dim
    shapes = {(width, heads): 4, (width, MODEL.intermediate_size): 2, (MODEL.intermediate_size, width): 1}
    counts = {shape: MODEL.num_hidden_layers * count for shape, count in shapes.items()}
    counts[width, MODEL.vocab_size] = 1
    total = 0.0
    for (inner, outer), count in counts.items():
        x, weight, gradient = (
            torch.randn(shape, dtype=dtype)
            for shape in ((ROWS * LENGTH, inner), (outer, inner), (ROWS * LENGTH, outer))
        )
        products = (lambda: x @ weight.T, lambda: gradient @ weight, lambda: gradient.T @ x)  # noqa: B023
        total += count * sum(seconds_of(clock, product) for product in products)
    q, k, v = (torch.randn(ROWS, LENGTH, heads, dtype=dtype).requires_grad_() for _ in range(3))

    def attention() -> None:
        per_head = (x.view(ROWS, LENGTH, -1, MODEL.head_dim).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(*per_head, is_causal=True)
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    return total + MODEL.num_hidden_layers * seconds_of(clock, attention)


def compare(dtype: Dtype, rounds: int, tokens: Tensor, clock: Callable[[], float]) -> None:
    compiled = (False, True) if dtype is Dtype.bfloat16 else (False,)
    steps = {
        ("ours" if ours else "transformers", compile): (our_step if ours else their_step)(tokens, dtype, compile)
        for ours in (True, False)
        for compile in compiled
    }
    for step in steps.values():
        step()
        step()
    times: dict[tuple[str, bool], list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    flops = flops_per_token(MODEL, LENGTH) * ROWS * LENGTH
    peak, bound = matmul_peak(clock, COMPUTED[dtype]), lower_bound(clock, COMPUTED[dtype])
    print(f"\n{dtype.value}: {flops / 1e9:.0f} GFLOP a step, matmul peak {peak / 1e9:.0f} GFLOP/s")
    called = {False: "eager", True: "compiled"}
    for mine in compiled:
        for theirs in compiled:
            ratios = [b / a for a, b in zip(times["ours", mine], times["transformers", theirs])]
            print(
                f"{statistics.median(ratios):6.2f}x  ours {called[mine]} over transformers {called[theirs]}"
                f"  (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})"
            )
    for (name, compile), taken in times.items():
        rate = flops / statistics.median(taken)
        print(
            f"{statistics.median(taken):7.3f} s  {name} {called[compile]}: {rate / 1e9:.0f} GFLOP/s, "
            f"{rate / peak:.2f} of the matmul peak"
        )
    print(
        f"{bound:7.3f} s  bound of products and attention: {flops / bound / 1e9:.0f} GFLOP/s, "
        f"{flops / bound / peak:.2f} of the matmul peak"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", type=Dtype, choices=[Dtype.float32, Dtype.bfloat16], action="append")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tokens = torch.randint(MODEL.vocab_size, (ROWS, LENGTH + 1))
    for dtype in arguments.dtype or [Dtype.float32, Dtype.bfloat16]:
        compare(dtype, arguments.rounds, tokens, CLOCKS[arguments.clock])


if __name__ == "__main__":
    main()
