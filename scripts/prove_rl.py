"""Do the algorithms learn? Small policies on one CPU thread, several seeds, with a control; docs/rl_proofs.md.

python scripts/prove_rl.py run [--seconds 240] [--only NAME ...]  # what is not done yet; again to go on
python scripts/prove_rl.py write                                  # table and pictures from what is done

A run is (study, seed); it begins at a warm start that all studies of a task and seed share. Results are lines of
runs/proofs/results.jsonl. Budgets are iterations, or CPU seconds of sampling, scoring and updating without
evaluations.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from farside.configs import compose
from farside.rl.study import Budget, Study, Weights, shuffled
from farside.rl.tasks.registry import make_task

RESULTS = Path("runs/proofs")
PAGE, PICTURE = Path("docs/rl_proofs.md"), "images/rl_proofs_{}.png"
BEGIN, END = "<!-- written by scripts/prove_rl.py: -->", "<!-- end -->"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Task:
    """words: overrides of experiment=proof. enough: accuracy at which the warm start ends."""

    title: str
    words: tuple[str, ...]
    enough: float


@dataclass(frozen=True)
class Arm:
    """One study. words: overrides on top of its task's. shuffled: the control, rewards dealt out anew."""

    name: str
    task: str
    budget: Budget
    words: tuple[str, ...]
    seeds: Sequence[int] = SEEDS
    shuffled: bool = False


SEARCH = ("sft.task.full_share=0.7", "sft.task.compact_share=0.3", "sft.task.tries=4", "sft.steps=700")
LONG = ("rl.max_new_tokens=120", "rl.prompts_per_step=16", "rl.eval_prompts=300")
COUNTDOWN = ("sft.task.name=countdown", "sft.task.numbers=4", "sft.task.operations='+-'")
DIRECT = (*COUNTDOWN, "sft.task.full_share=0", "sft.task.compact_share=0.7", "rl.max_new_tokens=40", "sft.steps=700")
SYSTEMATIC = ("sft.task.systematic=true", "sft.task.tries=14", "sft.task.full_share=0.4", "sft.task.compact_share=0")
WIDER = ("model.hidden_size=128", "model.intermediate_size=384", "model.num_hidden_layers=4", "model.head_dim=32")
TASKS = {
    "add2": Task("Two-digit addition", (), 0.3),
    "cd4": Task("Countdown, four numbers, + and -; worked answers without a search", DIRECT, 0.25),
    "cd4_search": Task(
        "The same with worked answers that search at random",
        (*COUNTDOWN, *SEARCH, *LONG),
        0.25,
    ),
    "cd4_systematic": Task(
        "The same with worked answers of which four in ten search in a fixed order and the others show no work",
        (*COUNTDOWN, *SYSTEMATIC, "sft.steps=400", "rl.max_new_tokens=180", "rl.prompts_per_step=16"),
        1.0,
    ),
    "cd4_many": Task(
        "The same without a search, numbers to 15 instead of 9, by a model of 0.8M parameters",
        (*DIRECT, *WIDER, "sft.task.largest=15", "sft.lr=3e-3"),
        0.3,
    ),
}
LEVELS = ("sft.task.min_numbers=2", "rl.curriculum.pool=8192", "rl.curriculum.unlock_at=0.6")
SHORT, MIDDLE, LONGER = Budget(steps=150), Budget(steps=200), Budget(steps=450)
MUON, ADAM = "optim.kind=muon", "optim.kind=adamw"
GRPO = (ADAM, "rl.algorithm=grpo", "rl.lr=4e-4")
K15 = (MUON, "rl.algorithm=k15", "rl.lr=1.5e-3")
ARMS = [
    Arm("grpo", "add2", Budget(seconds=45), GRPO),
    Arm("k15", "add2", Budget(seconds=45), K15),
    Arm("k2", "add2", Budget(seconds=45), (MUON, "rl.algorithm=k2", "rl.lr=1.5e-3")),
    Arm("shuffled", "add2", Budget(seconds=20), GRPO, shuffled=True),
    Arm("dr_grpo", "add2", Budget(seconds=20), (ADAM, "rl.algorithm=dr_grpo", "rl.lr=4e-4")),
    Arm("rloo", "add2", Budget(seconds=20), (ADAM, "rl.algorithm=rloo", "rl.lr=4e-4")),
    Arm("reinforce_pp", "add2", Budget(seconds=20), (ADAM, "rl.algorithm=reinforce_pp", "rl.lr=4e-4")),
    Arm("ppo", "add2", Budget(seconds=40), (ADAM, "rl.algorithm=ppo", "rl.lr=4e-4", "rl.critic.lr=1e-3")),
    Arm("k15, longer", "add2", Budget(seconds=100), K15),
    Arm("grpo", "cd4", SHORT, GRPO),
    Arm("entropy", "cd4", SHORT, (*GRPO, "rl.entropy_weight=0.01")),
    Arm("prioritised", "cd4", SHORT, (*GRPO, "rl.curriculum.pool=2048", "rl.curriculum.prioritised=true")),
    Arm("curriculum", "cd4", SHORT, (*GRPO, *LEVELS)),
    Arm("kl", "cd4", SHORT, (*GRPO, "rl.kl.weight=0.02")),
    Arm("two_updates", "cd4", SHORT, (*GRPO, "rl.updates_per_step=2")),
    Arm("clip_higher", "cd4", SHORT, (*GRPO, "rl.updates_per_step=2", "rl.clip_high=0.28")),
    Arm("muon", "cd4", SHORT, (*GRPO, MUON, "rl.lr=1.5e-3")),
    Arm("k15", "cd4", SHORT, K15),
    Arm("grpo, longer", "cd4", LONGER, GRPO),
    Arm("entropy, longer", "cd4", LONGER, (*GRPO, "rl.entropy_weight=0.01")),
    Arm("grpo", "cd4_search", Budget(seconds=240), GRPO, seeds=(0,)),
    Arm("grpo", "cd4_systematic", MIDDLE, GRPO),
    Arm("k15", "cd4_systematic", MIDDLE, K15),
    Arm("k15, longer", "cd4_systematic", Budget(steps=400), K15, seeds=(1,)),
    Arm(
        "k15, partial rollouts",
        "cd4_systematic",
        MIDDLE,
        (*K15, "rl.partial_tokens=48", "rl.max_staleness=2"),
        seeds=(2,),
    ),
    Arm("muon", "cd4_systematic", MIDDLE, (*GRPO, MUON, "rl.lr=1.5e-3"), seeds=(2,)),
    Arm("shuffled", "cd4_systematic", Budget(steps=60), K15, shuffled=True),
    Arm("entropy", "cd4_many", Budget(seconds=300), (*GRPO, "rl.lr=3e-4", "rl.entropy_weight=0.01"), seeds=(0,)),
]


