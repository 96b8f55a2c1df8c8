"""What a run may not change when it goes on from its own checkpoint, and what it did change.

Free: learning rate, schedule and the length of stages to come, mesh, micro-batch, evaluation, logging. Held: the model
and tokenizer (``identity``), the data, the seeds, the kind of optimizer, what samples are made of, and of every stage
that has begun its RoPE and what decides its order of samples. Each may be forced by its name in ``checkpoint.force``,
except the model, the tokenizer and the kind of optimizer, whose state another cannot go on from.
"""

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.schema import Config
from farside.configs.stages import Stage

ORDER_OF_SAMPLES = ("seq_len", "global_batch_size", "mixture", "packing", "lengths")
OF_STAGES = (*ORDER_OF_SAMPLES, "rope")
SAMPLES = ("data.needle.", "data.synthetic.", "data.mixture_unit", "data.mixture_temperature")
"""Settings that decide what samples are; and every source's max_epochs."""
FREE = ("optim.", "schedule.", "parallel.", "train.", "checkpoint.", "data.micro_batch_size", "stages.", "sft.", "rl.")
"""Settings that a checkpoint records, so that one can see what changed on the way."""
NEVER_FORCED = ("optim.kind",)
PLACES = ("train.init_from", "sft.conversations", "rl.reward_model", "rl.critic.init_from")
"""Not recorded: paths, which differ between equal runs."""


def contract(config: Config, fingerprint: str, section: str, stages: Sequence[Stage], **more: object) -> dict[str, Any]:
    """For a checkpoint's state. section: where the stages' keys stand in the configuration: stages, data, sft, reward,
    rl. more: further values that are held, by key."""
    flat = compose.flat(config)
    settings = {key: value for key, value in flat.items() if key.startswith(FREE) and key not in PLACES}
    agreed = {
        "train.seed": config.train.seed,
        "data.seed": config.data.seed,
        "data.fingerprint": fingerprint,
        "optim.kind": config.optim.kind.value,
        **more,
        "samples": {k: value for k, value in flat.items() if k.startswith(SAMPLES) or k.endswith(".max_epochs")},
        "stages": [
            {
                "section": f"stages.{stage.name}" if section == "stages" else section,
                "first_step": stage.first_step,
                "steps": stage.steps,
                **{key: _plain(getattr(stage, key)) for key in ORDER_OF_SAMPLES},
                "rope": stage.rope.record(),
            }
            for stage in stages
        ],
        "settings": settings,
    }
    return json.loads(json.dumps(agreed))  # as it comes back: keys are text then


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def held(agreed: Mapping[str, Any], other: Mapping[str, Any], step: int) -> dict[str, Any]:
    """What ``agreed`` holds at that step, by key. other: whose stages tell, too, which have begun. What an older
    farside did not note of samples and of RoPE is not held."""
    values = {key: value for key, value in agreed.items() if key not in ("stages", "settings", "samples")}
    noted = [each.get("samples", {}) for each in (agreed, other)]
    values |= {key: value for key, value in noted[0].items() if key in noted[1]}
    for number, stage in enumerate(agreed["stages"]):
        pair = (stage, other["stages"][number] if number < len(other["stages"]) else stage)
        if min(each["first_step"] for each in pair) < step:
            values |= {
                f"{stage['section']}.{key}": stage[key] for key in OF_STAGES if all(key in each for each in pair)
            }
        if min(each["first_step"] + each["steps"] for each in pair) < step:  # what came after it would move
            values["train.steps" if stage["section"] == "data" else f"{stage['section']}.steps"] = stage["steps"]
    return values


def check(saved: Mapping[str, Any], ours: Mapping[str, Any], step: int, forced: Sequence[str], where: object) -> None:
    """Raises UserError listing what is held but differs, with both values, in one line."""
    theirs, mine = held(saved, ours, step), held(ours, saved, step)
    keys = sorted(theirs.keys() | mine.keys())
    forcible = [key for key in keys if key not in NEVER_FORCED]
    if unknown := sorted(set(forced) - set(forcible)):
        raise UserError(f"checkpoint.force names {unknown[0]}; what can be forced is {', '.join(forcible)}")
    different = [key for key in keys if theirs.get(key) != mine.get(key) and key not in forced]
    if different:
        told = "; ".join(f"{key}: {theirs.get(key)} there, {mine.get(key)} here" for key in different)
        way_out = "use the values there or another run.dir"
        if not set(different) & set(NEVER_FORCED):
            way_out = f"use the values there, another run.dir, or checkpoint.force=[{','.join(different)}]"
        raise UserError(f"{where}: this run began otherwise ({told}); {way_out}")


def changes(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What was changed freely, as one line; empty if nothing."""
    before, after = saved["settings"], ours["settings"]
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return ", ".join(f"{key} {before.get(key)} -> {after.get(key)}" for key in keys)
