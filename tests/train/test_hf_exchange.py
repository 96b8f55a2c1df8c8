"""Export: transformers loads the folder as it is and computes, decodes and formats as farside does. Import: what comes
back is what went out, and a hostile folder is refused in one line. GATE: logits to 1e-5 in fp32, equal tokens."""

import json
import warnings
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.rope import Rope
from farside.configs.schema import Config, ModelConfig, RopeKind
from farside.data.chat import END, TEMPLATE
from farside.data.tokenizer import Tokenizer
from farside.exchange import run
from farside.train.checkpoint import format as checkpoint_format
from farside.train.inference.generate import generate
from farside.train.model.hf import from_hf, to_hf
from farside.train.model.transformer import Transformer
from tests.train.models import SMALL, logits_of, random_model

pytestmark = pytest.mark.timeout(60)
LENGTH = 96
MODEL = replace(SMALL, vocab_size=320, head_dim=8, hidden_size=16)
TEXTS = ["The king said: 12+34=46, and left.\nNobody knew why.", "青铜老虎说：一二三。", "def f(x):\n    return x  # é"]
CASES = {
    "llama tied": (MODEL, Rope(10_000.0), "sft"),
    "llama untied, pi": (replace(MODEL, tie_word_embeddings=False), Rope(1e4, RopeKind.pi, 4.0), "pretrain"),
    "qwen3 tied, ntk": (replace(MODEL, qk_norm=True, hidden_size=12), Rope(1e4, RopeKind.ntk, 4.0), "rl"),
    "qwen3 untied, yarn": (
        replace(MODEL, qk_norm=True, tie_word_embeddings=False),
        Rope(5e4, RopeKind.yarn, 8.0, 64),
        "base",
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(chain(TEXTS, TEXTS[:1] * 3), 310)


def leave(run_dir: Path, model: Transformer, rope: Rope, stage: str, tokenizer: Tokenizer) -> Path:
    """A run directory as a phase leaves it, as far as export looks at it."""
    shape = model.config
    config = replace(Config(), model=shape)
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(compose.to_yaml(config))
    tokenizer.save(run_dir / "tokenizer.json")
    free = ("rope_theta", "rope_scaling", "initializer_range")
    identity = {f"model.{key}": value for key, value in vars(shape).items() if key not in free}
    state = {
        "identity": {**identity, "tokenizer": tokenizer.hash},
        **{"parent": None, "updates": 3, "step": 7, "tokens": 12_345, "trained_length": LENGTH},
        **{"stage": stage, "rope": rope.record()},
    }
    tensors = {"model": dict(model.state_dict()), "optimizer": {"x": torch.zeros(1)}}
    checkpoint_format.write(folder / "step_00000007", 7, tensors, state)
    return run_dir


def calm_model(config: ModelConfig) -> Transformer:
    """Random weights with logits of a trained model's size, so that 1e-5 means what it says."""
    model = random_model(config, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 0.6
    return model


@pytest.fixture
def exported(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Tokenizer) -> tuple[Path, Transformer, str]:
    """Of the case named by the parameter: the exported folder, our model, the stage."""
    config, rope, stage = CASES[request.param]
    model = calm_model(config)
    model.rope = rope
    assert run("export hf", [str(leave(tmp_path / "run", model, rope, stage, tokenizer)), str(tmp_path / "out")]) == 0
    return tmp_path / "out", model, stage


@pytest.mark.parametrize("exported", CASES, indirect=True)
def test_transformers_computes_and_decodes_the_same(exported: Any, tokenizer: Tokenizer) -> None:
    folder, ours, stage = exported
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.randint(MODEL.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine = logits_of(ours, tokens)
        assert mine.abs().max() > 1
        assert (mine - theirs(tokens).logits).abs().max() <= 1e-5
        ours.rope, right = Rope(12_345.0), ours.rope
        assert (mine - logits_of(ours, tokens)).abs().max() > 1e-3, "another RoPE would have been seen"
        ours.rope = right
    stop = tokenizer.end if stage in ("sft", "rl") else tokenizer.end_of_text
    assert theirs.generation_config.eos_token_id == stop
    for row in tokens[:, :20]:
        expected = generate(ours, [row.tolist()], 24, stop)[0].tokens
        answer = theirs.generate(row[None], attention_mask=torch.ones(1, 20, dtype=torch.long), max_new_tokens=24)
        assert answer[0, 20:].tolist() == expected
    names = json.loads((folder / "config.json").read_text())
    assert names["max_position_embeddings"] == LENGTH
    tied = ours.config.tie_word_embeddings
    with opened(folder / "model.safetensors") as file:
        assert ("lm_head.weight" in list(file.keys())) != tied


def opened(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="pt")


@pytest.mark.parametrize("exported", ["llama tied", "qwen3 untied, yarn"], indirect=True)
def test_tokenizer_and_chat_template_come_back(exported: Any, tokenizer: Tokenizer) -> None:
    folder, _, _ = exported
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in [*TEXTS, "<|user|>1<|assistant|><think>a</think>2<|end|><|endoftext|>", " two  spaces \n\n"]:
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    message = [{"role": "user", "content": " 12+3=?\n"}]
    prompt = theirs.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    assert prompt == tokenizer.encode_prompt(" 12+3=?\n")
    answered = [*message, {"role": "assistant", "content": "<think>2+3</think>15"}]
    whole = theirs.apply_chat_template(answered, return_dict=False)
    assert whole == prompt + tokenizer.encode(f"<think>2+3</think>15{END}")
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    with pytest.raises(Exception, match="user and assistant only"):
        theirs.apply_chat_template([{"role": "system", "content": "x"}])
    assert theirs.pad_token_id == tokenizer.end_of_text
    assert theirs.model_max_length == LENGTH


def test_shards_have_an_index_and_hold_no_more_than_asked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(MODEL, torch.float32)
    source = leave(tmp_path / "run", model, Rope(1e4), "base", tokenizer)
    run("export hf", [str(source), str(tmp_path / "out"), "max_shard_bytes=8000", "dtype=bfloat16"])
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == files
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    wanted = {name: value.bfloat16() for name, value in model.state_dict().items()}
    assert index["metadata"]["total_size"] == sum(2 * value.numel() for value in wanted.values())
    for name, value in wanted.items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for file in files:
        with opened(tmp_path / "out" / file) as shard:
            held = {name: wanted[name] for name in list(shard.keys())}
        assert len(held) == 1 or sum(2 * value.numel() for value in held.values()) <= 8000


def test_the_card_names_data_results_and_lineage(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = leave(tmp_path / "run", random_model(MODEL, torch.float32), Rope(1e4), "base", tokenizer)
    record = {"validation_loss": {"en": 2.5}, "checkpoint": {"step": 7}}
    (source / "summary.json").write_text(json.dumps(record))
    (source / "metrics.jsonl").write_text('{"step": 7, "loss": 2.5, "stage": "base"}\n')
    (source / "data.json").write_text(json.dumps({"sources": {"en": {"train_tokens": 4321}}, "fingerprint": "f00d"}))
    run("export hf", [str(source), str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    digest = checkpoint_format.read(source / "checkpoints" / "step_00000007").hash
    for fact in ("12,345", "4,321 training tokens", "2.5000 nats", digest, tokenizer.hash, "f00d", "initial weights"):
        assert fact in card, fact


def test_nothing_is_overwritten_and_failures_leave_nothing(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(leave(tmp_path / "run", random_model(MODEL, torch.float32), Rope(1e4), "base", tokenizer))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out: exists already"):
        run("export hf", [source, str(tmp_path / "out")])
    monkeypatch.setattr("farside.exchange.export.write_weights", lambda *_: Path("/dev/full").write_text("x"))
    with pytest.raises(UserError, match="other: cannot be written"):
        run("export hf", [source, str(tmp_path / "other")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    for words in ([source], [source, "a", "b"], [source, "a", "max_shard_bytes=0"], [source, "a", "shards=2"]):
        with pytest.raises(UserError, match="farside export hf: "):
            run("export hf", words)


def test_models_that_transformers_has_not_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    reward = random_model(MODEL, torch.float32)
    source = leave(tmp_path / "run", reward, Rope(1e4), "reward", tokenizer)
    path = source / "checkpoints" / "step_00000007"
    state = checkpoint_format.read(path).state
    tensors = {"model": {**reward.state_dict(), "score.weight": torch.zeros(1, 16)}, "optimizer": {"x": torch.ones(1)}}
    checkpoint_format.write(path, 7, tensors, state)
    with pytest.raises(UserError, match="a reward model"):
        run("export hf", [str(source), str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"no multiple of model\.num_attention_heads = 4, which transformers demands"):
        to_hf(replace(MODEL, hidden_size=18), Rope(1e4), 64, "float32", 0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", CASES)
def test_configurations_come_back(name: str) -> None:
    config, rope, _ = CASES[name]
    back, length = from_hf(json.loads(json.dumps(to_hf(config, rope, LENGTH, "float32", 3))), "config.json")
    assert length == LENGTH
    assert {**vars(back), "rope_theta": 0, "rope_scaling": 0} == {**vars(config), "rope_theta": 0, "rope_scaling": 0}
    if rope.kind is RopeKind.ntk:  # it left as the base that it is
        rope = Rope(rope.theta * rope.factor ** (config.head_dim / (config.head_dim - 2)))
    assert Rope.of_model(back) == rope
