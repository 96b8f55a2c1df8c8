"""Completion as a shell asks for it: in a real bash, quickly, and without torch."""

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farside.cli import COMMANDS
from farside.completion import SCRIPTS, complete
from farside.configs import compose
from tests.faults.driver import ROOT, environment, farside


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``farside`` is this checkout's command."""
    command = tmp_path / "bin" / "farside"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m farside.cli "$@"\n')
    command.chmod(0o755)
    return environment(PATH=f"{command.parent}{os.pathsep}{os.environ['PATH']}")


def bash(line: str, variables: dict[str, str]) -> list[str]:
    """What bash gets for a line whose words it has cut as readline does, at = too."""
    script = (
        "source <(farside --completion bash); compopt() { :; }; COMP_LINE=$1; COMP_POINT=${#1}; "
        'read -ra COMP_WORDS <<< "$1"; COMP_CWORD=${#COMP_WORDS[@]}; _farside; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", line], env=variables, capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("farside tr", ["train"]),
        ("farside eval ", ["niah", "math"]),
        ("farside train experiment=ti", ["tiny"]),
        ("farside train optim.kind=adamw,", ["adamw,adamw", "adamw,muon"]),
        ("farside train optim.l", ["optim.lr="]),
        ("farside status r", []),
    ],
)
def test_in_bash(shell: dict[str, str], line: str, expected: list[str]) -> None:
    assert bash(line, shell) == expected


@pytest.mark.timeout(30)
def test_tab_in_an_interactive_bash(shell: dict[str, str], tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        env={**shell, "PS1": "$ ", "TERM": "dumb"},
        cwd=tmp_path,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    os.write(leader, b"source <(farside --completion bash); echo ready\n")
    seen = _until(leader, "ready\r\n$")
    os.write(leader, b"farside train optim.ki\t")
    seen = _until(leader, "optim.kind=")  # and no space behind it
    os.write(leader, b"mu\t")
    seen = _until(leader, "on ")
    assert "muon" in "optim.kind=mu" + seen
    process.kill()
    process.wait()
    os.close(leader)


def _until(leader: int, expected: str, seconds: float = 15) -> str:
    seen, deadline = "", time.monotonic() + seconds
    while expected not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([leader], [], [], 0.1)[0]:
            seen += os.read(leader, 4096).decode(errors="replace")
    return seen


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_printed_and_well_formed(name: str, tmp_path: Path) -> None:
    done = farside(["--completion", name], tmp_path)
    assert done.stdout == SCRIPTS[name]
    if shutil.which(name):  # by the shell itself, where it is installed
        (tmp_path / "script").write_text(done.stdout)
        subprocess.run([name, "-n", str(tmp_path / "script")], check=True, timeout=20)


def test_unknown_shell_is_named(tmp_path: Path) -> None:
    done = farside(["--completion", "tcsh"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: farside --completion: name a shell: bash, zsh, fish\n"


def test_every_key_is_offered_level_by_level() -> None:
    every = [key for key in compose.keys(None) if ".mixture." not in key]  # whose names are the user's
    for key in every:
        follows = "." if any(other.startswith(f"{key}.") for other in every) else "="
        assert key + follows in complete(f"farside train {key}", COMMANDS)


@pytest.mark.timeout(30)
def test_answers_at_once_and_without_torch(tmp_path: Path) -> None:
    script = (
        "import json, sys, time; began = time.perf_counter(); sys.argv = ['farside', '--complete', 'farside run op']; "
        "from farside.cli import main; main(); seconds = time.perf_counter() - began; "
        "print(json.dumps([seconds, sorted({'torch', 'hydra', 'matplotlib', 'numpy'} & set(sys.modules))]))"
    )
    times = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True
        )
        word, told = done.stdout.splitlines()
        assert word == "optim."
        seconds, heavy = json.loads(told)
        times.append(seconds)
        assert heavy == []
    assert min(times) < 0.4
