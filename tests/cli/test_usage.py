"""`farside COMMAND --help` says what a command takes, in terms that exist."""

import re

import pytest

from farside import cli, usage
from farside.configs import compose
from farside.configs.schema import ChatConfig, ExportConfig, ImportConfig

OWN_KEYS = {"chat": ChatConfig, "export hf": ExportConfig, "import hf": ImportConfig}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--help"], ["experiment=tiny", "-h"]):
        monkeypatch.setattr("sys.argv", ["farside", *command.split(), *words])
        cli.main()
        text = capsys.readouterr().out
        assert f"usage: farside {command}" in text
        assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("command", usage.OF_JOBS)
def test_keys_of_a_job_exist(command: str) -> None:
    (line,) = re.findall("keys: (.*)", usage.OF_JOBS[command][0])
    named = re.findall(r"(?<![\w.])([a-z]+(?:\.[a-z_]+)+)=", " ".join(usage.OF_JOBS[command]))
    assert {*line.split(", "), *named} <= set(compose.keys())


@pytest.mark.parametrize("command", OWN_KEYS)
def test_keys_and_defaults_of_the_others_are_theirs(command: str) -> None:
    told = dict(re.findall(r"^  (\w+)=(\S+)", usage.OTHERS[command], re.MULTILINE))
    names = {"None": "null", "False": "false"}
    settings = {key: str(value) for key, value in vars(OWN_KEYS[command]()).items()}
    assert told == {key: names.get(value, value) for key, value in settings.items()}
