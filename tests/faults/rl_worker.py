"""RL that kills itself in the middle of something: a worker, and a ``farside`` command that starts it.

The variable KILL names what it is in the middle of and the step (from 1), such as "decode 5".
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

KILL = "KILL"
MIDST = {
    # name: (phase, module, class or None, function, which call of the step, whether to end it first)
    "decode": ("rollout", "farside.train.inference.generate", "Decoding", "step", 2, True),
    "reward": ("score", "farside.rl.reward.verifier", "VerifierPool", "verify", 1, True),
    "update": ("step", "farside.train.optim.build", "Optimizer", "step", 2, True),
    "save": ("save", "farside.train.checkpoint.format", None, "publish", 1, False),
    "sync": ("rollout", "farside.train.inference.decoder", "Decoder", "load", 1, False),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill(what: str, step: str) -> None:
    """From now on. The first of a step's updates, of a round's answers and of the weights is done by then."""
    from importlib import import_module

    from farside.train.liveness import Pulse

    phase, module, owner, function, wanted, ended = MIDST[what]
    place: Any = import_module(module)
    place = getattr(place, owner) if owner else place
    real: Callable[..., Any] = getattr(place, function)
    beat, now = Pulse.beat, {"phase": "", "step": 0, "calls": 0}

    def beating(self: Pulse, name: str, number: int | None = None) -> None:
        beat(self, name, number)
        if self.step != now["step"]:
            now["calls"] = 0
        now.update(phase=name, step=self.step)

    def hurting(*arguments: Any, **more: Any) -> Any:
        # a save is written by a thread, while the next step may have begun; a step may have nothing to decode
        here = arguments[1] == int(step) if what == "save" else now["phase"] == phase and now["step"] >= int(step)
        now["calls"] += here
        if not here or now["calls"] < wanted:
            return real(*arguments, **more)
        if what == "sync":
            real(arguments[0], some(arguments[1]))
        elif ended:
            real(*arguments, **more)
        die()

    Pulse.beat = beating  # type: ignore[method-assign]
    setattr(place, function, hurting)


def some(weights: Iterator[Any]) -> Iterator[Any]:
    """The first three."""
    for _ in range(3):
        yield next(weights)


if __name__ == "__main__":
    if "--resolved" in sys.argv or "RANK" in os.environ:
        if os.environ.get(KILL):
            kill(*os.environ[KILL].split())
        from farside.rl.train import check, main
        from farside.train.runtime import worker_main

        worker_main(main, check=check)
    else:
        from farside.cli import main as command
        from farside.launch.commands import WORKERS

        WORKERS["rl"] = "tests.faults.rl_worker"
        command()
