"""Runs of the demo side by side, as a Markdown table on stdout: python scripts/demo_table.py RUN_DIR ..."""

import json
import sys
from pathlib import Path
from typing import Any

from farside.configs import compose

GRIDS = (("base", "before extension"), ("extend-2048", "after it"), ("after_rl", "after RL"))


def read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where the run has not come so far."""
    return json.loads(path.read_text()) if path.is_file() else {}


def greens(run: Path, name: str) -> str:
    grids = read(run / "eval" / name / "niah.json").get("grids", {})
    return " / ".join(str(grid["green"]) for grid in grids.values()) or "–"


def share(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, float) else "–"


def row(run: Path) -> list[str]:
    config = compose.load(run / "config.yaml")
    rl, alone, reward = (read(run / phase / "summary.json") for phase in ("rl", "rl_reward_alone", "reward"))
    seconds = read(run / "status.json").get("seconds")
    return [
        f"{config.data.seed}",
        *(greens(run, name) for name, _ in GRIDS),
        *(share(rl.get(f"held_out_accuracy_{when}")) for when in ("before", "after")),
        share(alone.get("held_out_accuracy_after")),
        f"{share(reward.get('held_out_accuracy'))} ({share(reward.get('format_baseline_accuracy'))})",
        f"{seconds / 60:.1f}" if seconds else "–",
    ]


def main(runs: list[str]) -> None:
    columns = [
        "seed",
        *(f"needles {title}, English / Chinese" for _, title in GRIDS),
        "sums solved before RL, %",
        "after RL",
        "after RL by the reward model alone",
        "reward model, held-out pairs, % (by format)",
        "minutes",
    ]
    for cells in (columns, ["---"] * len(columns), *(row(Path(run)) for run in runs)):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
