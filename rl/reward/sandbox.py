"""Runs a model's Python program: killable, limited, and apart from everything else where the kernel allows it.

docs/tasks.md says what it stops and what not. It is no defence against a bug of the kernel.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from farside.rl.reward.sandbox_child import Settings

GRACE_SECONDS = 1.5
"""For starting and clearing up, beyond the program's own time."""
FLAGS = ("-s", "-S", "-P", "-B", "-X", "utf8")
"""The standard library alone; modules beside the program only if it asks for them."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    kind: str
    """"" if it returned 0; else timeout, memory or crash."""
    detail: str
    output: str
    """What it wrote to its standard output, cut off at ``output_bytes``."""


@dataclass(frozen=True)
class Sandbox:
    """Limits of a program.

    isolated: whether it gets namespaces of its own (no network, no other process, no file but the interpreter's and the
    system's libraries); else limits alone. seconds: of wall clock. memory_bytes: address space of each process.
    output_bytes: of standard output, and of any file.
    """

    isolated: bool
    seconds: float = 2.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 4 << 20

    def run(self, program: str, given: str = "", seconds: float | None = None, **files: str) -> Outcome:
        """Runs the text of a program on the standard input ``given``; files: names (dots as "__") and texts beside it.

        Raises:
            RuntimeError: the sandbox itself failed.
        """
        seconds = self.seconds if seconds is None else seconds
        texts = {name.replace("__", "."): text for name, text in files.items()} | {"program.py": program}
        with (
            tempfile.TemporaryFile() as source,
            tempfile.TemporaryFile() as stdin,
            tempfile.TemporaryFile() as stdout,
            tempfile.TemporaryFile() as stderr,
            tempfile.TemporaryFile() as status,
            nullcontext("/")  # its own, in memory
            if self.isolated
            else tempfile.TemporaryDirectory(prefix="farside-program-", ignore_cleanup_errors=True) as folder,
        ):
            for file, content in ((source, json.dumps(texts).encode()), (stdin, given.encode("utf-8", "replace"))):
                file.write(content)
                file.seek(0)
            settings = self._settings(folder, source.fileno(), status.fileno(), seconds)
            self._start_and_wait(settings, stdin, stdout, stderr)
            report = json.loads(_text(status, 4096) or '{"failed": "it left no word of how the program ended"}')
            if "failed" in report:
                raise RuntimeError(f"the sandbox failed: {report['failed']}")
            kind, detail = _ended(report, seconds, _text(stderr, self.output_bytes))
            return Outcome(kind, detail, _text(stdout, self.output_bytes))

    def check(self) -> str:
        """Why it does not work on this machine; empty if it does."""
        try:
            outcome = Sandbox(self.isolated, seconds=10.0).run("print(6 * 7)")
        except RuntimeError as error:
            return str(error)
        return "" if outcome.output == "42\n" else f"the sandbox failed: {outcome.detail or outcome.output!r}"

    def _settings(self, folder: str, files_fd: int, status_fd: int, seconds: float) -> Settings:
        interpreter = os.path.realpath(sys.executable)
        environment = {
            "HOME": ".",
            "TMPDIR": ".",
            "PYTHONHASHSEED": "0",  # one program, one output
            "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}",
        }
        readable = {sys.base_prefix, sys.base_exec_prefix}
        if not any(Path(interpreter).is_relative_to(path) for path in readable):
            readable.add(interpreter)
        return Settings(
            isolated=self.isolated,
            folder=folder,
            files_fd=files_fd,
            status_fd=status_fd,
            command=[interpreter, *FLAGS, "program.py"],
            readable=sorted(readable),
            environment=environment,
            seconds=seconds,
            memory_bytes=self.memory_bytes,
            file_bytes=self.output_bytes,
        )

    def _start_and_wait(self, settings: Settings, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> None:
        script = Path(__file__).with_name("sandbox_child.py")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), json.dumps(vars(settings))],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={},
            cwd=settings.folder,
            pass_fds=(settings.files_fd, settings.status_fd),
            start_new_session=True,
        )
        try:
            process.wait(settings.seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # it left no status, which is told
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _ended(report: dict[str, int], seconds: float, complaint: str) -> tuple[str, str]:
    """(kind, detail)."""
    last = complaint.strip().rpartition("\n")[2][:200]
    if "timeout" in report or report.get("signal") == signal.SIGXCPU:
        return "timeout", f"timeout after {seconds:.1f} s"
    if last.startswith("MemoryError"):
        return "memory", "memory"
    if "signal" in report:
        return "crash", f"crash: signal {report['signal']}"
    if report["exit"]:
        return "crash", f"crash: {last}" if last else f"crash: exit status {report['exit']}"
    return "", ""


def _text(file: IO[bytes], most: int) -> str:
    file.seek(0)
    return file.read(most).decode("utf-8", "replace")
