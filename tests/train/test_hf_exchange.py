"""Export: transformers loads the folder as it is and computes, decodes and formats as farside does. Import: what comes
back is what went out, and a hostile folder is refused in one line. GATE: logits to 1e-5 in fp32, equal tokens."""

import json
import shutil
import warnings
from collections.abc import Callable
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


def foreign(folder: Path, config: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype, **written: Any) -> Any:
    """A folder as transformers itself writes it, and its model."""
    from tests.train.test_hf_parity import theirs

    torch.manual_seed(5)
    model = theirs(config, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3)
    model.save_pretrained(folder, **written)
    tokenizer.save(folder / "tokenizer.json")
    return model


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_what_comes_in_goes_out_bit_by_bit(name: str, dtype: torch.dtype, tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = CASES[name][0]
    foreign(tmp_path / "x", config, tokenizer, dtype, max_shard_size="9KB" if "tied" in name else "1GB")
    assert run("import hf", [str(tmp_path / "x"), str(tmp_path / "in")]) == 0
    assert run("export hf", [str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    before, after = (all_tensors(tmp_path / folder) for folder in ("x", "out"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype == dtype
        assert torch.equal(value, after[key]), key
    model, again = (AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=dtype) for folder in ("x", "out"))
    tokens = torch.arange(1, 60)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits)


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def test_an_imported_model_computes_the_same_and_can_be_asked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from farside.chat import find, load

    model = foreign(tmp_path / "x", replace(MODEL, qk_norm=True), tokenizer, torch.float32)
    run("import hf", [str(tmp_path / "x"), str(tmp_path / "in")])
    talker = load(find(tmp_path / "in"), plain=False)
    prompt = talker.tokenizer.encode(TEXTS[0])
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)[0, len(prompt) :].tolist()
    assert generate(talker.model, [prompt], 10, tokenizer.end_of_text)[0].tokens == expected
    assert not talker.chat


def test_missing_special_tokens_get_rows(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    backend = Backend(models.BPE(vocab={letter: n for n, letter in enumerate("abcdefgh")}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    backend.enable_truncation(4)
    small = replace(MODEL, vocab_size=10, tie_word_embeddings=False)
    foreign(tmp_path / "x", small, Tokenizer.train(TEXTS, 300), torch.float32)
    backend.save(str(tmp_path / "x" / "tokenizer.json"))
    words = [str(tmp_path / "x"), str(tmp_path / "in")]
    with pytest.raises(UserError, match="14 tokens with farside's 6 special ones, but the embedding 10 rows"):
        run("import hf", words)
    assert run("import hf", [*words, "extend_vocab=true"]) == 0
    kept = Tokenizer.load(tmp_path / "in" / "tokenizer.json")
    assert kept.encode("abcdefgh<|end|>") == [*range(8), kept.end]
    (checkpoint,) = (tmp_path / "in" / "checkpoints").iterdir()
    new, old = checkpoint_format.read(checkpoint).tensors("model"), all_tensors(tmp_path / "x")
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(new[key][:10], old[key])
        assert torch.allclose(new[key][10:], old[key].mean(0).expand(4, -1), atol=1e-6)


def as_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def index_to(folder: Path, name: Any) -> None:
    """An index whose only file is ``name``; the weights themselves lie one folder up."""
    keys = all_tensors(folder)
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"weight_map": dict.fromkeys(keys, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def link_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "outside.safetensors")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    payload = b"cos\nsystem\n(S'touch " + str(folder / "ran").encode() + b"'\ntR."
    (folder / "pytorch_model.bin").write_bytes(payload)


NORM = "model.norm.weight"
HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "index to the parent": (lambda f: index_to(f, "../outside.safetensors"), r"is no plain file name"),
    "index to an absolute path": (lambda f: index_to(f, str(f.parent / "outside.safetensors")), r"is no plain file"),
    "index to a null byte": (lambda f: index_to(f, "a\0.safetensors"), r"is no plain file name"),
    "index to a number": (lambda f: index_to(f, 7), r"no weight_map from tensors to files"),
    "index to a pickle": (lambda f: index_to(f, "pytorch_model.bin"), r"names 'pytorch_model.bin'; .*safetensors only"),
    "a link out": (link_out, r"model\.safetensors: a link that leads out of the folder"),
    "a pickle": (pickled, r"pytorch_model\.bin: a pickle, which runs its maker's code"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"neither model\.safetensors nor"),
    "torn weights": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 40), r"no safetensors"),
    "a huge header": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{}"), r"no safetensors"),
    "a missing tensor": (lambda f: rewrite(f, lambda t: t.pop(NORM)), rf"tensor {NORM} is missing"),
    "an extra tensor": (lambda f: rewrite(f, lambda t: t.update(evil=torch.ones(1))), r"tensor evil is not of such"),
    "a misshapen tensor": (lambda f: rewrite(f, lambda t: t.update({NORM: torch.ones(3)})), r"has shape \[3\]"),
    "whole numbers": (lambda f: rewrite(f, lambda t: t.update({NORM: t[NORM].int()})), r"has type I32"),
    "another tied output": (
        lambda f: rewrite(f, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})),
        r"differs from the embedding",
    ),
    "biases": (lambda f: as_json(f / "config.json", attention_bias=True), r"attention_bias = true"),
    "a window": (lambda f: as_json(f / "config.json", sliding_window=4096), r"sliding_window = 4096"),
    "experts": (lambda f: as_json(f / "config.json", model_type="mixtral"), r"model_type = 'mixtral'"),
    "own code": (lambda f: as_json(f / "config.json", auto_map={"AutoModel": "m.M"}), r"auto_map asks for code"),
    "trusted code": (lambda f: as_json(f / "config.json", trust_remote_code=True), r"trust_remote_code asks for code"),
    "another head": (
        lambda f: as_json(f / "config.json", architectures=["LlamaForSequenceClassification"]),
        r"architectures = ",
    ),
    "rope of llama 3": (
        lambda f: as_json(f / "config.json", rope_scaling={"rope_type": "llama3", "factor": 8.0}),
        r"rope_scaling\.rope_type = 'llama3'",
    ),
    "an old dynamic rope": (
        lambda f: as_json(f / "config.json", rope_scaling={"type": "dynamic", "factor": 8.0}),
        r"rope_type = 'dynamic'",
    ),
    "another yarn": (
        lambda f: as_json(f / "config.json", rope_scaling={"rope_type": "yarn", "factor": 8.0, "beta_fast": 64}),
        r"beta_fast = 64",
    ),
    "a quantised model": (
        lambda f: as_json(f / "config.json", quantization_config={"bits": 4}),
        r"quantization_config",
    ),
    "a million layers": (lambda f: as_json(f / "config.json", num_hidden_layers=10**6), r"num_hidden_layers = 1000000"),
    "a text for a size": (lambda f: as_json(f / "config.json", hidden_size="16"), r"hidden_size = '16'"),
    "heads that do not divide": (lambda f: as_json(f / "config.json", num_key_value_heads=3), r"does not divide"),
    "not a number": (lambda f: as_json(f / "config.json", rms_norm_eps=float("nan")), r"no JSON \(holds NaN"),
    "deep JSON": (lambda f: (f / "config.json").write_text("[" * 10**5), r"config\.json: no JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), r"no JSON object"),
    "much JSON": (lambda f: (f / "config.json").write_text(" " * (1 << 21)), r"larger than 1,048,576 bytes"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json: no such file"),
    "a torn tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer\.json is no tokenizer"),
}


@pytest.fixture(scope="module")
def innocent(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("foreign") / "x"
    foreign(folder, MODEL, tokenizer, torch.float32)
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_are_refused_in_one_line(name: str, innocent: Path, tmp_path: Path) -> None:
    shutil.copytree(innocent, tmp_path / "x")
    spoil, message = HOSTILE[name]
    spoil(tmp_path / "x")
    with pytest.raises(UserError, match=message) as caught:
        run("import hf", [str(tmp_path / "x"), str(tmp_path / "in")])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x" / "ran").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"x", "outside.safetensors"}
