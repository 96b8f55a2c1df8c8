"""Rows of fixed length: which tokens are predicted, where documents begin, what carries weight."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farside.configs.errors import UserError
from farside.data.batch import Batch, Sample, document_sample
from farside.data.order import rng
from farside.data.pack import TextSource, TraceSource
from farside.data.tokenizer import ASSISTANT, END, USER, Tokenizer

EOT = 0


def stream(lengths: list[int]) -> np.ndarray:
    """Documents of distinct tokens, each closed by EOT: a token's value is its place plus 1000."""
    tokens = np.arange(sum(lengths) + len(lengths)) + 1000
    tokens[np.cumsum(np.array(lengths) + 1) - 1] = EOT
    return tokens


def check_row(row: Sample) -> None:
    """What every row keeps, whatever its source."""
    assert len({len(part) for part in vars(row).values()}) == 1
    assert row.positions[0] == 0
    begins = np.flatnonzero(np.diff(row.doc_ids)) + 1
    assert (np.diff(row.doc_ids) >= 0).all()
    assert (row.positions[begins] == 0).all()
    inner = np.setdiff1d(np.arange(1, len(row.positions)), begins)
    assert (row.positions[inner] == row.positions[inner - 1] + 1).all()
    assert (row.labels[:-1] == row.tokens[1:]).all()
    assert (row.weights[begins - 1] == 0).all(), "a label crosses the start of a document"
    assert (row.weights >= 0).all()


@given(st.lists(st.integers(0, 9), min_size=2, max_size=12), st.integers(1, 8), st.integers(0, 5))
def test_text_predicts_every_token_once_an_epoch(lengths: list[int], seq_len: int, seed: int) -> None:
    tokens = stream(lengths)
    source = TextSource("en", tokens, EOT, seed)
    if len(tokens) <= seq_len:
        with pytest.raises(UserError, match=f"'en' has {len(tokens)} tokens, fewer than one sample of {seq_len}"):
            source.windows(seq_len)
        return
    windows = source.windows(seq_len)
    begins = {0, *(np.flatnonzero(tokens == EOT) + 1).tolist()}
    reached = range(1, windows * seq_len + 1)
    assert len(tokens) - 1 - reached[-1] < seq_len, "more than a window's rest is left out"
    rows = [source.window(number, seq_len) for number in range(windows)]
    predicted = [spot for number, row in enumerate(rows) for spot in number * seq_len + 1 + np.flatnonzero(row.weights)]
    assert predicted == [spot for spot in reached if spot not in begins]
    for number, row in enumerate(rows):
        check_row(row)
        assert set(row.weights) <= {0.0, 1.0}
        assert (row.tokens == tokens[number * seq_len :][:seq_len]).all()
        assert (row.labels == tokens[number * seq_len + 1 :][:seq_len]).all()
    for epoch in range(2):
        visited = [source.sample(epoch * windows + index, seq_len) for index in range(windows)]
        assert Counter(map(content, visited)) == Counter(map(content, rows))


def content(row: Sample) -> tuple[int, ...]:
    return (*row.tokens.tolist(), *row.labels.tolist())


def test_text_windows_by_hand() -> None:
    source = TextSource("en", stream([3, 2, 4]), EOT, 0)  # 1000 1001 1002 0 1004 1005 0 1007 1008 1009 1010 0
    row = source.window(0, 5)
    assert row.tokens.tolist() == [1000, 1001, 1002, 0, 1004]
    assert row.labels.tolist() == [1001, 1002, 0, 1004, 1005]
    assert row.weights.tolist() == [1, 1, 1, 0, 1]
    assert row.positions.tolist() == [0, 1, 2, 3, 0]
    assert row.doc_ids.tolist() == [1, 1, 1, 1, 2]
    row = source.window(1, 5)
    assert row.labels.tolist() == [0, 1007, 1008, 1009, 1010]
    assert row.weights.tolist() == [1, 0, 1, 1, 1]
    assert row.positions.tolist() == [0, 1, 0, 1, 2]


