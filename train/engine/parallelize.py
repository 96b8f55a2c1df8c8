"""The recipe: tensor parallelism, recomputation, compilation, FSDP, in this order, with the pipeline around them.

Context parallelism needs nothing here: it is handed to the model as ``attend``.
"""

import torch

from farside.configs.schema import Config
from farside.parallel import fsdp
from farside.parallel.mesh import Mesh
from farside.parallel.pipeline import split_layers, stage_numbers, stages_per_rank
from farside.parallel.plan import ShardTable
from farside.parallel.tensor import ShardedTensors, WholeTensors
from farside.train.engine.stages import Staged, StageModule, Stages, Whole
from farside.train.engine.weights import Weights
from farside.train.model.transformer import Part, Transformer
from farside.train.model.wrap import wrap_blocks
from farside.train.precision import COMPUTED, STORED


def parallelize(config: Config, mesh: Mesh, device: torch.device, head: str, entropy: bool) -> tuple[Stages, Weights]:
    """This rank's part of the model, with parameters allocated on the device but not filled."""
    stored, computed = STORED[config.train.dtype], COMPUTED[config.train.dtype]
    tensors = ShardedTensors(mesh.tp) if mesh.tp else WholeTensors()
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in Transformer(config.model, head).named_parameters()}
        parts = [
            Transformer(config.model, head, config.train.loss_chunk, computed, tensors, part).to(stored)
            for part in parts_of_rank(config, mesh, head)
        ]
    modules = [StageModule(part, entropy) for part in parts]
    for module in modules:
        blocks = list(module.part.model.layers.values())
        wrap_blocks(blocks, config.train, device)
        root = module.part if mesh.pp is None else module
        # a pipeline runs many micro-batches through a stage: its weights stay gathered from the first to the last
        dtype = None if computed is stored else computed
        fsdp.apply_fsdp(root, blocks, module.part.exact, mesh, dtype, reshard=mesh.pp is None)
        module.to_empty(device=device)
    weights = Weights(parts, ShardTable(shapes, mesh), config.parallel.pipeline.schedule.value)
    if mesh.pp is None:
        return Whole(parts[0], entropy), weights
    return Staged(modules, config.parallel.pipeline.schedule.value, mesh.pp, config.parallel.tp), weights


def parts_of_rank(config: Config, mesh: Mesh, head: str) -> list[Part]:
    """The layers of this rank's stages; the output head counts as the layers that it costs as much as."""
    stages = parts_of_model(config, head)
    if mesh.pp is None:
        return stages
    schedule = config.parallel.pipeline.schedule.value
    return [stages[number] for number in stage_numbers(schedule, config.parallel.pp, mesh.pp_rank)]


def parts_of_model(config: Config, head: str) -> list[Part]:
    """All stages in order; one without a pipeline."""
    layers, pp = config.model.num_hidden_layers, config.parallel.pp
    if pp == 1:
        return [Part(range(layers))]
    ranges = split_layers(
        layers, stages_per_rank(config.parallel.pipeline.schedule.value) * pp, head_cost(config, head)
    )
    return [Part(held, first=stage == 0, last=stage == len(ranges) - 1) for stage, held in enumerate(ranges)]


def head_cost(config: Config, head: str) -> float:
    """Of the output head, in layers, by matrix operations a token."""
    model = config.model
    attention = 2 * model.head_dim * (model.num_attention_heads + model.num_key_value_heads)
    layer = model.hidden_size * (attention + 3 * model.intermediate_size)
    return model.vocab_size * model.hidden_size / layer if head == "lm" else 0.0
