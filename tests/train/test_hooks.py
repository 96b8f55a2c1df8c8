"""What hooks see of a run that is stopped while they work."""

from pathlib import Path

from farside.train.hooks import StepInfo
from farside.train.runtime import Stopped
from tests.ranks import Rank
from tests.train.looping import config_of, train

EVERY, STEPS = 3, 12


class Lines:
    """Keeps the steps that it was called at. stops: how often a call at step 6 is cut short."""

    every = EVERY

    def __init__(self, stops: int = 0) -> None:
        self.steps: list[int] = []
        self.stops = stops

    def __call__(self, info: StepInfo) -> None:
        if info.step == 2 * EVERY and self.stops:
            self.stops -= 1
            raise Stopped("asked to stop")
        self.steps.append(info.step)

    def rewind(self, step: int) -> None:
        self.steps = [known for known in self.steps if known <= step]


def test_what_a_stop_cuts_short_is_done_again_once(tmp_path: Path) -> None:
    """The first hook was through and the second was not; the run is even stopped twice there."""
    alone, config = Rank(0, 1), config_of(STEPS)
    never = train(alone, tmp_path / "never", config, {}, hooks=[Lines(), Lines()])
    first, second = Lines(), Lines(stops=2)
    ends = [train(alone, tmp_path / "cut", config, {}, hooks=[first, second]) for _ in range(3)]
    assert [ran.error for ran in ends] == ["stopped", "stopped", ""]
    assert first.steps == second.steps == list(range(EVERY, STEPS, EVERY))
    assert [ran.progress["hooks_due"] for ran in ends] == [True, True, False]
    assert ends[-1].metrics == never.metrics
    last = max(never.checkpoints)
    assert ends[-1].checkpoints[last] == never.checkpoints[last]
