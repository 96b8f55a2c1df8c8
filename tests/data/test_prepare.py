"""Preparation: once, by content, all or nothing; wrong input named in one line."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from farside.configs.errors import UserError
from farside.configs.schema import DataConfig, SourceConfig, SourceKind, TokenizerConfig
from farside.data import shards
from farside.data.chat import SPECIAL_TOKENS
from farside.data.indexed import IndexedTokens, IndexedWriter
from farside.data.prepare import Prepared, prepare
from farside.data.progress import Bar
from farside.data.sources import SPLITS
from farside.data.tokenizer import Tokenizer
from tests.data.documents import read_source

DOCUMENTS = {
    "train": ["One day the fox, aged 7, met a crow.\n\nIt spoke.", "却说孔明回到汉中。", "Last."],
    "validation": ["A second text."],
    "haystack": ["A third text!", "And a fourth?"],
}


def write_source(folder: Path, documents: dict[str, list[str]]) -> Path:
    folder.mkdir(exist_ok=True)
    for split, texts in documents.items():
        (folder / f"{split}.txt").write_text("\n\f\n".join(texts) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    source = SourceConfig(path=str(write_source(tmp_path / "source", DOCUMENTS)))
    return DataConfig(str(tmp_path / "prepared"), {"en": source}, TokenizerConfig(400, needle_texts=50))


def visible(config: DataConfig) -> list[str]:
    """Folders that are prepared data."""
    return sorted(path.parent.name for path in Path(config.dir).glob("*/data.json") if path.parent.name[0] != "p")


def test_files_hold_the_documents(config: DataConfig) -> None:
    data = Prepared(prepare(config))
    assert data.names == ["en"]
    assert data.language("en") == "en"
    for split in SPLITS:
        text = data.tokenizer.decode(data.tokens("en", split).tolist())
        assert text == "".join(f"{document}<|endoftext|>" for document in DOCUMENTS[split])
    assert data.tokens("en", "train").dtype == np.uint16
    assert data.summary["tokenizer_hash"] == data.tokenizer.hash
    assert data.summary["sources"]["en"]["train_tokens"] == len(data.tokens("en", "train"))
    assert data.summary["sources"]["en"]["train_bytes"] == sum(len(text.encode()) for text in DOCUMENTS["train"])
    with pytest.raises(UserError, match=r"names 'zh'; data\.sources has en"):
        data.tokens("zh", "train")


def state(folder: Path) -> dict[str, tuple[int, str]]:
    files = sorted(folder.iterdir())
    return {file.name: (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files}


def test_a_second_preparation_does_nothing(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare(config)
    before = state(folder)
    monkeypatch.setattr(Tokenizer, "train", None)
    assert prepare(config) == folder
    assert state(folder) == before


def test_preparation_is_deterministic(config: DataConfig, tmp_path: Path) -> None:
    one, other = prepare(config), prepare(replace(config, dir=str(tmp_path / "elsewhere")))
    assert one.name == other.name
    assert {name: digest for name, (_, digest) in state(one).items()} == {
        name: digest for name, (_, digest) in state(other).items()
    }


@pytest.mark.parametrize("change", [*SPLITS, "language", "vocab_size", "needle_texts", "another source"])
def test_the_fingerprint_depends_on_everything_that_goes_in(config: DataConfig, tmp_path: Path, change: str) -> None:
    before = prepare(config)
    source = config.sources["en"]
    if change in SPLITS:
        write_source(Path(source.path), {change: [*DOCUMENTS[change][:-1], DOCUMENTS[change][-1] + " More."]})
    elif change == "language":
        config.sources["en"] = replace(source, language="zh")
    elif change == "another source":
        config.sources["second"] = source
    else:
        config.tokenizer = replace(config.tokenizer, **{change: 399 if change == "vocab_size" else 49})
    after = prepare(config)
    assert after != before
    assert Prepared(after).language("en") == config.sources["en"].language
    assert len(visible(config)) == 2


def test_where_a_source_lies_does_not_matter(config: DataConfig, tmp_path: Path) -> None:
    before = prepare(config)
    config.sources["en"].path = str(write_source(tmp_path / "moved", DOCUMENTS))
    assert prepare(config) == before


def test_a_tokenizer_may_be_given(config: DataConfig, tmp_path: Path) -> None:
    """Its own ids stay; it is made whole for the chat format, and what it would cut off or add is not."""
    backend = BackendTokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(DOCUMENTS["train"], trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    size = backend.get_vocab_size()
    folders = []
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        config.tokenizer.path = str(path)
        folders.append(prepare(config))
    assert folders[0] == folders[1]
    data = Prepared(folders[0])
    assert data.tokenizer.end_of_text == 1
    assert data.tokenizer.vocab_size == size + len(SPECIAL_TOKENS) - 1
    assert data.tokenizer.decode(data.tokens("en", "haystack").tolist()) == "".join(
        f"{document}<|endoftext|>" for document in DOCUMENTS["haystack"]
    )
    config.tokenizer.path = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.tokenizer\.path: no tokenizer\.json at"):
        prepare(config)
    (tmp_path / "tokenizer.json").write_text("{")
    config.tokenizer.path = str(tmp_path)
    with pytest.raises(UserError, match=r"data\.tokenizer\.path: .* is no tokenizer"):
        prepare(config)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is missing"), (b"", "is empty"), (b" \n\x0c\n ", "is empty"), (b"ab\xff\xfe", "is not UTF-8 .byte 2")],
)
def test_bad_corpora_name_the_file(config: DataConfig, split: str, content: bytes | None, message: str) -> None:
    file = Path(config.sources["en"].path) / f"{split}.txt"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=rf"data\.sources\.en: .*{split}\.txt {message}") as error:
        prepare(config)
    assert "\n" not in str(error.value)
    assert not Path(config.dir).exists()


@pytest.mark.parametrize(("path", "message"), [("", "path: empty"), ("nowhere", "path: no folder 'nowhere'")])
def test_bad_paths_name_the_key(config: DataConfig, path: str, message: str) -> None:
    config.sources["en"].path = path
    with pytest.raises(UserError, match=rf"data\.sources\.en\.{message}"):
        prepare(config)


def test_no_sources_and_no_folder_are_named(config: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.sources: none given"):
        prepare(replace(config, sources={}))
    with pytest.raises(UserError, match="no prepared data"):
        Prepared(tmp_path)


def test_the_standard_library_is_split_by_module() -> None:
    found = read_source("code", SourceConfig(kind=SourceKind.python_stdlib, max_bytes=300_000))
    assert found.keys() == set(SPLITS)
    assert all(found.values())
    documents = [document for split in SPLITS for document in found[split]]
    assert len(set(documents)) == len(documents)
    assert sum(map(len, documents)) <= 300_000


def rewritten(folder: Path, change: Callable[[np.ndarray], object], lengths: int = 0) -> None:
    """The haystack's tokens after ``change``, in files that are sound by themselves, ``lengths`` documents fewer."""
    found = IndexedTokens.open(folder / "en.haystack")
    documents = np.split(np.array(found.tokens), found.offsets[1:-1])
    change(documents[-1])
    with IndexedWriter(folder / "new", found.tokens.dtype) as writer:
        for document in documents[lengths:]:
            writer.add(document)
        writer.finish()
    for suffix in (".bin", ".idx"):
        (folder / f"new{suffix}").replace(folder / f"en.haystack{suffix}")


