"""Which side of the split a problem is on: a function of its text alone, the same for every way to typeset it."""

import re
import unicodedata
import zlib

HELD_OUT_SHARE = 10
"""One question text in this many is held out."""

SPACING = re.compile(r"\s+|\\[,;:! ]|~|\$|\\[()\[\]]")
"""White space, LaTeX's spaces and the marks around mathematics."""
COMMANDS = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![a-z])|(?<=\\)[dt](?=frac)")
THOUSANDS = re.compile(r"(?<=[0-9])(?:,|\{,\})(?=[0-9]{3}(?![0-9]))")
NUMBER = re.compile(r"([0-9]+)(?:\.([0-9]*))?")
DASHES = str.maketrans("−–—‐‑", "-----")


def normalised(question: str) -> str:
    """The text by which problems are told apart: without case, white space, LaTeX's spacing and the formatting of
    digits (full width, 1,000, 007, 2.50). Two problems that differ only in those fall on one side.

    It may make two different problems one, never one problem two; paraphrases are different problems.
    """
    text = unicodedata.normalize("NFKC", question).casefold().translate(DASHES)
    text = SPACING.sub("", COMMANDS.sub("", text))
    return NUMBER.sub(_plain, THOUSANDS.sub("", text))


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the held-out split, if nothing else decides it."""
    return zlib.crc32(normalised(question).encode("utf-8", "surrogatepass")) % HELD_OUT_SHARE == 0


def _plain(number: re.Match[str]) -> str:
    whole, fraction = number[1].lstrip("0") or "0", (number[2] or "").rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole
