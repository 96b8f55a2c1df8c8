"""Settings that no run can have, whatever its layout, by key: asked before any process is there. No torch."""

from operator import attrgetter

from farside.configs.errors import UserError
from farside.configs.schema import Config, NiahConfig

AT_LEAST = {
    "logging.every": 1,
    "launch.threads_per_rank": 1,
    "train.guard.window": 1,
    "train.guard.patience": 0,
    "train.guard.sigmas": 0,
    "train.timeout_seconds": 1,
    "schedule.warmup_steps": 0,
    "optim.weight_decay": 0,
    "eval.every": 0,
    "eval.training_points": 1,
}
SHARES = ("schedule.min_ratio", "schedule.decay_share")


def check_ranges(config: Config) -> None:
    """Raises UserError naming the key. What compares as false, such as NaN, is refused."""
    for key, least in AT_LEAST.items():
        if not (value := attrgetter(key)(config)) >= least:
            raise UserError(f"{key} = {value}; give at least {least}")
    for key in SHARES:
        if not 0 <= (value := attrgetter(key)(config)) <= 1:
            raise UserError(f"{key} = {value}; give 0 to 1")
    if not config.optim.clip_norm > 0:
        raise UserError(f"optim.clip_norm = {config.optim.clip_norm}; give more than 0, such as 1.0")
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise UserError(f"optim.betas = {config.optim.betas}; give numbers from 0 to below 1")
    temperature = config.data.mixture_temperature
    if temperature is not None and not temperature > 0:
        raise UserError(f"data.mixture_temperature = {temperature}; give more than 0, or null")


def check_grid_size(config: NiahConfig) -> None:
    """Raises UserError naming the key of a needle grid that has no cell."""
    for key in ("lengths", "depths", "needles"):
        if getattr(config, key) < 1:
            raise UserError(f"eval.niah.{key} = {getattr(config, key)}; give at least 1")
    if config.max_length < config.min_length:
        raise UserError(f"eval.niah.max_length = {config.max_length} is below min_length = {config.min_length}")
    if not config.sources:
        raise UserError("eval.niah.sources = []; name a source of data.sources whose haystack needles are put into")
