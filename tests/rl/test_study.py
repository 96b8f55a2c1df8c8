"""A study in one process: budgets, the control, records, and that the same study gives the same numbers."""

from pathlib import Path
from typing import Any, cast

from farside.configs import compose
from farside.rl.reward.combine import CombinedReward
from farside.rl.reward.verifier import VerifierPool
from farside.rl.study import Budget, Study, Weights, character_tokenizer, shuffled
from farside.rl.tasks.registry import make_task
from farside.rl.types import Completion, Prompt, Task

TINY = [
    *("experiment=proof", "model.hidden_size=16", "model.intermediate_size=24", "model.head_dim=8"),
    *("model.num_attention_heads=2", "rl.prompts_per_step=2", "rl.samples_per_prompt=4", "rl.max_new_tokens=6"),
    *("rl.eval_prompts=3", "sft.steps=4", "sft.global_batch_size=4", "model.initializer_range=0.3"),
]


def test_a_budget_ends_by_whatever_is_used_up_first() -> None:
    assert Budget(steps=4).share(1, 100.0) == 0.25
    assert Budget(seconds=10.0).share(1000, 5.0) == 0.5
    assert Budget(steps=4, seconds=10.0).share(3, 5.0) == 0.75
    assert Budget(steps=4).share(9, 0.0) == 1.0


def completion(index: int, said: str, step: int) -> Completion:
    return Completion(Prompt(index, "3+4=?", "7"), [1], [2], [0.0], f"<think></think>{said}<|end|>", False, step)


def test_the_control_deals_the_same_rewards_out_anew() -> None:
    config = compose.compose(TINY)
    reward = CombinedReward(VerifierPool(config.sft.task, 5.0), None, 0.0)
    items = [completion(n, "7" if n % 4 == 0 else "8", 5) for n in range(40)]
    plain, control = reward.score(items), shuffled(reward).score(items)
    assert [score.verdict for score in control] == [score.verdict for score in plain]
    assert sorted(score.reward for score in control) == sorted(score.reward for score in plain)
    assert [score.reward for score in control] != [score.reward for score in plain]
    assert control == shuffled(reward).score(items)
    later = [completion(n, "7" if n % 4 == 0 else "8", 6) for n in range(40)]
    assert [s.reward for s in shuffled(reward).score(later)] != [s.reward for s in control], "anew at every step"


def test_accuracy_can_be_of_another_task(tmp_path: Path) -> None:
    study = Study(compose.compose(TINY), tmp_path)
    other = make_task(compose.compose([*TINY, "sft.task.digits=1"]).sft.task)
    asked: list[str] = []

    class Seen:
        def prompt(self, split: str, index: int) -> Prompt:
            asked.append(other.prompt(split, index).question)
            return other.prompt(split, index)

    study.examined = cast(Task, Seen())
    study.accuracy(0)
    assert asked == [other.prompt("held_out", index).question for index in range(3)]


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def run(folder: Path, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    study = Study(compose.compose([*TINY, "rl.algorithm=ppo", f"train.seed={seed}"]), folder)
    *_, warm = study.warm_start(enough=1.1, every=2, prompts=3)
    study.load(Weights.of(study.engine))
    records = list(study.reinforce(Budget(steps=4), every=0.5))
    assert warm["step"] == 4
    return without_time(records), {name: value.tolist() for name, value in study.engine.named_weights()}


def test_the_same_study_gives_the_same_numbers(tmp_path: Path) -> None:
    """With a critic, which is of the study's making."""
    records, weights = run(tmp_path, 0)
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    assert [record["step"] for record in records if "held_out_accuracy" in record] == [0, 2, 4]
    assert (records, weights) == run(tmp_path, 0)
    assert (records, weights) != run(tmp_path, 1)


def test_every_byte_is_a_token() -> None:
    tokenizer = character_tokenizer()
    text = "<|user|>12+3=?<|assistant|><think>é文</think>15<|end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("12+3")) == 4
    assert len(tokenizer.encode("<think>")) == 1
    assert len(tokenizer.encode("文")) == 3
