"""The worker behind ``farside rl``: RL from a warm-started policy with verifier and reward model."""

import time
from operator import attrgetter
from pathlib import Path
from typing import Any

from farside.configs.errors import UserError
from farside.configs.layout import check_layout
from farside.configs.rope import Rope
from farside.configs.schema import Algorithm, Config, Correction, CurriculumConfig, RlConfig
from farside.configs.stages import replay_stage
from farside.data.prepare import Prepared
from farside.rl.algorithms.registry import WHOLE_ANSWERS, make_algorithm
from farside.rl.critic import saved
from farside.rl.learner import Learner
from farside.rl.loop import RlLoop
from farside.rl.policy import load_start, load_weights
from farside.rl.replay import Replay
from farside.rl.reward.build import check_reward_model, load_reward_model, make_reward, watch_reward
from farside.rl.reward.verifier import VerifierPool
from farside.rl.rollout.native import NativeRollout
from farside.rl.tasks.files import distinct
from farside.rl.tasks.registry import make_task
from farside.train.checkpoint.contract import contract
from farside.train.checkpoint.store import OWN_KEYS, CheckpointStore
from farside.train.engine.native import NativeEngine
from farside.train.phase import identity, load_data, load_foreign, refuse_relabelling, write_summary
from farside.train.runtime import Runtime, worker_main

NO_RATIO = (Algorithm.rloo, Algorithm.k15, Algorithm.k2)
NO_GROUPS = (Algorithm.ppo, Algorithm.reinforce_pp)
"""They compare an answer with all others, not with those to the same problem."""


def begin_rl(
    runtime: Runtime, data: Prepared, engine: NativeEngine, critic: NativeEngine | None, store: CheckpointStore
) -> dict[str, Any]:
    """Resumes, or starts from the policy's checkpoint."""
    whole = saved(engine, critic)
    store.preflight(whole)
    resumed = store.resume(whole)
    if resumed is not None:
        for each in filter(None, (engine, critic)):
            each.set_rope(Rope.from_record(resumed.state["rope"]))
        refuse_relabelling(runtime, store, resumed, runtime.config.rl.steps)
        if runtime.main:
            print(f"resumed at step {resumed.step} from {resumed.path}{store.changed(resumed)}", flush=True)
        state = {key: value for key, value in resumed.state.items() if key not in OWN_KEYS}
        state.setdefault("problems", resumed.step * runtime.config.rl.prompts_per_step)  # older ones do not count them
        return state
    if runtime.init_from is None:
        raise UserError("rl: no policy to start from; name its checkpoint with train.init_from=PATH")
    parent = store.start_from(runtime.init_from)
    load_foreign(parent, engine)
    if critic is not None:
        told = runtime.config.rl.critic.init_from
        load_weights(runtime, data, Path(told) if told else runtime.init_from, critic)
    return {key: parent.state[key] for key in ("rope", "trained_length", "tokens")} | {
        "step": 0,
        "problems": 0,
        "stage": "rl",
    }


def check(config: Config) -> None:
    """Raises UserError for settings of rl that cannot run."""
    names = ("verifier_weight", "reward_model_weight", "process_weight")
    weights = [getattr(config.rl, name) for name in names]
    if min(weights) < 0 or not any(weights):
        told = ", ".join(f"rl.{name} = {weight}" for name, weight in zip(names, weights))
        raise UserError(f"{told}; give none below 0 and one above")
    check_reward_model(config.rl)
    check_layout(config)
    replay_stage(config)
    ranks = config.parallel.dp_replicate * config.parallel.dp_shard
    if config.rl.prompts_per_step % ranks:
        raise UserError(
            f"rl.prompts_per_step = {config.rl.prompts_per_step} does not divide over {ranks} ranks; "
            f"use a multiple of {ranks}"
        )
    check_algorithm(config.rl)
    check_curriculum(config.rl.curriculum)
    if config.rl.sampling_rounds > 1 and not config.rl.verifier_weight:
        raise UserError(
            "rl.sampling_rounds: which groups teach is the verifier's verdict, which rl.verifier_weight = 0 leaves "
            "out; use sampling_rounds=1"
        )
    if config.rl.samples_per_prompt == 1 and (config.rl.sampling_rounds > 1 or config.rl.length.weight):
        key = "sampling_rounds" if config.rl.sampling_rounds > 1 else "length.weight"
        raise UserError(f"rl.{key} compares the answers to one problem, but rl.samples_per_prompt = 1; give more")
    if config.rl.samples_per_prompt < (1 if config.rl.algorithm in NO_GROUPS else 2):
        raise UserError(f"rl.samples_per_prompt = {config.rl.samples_per_prompt}; a group needs at least 2 to compare")


