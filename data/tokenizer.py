"""A byte-level BPE with single digits, trained with ``tokenizers``."""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from farside.configs.errors import UserError
from farside.data.chat import ASSISTANT, END, END_OF_TEXT, END_THINK, SPECIAL_TOKENS, THINK, USER


class Tokenizer:
    """Text to ids and back. Special tokens in text are recognised as such."""

    def __init__(self, backend: BackendTokenizer) -> None:
        self.backend = backend
        self.end_of_text = self.id(END_OF_TEXT)
        self.end = self.id(END)
        self.think, self.end_think = self.id(THINK), self.id(END_THINK)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Deterministic: equal texts in equal order give an equal tokenizer."""
        backend = BackendTokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        if not path.is_file():
            raise UserError(f"{path}: no tokenizer there; run `farside data prepare` first")
        try:
            return cls(BackendTokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises nothing more special
            raise UserError(f"{path}: no tokenizer ({error}); remove its folder, so that it is made again") from error

    @classmethod
    def adopt(cls, path: Path) -> "Tokenizer":
        """A tokenizer made elsewhere: a tokenizer.json or a folder with one. Special tokens of the chat format that it
        lacks are added behind its own; it cuts and pads nothing. Raises UserError."""
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise UserError(f"data.tokenizer.path: no tokenizer.json at {str(path)!r}; name the file or its folder")
        try:
            backend = BackendTokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing more special
            raise UserError(f"data.tokenizer.path: {file} is no tokenizer ({error}); name another") from error
        backend.no_truncation()
        backend.no_padding()
        backend.add_special_tokens([token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None])
        if max(backend.get_vocab().values()) >= backend.get_vocab_size():
            raise UserError(f"{file}: its token ids have gaps; farside's token files need 0 to the number of tokens")
        return cls(backend)

    def save(self, path: Path) -> None:
        self.backend.save(str(path))

    def id(self, token: str) -> int:
        number = self.backend.token_to_id(token)
        if number is None:
            raise UserError(f"tokenizer: lacks the special token {token}; train it with `farside data prepare`")
        return number

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the serialised tokenizer."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [item.ids for item in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=False)

    def encode_prompt(self, question: str) -> list[int]:
        """The tokens an assistant's answer continues."""
        return self.encode(f"{USER}{question}{ASSISTANT}")
