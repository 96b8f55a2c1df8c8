"""The worker behind ``farside rl``: RL from a warm-started policy with verifier and reward model."""

import json
import time
from pathlib import Path
from typing import Any

from farside.configs.errors import UserError
from farside.configs.layout import check_layout
from farside.configs.rope import Rope
from farside.configs.schema import Algorithm, Config, Correction, RlConfig
from farside.configs.stages import replay_stage
from farside.data.prepare import Prepared
from farside.rl.algorithms.registry import make_algorithm
from farside.rl.learner import Learner
from farside.rl.loop import RlLoop
from farside.rl.policy import load_engine, load_unsharded
from farside.rl.replay import Replay
from farside.rl.reward.combine import CombinedReward
from farside.rl.reward.model import RewardModel
from farside.rl.reward.train_reward import NORMALISATION
from farside.rl.reward.verifier import VerifierPool
from farside.rl.rollout.native import NativeRollout
from farside.rl.tasks.registry import make_task
from farside.train.checkpoint.contract import contract
from farside.train.checkpoint.store import OWN_KEYS, CheckpointStore
from farside.train.engine.native import NativeEngine
from farside.train.phase import identity, load_data, load_foreign, write_summary
from farside.train.runtime import Runtime, worker_main

WHOLE_ANSWERS = (Algorithm.rloo, Algorithm.gspo, Algorithm.k15, Algorithm.k2)
"""Their loss is one of an answer, which stands at each of its tokens: to leave out a token there leaves in its part."""


def begin_rl(runtime: Runtime, engine: NativeEngine, store: CheckpointStore) -> dict[str, Any]:
    """Resumes, or starts from the policy's checkpoint."""
    store.preflight(engine)
    resumed = store.resume(engine)
    if resumed is not None:
        engine.set_rope(Rope.from_record(resumed.state["rope"]))
        if runtime.main:
            print(f"resumed at step {resumed.step} from {resumed.path}{store.changed(resumed)}", flush=True)
        state = {key: value for key, value in resumed.state.items() if key not in OWN_KEYS}
        state.setdefault("problems", resumed.step * runtime.config.rl.prompts_per_step)  # older ones do not count them
        return state
    if runtime.init_from is None:
        raise UserError("rl: no policy to start from; name its checkpoint with train.init_from=PATH")
    parent = store.start_from(runtime.init_from)
    load_foreign(parent, engine)
    return {key: parent.state[key] for key in ("rope", "trained_length", "tokens")} | {
        "step": 0,
        "problems": 0,
        "stage": "rl",
    }


def load_reward_model(runtime: Runtime, data: Prepared) -> RewardModel | None:
    """The model of rl.reward_model, or None when it carries no weight."""
    config = runtime.config.rl
    if config.reward_model_weight == 0:
        return None
    if config.reward_model is None:
        raise UserError(
            "rl.reward_model: no checkpoint given; name one that `farside reward` made, or set rl.reward_model_weight=0"
        )
    path = Path(config.reward_model)
    model, _ = load_unsharded(runtime, data, path, "scalar")
    spread = json.loads((path.parent.parent / NORMALISATION).read_text())
    return RewardModel(model, spread["center"], spread["scale"])


def load_reference(runtime: Runtime, data: Prepared) -> NativeEngine | None:
    """The policy that RL started from, frozen, or None when no distance from it is asked for."""
    if runtime.config.rl.kl.weight == 0:
        return None
    if runtime.init_from is None:
        raise UserError("rl.kl.weight: no policy to measure from; name its checkpoint with train.init_from=PATH")
    return load_engine(runtime, data, runtime.init_from, "lm")[0]


def check(config: Config) -> None:
    """Raises UserError for settings of rl that cannot run."""
    weights = (config.rl.verifier_weight, config.rl.reward_model_weight)
    if min(weights) < 0 or not any(weights):
        raise UserError(
            f"rl.verifier_weight = {weights[0]}, rl.reward_model_weight = {weights[1]}; give none below 0 and one above"
        )
    check_layout(config)
    replay_stage(config)
    ranks = config.parallel.dp_replicate * config.parallel.dp_shard
    if config.rl.prompts_per_step % ranks:
        raise UserError(
            f"rl.prompts_per_step = {config.rl.prompts_per_step} does not divide over {ranks} ranks; "
            f"use a multiple of {ranks}"
        )
    check_algorithm(config.rl)
    if config.rl.sampling_rounds > 1 and not config.rl.verifier_weight:
        raise UserError(
            "rl.sampling_rounds: which groups teach is the verifier's verdict, which rl.verifier_weight = 0 leaves "
            "out; use sampling_rounds=1"
        )
    if config.rl.samples_per_prompt < 2:
        raise UserError(f"rl.samples_per_prompt = {config.rl.samples_per_prompt}; a group needs at least 2 to compare")


