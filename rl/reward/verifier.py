"""Verdicts from a killable child process, with a deadline for every item.

Why a process: math-verify's own timeout is SIGALRM, which raises outside the main thread and has scored
whole runs 0; switched off, sympy runs for hours; in an executor, hung workers are never replaced
(verl#5635, AReaL#1426). Here a hang, a crash or a raise costs its own item an ``error`` verdict, and
nothing else. The child is confined in memory, time and lifetime. It is no sandbox: it can read files and
open sockets. What a model wrote as a program runs in one (sandbox.py), below the child.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from types import TracebackType
from typing import Any

from farside.configs.errors import UserError
from farside.configs.schema import TaskConfig
from farside.rl.reward.equivalence import judge
from farside.rl.tasks.dataset import VerifiedTask
from farside.rl.tasks.registry import make_task
from farside.rl.types import Mark, Prompt, Verdict

__all__ = ["VerifierPool", "judge"]

STARTUP_SECONDS = 60.0
"""A child that is not ready by then is a fault of the installation, not of a sample."""
POLL_SECONDS = 0.05
"""How long a death can go unseen while a grandchild holds the pipe open."""
MAX_REPLY = 1 << 16


class VerifierPool:
    """Judges completions in order, in ``workers`` child processes.

    Args:
        config: the task; the children make their own copy.
        timeout_seconds: of each item, from when a ready child takes it; starting a child does not count.
        workers: children at most; each starts when first needed.
        memory_bytes: address space of a child.
        command: starts another child that speaks verifier_child's protocol; then every item goes to it.

    Raises:
        UserError: the task cannot be made.
    """

    def __init__(
        self,
        config: TaskConfig,
        timeout_seconds: float,
        workers: int = 1,
        memory_bytes: int = 2 << 30,
        command: list[str] | None = None,
    ) -> None:
        if timeout_seconds <= 0 or workers < 1:
            raise ValueError(f"timeout_seconds={timeout_seconds} and workers={workers} must be positive")
        self.timeout_seconds = timeout_seconds
        self.restarts = 0
        """Children replaced after a kill or a death."""
        self._quick: VerifiedTask | None = None if command else make_task(config)
        longest = self._quick.longest_seconds if self._quick else 0.0
        if longest >= timeout_seconds:
            raise UserError(
                f"task.code_seconds={config.code_seconds}: a verdict may take {longest} s, so give less, or more than "
                f"that to rl.verifier_timeout_seconds={timeout_seconds}"
            )
        self._settings = {"task": asdict(config), "memory_bytes": memory_bytes}
        self._command = command or [sys.executable, "-P", "-m", "farside.rl.reward.verifier_child"]
        self._children: list[_Child | None] = [None] * workers
        self._spawner = ThreadPoolExecutor(1)
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def verify(self, items: list[tuple[Prompt, str]]) -> list[Verdict]:
        """One verdict an item, in order. May be called from any thread and from forked processes.

        Items that the task can decide by reading them never reach a child.

        Raises:
            UserError, RuntimeError: a child could not be started, so that no verdict means anything.
        """
        verdicts: list[Verdict | None] = [self._decide(prompt, text) for prompt, text in items]
        waiting = deque(index for index, verdict in enumerate(verdicts) if verdict is None)
        if waiting:
            with self._lock:
                self._disown_after_fork()
                self._run(items, waiting, verdicts)
        return [verdict for verdict in verdicts if verdict is not None]

    def close(self) -> None:
        """Kills the children. The pool starts new ones if it is used again."""
        with self._lock:
            self._disown_after_fork()
            for worker, child in enumerate(self._children):
                if child:
                    child.kill()
                self._children[worker] = None
            self._spawner.shutdown(wait=False)
            self._spawner = ThreadPoolExecutor(1)  # starts its thread when first used

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decide(self, prompt: Prompt, text: str) -> Verdict | None:
        return self._quick.decide(prompt, text) if self._quick else None

    def _disown_after_fork(self) -> None:
        if self._owner != os.getpid():
            self._children = [None] * len(self._children)  # the parent's: neither talk to nor kill them
            self._spawner = ThreadPoolExecutor(1)
            self._owner = os.getpid()

    def _run(self, items: list[tuple[Prompt, str]], waiting: deque[int], verdicts: list[Verdict | None]) -> None:
        try:
            while waiting or any(child and child.item is not None for child in self._children):
                for worker in range(len(self._children)):
                    if waiting and self._is_idle(worker):
                        self._hand_out(worker, waiting.popleft(), items)
                self._wait()
                for worker, child in enumerate(self._children):
                    if child and child.item is not None and (verdict := self._outcome(worker, child)):
                        verdicts[child.item], child.item = verdict, None
        except BaseException:
            # Interrupted with items under way: their late replies must not meet the next call.
            for worker, child in enumerate(self._children):
                if child and child.item is not None:
                    self._drop(worker, child)
            raise

    def _is_idle(self, worker: int) -> bool:
        child = self._children[worker]
        return child is None or child.item is None

    def _hand_out(self, worker: int, index: int, items: list[tuple[Prompt, str]]) -> None:
        child = self._children[worker]
        if child is not None and child.death():  # died while idle: no item's fault
            self._drop(worker, child)
            child = None
        if child is None:
            # From a thread that lives as long as the pool: the kernel's death signal follows the starting
            # thread, and the end of a caller's thread would kill the child under another caller's item.
            child = self._spawner.submit(_Child, self._command, self._settings).result()
            self._children[worker] = child
        prompt, text = items[index]
        child.give(index, prompt, text, self.timeout_seconds)

    def _wait(self) -> None:
        poll = select.poll()
        children = [child for child in self._children if child and child.item is not None]
        for child in children:
            child.register(poll)
        left = min((child.deadline - time.monotonic() for child in children), default=0.0)
        poll.poll(1000 * min(POLL_SECONDS, max(0.0, left)))
        for child in children:
            child.pump(self.timeout_seconds)

    def _outcome(self, worker: int, child: "_Child") -> Verdict | None:
        cause = child.death()
        if cause:
            child.pump(self.timeout_seconds)  # its last words
        try:
            reply = child.reply()
        except (ValueError, KeyError, TypeError) as error:
            self._drop(worker, child)
            return Verdict(Mark.error, f"malformed reply: {type(error).__name__}: {error}", "malformed")
        if reply is not None:
            return reply
        if cause:
            self._drop(worker, child)
            if not child.ready:
                raise RuntimeError(f"the verifier did not start: {cause}")
            return Verdict(Mark.error, f"verifier died: {cause}", "crash")
        if time.monotonic() >= child.deadline:
            self._drop(worker, child)
            if not child.ready:
                raise RuntimeError(f"the verifier did not start within {STARTUP_SECONDS} s")
            return Verdict(Mark.error, f"timeout after {self.timeout_seconds} s", "timeout")
        return None

    def _drop(self, worker: int, child: "_Child") -> None:
        child.kill()
        self._children[worker] = None
        self.restarts += 1


class _Child:
    """One child process and the item it works on. Its pipes never block."""

    def __init__(self, command: list[str], settings: dict[str, Any]) -> None:
        # The child sees the modules we see. BLAS threads would eat its address space on wide machines.
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,  # its own group, to be killed whole, and no Ctrl-C from the terminal
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)
        self.item: int | None = None
        self.ready = False
        self.deadline = time.monotonic() + STARTUP_SECONDS
        self._serial = 0
        self._outgoing = _line({**settings, "parent": os.getpid()})
        self._held = b""
        self._incoming = b""

    def give(self, index: int, prompt: Prompt, text: str, timeout_seconds: float) -> None:
        self.item = index
        self._serial += 1
        request = _line({"id": self._serial, "prompt": asdict(prompt), "text": text})
        if self.ready:
            self._outgoing, self.deadline = request, time.monotonic() + timeout_seconds
        else:
            self._held = request  # the deadline starts when the child is ready to take it

    def register(self, poll: "select.poll") -> None:
        poll.register(self._stdout, select.POLLIN)
        if self._outgoing:
            poll.register(self._stdin, select.POLLOUT)

    def pump(self, timeout_seconds: float) -> None:
        """Moves what the pipes take and give."""
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[os.write(self._stdin, self._outgoing) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._outgoing = b""  # it died: death() tells
        try:
            if len(self._incoming) <= MAX_REPLY:
                self._incoming += os.read(self._stdout, MAX_REPLY)
        except BlockingIOError:
            pass
        if not self.ready and b"\n" in self._incoming:
            line, _, self._incoming = self._incoming.partition(b"\n")
            greeting = json.loads(line)
            if "failed" in greeting:
                self.kill()
                raise UserError(f"the verifier could not make its task: {greeting['failed']}")
            self.ready = True
            self._outgoing, self.deadline = self._held, time.monotonic() + timeout_seconds

    def reply(self) -> Verdict | None:
        """The verdict on the item under way, if it has come.

        Raises:
            ValueError, KeyError, TypeError: it is malformed.
        """
        if not self.ready or b"\n" not in self._incoming:
            return None
        line, _, self._incoming = self._incoming.partition(b"\n")
        message = json.loads(line)
        if message["id"] != self._serial:
            raise ValueError(f"reply to request {message['id']}, expected {self._serial}")
        return Verdict(Mark(message["mark"]), str(message["detail"]), str(message["kind"]))

    def death(self) -> str:
        """How the child ended, e.g. "signal 9"; empty while it lives. Does not reap: its pid stays its."""
        if self.process.returncode is not None:
            return "killed"
        end = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if end is None:
            return ""
        return f"exit status {end.si_status}" if end.si_code == os.CLD_EXITED else f"signal {end.si_status}"

    def kill(self) -> None:
        """SIGKILL to the whole process group, then reaps the child."""
        if self.process.returncode is None:
            # Before reaping: until then no other process can get this number.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode("ascii") + b"\n"
