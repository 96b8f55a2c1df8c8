"""How far preparation is: a bar on a terminal, else a line now and then."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SECONDS = 20
"""Between two lines where there is no terminal."""


class Bar:
    """Counts bytes of text. Use as a context manager; ``begin`` starts anew."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.say, self.clock = say, clock
        self.title, self.done, self.total, self.said = "", 0, 0, clock()
        console = Console(highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        # stderr is left alone: redirected, a worker's last words would land in the middle of the bar
        bar = Progress(*columns, console=console, transient=True, redirect_stderr=False)
        self.rich = bar if console.is_terminal else None
        self.task: TaskID | None = None

    def __enter__(self) -> "Bar":
        if self.rich is not None:
            self.rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.rich is not None:
            self.rich.stop()

    def begin(self, title: str, total: int = 0, done: int = 0) -> None:
        """total: 0 where it is not known."""
        self.title, self.done, self.total, self.said = title, done, total, self.clock()
        if self.rich is not None:
            if self.task is not None:
                self.rich.remove_task(self.task)
            self.task = self.rich.add_task(title, total=total or None, completed=done)

    def advance(self, size: int) -> None:
        self.done += size
        if self.rich is not None:
            assert self.task is not None
            self.rich.update(self.task, completed=self.done)
        elif self.clock() - self.said >= _SECONDS:
            self.said = self.clock()
            of = f" of {self.total / 1e6:,.1f}" if self.total else ""
            self.say(f"{self.title}: {self.done / 1e6:,.1f}{of} MB")