def test_epochs_are_shuffled_differently() -> None:
    source = TextSource("en", stream([5] * 30), EOT, 1)
    count = source.windows(4)
    orders = [[source.sample(epoch * count + i, 4).tokens[0] for i in range(count)] for epoch in range(2)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


@given(st.integers(2, 60), st.floats(0, 1), st.integers(0, 2**32))
def test_a_row_is_its_slow_twin(size: int, share: float, seed: int) -> None:
    """Token by token, where document_sample repeats whole documents at once."""
    generator = rng(seed)
    tokens, weights = generator.integers(0, 9, size).astype(np.uint16), generator.random(size)
    starts = generator.random(size) < share
    starts[0] = True
    row = document_sample(tokens, weights, starts)
    document, position = 0, 0
    for spot in range(size - 1):
        document, position = (document + 1, 0) if starts[spot] else (document, position + 1)
        assert (row.tokens[spot], row.labels[spot]) == (tokens[spot], tokens[spot + 1])
        assert row.weights[spot] == (0.0 if starts[spot + 1] else np.float32(weights[spot + 1]))
        assert (row.doc_ids[spot], row.positions[spot]) == (document, position)
    assert [part.dtype for part in vars(row).values()] == [np.int64, np.int64, np.float32, np.int64, np.int64]


def test_gathered_rows_are_stacked_rows() -> None:
    tokens = rng("rows").integers(1, 99, (5, 9))
    rows = [document_sample(row, np.ones(9, np.float32), row % 4 == row[0] % 4) for row in tokens]
    batch = Batch.gathered(5, lambda number: rows[number])
    for name in vars(rows[0]):
        assert getattr(batch, name).numpy().tolist() == np.stack([getattr(row, name) for row in rows]).tolist()


def test_batches_stack_rows_and_sum_weights_in_double() -> None:
    row = document_sample(np.arange(4), np.full(4, 0.1, np.float32), np.array([True, False, False, False]))
    batch = Batch.of([row] * 3)
    assert batch.tokens.shape == (3, 3)
    assert batch.weight == pytest.approx(float(np.float32(0.1)) * 9, rel=1e-15)
    moved = Batch(**{**vars(batch), "extras": {"advantages": batch.weights}}).to(batch.tokens.device)
    assert (moved.extras["advantages"] == batch.weights).all()


def conversations(count: int) -> list[dict[str, str]]:
    return [{"question": f"{n}+1=?", "response": f"<think>{'x ' * (n % 7)}</think>{n + 1}{END}"} for n in range(count)]


@pytest.fixture
def traces(tmp_path: Path, tokenizer: Tokenizer) -> TraceSource:
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in conversations(40)))
    return TraceSource(path, tokenizer, 3)


@pytest.mark.parametrize("seq_len", [32, 64])
def test_traces_hold_every_conversation_once_an_epoch(traces: TraceSource, tokenizer: Tokenizer, seq_len: int) -> None:
    whole = {f"{USER}{line['question']}{ASSISTANT}{line['response']}" for line in conversations(40)}
    index, orders = 0, []
    for _ in range(2):
        seen: list[str] = []
        while len(seen) < 40:
            row = traces.sample(index, seq_len)
            index += 1
            check_row(row)
            assert len(row.tokens) == seq_len
            tokens, weights = np.append(row.tokens, row.labels[-1]), np.append(0.0, row.weights)
            documents = np.append(row.doc_ids, row.doc_ids[-1])
            if row.weights[-1] == 0 and tokens[-2] == tokenizer.end:  # the label-only token begins the padding
                documents[-1] += 1
            for number in np.unique(documents):
                here = documents == number
                text = tokenizer.decode(tokens[here].tolist())
                if text.startswith("<|endoftext|>"):
                    assert set(tokens[here].tolist()) == {tokenizer.end_of_text}
                    assert (weights[here] == 0).all(), "padding carries weight"
                    continue
                assert text in whole, "a conversation was cut or overlaps another"
                seen.append(text)
                response = text.split(ASSISTANT)[1]
                assert set(weights[here]) == {0.0, 1.0}
                assert tokenizer.decode(tokens[here & (weights == 1)].tolist()) == response
        assert sorted(seen) == sorted(whole)
        orders.append(seen)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no conversations"),
        ("\n \n", "holds no conversations"),
        ('{"question": "a", "response": "b"}\n', r"does not end with <\|end\|>"),
        ('{"question": "a", "respo', "line 1"),
        ('{"question": "a"}\n', "line 1"),
        ("[1]\n", "line 1"),
        (json.dumps({"question": "a " * 99, "response": END}) + "\n", "line 1 has .* tokens, over seq_len = 32"),
    ],
)
def test_bad_conversations_name_the_file(tmp_path: Path, tokenizer: Tokenizer, text: str, message: str) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"traces\.jsonl.*{message}"):
        TraceSource(path, tokenizer, 0).sample(0, 32)


def test_conversations_may_hold_any_character(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """JSON leaves U+2028 as it is; it ends no line of JSONL."""
    path = tmp_path / "traces.jsonl"
    line = {"question": "a\u2028b\x85c", "response": f"d\u2029{END}"}
    path.write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    row = TraceSource(path, tokenizer, 0).sample(0, 32)
    assert "a\u2028b\x85c" in tokenizer.decode(row.tokens.tolist())


def test_a_missing_file_of_conversations_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="no such file"):
        TraceSource(tmp_path / "none.jsonl", tokenizer, 0)
