"""A command in a terminal of a chosen width, as a person sees it."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.driver import environment

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


class Terminal:
    """The farside command with a pseudo-terminal as stdin, stdout and stderr."""

    def __init__(self, words: Sequence[str], cwd: Path, columns: int = 80) -> None:
        self.leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        variables = environment(TERM="xterm")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "farside.cli", *words],
            cwd=cwd,
            env={key: value for key, value in variables.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")},
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(follower)
        self.raw = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.leader)

    @property
    def text(self) -> str:
        """What came so far, without colours, carriage returns as line ends."""
        return ESCAPES.sub("", self.raw).replace("\r\n", "\n").replace("\r", "\n")

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.split("\n") if line.strip()]

    def until(self, expected: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while expected not in self.text:
            assert time.monotonic() < deadline, f"{expected!r} did not come: {self.text}"
            if not self._read(0.1):
                assert expected in self.text, f"ended without {expected!r}: {self.text}"

    def type(self, text: str) -> None:
        os.write(self.leader, text.encode())

    def wait(self, seconds: float = 90) -> int:
        """Reads to the end; the exit code."""
        deadline = time.monotonic() + seconds
        while self._read(0.1):
            assert time.monotonic() < deadline, self.text
        return self.process.wait(5)

    def _read(self, seconds: float) -> bool:
        """Whether more may come."""
        if not select.select([self.leader], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.leader, 65536)
        except OSError:  # Linux: nobody has the other end open any more
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)


def _own_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in what a script starts in the background
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed into it becomes SIGINT
