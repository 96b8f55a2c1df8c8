"""README.md of an exported model: what it is, what it was trained on, what was measured. Facts of the run only."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from farside.configs.schema import Config
from farside.report.numbers import is_number
from farside.report.overview import green_of
from farside.report.read import PHASES, Run, mapping, read_run
from farside.train.checkpoint.format import Checkpoint

HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
language: [{languages}]
---

# {name}

A decoder of {parameters:,} parameters ({architecture}, {dtype}), trained with farside and exported from step {step:,}
of stage `{stage}`. The longest sample it was trained on has {length:,} tokens; RoPE: `{rope}`.
"""
USE = """
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
{prompt}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```
"""
CHAT = """inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "12+34=?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""
PLAIN = (
    'inputs = tokenizer("Once", return_tensors="pt")  # this checkpoint continues text; it was taught no chat format'
)


def model_card(
    run_dir: Path, checkpoint: Checkpoint, config: Config, hf: dict[str, Any], weights: dict[str, Tensor], talks: bool
) -> str:
    """The page as Markdown."""
    job = run_dir.parent if run_dir.name in PHASES and (run_dir.parent / "status.json").is_file() else run_dir
    run = read_run(job)
    text = HEAD.format(
        languages=", ".join(sorted({source.language for source in config.data.sources.values()})),
        name=config.run.name,
        parameters=sum(value.numel() for value in weights.values()),
        architecture=hf["architectures"][0],
        dtype=hf["dtype"],
        step=checkpoint.step,
        stage=checkpoint.state["stage"],
        length=hf["max_position_embeddings"],
        rope=json.dumps(hf["rope_parameters"]),
    )
    text += USE.format(prompt=CHAT if talks else PLAIN)
    for title, lines in (
        ("Training data", _data(run, config, checkpoint)),
        ("Measured", _measured(run)),
        ("Lineage", _lineage(run, checkpoint)),
    ):
        text += f"\n## {title}\n\n" + "\n".join(lines) + "\n"
    return text


def _data(run: Run, config: Config, checkpoint: Checkpoint) -> list[str]:
    """Tokens seen in this phase, sources with their sizes, shares."""
    lines = [f"- tokens seen in this phase of training: {checkpoint.state['tokens']:,}"]
    for name, counts in sorted(mapping(run.data, "sources").items()):
        lines.append(f"- source `{name}`: {counts['train_tokens']:,} training tokens")
    stages = [(stage.name, stage.mixture or config.data.mixture) for stage in config.stages]
    for name, mixture in stages or [("train", config.data.mixture)]:
        shares = ", ".join(f"{source} {share:g}" for source, share in mixture.items())
        lines.append(f"- shares of samples in pretraining stage `{name}`: {shares}")
    return lines


def _measured(run: Run) -> list[str]:
    """Every result that the run holds, each with the checkpoint it was measured on."""
    lines: list[str] = []
    for grid in run.grids:
        green, cells = green_of(grid)
        where = f"{grid['lengths'][0]:,} to {grid['lengths'][-1]:,} tokens"
        lines.append(f"- needle grid, {grid.get('title', grid['name'])}, {where}: {green} of {cells} cells green")
    for phase in PHASES:
        summary = run.summary(phase)
        of = f"(after {phase}, step {mapping(summary, 'checkpoint').get('step')})"
        for source, loss in mapping(summary, "validation_loss").items():
            lines.append(f"- validation loss on `{source}`: {loss:.4f} nats a token {of}")
        for key in ("held_out_accuracy_before", "held_out_accuracy_after"):
            if is_number(summary.get(key)):
                lines.append(f"- {key.replace('_', ' ')}: {summary[key]:.3f} {of}")
    return lines or ["- nothing yet"]


def _lineage(run: Run, checkpoint: Checkpoint) -> list[str]:
    """Hashes of the checkpoint and of those it came from, and of the data."""
    lines = [
        f"- checkpoint: `{checkpoint.hash}`",
        f"- started from: `{checkpoint.state['parent'] or 'initial weights'}`",
        f"- tokenizer: `{checkpoint.state['identity']['tokenizer']}`",
    ]
    if "fingerprint" in run.data:
        lines.append(f"- prepared data: `{run.data['fingerprint']}`")
    return lines
