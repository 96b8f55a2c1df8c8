"""Pipeline parallelism: which stages a rank holds, and torch's schedules behind one call.

``torch.distributed.pipelining`` moves activations and orders the work; this file holds it to what exactness needs:
sums instead of averages (``scale_grads=False``), static shapes (without them the first step runs the model once more),
and equally many micro-batches of one shape on every stage (else a sender hangs).

Stages see micro-batches by number: everything but the activation is on every rank already.

Shapes: B rows of a micro-batch, T tokens of this rank between the blocks, E model dim.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from farside.parallel import comm

Loss = Callable[[tuple[Tensor, ...], int], Tensor]
"""(outputs of the last stage, number of the micro-batch) -> scalar to be differentiated."""

SCHEDULES = {"1f1b": Schedule1F1B, "interleaved": ScheduleInterleaved1F1B, "zbv": ScheduleZBVZeroBubble}
"""1F1B (PipeDream-Flush, arXiv 2006.09503), interleaved (arXiv 2104.04473), zero-bubble V (arXiv 2401.10241)."""


def stages_per_rank(schedule: str) -> int:
    return 1 if schedule == "1f1b" else 2


def stage_numbers(schedule: str, pp: int, rank: int) -> list[int]:
    """The stages that a rank holds: zbv gives the first rank the first and the last one."""
    if schedule == "1f1b":
        return [rank]
    return [rank, 2 * pp - 1 - rank] if schedule == "zbv" else [rank, rank + pp]


def last_rank(schedule: str, pp: int) -> int:
    """The rank that holds the last stage."""
    return 0 if schedule == "zbv" else pp - 1


def split_layers(layers: int, stages: int, head: float) -> list[range]:
    """Contiguous runs of layers, one a stage, with the least possible busiest stage.

    head: cost of the output head in layers; the last stage bears it. Of equal splits, the one whose later stages are
    lighter. Raises ValueError if a stage would have no layer.
    """
    if layers < stages:
        raise ValueError(f"{stages} pipeline stages, but only {layers} layers: every stage needs one")
    least = max(1 + head, layers / stages)
    while True:
        # fill from the back, each stage up to the bound; the least feasible bound grows by fractions of a layer
        last = max(1, min(layers - stages + 1, int(least - head + 1e-9)))
        rest, room = layers - last, stages - 1
        if rest <= room * int(least + 1e-9) or not room:
            break
        least += 1 / 64
    sizes = [rest // room + (number < rest % room) for number in range(room)] if room else []
    sizes.append(last if room else layers)
    starts = [sum(sizes[:number]) for number in range(stages)]
    return [range(start, start + size) for start, size in zip(starts, sizes)]


def ranks_of_stages(schedule: str, pp: int) -> list[int]:
    """The rank of every stage."""
    stages = range(stages_per_rank(schedule) * pp)
    return [next(rank for rank in range(pp) if stage in stage_numbers(schedule, pp, rank)) for stage in stages]


class Pipeline:
    """This rank's stages of one pipeline over micro-batches of one shape, forward and backward. It keeps buffers for
    what arrives.

    parts: modules of this rank's stages, called as part(x, number) with the activation [B, T, E] (for the first stage
    a placeholder) and a tensor that holds the micro-batch's number. activation: shape and dtype between the stages.
    outputs: shapes and dtypes of what the last stage returns.
    """

    def __init__(
        self,
        parts: Sequence[nn.Module],
        schedule: str,
        group: comm.Group,
        count: int,
        activation: Tensor,
        outputs: tuple[Tensor, ...],
    ) -> None:
        assert group is not None
        pp = comm.size(group)
        total = stages_per_rank(schedule) * pp
        assert count >= total
        assert count % pp == 0
        device = activation.device
        number = torch.zeros(1, dtype=torch.long, device=device)
        stages = [
            PipelineStage(
                part,
                stage,
                total,
                device,
                input_args=(number,) if stage == 0 else (activation.detach().requires_grad_(),),
                output_args=outputs if stage == total - 1 else (activation.detach().requires_grad_(),),
                group=group,
            )
            for part, stage in zip(parts, stage_numbers(schedule, pp, comm.rank(group)), strict=True)
        ]
        self.first, self.last = (any(stage.stage_index == end for stage in stages) for end in (0, total - 1))
        self.numbers = torch.arange(count, device=device)
        kind = SCHEDULES[schedule]

        self.schedule = kind(
            stages if issubclass(kind, PipelineScheduleMulti) else stages[0],
            n_microbatches=count,
            loss_fn=self._loss_of,
            scale_grads=False,
        )

    def _loss_of(self, output: Tensor | tuple[Tensor, ...], number: Tensor) -> Tensor:
        return self.loss(output if isinstance(output, tuple) else (output,), int(number))

    def forward_backward(self, loss: Loss) -> None:
        """All micro-batches forward and backward; gradients are left in the parameters. Collective."""
        self.loss = loss
        first, target = (self.numbers,) if self.first else (), self.numbers if self.last else None
        self.schedule.step(*first, number=self.numbers, target=target, return_outputs=False)


@torch.no_grad()
def run_forward(
    parts: Sequence[nn.Module], schedule: str, group: comm.Group, count: int, activation: Tensor
) -> list[tuple[Tensor, ...]]:
    """``count`` micro-batches through the stages: the outputs of each on the rank of the last stage, nothing elsewhere.
    Collective. Arguments are those of Pipeline, but any count will do.

    Written out, because the library's forward-only run of a V schedule fails (torch 2.13).
    """
    pp, rank = comm.size(group), comm.rank(group)
    rank_of = ranks_of_stages(schedule, pp)
    results, under_way = [], []
    for number in torch.arange(count, device=activation.device).split(1):
        held: dict[int, Tensor] = {}
        for stage, part in zip(stage_numbers(schedule, pp, rank), parts, strict=True):
            x: Tensor = number
            if stage - 1 in held:
                x = held.pop(stage - 1)
            elif stage > 0:
                x = comm.receive(torch.empty_like(activation), rank_of[stage - 1], group)
            output = part(x, number)
            if stage == len(rank_of) - 1:
                results.append(output if isinstance(output, tuple) else (output,))
            elif rank_of[stage + 1] == rank:
                held[stage] = output
            else:
                under_way.append(comm.send(output, rank_of[stage + 1], group))
    for sending in under_way:
        sending.wait()
    return results
