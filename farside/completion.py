"""Shell completion of commands, configuration keys and their values. Imports neither torch nor hydra.

``farside --completion SHELL`` prints a script for the shell's startup file; the script asks ``farside --complete LINE``
at every key press, so that it never grows stale. Where nothing fits, the shell completes files.
"""

import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

BASH = """\
# farside's completion; in ~/.bashrc: source <(farside --completion bash)
_farside() {
    local line="${COMP_LINE:0:COMP_POINT}" word reply
    word="${line##*[[:space:]]}"
    # readline completes behind the last = or : only
    local cut=""
    [[ $word == *[=:]* ]] && cut="${word%"${word##*[=:]}"}"
    COMPREPLY=()
    while IFS= read -r reply; do
        [[ $reply == *[=.] ]] && compopt -o nospace
        COMPREPLY+=("${reply#"$cut"}")
    done < <("${COMP_WORDS[0]}" --complete "$line" 2>/dev/null)
}
complete -o default -F _farside farside
"""
ZSH = """\
# farside's completion; in ~/.zshrc, below compinit: source <(farside --completion zsh)
_farside() {
    local -a replies open
    replies=(${(f)"$(${words[1]} --complete "${LBUFFER}" 2>/dev/null)"})
    (( ${#replies} )) || { _files; return }
    open=(${(M)replies:#*[=.]})
    replies=(${replies:#*[=.]})
    compadd -Q -S '' -- $open
    compadd -Q -- $replies
}
compdef _farside farside
"""
FISH = """\
# farside's completion; in ~/.config/fish/config.fish: farside --completion fish | source
function __farside_complete
    set -l line (commandline -cp)
    set -l tokens (commandline -opc)
    $tokens[1] --complete "$line" 2>/dev/null
end
complete -c farside -a '(__farside_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
FLAGS = ("-m", "--multirun", "--cfg", "--help")
ON_DIRECTORIES = ("report", "status", "stop", "chat", "export", "import")


def complete(line: str, commands: dict[str, str]) -> list[str]:
    """Words that may stand in the place of the last one, which ``line`` breaks off in."""
    words = line.split()[1:]
    word = "" if line[-1:].isspace() or not words else words.pop()
    first = [name.partition(" ")[0] for name in commands]
    if not words:
        return _fitting(word, [*dict.fromkeys(first), "--completion", "--help", "--version"])
    command = words[0]
    if command == "--completion":
        return _fitting(word, SCRIPTS)
    second = [name.partition(" ")[2] for name in commands if name.startswith(f"{command} ")]
    if second and len(words) == 1:
        return _fitting(word, second)
    if command not in first or command in ("doctor", "--help"):
        return []
    if command in ON_DIRECTORIES:
        return _own_keys(command, word, paths=len(words) - 1 - bool(second))
    if word.startswith("-"):
        return _fitting(word, FLAGS)
    key, equals, value = word.partition("=")
    return _values(key, value) if equals else _keys(word)


def _fitting(word: str, candidates: Any) -> list[str]:
    return [candidate for candidate in candidates if candidate.startswith(word)]


def _own_keys(command: str, word: str, paths: int) -> list[str]:
    """Keys of a command that has its own, behind the paths it needs."""
    from farside.configs.schema import ChatConfig, ExportConfig, ImportConfig

    if command == "chat" and paths >= 1:
        return _fitting(word, ["--plain", *(f"{item.name}=" for item in fields(ChatConfig))])
    if command in ("export", "import") and paths >= 2:
        keys = ExportConfig if command == "export" else ImportConfig
        return _fitting(word, [f"{item.name}=" for item in fields(keys)])
    return []


def _keys(word: str) -> list[str]:
    """Keys that begin so, cut behind the next point: one level at a time. A leading + or ~ is Hydra's."""
    sign = word[:1] if word[:1] in ("+", "~") else ""
    level = word.count(".") + 1
    found = dict.fromkeys(
        name + ("." if len(key.split(".")) > level else "=")
        for key in ("experiment", *_schema())
        if (name := ".".join(key.split(".")[:level])).startswith(word.removeprefix(sign))
    )
    return [sign + name for name in found]


def _values(key: str, value: str) -> list[str]:
    """Experiments, choices and truth values of a key; the last of several values of a sweep."""
    done = value[: value.rfind(",") + 1]
    return [f"{key}={done}{choice}" for choice in _fitting(value[len(done) :], _choices(key.lstrip("+~")))]


def _choices(key: str) -> list[str]:
    if key == "experiment":
        return sorted(path.stem for path in (Path(__file__).parent / "configs" / "experiment").glob("*.yaml"))
    kind = _schema().get(key)
    if kind is bool:
        return ["true", "false"]
    return [item.name for item in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def _schema() -> dict[str, Any]:
    """Dotted leaf key -> type."""
    from farside.configs.schema import Config

    return dict(_leaves(Config, ""))


def _leaves(kind: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, inner in typing.get_type_hints(kind).items():
        if is_dataclass(inner):
            yield from _leaves(typing.cast(type, inner), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner
