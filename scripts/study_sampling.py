"""Prioritised sampling against uniform: samples until the hard part of a mixture is learnt; docs/rl.md.

python scripts/study_sampling.py [SEED ...]   # lines of runs/sampling/results.jsonl; what is there already is left out

Four problems in five are one-digit sums, which the warm start has learnt; the fifth is a three-digit sum.
Counted are the samples drawn until 80 % of 500 held-out three-digit sums are answered rightly, greedily.
"""

import json
import sys
from pathlib import Path
from typing import Any

from farside.configs import compose
from farside.rl.policy import answer_held_out
from farside.rl.study import Budget, Study, Weights
from farside.rl.tasks.addition import AdditionDataset, AdditionTask

RESULTS = Path("runs/sampling")
EASY, HARD, ONE_IN = 1, 3, 5
WANTED, PROBLEMS, EVERY, MOST = 0.8, 500, 10, 400
WORDS = (
    *("experiment=proof", f"sft.task.digits={HARD}", "sft.task.compact_share=0.0", "sft.task.full_share=0.6"),
    *("optim.kind=adamw", "rl.algorithm=grpo", "rl.lr=4e-4", "rl.max_new_tokens=40", "rl.eval_prompts=100"),
)
ARMS = {
    "uniform": ("rl.curriculum.pool=4096",),
    "prioritised": ("rl.curriculum.pool=4096", "rl.curriculum.prioritised=true"),
}


class Mixture:
    """Of each five items one is hard."""

    def __init__(self, size: int = 1_000_000) -> None:
        self.easy, self.hard = AdditionDataset(EASY, 0, size), AdditionDataset(HARD, 0, size)

    def __len__(self) -> int:
        return len(self.easy)

    def __getitem__(self, index: int) -> dict[str, Any]:
        hard = index % ONE_IN == 0
        return {**(self.hard if hard else self.easy)[index], "difficulty": HARD if hard else EASY}

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        return self.easy.score_answer(answer, entry)


def study(words: tuple[str, ...], seed: int) -> Study:
    config = compose.compose([*WORDS, *words, f"train.seed={seed}"])
    made = Study(config, RESULTS)
    made.task = AdditionTask(Mixture(), config.sft.task.full_share, config.sft.task.compact_share)  # type: ignore[arg-type]
    return made


def accuracy(made: Study, digits: int, step: int) -> float:
    """Greedy, on held-out sums of that many digits."""
    made.rollout.load_weights(made.engine.named_weights(), step)
    task = AdditionTask(AdditionDataset(digits, 0, 1_000_000), 1.0, 0.0)
    longest = made.config.rl.max_new_tokens
    return answer_held_out(made.runtime, made.rollout, task, made.verifier, PROBLEMS, longest, 0)[0]


def warm(seed: int) -> Weights:
    made = study(("optim.kind=muon", "sft.steps=600"), seed)
    for seen in made.warm_start(enough=2.0, every=75, prompts=50):
        told = {digits: accuracy(made, digits, 0) for digits in (EASY, HARD)}
        print(f"seed {seed} warm start step {seen['step']} {seen['seconds']:.0f} s {told}", flush=True)
        if told[HARD] >= 0.3:
            break
    return Weights.of(made.engine)


def samples_needed(arm: str, seed: int, weights: Weights) -> dict[str, Any]:
    made = study(ARMS[arm], seed)
    made.load(weights)
    per_step = made.config.rl.prompts_per_step * made.config.rl.samples_per_prompt
    curve, seconds, step = [], 0.0, 0
    for record in made.reinforce(Budget(steps=3 * MOST), every=2.0):
        step, seconds = record["step"], record["seconds"]
        if step % EVERY == 0:
            curve.append([step * per_step, accuracy(made, HARD, step)])
            keys = [key for key in record if key.startswith("accuracy")]
            print(arm, seed, curve[-1], {key: round(record[key], 3) for key in keys}, f"{seconds:.0f} s", flush=True)
            if curve[-1][1] >= WANTED or step >= MOST:
                break
    reached = curve[-1][0] if curve[-1][1] >= WANTED else None
    told = {"arm": arm, "seed": seed, "samples": reached, "seconds": seconds, "curve": curve}
    return {**told, "easy_after": accuracy(made, EASY, step)}


def main(seeds: list[int]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "results.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    for seed in seeds:
        arms = [arm for arm in ARMS if (arm, seed) not in {(row["arm"], row["seed"]) for row in done}]
        weights = warm(seed) if arms else None
        for arm in arms:
            assert weights is not None
            result = samples_needed(arm, seed, weights)
            with path.open("a") as stream:
                stream.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [0, 1, 2])
