"""The tokenizer: deterministic, lossless on any text, single digits, special tokens whole."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farside.configs.errors import UserError
from farside.data.chat import ASSISTANT, END, END_OF_TEXT, SPECIAL_TOKENS, USER
from farside.data.tokenizer import Tokenizer


def test_equal_texts_give_an_equal_tokenizer(texts: dict[str, str], tmp_path: Path) -> None:
    lines = [text[:20_000] for text in texts.values()]
    one, same, other = (Tokenizer.train(part, 500) for part in (lines, lines, lines[:1]))
    assert one.hash == same.hash != other.hash
    one.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.hash == one.hash
    assert loaded.encode(lines[1]) == one.encode(lines[1])
    assert one.vocab_size == 500


@given(st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text]) == [tokenizer.encode(text)]


@given(st.text(alphabet="0123456789 .,+=-", min_size=1))
def test_every_digit_is_one_token(tokenizer: Tokenizer, text: str) -> None:
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert all(len(piece) == 1 for piece in pieces if any(letter.isdigit() for letter in piece))


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_special_tokens_are_whole_wherever_they_stand(tokenizer: Tokenizer, special: str) -> None:
    number = tokenizer.id(special)
    assert tokenizer.encode(special) == [number]
    assert tokenizer.encode(f"a{special}1{special}").count(number) == 2
    assert tokenizer.decode([number]) == special


def test_special_tokens_come_first_and_a_prompt_has_its_format(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert (tokenizer.end_of_text, tokenizer.end) == (tokenizer.id(END_OF_TEXT), tokenizer.id(END))
    prompt = tokenizer.encode_prompt("12+3=?")
    assert (prompt[0], prompt[-1]) == (tokenizer.id(USER), tokenizer.id(ASSISTANT))
    assert tokenizer.decode(prompt) == "<|user|>12+3=?<|assistant|>"


def test_missing_tokenizers_and_tokens_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: no tokenizer there"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": ')
    with pytest.raises(UserError, match=r"tokenizer\.json: no tokenizer .* made again"):
        Tokenizer.load(path)
