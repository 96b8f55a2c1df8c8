"""The verifier's child process: one JSON object a line in, one out. Started by verifier.py; imports no torch.

First line in: ``{"task": fields of TaskConfig, "memory_bytes": int, "parent": pid}``. First line out:
``{"ready": true}`` or ``{"failed": text}``. Then, for each ``{"id", "prompt", "text"}``, one
``{"id", "mark", "detail", "kind"}``. Ends when its input ends, or with its parent.
"""

import ctypes
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from farside.configs.schema import TaskConfig
from farside.rl.types import Prompt, Task

MAX_DETAIL = 300
"""Characters of a verdict's detail."""
PR_SET_PDEATHSIG = 1


def confine(memory_bytes: int, parent: int) -> None:
    """Caps this process's address space (bytes), forbids core dumps and ties its life to the parent's."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)


def take_stdout() -> BinaryIO:
    """The reply pipe under a private descriptor; descriptor 1 leads nowhere: prints cannot forge replies."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return replies


def serve(task: Task, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answers requests until they end."""
    own = os.getpid()
    _send(replies, {"ready": True})
    for line in requests:
        request = json.loads(line)
        reply = _judge(task, request)
        if os.getpid() != own:
            os._exit(0)  # a task forked: the copy must not answer in our name
        _send(replies, {"id": request["id"], **reply})


def _judge(task: Task, request: dict[str, Any]) -> dict[str, str]:
    try:
        verdict = task.verify(Prompt(**request["prompt"]), request["text"])
    except BaseException as error:
        # BaseException: SystemExit and math-verify's TimeoutException are a task's faults too, not our end.
        kind = "memory" if isinstance(error, MemoryError) else "raised"
        return {"mark": "error", "detail": _describe(error), "kind": kind}
    return {"mark": verdict.mark.value, "detail": verdict.detail[:MAX_DETAIL], "kind": verdict.kind}


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:MAX_DETAIL]
    except BaseException:  # the exception's own __str__ raised
        return type(error).__name__


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode("ascii") + b"\n")


def run(make: Callable[[TaskConfig], Task]) -> None:
    """The child's whole life: confined, then serving the task that ``make`` returns."""
    replies = take_stdout()
    requests = sys.stdin.buffer
    settings = json.loads(requests.readline())
    confine(settings["memory_bytes"], settings["parent"])
    logging.disable(logging.CRITICAL)  # math-verify logs every answer it cannot read
    try:
        task = make(TaskConfig(**settings["task"]))
    except Exception as error:
        _send(replies, {"failed": _describe(error)})  # in words rather than as a death
        return
    serve(task, requests, replies)


def make_ready(config: TaskConfig) -> Task:
    # Imported here: inside ``run``'s confinement and error report.
    from farside.rl.reward.equivalence import warm_up
    from farside.rl.tasks.problems import ProblemTask
    from farside.rl.tasks.registry import make_task

    task = make_task(config)
    if isinstance(task, ProblemTask):
        warm_up()
    return task


if __name__ == "__main__":
    run(make_ready)
