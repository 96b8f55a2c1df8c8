"""Kimi k1.5's length reward where part of the scratch work is redundant; docs/rl.md.

python scripts/study_length.py [SEED ...]     # lines of runs/length/results.jsonl; what is there already is left out

Sums of one to three digits. The warm start shows every column once, twice or three times over: once is enough. Then
equal runs of RL, without the length reward and with it at several settings (ARMS). Lengths are tokens of greedy
answers to held-out problems.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from farside.configs import compose
from farside.data.chat import END, END_THINK, THINK
from farside.data.order import rng
from farside.rl.study import Budget, Study, Weights
from farside.rl.tasks.addition import AdditionTask, columns
from farside.rl.types import Mark, Prompt

RESULTS = Path("runs/length")
PROBLEMS = 600
WORDS = (
    *("experiment=proof", "sft.task.digits=3", "sft.task.min_digits=1", "rl.max_new_tokens=96", "rl.eval_prompts=100"),
    *("optim.kind=adamw", "rl.algorithm=grpo", "rl.lr=3e-4"),
)
WITH = ("rl.length.weight=0.3", "rl.length.warmup_steps=30")
ARMS = {
    "without": (150, ()),
    "with": (150, WITH),
    "heavier": (150, (*WITH, "rl.length.weight=0.6")),
    "at once": (150, (*WITH, "rl.length.warmup_steps=0")),
    "longer without": (300, ()),
    "longer": (300, WITH),
}
"""Iterations and settings."""


class Redundant(AdditionTask):
    """Worked answers say everything one to three times."""

    def trace(self, prompt: Prompt, seed: int) -> str:
        times = int(rng("redundant", seed, prompt.question).integers(1, 4))
        scratch = " ".join(f"{terms}={total}" for terms, total in columns(prompt.question) for _ in range(times))
        return f"{THINK}{scratch}{END_THINK}{prompt.answer}{END}"


def study(words: tuple[str, ...], seed: int) -> Study:
    made = Study(compose.compose([*WORDS, *words, f"train.seed={seed}"]), RESULTS)
    made.task = Redundant(made.task.dataset, 1.0, 0.0)  # type: ignore[arg-type]
    return made


def ranks(values: np.ndarray) -> np.ndarray:
    """Of equal values the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def measure(made: Study, step: int) -> dict[str, Any]:
    """Greedy, on held-out problems. correlation: Spearman's, of thinking tokens and digits."""
    made.rollout.load_weights(made.engine.named_weights(), step)
    prompts = [made.task.prompt("held_out", index) for index in range(PROBLEMS)]
    answers = made.rollout.generate(prompts, 1, made.config.rl.max_new_tokens, 0.0, 0)
    verdicts = made.verifier.verify([(answer.prompt, answer.text) for answer in answers])
    digits = np.array([prompt.metadata["difficulty"] for prompt in prompts])
    thinking = np.array([answer.thinking for answer in answers])
    return {
        "accuracy": float(np.mean([verdict.mark is Mark.correct for verdict in verdicts])),
        "length": float(np.mean([len(answer.tokens) for answer in answers])),
        "thinking_by_digits": {str(n): float(thinking[digits == n].mean()) for n in sorted(set(digits.tolist()))},
        "correlation": float(np.corrcoef(ranks(thinking), ranks(digits))[0, 1]),
    }


def warm(seed: int) -> Weights:
    made = study(("optim.kind=muon",), seed)
    for seen in made.warm_start(enough=0.85, every=50, prompts=200):
        print(f"seed {seed} warm start", seen, flush=True)
    return Weights.of(made.engine)


def main(seeds: list[int]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "results.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    for seed in seeds:
        arms = [arm for arm in ARMS if (arm, seed) not in {(row["arm"], row["seed"]) for row in done}]
        weights = warm(seed) if arms else None
        for arm in arms:
            assert weights is not None
            steps, words = ARMS[arm]
            made = study(words, seed)
            made.load(weights)
            told: dict[str, Any] = {"arm": arm, "seed": seed, "before": measure(made, 0)}
            for record in made.reinforce(Budget(steps=steps), every=0.2):
                if "held_out_accuracy" in record:
                    shown = {key: record.get(key) for key in ("step", "held_out_accuracy", "accuracy", "length")}
                    print(arm, seed, shown, f"{record['seconds']:.0f} s", flush=True)
                told["seconds"] = record["seconds"]
            told["after"] = measure(made, steps)
            print(told, flush=True)
            with path.open("a") as stream:
                stream.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [0, 1, 2])
