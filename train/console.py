"""What a terminal shows: lines folded at words to its width; one line a step, and a progress bar below them."""

import io
import os
import shutil
import sys
import textwrap
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

GLUE = "\u00a0"
"""A space at which textwrap does not cut."""


def fold(text: str, indent: int = 0) -> str:
    """``text`` cut at words to the terminal's width, further lines indented; whole where stdout is no terminal: a
    file's reader wants one line. Fields that two spaces part are kept whole ("lr 3e-4")."""
    if not sys.stdout.isatty():
        return text
    fields = [field.replace(" ", GLUE) for field in text.split("  ")] if "  " in text else [text]
    lines = textwrap.wrap(
        "  ".join(fields),
        max(20, shutil.get_terminal_size().columns),
        subsequent_indent=" " * indent,
        break_long_words=False,  # the terminal cuts a long path; copied, it is whole
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace(GLUE, " ")


def say(text: str, indent: int = 0) -> None:
    """Prints one folded line at once."""
    print(fold(text, indent), flush=True)


class _Terminal(io.TextIOWrapper):
    """stdout that goes silent when its terminal is gone (a closed window, a lost connection) and fails nobody."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return self._fall_silent()

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._fall_silent()

    def _fall_silent(self) -> int:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return 0


def outlive_terminal() -> None:
    """From here on a terminal that goes away is no reason for this process to fail."""
    if sys.stdout.isatty():
        sys.stdout = _Terminal(open(1, "wb", closefd=False), encoding="utf-8", line_buffering=True)  # noqa: SIM115


def console() -> Console:
    """rich on stdout; without a terminal nothing is cut."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


class StepPrinter:
    """Prints to stdout. ``steps`` is the last step of the run; ``every`` thins the lines out."""

    def __init__(self, title: str, steps: int, every: int, silent: bool) -> None:
        self.title, self.steps, self.every, self.silent = title, steps, every, silent
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.started, self.first_step = time.monotonic(), None
        self.progress: Progress | None = None
        if self.console.is_terminal and not silent:
            columns = [
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed}/{task.total}"),
            ]
            # stderr is the rank's log already: redirected, warnings would land in the middle of the lines
            options: dict[str, Any] = {"console": self.console, "transient": True, "redirect_stderr": False}
            self.progress = Progress(*columns, TimeRemainingColumn(), **options)
            self.task = self.progress.add_task(title, total=steps)
            self.progress.start()

    def say(self, text: str, indent: int = 2) -> None:
        if not self.silent:
            self.console.print(fold(text, indent), markup=False)

    def step(self, record: dict[str, Any]) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=record["step"])
        if record["step"] % self.every == 0 or record["step"] == self.steps:
            self.say(format_step(self.title, record, self.steps), indent=len(self.title) + 1)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()


FORMATS = {
    "loss": "{:.4f}",
    "reward": "{:.3f}",
    "accuracy": "{:.3f}",
    "length": "{:.1f}",
    "entropy": "{:.3f}",
    "grad_norm": "{:.3f}",
    "lr": "{:.2e}",
    "held_out_accuracy": "{:.3f}",
}
NAMES = {"grad_norm": "grad", "held_out_accuracy": "held-out"}


def format_step(title: str, record: dict[str, Any], steps: int) -> str:
    """One line of at most about 100 characters."""
    width = len(str(steps))
    parts = [f"{title} {record['step']:>{width}}/{steps}"]
    if record.get("stage", title) != title:
        parts.append(f"{record['stage']} {record['seq_len']:,}")
    parts += [f"{NAMES.get(key, key)} {text.format(record[key])}" for key, text in FORMATS.items() if key in record]
    if "skipped" in record:
        parts.append(f"skipped: {record['skipped']}")
    if "tokens_per_second" in record:
        parts.append(f"{record['tokens_per_second']:,.0f} tok/s")
    parts.append(f"{record['seconds']:.2f} s")
    return "  ".join(parts)
