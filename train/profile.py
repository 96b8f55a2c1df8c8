"""Traces of a few training steps, written into the run directory for chrome://tracing, Perfetto or a reader's eyes."""

import contextlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from farside.configs.schema import ProfileConfig
from farside.configs.stages import profile_range


class StepProfiler:
    """Records the steps of ``profile.steps`` on every rank: profile/rank_N.trace.json, rank_N.operators.txt, and with
    ``profile.memory`` rank_N.memory.json (CPU) or rank_N.memory.pickle (CUDA, for pytorch.org/memory_viz)."""

    def __init__(self, config: ProfileConfig, run_dir: Path, rank: int, device: torch.device) -> None:
        self.steps, self.memory = profile_range(config) or range(0), config.memory
        self.stem, self.cuda = run_dir / "profile" / f"rank_{rank}", device.type == "cuda"
        self.profiler: profile | None = None

    @contextlib.contextmanager
    def around(self, step: int) -> Iterator[None]:
        """The work of one step goes inside; after the last recorded step the files are written."""
        if step in self.steps and self.profiler is None:
            self._start()
        yield
        if self.profiler is not None and step >= self.steps[-1]:
            self.close()

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        self.profiler = profile(activities=activities, profile_memory=self.memory, record_shapes=True)
        if self.cuda and self.memory:
            torch.cuda.memory._record_memory_history()
        self.profiler.start()

    def close(self) -> None:
        """Writes what was recorded, all of the steps or, if the run ends early, some."""
        if self.profiler is None:
            return
        profiler, self.profiler = self.profiler, None
        profiler.stop()
        self.stem.parent.mkdir(exist_ok=True)
        profiler.export_chrome_trace(f"{self.stem}.trace.json")
        events = profiler.key_averages()
        by = "self_device_time_total" if self.cuda else "self_cpu_time_total"
        Path(f"{self.stem}.operators.txt").write_text(events.table(sort_by=by, row_limit=40))
        if not self.memory:
            return
        if self.cuda:
            torch.cuda.memory._dump_snapshot(f"{self.stem}.memory.pickle")
            torch.cuda.memory._record_memory_history(enabled=None)
            return
        allocated = {event.key: event.self_cpu_memory_usage for event in events if event.self_cpu_memory_usage}
        largest = sorted(allocated.items(), key=lambda item: -abs(item[1]))[:40]
        record = {
            "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "allocated_bytes_by_operator": dict(largest),
        }
        Path(f"{self.stem}.memory.json").write_text(json.dumps(record, indent=1))