def check_algorithm(rl: RlConfig) -> None:
    """Raises UserError for what no algorithm can work with."""
    make_algorithm(rl)
    for key, least in (
        ("updates_per_step", 1),
        ("sampling_rounds", 1),
        ("overlong_cache", 0),
        ("truncation_penalty", 0),
        ("partial_tokens", 0),
        ("max_staleness", 0),
    ):
        if getattr(rl, key) < least:
            raise UserError(f"rl.{key} = {getattr(rl, key)}; give at least {least}")
    if rl.rollout_batch is not None and rl.rollout_batch < 1:
        raise UserError(f"rl.rollout_batch = {rl.rollout_batch}; give at least 1, or null for all answers at once")
    if rl.partial_tokens and rl.sampling_rounds > 1:
        raise UserError(
            f"rl.partial_tokens = {rl.partial_tokens}: groups finished in later iterations are not drawn again; use "
            "rl.sampling_rounds=1"
        )
    if rl.overlong_cache > rl.max_new_tokens:
        raise UserError(f"rl.overlong_cache = {rl.overlong_cache} is above rl.max_new_tokens = {rl.max_new_tokens}")
    for key in ("temperature", "temperature_end", "tau"):
        if (value := getattr(rl, key)) is not None and value <= 0:
            raise UserError(f"rl.{key} = {value}; give more than 0")
    if rl.correction.kind is not Correction.none and rl.algorithm in WHOLE_ANSWERS:
        raise UserError(
            f"rl.correction.kind={rl.correction.kind.value} corrects token by token, but "
            f"rl.algorithm={rl.algorithm.value} has one loss an answer; "
            "use grpo, dr_grpo, dapo or reinforce_pp, or no correction"
        )
    if rl.kl.weight < 0:
        raise UserError(f"rl.kl.weight = {rl.kl.weight}; give 0 or more")
    if not 0 <= rl.correction.low <= rl.correction.high:
        raise UserError(f"rl.correction: low = {rl.correction.low}, high = {rl.correction.high}; give 0 <= low <= high")


def main(runtime: Runtime) -> None:
    started = time.monotonic()
    config = runtime.config
    check(config)
    data = load_data(runtime)
    engine = NativeEngine(config, runtime.mesh, runtime.device, entropy=True)
    agreed = {f"rl.{key}": getattr(config.rl, key) for key in ("prompts_per_step", "samples_per_prompt")}
    agreed |= {f"rl.replay.{key}": getattr(config.rl.replay, key) for key in ("samples", "seq_len", "mixture")}
    agreed = contract(config, data.summary["fingerprint"], "rl", [], **agreed)
    store = CheckpointStore(runtime.dir, config.checkpoint, runtime.mesh.world, identity(config, data), agreed)
    progress = begin_rl(runtime, engine, store)
    rollout = NativeRollout(engine.replica(), data.tokenizer, slots=config.rl.rollout_batch)
    with VerifierPool(config.sft.task, config.rl.verifier_timeout_seconds) as verifier:
        reward = CombinedReward(
            verifier, load_reward_model(runtime, data), config.rl.reward_model_weight, config.rl.verifier_weight
        )
        learner = Learner(config, engine, Replay.of(runtime, data), load_reference(runtime, data))
        RlLoop(runtime, learner, rollout, make_task(config.sft.task), reward, store).run(progress)
    write_summary(
        runtime,
        started,
        held_out_accuracy_before=progress["held_out_accuracy_before"],
        held_out_accuracy_after=progress["held_out_accuracy"],
        held_out_prompts=config.rl.eval_prompts,
    )


if __name__ == "__main__":
    worker_main(main, check=check)
