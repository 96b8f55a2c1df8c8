"""The training loop. It owns time: steps, stages, checkpoints, hooks. The engine computes, the loader feeds."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from farside.configs.schema import Config
from farside.configs.stages import Stage
from farside.data.digest import batch_digest
from farside.parallel import comm
from farside.train.checkpoint.store import CheckpointStore
from farside.train.console import StepPrinter
from farside.train.engine.base import Engine
from farside.train.guard import Guard, read
from farside.train.hooks import Feed, Hook, ReplicaHook, StepInfo
from farside.train.loss import LossFn
from farside.train.metrics import MetricsWriter
from farside.train.model.flops import peak
from farside.train.precision import COMPUTED
from farside.train.profile import StepProfiler
from farside.train.progress import Diverged, Progress
from farside.train.record import describe_speed, peak_memory_bytes
from farside.train.runtime import Runtime, Stopped, write_status
from farside.train.schedule import lr_factor
from farside.train.stragglers import Stragglers, warning


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
        self.config: Config = runtime.config
        self.hooks = [ReplicaHook(engine, self.config.train.guard.compare_replicas), *hooks]
        self.make_loader, self.store, self.after_stage = make_loader, store, after_stage
        self.title, self.last_step = title, self.stages[-1].last_step

    def run(self, progress: Progress) -> None:
        """Trains to the last step. Raises Stopped after saving if asked to stop."""
        runtime = self.runtime
        self.metrics = MetricsWriter(runtime.dir, progress.step) if runtime.main else None
        self.printer = StepPrinter(self.title, self.last_step, self.config.logging.every, silent=not runtime.main)
        self.peak = peak(runtime.device, COMPUTED[self.config.train.dtype]) * runtime.mesh.dims.world_size
        self.profiler = StepProfiler(self.config.profile, runtime.dir, runtime.mesh.dp_rank, runtime.device)
        self.guard = Guard(self.config.train.guard, progress.guard)
        self.stragglers = Stragglers(self.config.logging.compare_ranks, runtime.mesh.world, runtime.device)
        try:
            for stage in self.stages:
                if progress.step <= stage.last_step:
                    self._run_stage(stage, progress)
        finally:
            self.store.let_end()
            self.stragglers.close()
            self.profiler.close()
            self.printer.close()
            if self.metrics:
                self.metrics.close()

    def _run_stage(self, stage: Stage, progress: Progress) -> None:
        self.runtime.pulse.expect_slow(progress.step + 1)
        self.engine.set_rope(stage.rope)
        if progress.step == stage.first_step:
            self.guard.forget()  # another stage has other losses
        loader = self.make_loader(stage)
        if progress.hooks_due:
            for hook in self.hooks:
                hook.rewind(progress.step - 1)
            self._call_hooks(stage, progress)
        rewound: dict[str, Any] = {}
        while progress.step < stage.last_step:
            record = self._step(stage, progress, loader)
            self._write({**record, **rewound})
            rewound = {}
            if self.guard.gives_up:
                rewound = self._rewind(stage, progress)
                continue
            self._call_hooks(stage, progress)  # before saving: a kill in between repeats them, it does not lose them
            due = progress.step % self.config.checkpoint.every == 0 and not self.guard.streak
            if due or progress.step == stage.last_step:
                self._save(stage, progress)
        self.store.finish()
        progress.left_out = 0
        self.after_stage(stage)

    def _step(self, stage: Stage, progress: Progress, loader: Feed) -> dict[str, Any]:
        """One step; returns its line of metrics.jsonl."""
        started, mesh, pulse = time.perf_counter(), self.runtime.mesh, self.runtime.pulse
        pulse.beat("data", progress.step + 1)
        local_step = progress.step - stage.first_step
        microbatches = loader.step(local_step + progress.left_out)
        # one reduction decides both the loss's denominator and whether to stop: all ranks agree at this boundary
        mine = microbatches if mesh.leads else []  # of the ranks that share samples one counts them
        total_weight, pairs, digest, stop, failed = comm.sum_floats(
            [
                sum(batch.weight for batch in mine),
                sum(batch.visible_pairs for batch in mine),
                batch_digest(mine, mesh.dp_rank * (stage.global_batch_size // mesh.dp_size)),
                float(self.runtime.stop.requested),
                float(self.store.failed),
            ],
            mesh.world,
            self.runtime.device,
        )
        if failed:
            self.store.finish()
        if stop:
            self._stop(stage, progress)
        lr = stage.lr * lr_factor(self.config.schedule, local_step, stage.steps)
        with self.profiler.around(progress.step + 1):
            pulse.beat("forward")
            outputs = self.engine.forward_backward(microbatches, pulse.around(self.loss_fn), total_weight)
            pulse.beat("step")
            stats = self.engine.step(lr, self.guard.judge(outputs.loss))
        learnt = read({"loss": outputs.loss, **vars(stats), **outputs.metrics})  # the host waits for the device here
        progress.step += 1
        progress.tokens += stage.global_batch_size * stage.seq_len
        progress.trained_length = max(progress.trained_length, stage.seq_len)
        return {
            "step": progress.step,
            "tokens": progress.tokens,
            "batch_digest": int(digest),
            **self.guard.settle(learnt, local_step + progress.left_out),
            "lr": lr,
            **describe_speed(stage, self.config.model, pairs, self.peak, time.perf_counter() - started),
            "peak_memory_bytes": peak_memory_bytes(self.runtime.device),
            **self.stragglers.compare(progress.step),
        }

    def _write(self, record: dict[str, Any]) -> None:
        if self.metrics:
            self.metrics.write(record)
            self.printer.step(record)
            if line := warning(record):
                self.printer.say(line)

    def _rewind(self, stage: Stage, progress: Progress) -> dict[str, Any]:
        """Back to the newest checkpoint, and on with the batches after those that went wrong. All ranks come here
        together. Returns what the next step's line says of it."""
        self.runtime.pulse.beat("save")  # as slow as a save: it reads one
        bad = f"{self.guard.streak} bad steps in a row before step {progress.step + 1} of {stage.name}"
        if progress.rewinds >= self.config.train.guard.rewinds:
            raise Diverged(f"{bad}, after {progress.rewinds} returns to a checkpoint (train.guard.rewinds)")
        self.store.finish()
        saved = self.store.resume(self.engine)
        if saved is None:
            raise Diverged(f"{bad}, and no checkpoint to go back to")
        self.engine.set_rope(stage.rope)
        then = Progress.of(saved.state)
        if then.step < stage.first_step:
            raise Diverged(f"{bad}, and the checkpoint at its beginning is corrupt; the same command goes on before it")
        first, count = then.step - stage.first_step + progress.left_out, progress.step - then.step
        told = {"rewound": {"from": progress.step, "to": then.step, "left_out_batches": [first, first + count - 1]}}
        progress.step, progress.tokens, progress.trained_length = then.step, then.tokens, then.trained_length
        progress.left_out, progress.rewinds = progress.left_out + count, progress.rewinds + 1
        self.guard = Guard(self.config.train.guard, then.guard)
        if then.step == stage.first_step:
            self.guard.forget()
        if self.metrics:
            self.metrics.rewind(progress.step)
        for hook in self.hooks:
            hook.rewind(progress.step)
        self.printer.say(f"{bad}: back to step {then.step}, leaving out {count} batches")
        return told

    def _call_hooks(self, stage: Stage, progress: Progress) -> None:
        progress.hooks_due = True  # until all are through
        try:
            for hook in self.hooks:
                if hook.every and progress.step % hook.every == 0 and progress.step < stage.last_step:
                    self.runtime.pulse.beat("eval")
                    hook(StepInfo(progress.step, stage))
        except Stopped:
            self._save(stage, progress)
            self.store.finish()
            raise
        progress.hooks_due = False

    def _save(self, stage: Stage, progress: Progress) -> None:
        self.runtime.pulse.beat("save")
        progress.guard = self.guard.record()
        self.store.save(self.engine, progress.step, progress.record(stage))
        if self.runtime.main:
            write_status(self.runtime.dir, "running", step=progress.step, steps=self.last_step)

    def _stop(self, stage: Stage, progress: Progress) -> None:
        self._save(stage, progress)
        self.store.finish()
        self.printer.say(f"stopped at step {progress.step}, checkpoint saved; the same command goes on from there")
        raise Stopped(f"asked to stop at step {progress.step}")