def warm_start(task: str, seed: int) -> tuple[Weights, dict[str, Any]]:
    """The policy that every arm of the task and seed begins with, made once."""
    path = RESULTS / "warm" / f"{task}-{seed}.safetensors"
    told = path.with_suffix(".json")
    if not told.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        config = compose.compose(["experiment=proof", *TASKS[task].words, f"train.seed={seed}"])
        study, seen = Study(config, RESULTS), {}
        for seen in study.warm_start(TASKS[task].enough):
            say(f"{task} seed {seed} warm start", seen)
        save_file(Weights.of(study.engine).tensors, path)
        told.write_text(json.dumps(seen))
    return Weights(load_file(path)), json.loads(told.read_text())


def reinforce(arm: Arm, seed: int) -> dict[str, Any]:
    weights, warm = warm_start(arm.task, seed)
    config = compose.compose(["experiment=proof", *TASKS[arm.task].words, *arm.words, f"train.seed={seed}"])
    study = Study(config, RESULTS, shuffled) if arm.shuffled else Study(config, RESULTS)
    study.examined = make_task(compose.compose(["experiment=proof", *TASKS[arm.task].words]).sft.task)
    study.load(weights)
    records = []
    for record in study.reinforce(arm.budget, every=0.25):
        records.append(record)
        if "held_out_accuracy" in record:
            say(f"{arm.task} {arm.name} seed {seed}", record)
    looks = [record for record in records if "held_out_accuracy" in record]
    keys = ("step", "seconds", "held_out_accuracy", "accuracy", "entropy", "length")
    return {
        **{"task": arm.task, "arm": arm.name, "seed": seed, "words": arm.words, "warm": warm},
        "before": looks[0]["held_out_accuracy"],
        "after": looks[-1]["held_out_accuracy"],
        "best": max(look["held_out_accuracy"] for look in looks),
        "iterations": records[-1]["step"],
        "samples": records[-1]["step"] * config.rl.prompts_per_step * config.rl.samples_per_prompt,
        "seconds": records[-1]["seconds"],
        "curve": [{key: look[key] for key in keys if key in look} for look in looks],
    }


