"""Recomputation and compilation of the blocks, put around their parts before FSDP shards them.

The order is torchtitan's: what is recomputed, then what is compiled, then FSDP. Full recomputation goes around the
whole block, compiled parts inside; selective recomputation goes around each part and is compiled with it, so that
attention, which lies between the parts, always keeps its output. An MLP that goes chunk by chunk computes its products
again by itself and stays outside of both.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from farside.configs.errors import UserError
from farside.configs.schema import Recompute, TrainConfig
from farside.train.model.offload import offload_to_host

PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
"""Kept by selective recomputation: a few per cent of the memory traffic, nearly all of the work."""


def wrap_blocks(blocks: Iterable[nn.Module], config: TrainConfig, device: torch.device) -> None:
    """In place. Raises UserError if compilation is asked for and cannot be had."""
    if config.compile and device.type == "cpu":
        _check_compiler()
    recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # no dropout: no random state
    products = partial(create_selective_checkpoint_contexts, PRODUCTS)
    offload = offload_to_host(device) if config.offload_activations else None
    parts = ("before_attention", "before_mlp" if config.mlp_chunk else "after_attention")
    for block in blocks:
        wrapped: Any = block
        wrapped.mlp.chunk = config.mlp_chunk
        for part in parts:
            if config.activation_checkpointing is Recompute.selective:
                setattr(wrapped, part, partial(recomputed, getattr(wrapped, part), context_fn=products))
            if config.compile:
                setattr(wrapped, part, torch.compile(getattr(wrapped, part), fullgraph=True))
        if config.activation_checkpointing is Recompute.full:
            wrapped.whole = partial(recomputed, wrapped.whole)
            if offload is not None:
                wrapped.whole = offload.wrap(wrapped.whole)


def _check_compiler() -> None:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            "train.compile: no C++ compiler found; install g++, name one in CXX, or set train.compile=false"
        ) from error
