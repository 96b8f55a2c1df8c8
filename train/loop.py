"""The training loop. It owns time: steps, stages, checkpoints, hooks. The engine computes, the loader feeds."""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from farside.configs.schema import Config
from farside.configs.stages import Stage
from farside.data.batch import Batch
from farside.parallel import comm
from farside.train.checkpoint.store import CheckpointStore
from farside.train.console import StepPrinter
from farside.train.engine.base import Engine, Outputs
from farside.train.loss import LossFn
from farside.train.metrics import MetricsWriter
from farside.train.model.flops import peak, utilisation
from farside.train.precision import COMPUTED
from farside.train.profile import StepProfiler
from farside.train.runtime import Runtime, Stopped, write_status
from farside.train.schedule import lr_factor


@dataclass(frozen=True)
class StepInfo:
    """What hooks see after a step. step counts from 1."""

    step: int
    stage: Stage


class Feed(Protocol):
    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches of the stage's step ``step`` (from 0)."""
        ...


class Hook(Protocol):
    every: int

    def __call__(self, info: StepInfo) -> None: ...


@dataclass
class Progress:
    """What a checkpoint stores beside tensors: data cursors are functions of ``step``."""

    step: int = 0
    tokens: int = 0
    trained_length: int = 0
    """Longest sample ever trained on, parents included."""

    def record(self, stage: Stage) -> dict[str, Any]:
        return {**vars(self), "stage": stage.name, "rope": stage.rope.record()}


class TrainLoop:
    """Runs stages one after the other from wherever ``progress`` stands."""

    def __init__(
        self,
        runtime: Runtime,
        engine: Engine,
        stages: Sequence[Stage],
        make_loader: Callable[[Stage], Feed],
        loss_fn: LossFn,
        store: CheckpointStore,
        title: str,
        hooks: Sequence[Hook] = (),
        after_stage: Callable[[Stage], None] = lambda stage: None,
    ) -> None:
        self.runtime, self.engine, self.stages, self.loss_fn = runtime, engine, list(stages), loss_fn
        self.make_loader, self.store, self.hooks, self.after_stage = (
            make_loader,
            store,
            list(hooks),
            after_stage,
        )
        self.config: Config = runtime.config
        self.title = title
        self.last_step = self.stages[-1].last_step

    def run(self, progress: Progress) -> None:
        """Trains to the last step. Raises Stopped after saving if asked to stop."""
        runtime = self.runtime
        self.metrics = MetricsWriter(runtime.dir, progress.step) if runtime.main else None
        self.printer = StepPrinter(self.title, self.last_step, self.config.logging.every, silent=not runtime.main)
        self.peak = peak(runtime.device, COMPUTED[self.config.train.dtype]) if runtime.main else 1.0
        self.profiler = StepProfiler(self.config.profile, runtime.dir, runtime.mesh.dp_rank, runtime.device)
        try:
            for stage in self.stages:
                if progress.step <= stage.last_step:
                    self._run_stage(stage, progress)
        finally:
            self.profiler.close()
            self.printer.close()
            if self.metrics:
                self.metrics.close()

    def _run_stage(self, stage: Stage, progress: Progress) -> None:
        pulse = self.runtime.pulse
        pulse.expect_slow(progress.step + 1)
        self.engine.set_rope(stage.rope)
        loader = self.make_loader(stage)
        while progress.step < stage.last_step:
            started = time.perf_counter()
            pulse.beat("data", progress.step + 1)
            local_step = progress.step - stage.first_step
            microbatches = loader.step(local_step)
            # one reduction decides both the loss's denominator and whether to stop: all ranks agree at this boundary
            mesh = self.runtime.mesh
            mine = microbatches if mesh.leads else []  # of the ranks that share samples one counts them
            total_weight, pairs, stop = comm.sum_floats(
                [
                    sum(batch.weight for batch in mine),
                    sum(batch.visible_pairs for batch in mine),
                    float(self.runtime.stop.requested),
                ],
                mesh.world,
                self.runtime.device,
            )
            if stop:
                self._stop(stage, progress)
            lr = stage.lr * lr_factor(self.config.schedule, local_step, stage.steps)
            with self.profiler.around(progress.step + 1):
                pulse.beat("forward")
                outputs = self.engine.forward_backward(microbatches, pulse.around(self.loss_fn), total_weight)
                pulse.beat("step")
                stats = self.engine.step(lr)
            progress.step += 1
            progress.tokens += stage.global_batch_size * stage.seq_len
            progress.trained_length = max(progress.trained_length, stage.seq_len)
            self._record(stage, progress, outputs, stats.grad_norm, lr, pairs, time.perf_counter() - started)
            self._call_hooks(stage, progress)  # before saving: a kill in between repeats them, it does not lose them
            if progress.step % self.config.checkpoint.every == 0 or progress.step == stage.last_step:
                self._save(stage, progress)
        self.after_stage(stage)

    def _call_hooks(self, stage: Stage, progress: Progress) -> None:
        try:
            for hook in self.hooks:
                if hook.every and progress.step % hook.every == 0 and progress.step < stage.last_step:
                    self.runtime.pulse.beat("eval")
                    hook(StepInfo(progress.step, stage))
        except Stopped:
            self._save(stage, progress)
            raise

    def _record(
        self,
        stage: Stage,
        progress: Progress,
        outputs: Outputs,
        grad_norm: torch.Tensor,
        lr: float,
        pairs: float,
        seconds: float,
    ) -> None:
        if not self.metrics:
            return
        tokens = stage.global_batch_size * stage.seq_len
        possible = self.peak * self.runtime.mesh.dims.world_size * seconds
        record = {
            "step": progress.step,
            "tokens": progress.tokens,
            "loss": outputs.loss.item(),
            "grad_norm": grad_norm.item(),
            "lr": lr,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            **utilisation(self.config.model, stage.seq_len, tokens, pairs, possible),
            "peak_memory_bytes": peak_memory_bytes(self.runtime.device),
            "stage": stage.name,
            "seq_len": stage.seq_len,
            **{name: value.item() for name, value in outputs.metrics.items()},
        }
        self.metrics.write(record)
        self.printer.step(record)

    def _save(self, stage: Stage, progress: Progress) -> None:
        self.runtime.pulse.beat("save")
        self.store.save(self.engine, progress.step, progress.record(stage))
        if self.runtime.main:
            write_status(self.runtime.dir, "running", step=progress.step, steps=self.last_step)

    def _stop(self, stage: Stage, progress: Progress) -> None:
        self._save(stage, progress)
        self.printer.say(f"stopped at step {progress.step}, checkpoint saved; the same command goes on from there")
        raise Stopped(f"asked to stop at step {progress.step}")


def peak_memory_bytes(device: torch.device) -> int:
    """Of this process: allocated on the accelerator, or resident on the CPU (Linux counts KiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
