"""What ``farside COMMAND --help`` says. Text only, so that it answers at once."""

JOB = """usage: farside {command} [FLAG ...] [experiment=NAME] [KEY=VALUE ...]

{keys}

`farside {command} --cfg job` prints every key with its value; configs/schema.py says what they mean. Experiments:
demo, tiny, smoke, rewards, proof; your own in DIR/experiment/NAME.yaml with --config-dir DIR (docs/own.md).

flags:
  -m, --multirun      a run for each combination of values that commas part: optim.lr=1e-3,3e-3
  --cfg job           print the configuration and end
  --config-dir DIR    look for experiments and data in DIR too

example:
  {example}"""

OF_JOBS = {
    "run": (
        "Goes through all phases; finished ones are skipped when the same command comes again.\n"
        "keys: run.dir, stages, train, data, model, optim, parallel, sft, reward, rl, eval, checkpoint, logging",
        "farside run experiment=demo",
    ),
    "train": (
        "Trains from nothing, or from train.init_from=CHECKPOINT.\n"
        "keys: run.dir, train, stages, data, model, optim, schedule, parallel, checkpoint, eval, logging, profile",
        "farside train experiment=tiny optim.lr=1e-3 train.steps=40 run.name=mine",
    ),
    "sft": (
        "Starts from train.init_from=CHECKPOINT; learns sft.task's worked answers, or sft.conversations=FILE.\n"
        "keys: run.dir, train.init_from, sft, optim, parallel, checkpoint",
        "farside sft experiment=demo train.init_from=RUN/pretrain/checkpoints/step_NNNNNNNN run.dir=runs/sft",
    ),
    "reward": (
        "Samples from the policy train.init_from=CHECKPOINT and learns to tell right answers from wrong ones.\n"
        "keys: run.dir, train.init_from, reward, sft.task, rl.max_new_tokens, optim, parallel, checkpoint",
        "farside reward experiment=demo train.init_from=RUN/sft/checkpoints/step_NNNNNNNN run.dir=runs/reward",
    ),
    "rl": (
        "Starts from train.init_from=CHECKPOINT. rl.reward_model=CHECKPOINT scores beside the verifier; without one,\n"
        "set rl.reward_model_weight=0.\n"
        "keys: run.dir, train.init_from, rl, sft.task, optim, parallel, checkpoint",
        "farside rl experiment=demo train.init_from=RUN/sft/checkpoints/step_NNNNNNNN rl.reward_model_weight=0",
    ),
    "eval niah": (
        "Of the newest checkpoint of run.dir, or of train.init_from=CHECKPOINT.\nkeys: run.dir, train.init_from, eval",
        "farside eval niah experiment=demo run.dir=runs/demo/pretrain eval.niah.max_length=4096",
    ),
    "eval math": (
        "Of the newest checkpoint of run.dir, or of train.init_from=CHECKPOINT.\n"
        "keys: run.dir, train.init_from, eval, sft.task",
        "farside eval math experiment=demo run.dir=runs/demo/rl",
    ),
    "verify": (
        "Trains a few steps in fp64 on the layout and in one process, and compares.\nkeys: parallel, model, data",
        "farside verify experiment=tiny parallel.tp=2 parallel.cp=2",
    ),
    "data prepare": ("keys: data", "farside data prepare data.dir=prepared"),
}

OTHERS = {
    "chat": """usage: farside chat RUN_DIR_OR_CHECKPOINT [--plain] [KEY=VALUE ...]

keys:
  temperature=0.0       0 decodes greedily
  max_new_tokens=256    of an answer at most
  seed=0                of sampled answers
  plain=false           continue the text instead of answering; --plain says the same""",
    "export hf": """usage: farside export hf RUN_DIR_OR_CHECKPOINT OUT_DIR [KEY=VALUE ...]

keys:
  dtype=null                     float32 or bfloat16: weights are rounded to it
  max_shard_bytes=5000000000     of a file of weights at most""",
    "import hf": """usage: farside import hf FOLDER OUT_DIR [KEY=VALUE ...]

FOLDER has config.json, tokenizer.json and *.safetensors of a Llama or Qwen3. OUT_DIR gets a checkpoint and an
experiment that starts from it: farside train --config-dir OUT_DIR experiment=imported

keys:
  extend_vocab=false    add rows for the chat format's tokens where the model has no spare ones""",
    "report": """usage: farside report RUN_DIR [RUN_DIR ...]

Writes report.html of one run, the table of a sweep, or a page that compares several runs.""",
    "status": "usage: farside status RUN_DIR",
    "stop": "usage: farside stop RUN_DIR\n\nIt saves at the next step's end; the same command goes on from there.",
    "doctor": "usage: farside doctor",
}


def usage(command: str, what: str) -> str:
    """what: one line about the command."""
    if command in OTHERS:
        return f"{what}\n\n{OTHERS[command]}"
    keys, example = OF_JOBS[command]
    return f"{what}\n\n{JOB.format(command=command, keys=keys, example=example)}"
