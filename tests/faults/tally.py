"""What was tried and what survived, as docs/reliability.md shows it: tests add lines, this module makes the table.

FAULTS_TALLY=tally.jsonl ./scripts/test.sh --all tests/faults; python -m tests.faults.tally tally.jsonl
"""

import json
import os
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- tally -->\n", "<!-- end of tally -->\n"


def add(fault: str, tried: int, survived: int, lost: str) -> None:
    """Called when a test has checked all of it; without FAULTS_TALLY it does nothing."""
    if path := os.environ.get("FAULTS_TALLY"):
        with open(path, "a") as stream:
            stream.write(json.dumps({"fault": fault, "tried": tried, "survived": survived, "lost": lost}) + "\n")


def table(lines: list[dict[str, object]]) -> str:
    """Markdown. A fault that was tried again counts once, as the last time."""
    rows = {str(line["fault"]): line for line in lines}
    head = "| fault | tried | as promised | lost |\n|---|---|---|---|\n"
    return head + "".join(
        f"| {row['fault']} | {row['tried']} | {row['survived']} | {row['lost']} |\n" for row in rows.values()
    )


if __name__ == "__main__":
    made = table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()])
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(BEGIN) + len(BEGIN)] + made + text[text.index(END) :])
