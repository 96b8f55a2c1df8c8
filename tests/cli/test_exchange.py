"""``farside export hf`` on what a real run left."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from farside.chat import load
from farside.train.inference.generate import generate
from tests.faults.driver import farside


@pytest.mark.timeout(90)
def test_a_run_leaves_as_a_folder_for_transformers(finished: Path, tmp_path: Path) -> None:
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
