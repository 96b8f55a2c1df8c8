"""Rollouts against transformers' ``generate``, and a step of RL against TRL's GRPOTrainer, alternating in one run.

    python scripts/bench_rl.py [--rounds 5] [--threads 1] [--clock wall|cpu] [--trl]

The demo's model (2 layers, width 128, vocabulary 3,072, fp32), its weights exported; 64 answers at once. A ratio is
theirs over ours in one round, the median of the rounds; above 1 we are faster.

equal lengths: 8 prompts of 20 tokens, 8 answers each, all of 64 tokens. heavy-tailed lengths: 32 prompts, 8 answers
each of log-normal length (median 32, at most 256 tokens), given in advance; transformers takes 64 at a time and goes on
until the longest is done. Only tokens of answers count. Ours also keeps every token's log-probability.

--trl: one update of GRPO on 8 prompts with 8 answers of up to 64 tokens: weights, sampling, a reward of Python,
gradients, AdamW. TRL is no dependency of farside: install it beside (``pip install trl``).
--clock cpu counts this process's processor seconds: with --threads 1, what other jobs take shows less.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from farside.configs.schema import Config, ModelConfig, ParallelConfig
from farside.data.chat import ASSISTANT, END, END_OF_TEXT, USER
from farside.data.tokenizer import Tokenizer
from farside.parallel.mesh import ParallelDims
from farside.rl.learner import Learner
from farside.rl.replay import Replay
from farside.rl.rollout.native import NativeRollout
from farside.rl.types import Completion, Mark, Prompt, Score, Verdict
from farside.train.engine.native import NativeEngine
from farside.train.guard import Guard
from farside.train.inference.decoder import Decoder
from farside.train.inference.generate import Request, decode
from farside.train.liveness import Pulse
from farside.train.model.hf import to_hf

MODEL = ModelConfig(intermediate_size=384, qk_norm=True)
PROMPTS, SAMPLES, PROMPT_LENGTH, LENGTH = 8, 8, 20, 64
MEDIAN, LONGEST = 32, 256
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
NEVER = -1


def make_engine() -> NativeEngine:
    config = Config(model=MODEL)
    config.rl.prompts_per_step, config.rl.samples_per_prompt, config.rl.max_new_tokens = PROMPTS, SAMPLES, LENGTH
    mesh = ParallelDims.resolve(ParallelConfig(), 1).build("cpu")
    return NativeEngine(config, mesh, torch.device("cpu"), entropy=True)


def exported(engine: NativeEngine) -> Qwen3ForCausalLM:
    said = to_hf(MODEL, engine.rope, 1024, "float32", 1)
    config = Qwen3Config(
        **{key: said[key] for key in said if key not in ("architectures", "model_type", "torch_dtype")}
    )
    model = Qwen3ForCausalLM(config).eval()
    unknown = model.load_state_dict(dict(engine.named_weights()), strict=False)
    assert unknown.missing_keys == ["lm_head.weight"], unknown  # it is the embedding
    model.tie_weights()
    return model


def ratios(rounds: int, clock: Callable[[], float], ours: Callable[[], int], theirs: Callable[[], int]) -> None:
    """Prints tokens a second of both, and their ratio; each call returns how many tokens it made."""
    rates: dict[str, list[float]] = {"ours": [], "transformers": []}
    for number in range(rounds + 1):
        for name, call in (("ours", ours), ("transformers", theirs)):
            start = clock()
            tokens = call()
            if number:  # the first is to warm up
                rates[name].append(tokens / (clock() - start))
    found = [mine / other for mine, other in zip(rates["ours"], rates["transformers"])]
    print(f"{statistics.median(found):6.2f}x  (rounds: {', '.join(f'{ratio:.2f}' for ratio in found)})")
    for name, values in rates.items():
        print(f"  {statistics.median(values):8.0f} tokens/s  {name}")


def compare_rollouts(rounds: int, clock: Callable[[], float], lengths: list[int], prompts: int) -> None:
    """lengths: of the answers, which are shared out among the prompts in order."""
    engine = make_engine()
    decoder, model = Decoder.of(engine.replica()), exported(engine)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, MODEL.vocab_size, (prompts, PROMPT_LENGTH), generator=generator)
    rows = ids.repeat_interleave(len(lengths) // prompts, 0)
    draws = np.random.default_rng(0).random((len(lengths), max(lengths)))

    def ours() -> int:
        requests = [Request(row.tolist(), length, drawn) for row, length, drawn in zip(rows, lengths, draws)]
        return sum(len(item.tokens) for item in decode(decoder, requests, NEVER, slots=PROMPTS * SAMPLES).answers)

    @torch.inference_mode()
    def theirs() -> int:
        for first in range(0, len(rows), PROMPTS * SAMPLES):
            part = slice(first, first + PROMPTS * SAMPLES)
            model.generate(
                rows[part],
                attention_mask=torch.ones_like(rows[part]),
                max_new_tokens=max(lengths[part]),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                eos_token_id=None,
                pad_token_id=0,
            )
        return sum(lengths)

    ratios(rounds, clock, ours, theirs)


def reward(tokens: list[int]) -> float:
    return sum(token % 2 for token in tokens) / len(tokens)


def our_step(tokenizer: Tokenizer, questions: list[str], folder: Path) -> Callable[[], int]:
    """What an iteration of ``farside rl`` does; returns the tokens it sampled."""
    engine = make_engine()
    learner = Learner(engine.config, engine, Replay(None, 0.0))
    rollout = NativeRollout(engine.replica(), tokenizer)
    guard, pulse = Guard(engine.config.train.guard), Pulse(folder, 0, 60.0, 60.0)
    prompts = [Prompt(index, question, "") for index, question in enumerate(questions)]
    steps = iter(range(1_000_000))

    def score(item: Completion) -> Score:
        return Score(reward(item.tokens), True, Verdict(Mark.correct))

    def step() -> int:
        number = next(steps)
        rollout.load_weights(engine.named_weights(), number)
        completions = rollout.generate(prompts, SAMPLES, LENGTH, 1.0, seed=0)
        learner.update(completions, [score(item) for item in completions], number, 1e-6, guard, pulse)
        return sum(len(item.tokens) for item in completions)

    return step


def compare_steps(rounds: int, clock: Callable[[], float]) -> None:
    """TRL's loop runs; after each of its steps ours takes one."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    questions = [f"{index + 31}+{index + 48}=?" for index in range(PROMPTS)]
    tokenizer = Tokenizer.train([f"{question} 0123456789 a text" for question in questions], 400)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, eos_token=END, pad_token=END_OF_TEXT, padding_side="left"
    )
    with tempfile.TemporaryDirectory() as folder:
        ours = our_step(tokenizer, questions, Path(folder))
        ours()
        times: dict[str, list[float]] = {"ours": [], "TRL": []}

        class Alternate(TrainerCallback):
            start = 0.0

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.start = clock()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                times["TRL"].append(clock() - self.start)
                start = clock()
                sampled.append(ours())
                times["ours"].append(clock() - start)

        sampled: list[int] = []
        seen: list[int] = []

        def rewards(completion_ids: list[list[int]], **_: Any) -> list[float]:
            seen.append(sum(map(len, completion_ids)))
            return [reward(tokens) for tokens in completion_ids]

        settings = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            max_steps=rounds + 1,
            per_device_train_batch_size=PROMPTS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=LENGTH,
            beta=0.0,
            loss_type="grpo",
            learning_rate=1e-6,
            temperature=1.0,
            top_k=0,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        GRPOTrainer(
            model=exported(make_engine()),
            reward_funcs=rewards,
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": f"{USER}{question}{ASSISTANT}"} for question in questions]),
            processing_class=theirs,
            callbacks=[Alternate()],
        ).train()
    found = [their / our for their, our in zip(times["TRL"][1:], times["ours"][1:])]
    print(f"{statistics.median(found):6.2f}x  (rounds: {', '.join(f'{ratio:.2f}' for ratio in found)})")
    for name, tokens in (("ours", sampled), ("TRL", seen)):
        print(f"  {statistics.median(times[name][1:]):8.3f} s  {name}, {statistics.median(tokens):.0f} tokens sampled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--trl", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = CLOCKS[arguments.clock]
    drawn = np.random.default_rng(0).lognormal(np.log(MEDIAN), 1.0, 32 * SAMPLES)
    tails = [int(length) for length in drawn.clip(1, LONGEST)]
    if arguments.trl:
        print("a step of GRPO, TRL over ours")
        compare_steps(arguments.rounds, clock)
        return
    print("rollouts, equal lengths, ours over transformers")
    compare_rollouts(arguments.rounds, clock, [LENGTH] * PROMPTS * SAMPLES, PROMPTS)
    print(f"rollouts, heavy-tailed lengths (mean {np.mean(tails):.0f}), ours over transformers")
    compare_rollouts(arguments.rounds, clock, tails, 32)


if __name__ == "__main__":
    main()