def tampered(folder: Path, name: str) -> None:
    path = folder / "en.haystack.bin"
    if name == "fewer":
        rewritten(folder, lambda tokens: None, lengths=1)
    elif name == "foreign":
        rewritten(folder, lambda tokens: tokens.__setitem__(-1, 400))
    elif name == "torn":
        path.write_bytes(path.read_bytes()[:20])
    else:
        path.unlink()


@pytest.mark.parametrize("name", ["fewer", "foreign", "torn", "gone"])
def test_token_files_that_do_not_belong_are_named(config: DataConfig, name: str) -> None:
    folder = prepare(config)
    Prepared(folder).check(at_once=3)
    last = len(Prepared(folder).tokens("en", "haystack")) - 1
    tampered(folder, name)
    message = {
        "fewer": "tokens, but data.json tells of",
        "foreign": f"byte {2 * last} holds token 400, but the tokenizer beside it has 400",
        "torn": "ends at byte 20",
        "gone": "cannot be read",
    }[name]
    with pytest.raises(UserError, match=rf"en\.haystack\.bin: .*{message}.*prepare.* again"):
        Prepared(folder).check(at_once=3)


def test_the_highest_token_of_the_vocabulary_is_its_own(config: DataConfig) -> None:
    folder = prepare(config)
    highest = Prepared(folder).tokenizer.vocab_size - 1
    rewritten(folder, lambda tokens: tokens.__setitem__(0, highest))
    with pytest.raises(UserError, match=r"en\.haystack\.bin: not the bytes that were written here"):
        Prepared(folder).check()


