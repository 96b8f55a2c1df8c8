"""Inputs of recomputed blocks in host memory between the forward and the backward pass.

With full recomputation a block keeps its input and nothing else; here that goes too, so that what a forward pass keeps
on the device does not grow with depth. The copies run beside the computation (DeepSpeed ALST, arXiv 2506.13996).
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@dataclass(frozen=True)
class Fetched:
    """A tensor on its way back; ``arrived`` makes whatever computes with it wait until it is there."""

    tensor: Tensor
    arrived: Callable[[], None]


class Transfer(Protocol):
    def send(self, x: Tensor) -> Tensor:
        """Starts to copy a tensor into host memory; returns the copy to be."""
        ...

    def fetch(self, host: Tensor) -> Fetched:
        """Starts to copy it back."""
        ...


class CpuTransfer:
    """The twin without a device: copies within memory, so that values and lifetimes are those of the real one."""

    def send(self, x: Tensor) -> Tensor:
        return x.detach().clone()

    def fetch(self, host: Tensor) -> Fetched:
        return Fetched(host.clone(), lambda: None)


class CudaTransfer:
    """Pinned memory, and a stream of its own in which copies follow one another. It has not been run yet."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def send(self, x: Tensor) -> Tensor:
        host = torch.empty_like(x, device="cpu", pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            host.copy_(x.detach(), non_blocking=True)
        x.record_stream(self.stream)  # else its memory could be given away before the copy is over
        return host

    def fetch(self, host: Tensor) -> Fetched:
        with torch.cuda.stream(self.stream):
            x = host.to(self.device, non_blocking=True)
            done = self.stream.record_event()

        def arrived() -> None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(done)
            x.record_stream(computing)

        return Fetched(x, arrived)


@dataclass(eq=False)
class Held:
    """before: the tensor that was put away before this one, and so is wanted after it."""

    host: Tensor
    before: "weakref.ref[Held] | None"
    fetched: Fetched | None = None


class Offload:
    """Wraps functions whose saved inputs are put away. One for all blocks of a model: while one block is computed
    again, the input of the one before it is fetched."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.last: weakref.ref[Held] | None = None

    def wrap(self, recomputed: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """recomputed: saves its inputs, nothing else."""

        def offloaded(*args: Any) -> Tensor:
            with saved_tensors_hooks(self._put, self._get):
                return recomputed(*args)

        return offloaded

    def _put(self, x: Tensor) -> Held:
        held = Held(self.transfer.send(x), self.last)
        self.last = weakref.ref(held)
        return held

    def _get(self, held: Held) -> Tensor:
        wanted, held.fetched = held.fetched or self.transfer.fetch(held.host), None
        before = held.before() if held.before is not None else None
        if before is not None and before.fetched is None:
            before.fetched = self.transfer.fetch(before.host)
        wanted.arrived()
        return wanted.tensor


def offload_to_host(device: torch.device) -> Offload:
    return Offload(CudaTransfer(device) if device.type == "cuda" else CpuTransfer())
