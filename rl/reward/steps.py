"""Where the steps of an answer end, in tokens."""

from collections.abc import Sequence

from farside.data.chat import END_THINK, THINK
from farside.data.tokenizer import Tokenizer


class StepFinder:
    """Steps of an answer: what the task's separator (a newline, for most) cuts its thinking into, then the rest as one
    last step, the answer proper. So every answer has a last step, which ends at its last token."""

    def __init__(self, tokenizer: Tokenizer, separator: str) -> None:
        self.tokenizer, self.separator = tokenizer, separator
        self.pieces: dict[int, str] = {}
        """Text by token. Part of a character decodes to a mark of its own, which is neither space nor separator."""

    def ends(self, tokens: Sequence[int]) -> list[int]:
        """Index of each step's last token, rising. A token that holds a separator behind some of a step ends it; one
        that begins with the separator is of no step."""
        ends: list[int] = []
        thinking, content = False, -1
        """content: the newest token of the step that is not blank; -1: the step is empty."""
        for index, token in enumerate(tokens):
            piece = self._piece(token)
            if piece == THINK:
                thinking, content = True, -1
            elif piece == END_THINK and thinking:
                ends += [content] if content >= 0 else []
                thinking, content = False, -1
            elif thinking and self.separator in piece:
                before, _, after = piece.rpartition(self.separator)
                last = index if before.strip() else content
                ends += [last] if last >= 0 else []
                content = index if after.strip() else -1
            elif piece.strip():
                content = index
        last = len(tokens) - 1
        return [end for end in dict.fromkeys(ends) if end < last] + [last]

    def _piece(self, token: int) -> str:
        if token not in self.pieces:
            self.pieces[token] = self.tokenizer.decode([token])
        return self.pieces[token]
