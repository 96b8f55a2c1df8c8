"""The ``farside`` command. It imports next to nothing, so that ``farside --help`` answers at once."""

import importlib
import os
import sys

COMMANDS = {
    "run": "the whole job: prepare, pretrain, extend, eval, sft, reward, rl, eval, report; resumes",
    "train": "pretraining and context extension by stages",
    "sft": "supervised warm start on reasoning traces",
    "reward": "reward model on the policy's own right and wrong samples",
    "rl": "reinforcement learning (GRPO) with verifier and reward model",
    "eval niah": "needle-in-a-haystack grid of a checkpoint",
    "eval math": "problems solved by a checkpoint: pass@k, maj@k, by difficulty, length and thinking",
    "verify": "whether this layout computes what one process computes; --types: no ranks, by types alone",
    "data prepare": "text to token files",
    "chat": "questions to a checkpoint:  farside chat RUN_DIR_OR_CHECKPOINT",
    "export hf": "a checkpoint for transformers:  farside export hf RUN_DIR_OR_CHECKPOINT OUT_DIR",
    "import hf": "Llama or Qwen3 weights to start from:  farside import hf FOLDER OUT_DIR",
    "report": "report.html of a run, comparison.html of several:  farside report RUN_DIR...",
    "status": "what a run is doing:  farside status RUN_DIR",
    "stop": "ask a run to save and end:  farside stop RUN_DIR",
    "doctor": "versions, processes, disk: what a bug report needs",
}

HELP = """farside trains long-context reasoning models.

usage: farside COMMAND [experiment=NAME] [KEY=VALUE ...]     (Hydra's grammar; -m sweeps)

commands:
{commands}

examples:
  farside run experiment=demo
  farside train experiment=tiny train.steps=40
  farside train -m experiment=tiny optim.lr=1e-3,3e-3
  farside train --cfg job                print every key and its value
  farside rl --help                      what a command takes
  source <(farside --completion bash)    complete commands and keys (also zsh, fish)
"""


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return
    if words[0] in ("-V", "--version"):
        print(importlib.import_module("farside").__version__)
        return
    if words[0] == "--complete":  # asked by the shell at every key press
        for word in importlib.import_module("farside.completion").complete(words[1], COMMANDS):
            print(word)
        return
    if words[0] == "--completion":
        scripts = importlib.import_module("farside.completion").SCRIPTS
        if len(words) != 2 or words[1] not in scripts:
            fail(f"farside --completion: name a shell: {', '.join(scripts)}")
        print(scripts[words[1]], end="")
        return
    command, rest = words[0], words[1:]
    if command in ("eval", "data", "export", "import"):
        if not rest or f"{command} {rest[0]}" not in COMMANDS:
            choices = [name for name in COMMANDS if name.startswith(command + " ")]
            fail(f"farside {command}: which one? there is {' and '.join(f'`farside {name}`' for name in choices)}")
        command, rest = f"{command} {rest[0]}", rest[1:]
    if command not in COMMANDS:
        fail(f"farside {command}: no such command; `farside --help` lists them")
    if "-h" in rest or "--help" in rest:
        print(importlib.import_module("farside.usage").usage(command, COMMANDS[command].partition(":  ")[0]))
        return
    from farside.configs.errors import UserError

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing pages: we say it in one line
    try:
        code = importlib.import_module("farside.launch.commands").dispatch(command, rest)
    except UserError as error:
        fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # as in `farside status RUN | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at the end
        code = 0
    sys.exit(code)


def _help() -> str:
    """The help; on a terminal folded at words to its width."""
    text = HELP.format(commands="\n".join(f"  {name:<13} {text}" for name, text in COMMANDS.items()))
    if not sys.stdout.isatty():
        return text
    import shutil
    import textwrap

    columns = shutil.get_terminal_size().columns
    narrow = columns < 60  # descriptions then stand below the names
    lines = []
    for line in text.splitlines():
        name, gap, rest = line.strip().partition("   " if not narrow else "  ")
        if line.startswith("  ") and gap and narrow:
            lines += [
                "  " + name,
                *textwrap.wrap(rest.strip(), columns, initial_indent="    ", subsequent_indent="    "),
            ]
        else:
            lines += textwrap.wrap(line, columns, subsequent_indent=" " * (4 if narrow else 16)) or [""]
    return "\n".join(lines)


def fail(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