def check_curriculum(curriculum: CurriculumConfig) -> None:
    """Raises UserError for settings outside their range."""
    for key, low, high in (("floor", 1e-6, 1), ("memory", 0, 1), ("unlock_at", 0, 1)):
        if (value := getattr(curriculum, key)) is not None and not low <= value <= high:
            raise UserError(f"rl.curriculum.{key} = {value}; give {low} to {high}")
    for key in ("pool", "guess_tries"):
        if getattr(curriculum, key) < 0:
            raise UserError(f"rl.curriculum.{key} = {getattr(curriculum, key)}; give at least 0")
    asked = {"prioritised": curriculum.prioritised, "unlock_at": curriculum.unlock_at is not None}
    asked["guess_tries"] = curriculum.guess_tries > 0
    for key, wanted in asked.items():
        if wanted and not curriculum.pool:
            raise UserError(f"rl.curriculum.{key}: there is no pool to draw from; set rl.curriculum.pool, such as 4096")


def check_algorithm(rl: RlConfig) -> None:
    """Raises UserError for what no algorithm can work with."""
    make_algorithm(rl)
    for key, least in (
        ("steps", 1),
        ("prompts_per_step", 1),
        ("max_new_tokens", 1),
        ("micro_batch_size", 1),
        ("eval_every", 0),
        ("eval_prompts", 1),
        ("updates_per_step", 1),
        ("sampling_rounds", 1),
        ("overlong_cache", 0),
        ("truncation_penalty", 0),
        ("length.weight", 0),
        ("length.warmup_steps", 0),
        ("repetition.longest_period", 0),
        ("repetition.repeats", 2),
        ("repetition.penalty", 0),
        ("partial_tokens", 0),
        ("max_staleness", 0),
    ):
        if (value := attrgetter(key)(rl)) < least:
            raise UserError(f"rl.{key} = {value}; give at least {least}")
    if rl.rollout_batch is not None and rl.rollout_batch < 1:
        raise UserError(f"rl.rollout_batch = {rl.rollout_batch}; give at least 1, or null for all answers at once")
    if rl.partial_tokens and rl.sampling_rounds > 1:
        raise UserError(
            f"rl.partial_tokens = {rl.partial_tokens}: groups finished in later iterations are not drawn again; use "
            "rl.sampling_rounds=1"
        )
    if rl.repetition.penalty and not rl.repetition.longest_period:
        raise UserError("rl.repetition.penalty: no loops are looked for; set rl.repetition.longest_period, such as 32")
    if rl.algorithm in NO_RATIO and (rl.clip_low, rl.clip_high, rl.clip_dual) != (None, None, None):
        raise UserError(f"rl.clip_*: rl.algorithm={rl.algorithm.value} clips no ratio; leave them null")
    if rl.algorithm is Algorithm.rloo and (rl.updates_per_step > 1 or (rl.partial_tokens and rl.learn_old_segments)):
        raise UserError(
            "rl.algorithm=rloo has no ratio to the policy that drew an answer, so that it must be the newest one; "
            "use rl.updates_per_step=1 and, with partial_tokens, rl.learn_old_segments=false"
        )
    if rl.overlong_cache > rl.max_new_tokens:
        raise UserError(f"rl.overlong_cache = {rl.overlong_cache} is above rl.max_new_tokens = {rl.max_new_tokens}")
    for key in ("temperature", "temperature_end", "tau"):
        if (value := getattr(rl, key)) is not None and value <= 0:
            raise UserError(f"rl.{key} = {value}; give more than 0")
    for key in ("gamma", "gae_lambda"):
        if not 0 <= (value := getattr(rl, key)) <= 1:
            raise UserError(f"rl.{key} = {value}; give 0 to 1")
    if rl.critic.clip <= 0 or rl.critic.warmup_steps < 0:
        raise UserError(
            f"rl.critic: clip = {rl.critic.clip}, warmup_steps = {rl.critic.warmup_steps}; give a clip above 0 and "
            "steps of at least 0"
        )
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
    if config.rl.curriculum.pool:
        agreed["rl.curriculum.pool"] = config.rl.curriculum.pool
    agreed = contract(config, data.summary["fingerprint"], "rl", [], **agreed)
    store = CheckpointStore(runtime.dir, config.checkpoint, runtime.mesh.world, identity(config, data), agreed)
    with_critic = config.rl.algorithm is Algorithm.ppo
    critic = NativeEngine(config, runtime.mesh, runtime.device, "scalar") if with_critic else None
    progress = begin_rl(runtime, data, engine, critic, store)
    rollout = NativeRollout.of(config.rl, engine.replica(), data.tokenizer)
    task = make_task(config.sft.task)
    with VerifierPool(config.sft.task, config.rl.verifier_timeout_seconds) as verifier:
        judge = load_reward_model(runtime, data)
        reward = make_reward(runtime, verifier, judge, progress.get("reward"))
        reference = load_start(runtime, data, "rl.kl.weight") if config.rl.kl.weight else None
        watch = watch_reward(runtime, data, judge, reference, progress.get("overoptimisation"))
        learner = Learner(config, engine, Replay.of(runtime, data), reference, critic)
        RlLoop(runtime, learner, rollout, task, reward, store, watch).run(progress)
    write_summary(
        runtime,
        started,
        held_out_accuracy_before=progress["held_out_accuracy_before"],
        held_out_accuracy_after=progress["held_out_accuracy"],
        held_out_prompts=distinct(task, "held_out", config.rl.eval_prompts),
    )


if __name__ == "__main__":
    worker_main(main, check=check)
