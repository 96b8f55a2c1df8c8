"""The studies of `scripts/experiments.sh rewards` as Markdown tables on stdout: python scripts/rewards_table.py DIR"""

import json
import sys
from pathlib import Path
from typing import Any

WAYS = ("one", "majority", "score", "min", "product", "vote_min", "vote_product", "any")


def read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where the run has not come so far."""
    return json.loads(path.read_text()) if path.is_file() else {}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def share(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, float) else "–"


def table(header: list[str], rows: list[list[str]]) -> None:
    for row in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(row) + " |")
    print()


def models(root: Path) -> None:
    print("Reward models; per cent.\n")
    rows, choices = [], []
    for path in sorted(root.glob("reward_*")):
        summary = read(path / "summary.json")
        if not summary:
            continue
        steps, best = summary.get("steps", {}), summary.get("best_of", {})
        calibrated = steps.get("corrupted", summary).get("calibration", {})
        planted, own = (steps.get(kind, {}) for kind in ("corrupted", "samples"))
        rows.append(
            [
                path.name.removeprefix("reward_"),
                str(summary.get("train_pairs") or summary.get("train_steps")),
                f"{share(summary.get('held_out_accuracy'))} ({share(summary.get('format_baseline_accuracy'))})",
                f"{share(planted.get('accuracy'))} ({share(planted.get('commoner'))})",
                share(planted.get("located")),
                f"{share(own.get('accuracy'))} ({share(own.get('commoner'))})",
                share(calibrated.get("error")),
                f"{summary['seconds']:.0f}",
            ]
        )
        choices.append([path.name.removeprefix("reward_"), *(share(best.get(way)) for way in WAYS)])
    table(
        [
            "model",
            "pairs or steps",
            "held-out pairs (by format)",
            "planted mistakes, steps (commoner)",
            "first mistake found",
            "own samples, steps (commoner)",
            "calibration error",
            "seconds",
        ],
        rows,
    )
    print("The same held-out problems, 8 answers each, by what is chosen; per cent right.\n")
    table(["model", *WAYS], choices)


def exploited(root: Path) -> None:
    for path in sorted(root.glob("rl_weak*")):
        rows = lines(path / "metrics.jsonl")
        if not rows:
            continue
        alarms = [row["step"] for row in rows if row.get("overoptimisation")]
        print(f"{path.name}: first alarm at step {alarms[0] if alarms else '–'}.\n")
        kept = [row for row in rows if row["step"] % 10 == 0 or ("held_out_accuracy" in row and row["step"] <= 10)]
        kept = [row for row in rows if row in kept or row["step"] in alarms[:1]]
        start = read(path / "summary.json").get("held_out_accuracy_before")
        header = ["step", "score", "sampled, right", "held out, right", "KL from the start", "tokens", "alarm"]
        table(
            header,
            [["0", "", "", share(start), "0", "", ""]]
            + [
                [
                    str(row["step"]),
                    f"{row['reward_model']:.3f}",
                    share(row["accuracy"]),
                    share(row.get("held_out_accuracy")),
                    f"{row['kl_start']:.2f}" if "kl_start" in row else "–",
                    f"{row['length']:.1f}",
                    row.get("overoptimisation", ""),
                ]
                for row in kept
            ],
        )


def compared(root: Path) -> None:
    print("RL at equal samples, held-out accuracy (greedy) by step; per cent.\n")
    runs = {
        path.name.removeprefix("rl_"): {
            row["step"]: row["held_out_accuracy"] for row in lines(path / "metrics.jsonl") if "held_out_accuracy" in row
        }
        for path in sorted(root.glob("rl_verifier*")) + sorted(root.glob("rl_process*"))
    }
    steps = sorted({step for found in runs.values() for step in found})
    table(
        ["run", *map(str, steps)],
        [[name, *(share(found.get(step)) for step in steps)] for name, found in runs.items()],
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("# Reward models: all numbers\n")
    print("Written by `./scripts/experiments.sh rewards`; what they mean is in [rewards.md](rewards.md).\n")
    for part in (models, exploited, compared):
        part(Path(sys.argv[1]))
