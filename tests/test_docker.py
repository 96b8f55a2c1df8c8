"""The Dockerfile cannot be built in the tests; what it copies must at least be there, and be all that is needed."""

import fnmatch
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def copied() -> list[str]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [source for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for source in line.split()[:-1]]


def ignored() -> list[str]:
    return [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def test_every_source_is_there_and_not_ignored() -> None:
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not [rule for rule in ignored() if fnmatch.fnmatch(source, rule)], source


def test_what_the_package_is_made_of_is_copied() -> None:
    links = [path.readlink().name for path in (ROOT / "farside").iterdir() if path.is_symlink()]
    assert {*links, "farside", "scripts", "pyproject.toml", "setup.py"} <= set(copied())
    assert (ROOT / "scripts" / "setup.sh").stat().st_mode & 0o100, "setup.sh is run"


def test_nothing_large_or_private_goes_to_the_builder() -> None:
    own = {".git", *(line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line)}
    kept = {name for name in own if not any(fnmatch.fnmatch(name, rule.removeprefix("**/")) for rule in ignored())}
    assert kept <= {".whl"}
