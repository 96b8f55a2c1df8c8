"""The reward of an RL run from its configuration, and what watches it."""

from pathlib import Path
from typing import Any

from farside.configs.errors import UserError
from farside.configs.schema import RlConfig
from farside.data.prepare import Prepared
from farside.parallel import comm
from farside.rl.algorithms.registry import WHOLE_ANSWERS
from farside.rl.policy import load_start
from farside.rl.reward.combine import CombinedReward
from farside.rl.reward.model import Judge
from farside.rl.reward.normalise import ScoreNormaliser
from farside.rl.reward.overoptimisation import Drift, Overoptimisation, Watch
from farside.rl.reward.registry import load_judge
from farside.rl.reward.verifier import VerifierPool
from farside.train.engine.native import NativeEngine
from farside.train.runtime import Runtime


def check_reward_model(rl: RlConfig) -> None:
    """Raises UserError for settings of a reward model in the loop that cannot work."""
    if rl.process_weight and rl.algorithm in WHOLE_ANSWERS:
        raise UserError(
            f"rl.process_weight gives tokens of one answer different advantages, but rl.algorithm={rl.algorithm.value} "
            "has one loss an answer; use grpo, dr_grpo, dapo or reinforce_pp, or rl.process_weight=0"
        )
    if rl.reward_model_clip is not None and rl.reward_model_clip <= 0:
        raise UserError(f"rl.reward_model_clip = {rl.reward_model_clip}; give more than 0, or null")
    watch = rl.overoptimisation
    if watch.window < 2:
        raise UserError(f"rl.overoptimisation.window = {watch.window}; give at least 2 steps, which show their noise")
    for key in ("warn", "stop"):
        if (value := getattr(watch, key)) is not None and not 0 < value < 1:
            raise UserError(f"rl.overoptimisation.{key} = {value}; give a share of lost accuracy above 0 and below 1")


def load_reward_model(runtime: Runtime, data: Prepared) -> Judge | None:
    """The model of rl.reward_model, or None when it carries no weight."""
    config = runtime.config.rl
    if not (config.reward_model_weight or config.process_weight):
        return None
    if config.reward_model is None:
        key = "reward_model_weight" if config.reward_model_weight else "process_weight"
        raise UserError(
            f"rl.reward_model: no checkpoint given, but rl.{key} = {getattr(config, key)}; name one that "
            f"`farside reward` made, or set rl.{key}=0"
        )
    judge = load_judge(runtime, data, Path(config.reward_model))
    if config.process_weight and not judge.judges_steps:
        raise UserError(
            f"rl.process_weight = {config.process_weight}, but {config.reward_model} judges whole answers only; name a "
            "model that `farside reward reward.kind=process` made, or set rl.process_weight=0"
        )
    return judge


def make_reward(
    runtime: Runtime, verifier: VerifierPool, judge: Judge | None, seen: list[float] | None
) -> CombinedReward:
    """seen: what the reward of the checkpoint that is gone on from recorded."""
    config = runtime.config.rl
    normalise = None
    if judge is not None:
        normalise = ScoreNormaliser(
            config.reward_model_norm,
            judge.center,
            judge.scale,
            config.reward_model_clip,
            lambda values: comm.sum_floats(values, runtime.mesh.dp, runtime.device),
            seen or (0.0, 0.0, 0.0),
        )
    return CombinedReward(verifier, judge, config.reward_model_weight, config.verifier_weight, normalise)


def watch_reward(
    runtime: Runtime, data: Prepared, judge: Judge | None, start: NativeEngine | None, state: dict[str, Any] | None
) -> Overoptimisation:
    """start: the policy at the start, where something else has loaded it. state: what the watch of the checkpoint that
    is gone on from recorded."""
    config = runtime.config.rl
    if judge is None:
        return Overoptimisation(None, None, None, config.eval_every)
    if start is None and config.overoptimisation.kl:
        start = load_start(runtime, data, "rl.overoptimisation.kl")
    drift = Drift(start, runtime.mesh, runtime.device, config.micro_batch_size)
    return Overoptimisation(Watch(config.overoptimisation, state), drift, judge, config.eval_every)
