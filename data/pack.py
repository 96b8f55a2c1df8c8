"""Rows of fixed length from documents: cut from a stream, or filled with whole conversations."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from farside.configs.errors import UserError
from farside.configs.schema import Packing
from farside.data.batch import Sample, document_sample
from farside.data.chat import END
from farside.data.order import epoch_item, fold, permuted
from farside.data.packed import PackedSource
from farside.data.plan import PlanStore
from farside.data.tokenizer import Tokenizer


class TextSource:
    """Language modelling: a stream of documents is cut into windows of S+1 tokens that overlap by one.

    Every token is predicted once an epoch (but for a rest shorter than a window); windows are visited in a
    permuted order, reshuffled every epoch. tokens [T] must close each document with ``end_of_text``.
    """

    def __init__(
        self, name: str, tokens: np.ndarray, end_of_text: int, seed: int, offsets: np.ndarray | None = None
    ) -> None:
        self.name, self.tokens, self.end_of_text, self.seed = name, tokens, end_of_text, seed
        self._offsets = offsets
        self._packed: dict[object, PackedSource] = {}

    def packed(self, packing: Packing, lengths: Mapping[int, float], store: PlanStore) -> "TextSource | PackedSource":
        """This source in rows of another packing; itself if they are the windows that it has without a plan."""
        if packing is Packing.concatenate and not lengths:
            return self
        key = (packing, *sorted(lengths.items()))
        if key not in self._packed:
            self._packed[key] = PackedSource(
                self.name, self.tokens, self.offsets, self.end_of_text, packing, lengths, self.seed, store
            )
        return self._packed[key]

    @cached_property
    def offsets(self) -> np.ndarray:
        """[N + 1]: where each document begins, and T; looked for in the tokens if not given."""
        return document_offsets(self.tokens, self.end_of_text) if self._offsets is None else self._offsets

    @property
    def size(self) -> int:
        return len(self.tokens)

    def rows(self, seq_len: int) -> int:
        return self.windows(seq_len)

    def epochs(self, seq_len: int) -> float:
        return 1.0

    def predicted(self, seq_len: int) -> float:
        """Mean tokens a row predicts: all but the first ones of documents."""
        return seq_len * (1 - (len(self.offsets) - 2) / len(self.tokens))

    def windows(self, seq_len: int) -> int:
        count = (len(self.tokens) - 1) // seq_len
        if count < 1:
            raise UserError(
                f"source {self.name!r} has {len(self.tokens)} tokens, fewer than one sample of {seq_len} + 1; "
                "give more text or a smaller seq_len"
            )
        return count

    def sample(self, index: int, seq_len: int) -> Sample:
        window = epoch_item(index, self.windows(seq_len), fold(self.seed, self.name, seq_len))
        return self.window(window, seq_len)

    def window(self, number: int, seq_len: int) -> Sample:
        """Window ``number`` in file order."""
        tokens = np.asarray(self.tokens[number * seq_len : (number + 1) * seq_len + 1])
        starts = np.zeros(len(tokens), dtype=bool)
        starts[0] = True
        starts[1:] = tokens[:-1] == self.end_of_text
        return document_sample(tokens, np.ones(len(tokens), dtype=np.float32), starts)


class TraceSource:
    """Conversations from JSONL, packed whole into rows; only the response carries loss.

    Each line is {"question": ..., "response": ...}; responses end with ``<|end|>``. Rows are filled in a
    permuted order until the next conversation does not fit: a plan made once from (seed, epoch).
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, seed: int) -> None:
        self.path, self.seed, self.end_of_text = path, seed, tokenizer.end_of_text
        if not path.is_file():
            raise UserError(f"{path}: no such file; `farside sft` writes it, or name your own with sft.conversations")
        lines = _read_conversations(path)
        if not lines:
            raise UserError(f"{path}: holds no conversations; name another with sft.conversations, or remove it")
        if not all(response.endswith(END) for _, response in lines):
            raise UserError(f"{path}: a response does not end with {END}")
        prompts = [tokenizer.encode_prompt(question) for question, _ in lines]
        responses = tokenizer.encode_batch([response for _, response in lines])
        self.conversations = list(zip(prompts, responses))
        self._plans: dict[tuple[int, int], list[list[int]]] = {}

    def _plan(self, epoch: int, seq_len: int) -> list[list[int]]:
        """Rows of one epoch, each a list of conversation numbers."""
        if (epoch, seq_len) not in self._plans:
            rows: list[list[int]] = [[]]
            room = seq_len + 1
            for place in range(len(self.conversations)):
                number = permuted(place, len(self.conversations), fold(self.seed, "traces", epoch))
                length = sum(map(len, self.conversations[number]))
                if length > seq_len + 1:
                    raise UserError(f"{self.path}: line {number + 1} has {length} tokens, over seq_len = {seq_len}")
                if length > room:
                    rows.append([])
                    room = seq_len + 1
                rows[-1].append(number)
                room -= length
            self._plans[epoch, seq_len] = rows
        return self._plans[epoch, seq_len]

    def predicted(self, seq_len: int) -> float:
        """Mean tokens a row predicts: the responses'."""
        return sum(len(response) for _, response in self.conversations) / len(self._plan(0, seq_len))

    def sample(self, index: int, seq_len: int) -> Sample:
        epoch = 0
        while index >= len(self._plan(epoch, seq_len)):
            index -= len(self._plan(epoch, seq_len))
            epoch += 1
        tokens, weights, starts = (np.zeros(seq_len + 1, dtype=dtype) for dtype in (np.int64, np.float32, bool))
        end = 0
        for number in self._plan(epoch, seq_len)[index]:
            prompt, response = self.conversations[number]
            starts[end] = True
            tokens[end : end + len(prompt)] = prompt
            end += len(prompt)
            tokens[end : end + len(response)] = response
            weights[end : end + len(response)] = 1.0
            end += len(response)
        if end < len(tokens):  # padding is a document of its own, without weight
            starts[end] = True
            tokens[end:] = self.end_of_text
        return document_sample(tokens, weights, starts)


def document_offsets(tokens: np.ndarray, end_of_text: int, at_once: int = 1 << 24) -> np.ndarray:
    """[N + 1] int64: where each document begins, and T. Every document ends with ``end_of_text``."""
    ends = [
        begin + np.flatnonzero(tokens[begin : begin + at_once] == end_of_text) + 1
        for begin in range(0, len(tokens), at_once)
    ]
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), *ends])
    return offsets if offsets[-1] == len(tokens) else np.append(offsets, len(tokens))


def _read_conversations(path: Path) -> list[tuple[str, str]]:
    """(question, response) per line. Raises UserError naming the line that is not such a pair."""
    pairs: list[tuple[str, str]] = []
    # split at "\n" only: splitlines would cut at U+2028 and its like, which JSON leaves inside strings
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
                pairs.append((str(record["question"]), str(record["response"])))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}: line {number} is no pair of question and response ({error}); mend or remove it"
                ) from error
    return pairs
