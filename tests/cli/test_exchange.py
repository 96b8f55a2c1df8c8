"""``farside export hf`` on what a real run left."""

import json
from pathlib import Path

import pytest
import torch

from farside.chat import load
from farside.train.inference.generate import generate
from tests.faults.driver import farside, sequence


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_run_leaves_as_a_folder_for_transformers(finished: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # 2 s, for a test that seldom runs

    done = farside(["export", "hf", str(finished), "out"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"out: step 4 of {finished}\n"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    ours = load(finished / "checkpoints" / "step_00000004", plain=True)
    theirs, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    inputs = tokenizer("The king", return_tensors="pt")
    prompt = inputs["input_ids"][0].tolist()
    assert prompt == ours.tokenizer.encode("The king")
    expected = generate(ours.model, [prompt], 12, ours.tokenizer.end_of_text)[0].tokens
    with torch.no_grad():
        assert theirs.generate(**inputs, max_new_tokens=12)[0].tolist() == prompt + expected
    card = (tmp_path / "out" / "README.md").read_text()
    loss = json.loads((finished / "summary.json").read_text())["validation_loss"]["en"]
    assert f"validation loss on `en`: {loss:.4f}" in card
    assert "source `en`" in card


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_training_goes_on_from_an_imported_model(finished: Path, words: list[str], tmp_path: Path) -> None:
    """A run's own model, out and in again, starts training as the run's checkpoint does."""
    assert farside(["export", "hf", str(finished), "out"], tmp_path).returncode == 0
    done = farside(["import", "hf", "out", "in"], tmp_path)
    assert done.returncode == 0, done.stderr
    losses = []
    rest = [word for word in words if not word.startswith("experiment=")]
    for name, start in (
        ("by_path", ["experiment=tiny", "train.init_from=in"]),
        ("by_experiment", ["--config-dir", "in", "experiment=[tiny,imported]"]),
        ("own", ["experiment=tiny", f"train.init_from={finished}"]),
    ):
        done = farside(["train", *start, *rest, f"run.dir={name}"], tmp_path)
        assert done.returncode == 0, done.stderr
        losses.append([record["loss"] for record in sequence(tmp_path / name)])
    assert losses[0] == losses[1] == losses[2]
    assert losses[0][0] < sequence(finished)[0]["loss"]