def say(what: str, record: dict[str, Any]) -> None:
    keys = ("step", "seconds", "loss", "held_out_accuracy", "accuracy", "entropy", "length", "grad_norm")
    print(what, *(f"{key}={record[key]:.4g}" for key in keys if key in record), flush=True)


def done() -> list[dict[str, Any]]:
    path = RESULTS / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def pending(only: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[Arm, int]]:
    known = {(row["task"], row["arm"], row["seed"]) for row in done()}
    everything = [
        (arm, seed) for task in TASKS for seed in seeds for arm in ARMS if (arm.task, seed in arm.seeds) == (task, True)
    ]
    for arm, seed in everything:  # a seed of every study before the next: what fails shows early
        if (arm.task, arm.name, seed) not in known and (not only or {arm.name, arm.task} & set(only)):
            yield arm, seed


def run(seconds: float, only: Sequence[str], seeds: Sequence[int]) -> int:
    """0: nothing is left; 3: time is up."""
    started = time.process_time()
    for arm, seed in pending(only, seeds):
        if time.process_time() - started > seconds:
            return 3
        result = reinforce(arm, seed)
        with (RESULTS / "results.jsonl").open("a") as stream:
            stream.write(json.dumps(result) + "\n")
    return 0


def span(values: Sequence[float]) -> str:
    """Mean (lowest to highest), in percent."""
    ends = f" ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{ends}"


def table(task: str) -> list[str]:
    columns = ["study", "seeds", "before, %", "after, %", "gain", "best on the way, %", "iterations", "CPU s"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for arm in (arm for arm in ARMS if arm.task == task):
        rows = [row for row in done() if (row["task"], row["arm"]) == (task, arm.name)]
        if rows:
            column = {key: [row[key] for row in rows] for key in ("before", "after", "best", "iterations", "seconds")}
            gain = [after - before for before, after in zip(column["before"], column["after"])]
            cells = [f"{arm.name}", str(len(rows)), *(span(column[key]) for key in ("before", "after"))]
            cells += [span(gain), span(column["best"])]
            cells += [f"{statistics.fmean(column[key]):.0f}" for key in ("iterations", "seconds")]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(task: str, path: Path) -> None:
    """Held-out accuracy against what the budgets are in, iterations or CPU seconds: every seed faintly, their mean on
    top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    arms = [arm for arm in ARMS if arm.task == task and any((task, arm.name) == (r["task"], r["arm"]) for r in done())]
    along = "step" if all(arm.budget.steps for arm in arms) else "seconds"
    for number, arm in enumerate(arms):
        curves = [row["curve"] for row in done() if (row["task"], row["arm"]) == (task, arm.name)]
        color = f"C{number % 10}"
        style = "--" if arm.shuffled or number >= 10 else "-"  # there are ten colours
        for curve in curves:
            points = [(point[along], 100 * point["held_out_accuracy"]) for point in curve]
            axes.plot(*zip(*points), color=color, alpha=0.25, linewidth=0.8)
        shared = list(zip(*curves))  # looks are at equal shares of one budget
        middle = [
            (statistics.fmean(p[along] for p in look), 100 * statistics.fmean(p["held_out_accuracy"] for p in look))
            for look in shared
        ]
        axes.plot(*zip(*middle), color=color, linewidth=1.8, label=arm.name, linestyle=style)
    axes.set_xlabel({"step": "iterations of RL", "seconds": "CPU seconds of RL"}[along])
    axes.set_ylabel("held-out problems solved, %")
    axes.set_ylim(0, 102)
    axes.grid(axis="y", linewidth=0.5)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def write() -> None:
    lines: list[str] = []
    for name, task in TASKS.items():
        if any(row["task"] == name for row in done()):
            picture = PICTURE.format(name)
            draw(name, PAGE.parent / picture)
            lines += [f"### {task.title}", "", *table(name), "", f"![{task.title}]({picture})", ""]
    head, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "write"))
    parser.add_argument("--seconds", type=float, default=1e9, help="CPU seconds after which no further run begins")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="studies or tasks")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS, metavar="N", help="two processes share the work")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "write":
        write()
        return 0
    return run(given.seconds, given.only, given.seeds)


if __name__ == "__main__":
    sys.exit(main())
