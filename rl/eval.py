"""``farside eval math``: how many of a task's held-out problems a checkpoint solves, and what its thinking buys.

Answers are greedy, sampled, and greedy under a forced thinking budget: the thought is cut after so many tokens,
``</think>`` is put behind it, and the model answers (as in s1, arXiv 2501.19393, section 3.1). Every rank has a whole
copy of the policy; they share the problems, and since a sample's random numbers are a function of its problem, the
result does not depend on how many they are.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from farside.configs.errors import UserError
from farside.configs.layout import check_layout
from farside.configs.schema import Config
from farside.parallel import comm
from farside.rl.eval_summary import GREEDY, Answer, summarise
from farside.rl.overthinking import outcome_efficiency, thinking_tokens
from farside.rl.policy import load_unsharded
from farside.rl.reward.verifier import VerifierPool
from farside.rl.rollout.native import NativeRollout
from farside.rl.tasks.files import distinct
from farside.rl.tasks.registry import make_task
from farside.rl.types import Completion, Prompt, Task, Verdict
from farside.train.checkpoint.retention import newest
from farside.train.console import say
from farside.train.inference.generate import Request, decode
from farside.train.metrics import write_json
from farside.train.phase import load_data
from farside.train.runtime import Runtime, Stopped, worker_main


class MathEval:
    """Answers and judges this rank's share of the problems."""

    def __init__(self, runtime: Runtime, rollout: NativeRollout, task: Task, verifier: VerifierPool) -> None:
        self.runtime, self.rollout, self.task, self.verifier = runtime, rollout, task, verifier
        self.tokenizer, self.config = rollout.tokenizer, runtime.config.eval.math
        self.longest = runtime.config.rl.max_new_tokens
        self.prompts = distinct(task, "held_out", self.config.prompts)

    def answers(self) -> list[Answer]:
        """Raises Stopped if the run was asked to stop. Collective."""
        config, world = self.config, self.runtime.mesh.world
        found: list[Answer] = []
        at_once = max(1, self.runtime.config.rl.micro_batch_size // max(config.samples, 1))
        for first in range(0, self.prompts, at_once * comm.size(world)):  # equally many rounds on every rank
            if self.runtime.stop.agreed(self.runtime.mesh, self.runtime.device):
                raise Stopped("asked to stop during an evaluation; it is run again")
            self.runtime.pulse.beat("eval")
            start = first + comm.rank(world) * at_once
            prompts = [self.task.prompt("held_out", i) for i in range(start, min(start + at_once, self.prompts))]
            if prompts:
                found += self._round(prompts)
        parts = comm.gather_objects(found, world)
        return sorted((a for part in parts for a in part), key=lambda a: (a.problem, a.budget or 0, a.sample))

    def _round(self, prompts: list[Prompt]) -> list[Answer]:
        config = self.config
        greedy = self.rollout.generate(prompts, 1, self.longest, 0.0, config.seed)
        found = self._judged(greedy, [GREEDY] * len(prompts))
        for budget in config.budgets:
            found += self._judged(self.cut(greedy, budget), [GREEDY] * len(prompts), budget)
        if config.samples:
            sampled = self.rollout.generate(prompts, config.samples, self.longest, config.temperature, config.seed)
            found += self._judged(sampled, [*range(1, config.samples + 1)] * len(prompts))
        return found

    def cut(self, greedy: Sequence[Completion], budget: int) -> list[Completion]:
        """The greedy answers as they become if no thought may be longer than ``budget`` tokens.

        A thought within the budget stays with its answer as it is, whether it came to an end or not; a longer one is
        cut and closed.
        """
        begin, end = self.tokenizer.think, self.tokenizer.end_think
        cut = {
            number: [*item.tokens[: item.tokens.index(begin) + 1 + budget], end]
            for number, item in enumerate(greedy)
            if thinking_tokens(item.tokens, self.tokenizer) > budget
        }
        most = self.config.answer_tokens
        asked = [Request([*greedy[number].prompt_tokens, *kept], most) for number, kept in cut.items()]
        rest = decode(self.rollout.decoder, asked, self.tokenizer.end).answers if asked else []
        forced = list(greedy)
        for (number, kept), more in zip(cut.items(), rest):
            tokens = [*kept, *more.tokens]
            logprobs = [0.0] * len(tokens)  # of no use: nobody drew what was cut and closed
            text = self.tokenizer.decode(tokens)
            forced[number] = replace(
                greedy[number], tokens=tokens, logprobs=logprobs, text=text, truncated=more.truncated
            )
        return forced

    def _judged(self, items: Sequence[Completion], numbers: Sequence[int], budget: int | None = None) -> list[Answer]:
        verdicts = self.verifier.verify([(item.prompt, item.text) for item in items])
        return [self._answer(item, number, budget, v) for item, number, v in zip(items, numbers, verdicts, strict=True)]

    def _answer(self, item: Completion, number: int, budget: int | None, verdict: Verdict) -> Answer:
        prompt, whole = item.prompt, number == GREEDY and budget is None
        return Answer(
            problem=prompt.index,
            difficulty=str(prompt.metadata.get("difficulty", "all")),
            sample=number,
            budget=budget,
            question=prompt.question,
            reference=prompt.answer,
            text=item.text,
            verdict=verdict.mark.value,
            detail=verdict.detail,
            length=len(item.tokens),
            thinking=thinking_tokens(item.tokens, self.tokenizer),
            efficiency=outcome_efficiency(item, self.verifier, self.tokenizer) if whole else None,
        )


def check(config: Config) -> None:
    """Raises UserError naming the key."""
    check_layout(config)
    settings = config.eval.math
    for key, least in (("prompts", 1), ("samples", 0), ("answer_tokens", 1)):
        if getattr(settings, key) < least:
            raise UserError(f"eval.math.{key} = {getattr(settings, key)}; give at least {least}")
    if settings.temperature <= 0:
        raise UserError(f"eval.math.temperature = {settings.temperature}; give more than 0")
    for key, least in (("k", 1), ("budgets", 0)):
        if any(value < least for value in getattr(settings, key)):
            raise UserError(f"eval.math.{key} = {getattr(settings, key)}; give numbers of at least {least}")


def main(runtime: Runtime) -> None:
    """The checkpoint is eval.checkpoint, --init-from, or the newest of the run directory."""
    started, config = time.monotonic(), runtime.config
    check(config)
    path = Path(config.eval.checkpoint) if config.eval.checkpoint else runtime.init_from or newest(runtime.dir)
    if path is None:
        raise UserError(f"{runtime.dir}: no checkpoint to evaluate; name one with eval.checkpoint=PATH")
    data = load_data(runtime)
    model, checkpoint = load_unsharded(runtime, data, path, "lm")
    task = make_task(config.sft.task)
    with VerifierPool(config.sft.task, config.rl.verifier_timeout_seconds) as verifier:
        rollout = NativeRollout.of(config.rl, model, data.tokenizer, checkpoint.step)
        answers = MathEval(runtime, rollout, task, verifier).answers()
    if runtime.main:
        described = {"path": str(checkpoint.path), "hash": checkpoint.hash, "step": checkpoint.step}
        result = {
            **{"name": config.eval.math.name, "task": config.sft.task.name, "checkpoint": described},
            "prompts": distinct(task, "held_out", config.eval.math.prompts),
            **{key: getattr(config.eval.math, key) for key in ("samples", "temperature")},
            **summarise(answers, config.eval.math),
            "seconds": time.monotonic() - started,
        }
        write_result(runtime.dir / "eval" / config.eval.math.name, result, answers)
        say(told(result), indent=2)


def write_result(folder: Path, result: dict[str, Any], answers: Sequence[Answer]) -> None:
    """math.jsonl, math.png, and last math.json, which tells that it is whole."""
    from farside.rl.eval_plots import draw

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "math.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
    draw(result, folder / "math.png")
    write_json(folder / "math.json", result)


def told(result: dict[str, Any]) -> str:
    """The result in one line."""
    parts = [f"greedy {result['greedy']:.1%}"]
    for name, key in (("pass", "pass_at_k"), ("maj", "maj_at_k")):
        parts += [f"{name}@{k} {value:.1%}" for k, value in list(result[key].items())[-1:]]
    return f"math {result['name']}: {', '.join(parts)} of {result['prompts']} problems, {result['seconds']:.0f} s"


if __name__ == "__main__":
    worker_main(main, check=check, evaluates=True)
