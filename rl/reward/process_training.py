"""Training the process model: labelled steps of the policy's samples and of corrupted answers, and how well it does on
held-out ones."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farside.configs.errors import UserError
from farside.data.prepare import Prepared
from farside.parallel import comm
from farside.rl.batches import row_size
from farside.rl.origin import difference, note
from farside.rl.reward.calibration import calibration
from farside.rl.reward.corrupt import corrupted_answers
from farside.rl.reward.feed import ShuffledFeed
from farside.rl.reward.labels import Continuations
from farside.rl.reward.model import normalisation
from farside.rl.reward.pairs import read_completion, save_lines
from farside.rl.reward.process import Labelled, ProcessModel, process_loss, step_batch
from farside.rl.reward.sampling import Sampler, sampled_with
from farside.rl.reward.steps import StepFinder
from farside.rl.tasks.registry import make_task
from farside.train.metrics import read_metrics
from farside.train.model.transformer import Transformer
from farside.train.runtime import Runtime

STEPS = "steps.jsonl"
KINDS = ("train", "held_out", "corrupted")
"""held_out: of the policy's samples; corrupted: held-out, too."""


class ProcessTraining:
    """Answers with labelled steps, alike on every rank; kept in steps.jsonl. Construction is collective."""

    def __init__(self, runtime: Runtime, data: Prepared, policy: Path) -> None:
        self.runtime, self.settings = runtime, runtime.config.reward
        self.task = make_task(runtime.config.sft.task)
        self.finder = StepFinder(data.tokenizer, self.task.step_separator)
        path = runtime.dir / STEPS
        made_with = sampled_with(runtime.config, policy)
        there, changed = comm.broadcast_object((path.is_file(), difference(path, made_with)), runtime.mesh.world)
        if changed:
            raise UserError(changed)
        if there:
            self.answers = load_answers(path)
        else:
            self.answers = self._sample(data, policy)
            if runtime.main:
                note(path, made_with)
                save_answers(path, self.answers)
        train = self.answers["train"]
        if len({label >= 0.5 for answer in train for label in answer.labels}) < 2:
            raise UserError(
                "reward: the steps to learn from are all right, all wrong or none; raise reward.continuations or "
                "reward.corrupted, or change sft.steps"
            )
        counts = {kind: sum(len(answer.ends) for answer in answers) for kind, answers in self.answers.items()}
        self.found = f"{counts['train']:,} steps to train on, {counts['held_out']:,} held out"
        self.longest = max(row_size([answer.completion]) for answer in train)
        self.loss_fn = process_loss

    def _sample(self, data: Prepared, policy: Path) -> dict[str, list[Labelled]]:
        settings, config, world = self.settings, self.runtime.config, self.runtime.mesh.world
        found: dict[str, list[Labelled]] = {kind: [] for kind in KINDS}
        if settings.continuations:
            with Sampler(self.runtime, data, policy) as sampler:
                estimate = Continuations(
                    sampler.rollout,
                    sampler.verifier.verify,
                    settings.continuations,
                    config.rl.max_new_tokens,
                    config.train.seed,
                )
                for split, count in (("train", settings.prompts), ("held_out", settings.held_out_prompts)):
                    mine: list[Labelled] = []
                    for answers, verdicts in sampler.answers(split, count, settings.samples):
                        mine += estimate.label(answers, verdicts, self.finder, settings.labels)
                    found[split] = [answer for part in comm.gather_objects(mine, world) for answer in part]
        made = (self.task, data.tokenizer)
        found["train"] += corrupted_answers(*made, "train", settings.corrupted, config.data.seed)
        found["corrupted"] += corrupted_answers(*made, "held_out", settings.held_out_prompts, config.data.seed)
        return found

    def feed(self) -> ShuffledFeed[Labelled]:
        sizes = 2 * self.settings.pairs_per_batch, 2 * self.settings.micro_pairs
        mesh, seed = self.runtime.mesh, self.runtime.config.data.seed
        return ShuffledFeed(self.answers["train"], step_batch, "steps", *sizes, seed, mesh.dp_rank, mesh.dp_size)

    def judge(self, model: Transformer) -> tuple[ProcessModel, dict[str, Any], str]:
        """The trained model, what it does on held-out steps, and that as a line."""
        judge = ProcessModel(model, self.finder)
        corrupted, held_out = self.answers["corrupted"], self.answers["held_out"]
        measured = {"corrupted": on_corrupted(corrupted, judge.logits(corrupted))}
        logits = judge.logits(held_out or corrupted)
        judge.center, judge.scale = normalisation(np.array([float(each.min()) for each in logits]))
        if held_out:
            measured["samples"] = on_labels(held_out, logits)
        accuracy = measured["corrupted"]["accuracy"]
        facts = {
            "step_accuracy": accuracy,
            "train_steps": sum(len(answer.ends) for answer in self.answers["train"]),
            "steps": measured,
        }
        line = f"{accuracy:.1%} of steps up to a planted mistake judged rightly" + (
            f"; {measured['samples']['accuracy']:.1%} of steps of the policy's own answers" if held_out else ""
        )
        return judge, facts, line


def on_labels(answers: Sequence[Labelled], logits: Sequence[Tensor]) -> dict[str, Any]:
    """Share of steps on their label's side of 1/2, beside that of always saying what is commoner, and calibration."""
    labels = torch.tensor([label for answer in answers for label in answer.labels]) >= 0.5
    said = torch.cat(list(logits))
    commoner = max(float(labels.double().mean()), float((~labels).double().mean()))
    return {
        "accuracy": float(((said > 0) == labels).double().mean()),
        "commoner": commoner,
        "count": len(labels),
        "calibration": calibration(said.double().sigmoid().tolist(), labels.tolist()),
    }


def on_corrupted(answers: Sequence[Labelled], logits: Sequence[Tensor]) -> dict[str, Any]:
    """As ``on_labels``, of the steps up to the first wrong one: what comes after it is neither right nor a mistake.
    located: share of answers whose first step below 1/2 is the first wrong one, or that have neither."""
    firsts = [_first(answer.labels) for answer in answers]
    cut = [
        Labelled(answer.completion, answer.ends[: first + 1], answer.labels[: first + 1])
        for answer, first in zip(answers, firsts)
    ]
    said = [each[: first + 1] for each, first in zip(logits, firsts)]
    located = [_first((each > 0).tolist()) == first for each, first in zip(logits, firsts)]
    return {**on_labels(cut, said), "located": sum(located) / len(located)}


def _first(labels: Sequence[float]) -> int:
    """Index of the first wrong step; one past the last if there is none."""
    return next((index for index, label in enumerate(labels) if label < 0.5), len(labels))


def save_answers(path: Path, answers: Mapping[str, Sequence[Labelled]]) -> None:
    """As JSONL, an answer a line with its kind."""
    save_lines(path, ({"kind": kind, **asdict(answer)} for kind, members in answers.items() for answer in members))


def load_answers(path: Path) -> dict[str, list[Labelled]]:
    answers: dict[str, list[Labelled]] = {kind: [] for kind in KINDS}
    for record in read_metrics(path):
        answers[record["kind"]].append(
            Labelled(read_completion(record["completion"]), record["ends"], record["labels"])
        )
    return answers