def test_a_summary_that_tells_of_other_sources_is_named(config: DataConfig) -> None:
    folder = prepare(config)
    summary = json.loads((folder / "data.json").read_text())
    for text in (json.dumps(summary | {"languages": {"en": "zh"}}), "{", "[]", json.dumps({"fingerprint": 1})):
        (folder / "data.json").write_text(text)
        for use in (lambda: Prepared(folder), lambda: prepare(config)):
            with pytest.raises(UserError, match=r"data\.json: .*prepared again"):
                use()
    (folder / "data.json").unlink()
    with pytest.raises(UserError, match="does not hold the data that its name tells of"):
        prepare(config)


def test_the_data_of_another_configuration_is_not_taken_for_its_own(config: DataConfig) -> None:
    folder = prepare(config)
    config.tokenizer.needle_texts = 49
    other = prepare(config)
    shutil.rmtree(other)
    folder.rename(other)
    with pytest.raises(UserError, match="does not hold the data that its name tells of"):
        prepare(config)


def test_another_tokenizer_beside_the_files_is_named(config: DataConfig) -> None:
    folder = prepare(config)
    Tokenizer.train(["quite other words"], 300).save(folder / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json: not the tokenizer its token files were made with"):
        Prepared(folder)


def test_progress_is_said_now_and_then_without_a_terminal() -> None:
    said: list[str] = []
    seconds = [0.0]
    with Bar(said.append, lambda: seconds[0]) as bar:
        bar.begin("reading en")
        for _ in range(30):
            seconds[0] += 1
            bar.advance(1_000_000)
        bar.begin("tokenizing", total=60_000_000, done=10_000_000)
        for _ in range(45):
            seconds[0] += 1
            bar.advance(1_000_000)
    assert said == [
        "reading en: 20.0 MB",
        "tokenizing: 30.0 of 60.0 MB",
        "tokenizing: 50.0 of 60.0 MB",
    ]


def test_a_file_behind_a_link_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_RACY_NANOSECONDS", 200_000_000)
    target, folder = write_source(tmp_path / "away", DOCUMENTS), tmp_path / "source"
    folder.mkdir()
    for split in SPLITS:
        (folder / f"{split}.txt").symlink_to(target / f"{split}.txt")
        os.utime(target / f"{split}.txt", (1, 1))
    config = DataConfig(str(tmp_path / "prepared"), {"en": SourceConfig(path=str(folder))}, TokenizerConfig(400))
    time.sleep(0.3)  # until the files count as settled and the plan is kept
    before = prepare(config)
    assert list((tmp_path / "prepared").rglob("plans/*.json")), "the plan is kept"
    write_source(target, {**DOCUMENTS, "train": ["Another text altogether."]})
    assert prepare(config) != before


def test_a_tokenizer_with_gaps_is_refused_before_any_work(tmp_path: Path, config: DataConfig) -> None:
    backend = BackendTokenizer(models.WordLevel({"a": 0, "b": 9}, unk_token="a"))
    backend.save(str(tmp_path / "tokenizer.json"))
    config.tokenizer.path = str(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="its token ids have gaps"):
        prepare(config)
