"""Whether a model can be cut as the configuration wants it, asked before any process or group is there. No torch."""

from farside.configs.errors import UserError
from farside.configs.ranges import check_ranges
from farside.configs.schema import Config, ModelConfig, Recompute, TrainConfig


def check_layout(config: Config) -> None:
    """Raises UserError for degrees that cannot be, a model that they cannot cut, and keys that cannot go together."""
    check_ranges(config)
    for key, degree in vars(config.parallel).items():
        if isinstance(degree, int) and degree < 1:
            raise UserError(f"parallel.{key} = {degree}; degrees are at least 1")
    check_model(config.model)
    _check_tensors(config)
    _check_pipeline(config)
    _check_context(config)
    check_memory(config.train)


def check_model(model: ModelConfig) -> None:
    """Raises UserError for a shape that no model can have."""
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
        if getattr(model, key) < 1:
            raise UserError(f"model.{key} = {getattr(model, key)}; give at least 1")
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if min(heads, kv_heads) < 1 or heads % kv_heads:
        raise UserError(
            f"model.num_key_value_heads = {kv_heads} does not divide model.num_attention_heads = {heads}; use a divisor"
        )
    if model.head_dim < 2 or model.head_dim % 2:
        raise UserError(f"model.head_dim = {model.head_dim}; RoPE rotates pairs, so give an even number")


def _check_tensors(config: Config) -> None:
    """Whether every tensor-parallel rank gets its share."""
    tp, model = config.parallel.tp, config.model
    for key in ("num_key_value_heads", "num_attention_heads", "intermediate_size"):
        value = getattr(model, key)
        if value % tp:
            raise UserError(
                f"parallel.tp = {tp} does not divide model.{key} = {value}; every rank needs as many: use a divisor"
            )
    if (tp - 1) * -(-model.vocab_size // tp) >= model.vocab_size:
        raise UserError(f"parallel.tp = {tp}: of model.vocab_size = {model.vocab_size} not every rank gets a row")
    if tp > 1 and config.train.compile:
        raise UserError(
            "train.compile: the collectives of parallel.tp > 1 cannot be compiled yet; turn one of them off"
        )


def _check_pipeline(config: Config) -> None:
    """Whether every stage gets a layer, and the schedule may do what it does."""
    parallel, model = config.parallel, config.model
    schedule = parallel.pipeline.schedule.value
    stages = parallel.pp * (1 if schedule == "1f1b" else 2)
    if parallel.pp > 1 and model.num_hidden_layers < stages:
        raise UserError(
            f"parallel.pp = {parallel.pp} with schedule {schedule} makes {stages} stages, but "
            f"model.num_hidden_layers = {model.num_hidden_layers}: every stage needs a layer"
        )
    wrapped = config.train.compile or config.train.activation_checkpointing is not Recompute.none
    if parallel.pp > 1 and schedule == "zbv" and wrapped:
        raise UserError(
            "parallel.pipeline.schedule=zbv splits the backward pass, which neither train.compile nor "
            "train.activation_checkpointing supports; turn them off or use 1f1b"
        )


def _check_context(config: Config) -> None:
    """Whether the ranks of a context can share the heads."""
    parallel, tp, model = config.parallel, config.parallel.tp, config.model
    if parallel.context.ulysses_degree < 1:
        raise UserError(
            f"parallel.context.ulysses_degree = {parallel.context.ulysses_degree}; give at least 1, a divisor of cp"
        )
    kind, degree = parallel.context.kind, parallel.ulysses
    if parallel.cp % degree:
        raise UserError(
            f"parallel.context.ulysses_degree = {degree} does not divide parallel.cp = {parallel.cp}; use a divisor"
        )
    if model.num_attention_heads // tp % degree:
        raise UserError(
            f"parallel.context.kind={kind.value}: {degree} ranks cannot share {model.num_attention_heads // tp} "
            f"attention heads (model.num_attention_heads / tp); use another kind or degree"
        )


def check_memory(train: TrainConfig) -> None:
    """Raises UserError for ways to save memory that cannot be."""
    if train.mlp_chunk < 0:
        raise UserError(f"train.mlp_chunk = {train.mlp_chunk}; give tokens at once, or 0 for all")
    if train.loss_chunk < 1:
        raise UserError(f"train.loss_chunk = {train.loss_chunk}; give at least 1")
    if train.offload_activations and train.activation_checkpointing is not Recompute.full:
        raise UserError(
            "train.offload_activations puts away the inputs of recomputed blocks: "
            "set train.activation_checkpointing=full, or turn it off"
        )
