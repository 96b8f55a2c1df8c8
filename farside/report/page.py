"""Writes a run's report: one HTML file that needs nothing else, from whatever its directory holds so far."""

import os
from pathlib import Path

from farside.report import needles, overview, problems, reasoning, training
from farside.report.markup import page
from farside.report.read import read_run


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir/report.html`` and return its path.

    A phase that has not run gets one quiet line. Raises UserError when the directory holds nothing of a run.
    """
    run = read_run(run_dir)
    text = page(
        f"farside run: {run_dir.resolve().name}",
        overview.header(run),
        overview.summary(run),
        overview.data(run),
        training.pretraining(run),
        needles.needles(run),
        training.warm_start(run),
        training.reward_model(run),
        reasoning.reinforcement(run),
        reasoning.samples(run),
        problems.problems(run),
        overview.lineage_table(run),
        overview.configuration(run),
    )
    path = run_dir / "report.html"
    temporary = run_dir / "report.html.partial"
    # JSON may smuggle in lone surrogates, which UTF-8 cannot hold.
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, path)  # a browser never sees half a page
    return path
