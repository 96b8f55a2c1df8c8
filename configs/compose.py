"""Hydra composes a configuration; OmegaConf turns it into the schema's dataclasses. Used by entry points only.

Importing this module does not import hydra: workers that read a resolved file never need it.
"""

import difflib
import hashlib
import itertools
import json
import re
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from farside.configs.errors import UserError
from farside.configs.schema import Config, SourceConfig


@cache
def register() -> None:
    """Makes the schema known to Hydra as the base of config.yaml."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)
    ConfigStore.instance().store(group="source", name="new", node=SourceConfig)


def with_new_sources(words: list[str]) -> list[str]:
    """A command line whose ``+data.sources.NAME={...}`` are in a form that Hydra can take: OmegaConf refuses a mapping
    where a dataclass belongs. Raises UserError as ``compose``."""
    from hydra.core.override_parser.types import Override
    from hydra.errors import HydraException

    found = []
    for word in words:
        if re.match(r"\+data\.sources\.[^.=]+=\{", word) is None:
            found.append(word)
            continue
        try:
            (item,) = _parse([word])
        except HydraException as error:
            raise UserError(explain(error)) from error
        key, given = item.key_or_group, item.value()
        if not isinstance(given, dict):
            raise UserError(f"{key}: a new source is one {{kind: ..., path: ...}}; sweep over its keys instead")
        found.append(f"+source@{key}=new")
        found += [
            f"{'++' * isinstance(value, dict)}{key}.{field}={Override._get_value_element_as_str(value)}"
            for field, value in given.items()
        ]
    return found


FLAGS = {"-m": 0, "--multirun": 0, "--resolve": 0, "--cfg": 1, "-c": 1, "--config-dir": 1, "-cd": 1, "--info": 1}
"""Of Hydra, and how many words come after each; and --package, --run and others that nobody needs here."""


def flags_first(words: list[str]) -> list[str]:
    """A command line in the order that Hydra's parser asks for. Raises UserError for a key with dashes."""
    flags: list[str] = []
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if word.partition("=")[0] in FLAGS:
            flags += [word, *itertools.islice(left, 0 if "=" in word else FLAGS[word])]
        elif dashes := re.fullmatch(r"--?([a-z_]+\.[\w.]+)(=.*)?", word):
            raise UserError(f"{word}: overrides have no dashes; did you mean {dashes[1]}{dashes[2] or '=VALUE'}?")
        else:
            rest.append(word)
    return [*flags, *rest]


def compose(overrides: list[str], config_dir: str | None = None) -> Config:
    """The configuration of a command line. config_dir: where else to look for groups. Raises UserError in one line
    naming the key."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException

    register()
    if config_dir is not None:
        overrides = [*overrides, f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"]
    try:
        with initialize_config_module("farside.configs", version_base="1.3"):
            return to_config(hydra_compose("config", overrides=with_new_sources(overrides)))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(explain(error)) from error


@dataclass(frozen=True)
class SweepPlan:
    """directory: holds a run directory a point; points: their names in Hydra's order, None where only a sweeper
    plugin knows them; override: tells Hydra the directory, which a swept run.name must not move."""

    directory: Path
    points: list[str] | None
    override: str


def plan_sweep(words: list[str]) -> SweepPlan | None:
    """What a command line with -m will do; None without -m, or if it only prints. Raises UserError as ``compose``."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException

    flags = get_args_parser().parse_args(with_new_sources(words))
    if not flags.multirun or flags.help or flags.hydra_help:
        return None
    if flags.cfg or flags.info or flags.run or flags.shell_completion:
        raise UserError("--multirun: runs jobs, so it goes with none of --cfg, --info, --run; leave one out")
    register()
    try:
        given = _parse(flags.overrides)
        fixed = [item.input_line for item in given if not item.is_sweep_override()]
        if flags.config_dir:
            fixed.append(f"hydra.searchpath=[file://{Path(flags.config_dir).resolve()}]")
        with initialize_config_module("farside.configs", version_base="1.3"):
            sweep = hydra_compose("config", overrides=fixed, return_hydra_config=True).hydra.sweep
        quoted = str(sweep.dir).replace("\\", "\\\\").replace("'", "\\'")
        return SweepPlan(Path(sweep.dir) / sweep.subdir, _points(given), f"hydra.sweep.dir='{quoted}'")
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(explain(error)) from error


def _points(given: list[Any]) -> list[str] | None:
    """Names of the points of Hydra's own sweeper: the product of all choices and ranges."""
    axes: dict[str, list[str]] = {}
    for item in given:
        if item.key_or_group == "hydra/sweeper":
            return None
        if item.is_sweep_override():
            if not item.is_discrete_sweep() or "glob(" in item.input_line:
                return None
            axes[item.get_key_element()] = [f"{item.get_key_element()}={v}" for v in item.sweep_string_iterator()]
    return [point_name(list(words)) for words in itertools.product(*axes.values())]


def point_words(task: list[str], words: list[str]) -> list[str]:
    """The overrides in which a point differs from the others of its sweep. task: all of the point's own; words: the
    command line."""
    from hydra._internal.utils import get_args_parser

    given = _parse(get_args_parser().parse_args(words).overrides)
    fixed = {item.get_key_element().lstrip("+~") for item in given if not item.is_sweep_override()}
    return [word for word in task if word.partition("=")[0].lstrip("+~") not in fixed]


def point_name(words: list[str]) -> str:
    """A folder's name such as optim.lr=0.001, or "point" where nothing is swept; long ones are cut and told apart by a
    hash."""
    name = ",".join(words).replace("/", "_") or "point"
    return name if len(name) <= 120 else f"{name[:107]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _parse(overrides: list[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(overrides)


def to_config(composed: DictConfig) -> Config:
    """Resolved dataclasses from Hydra's mapping."""
    composed = OmegaConf.create(
        {key: value for key, value in _items(composed) if key != "hydra"}, flags={"allow_objects": True}
    )
    merged = OmegaConf.merge(_schema(), composed)
    return cast(Config, OmegaConf.to_object(merged))


@cache
def _schema() -> DictConfig:
    """To be left as it is: building it takes a tenth of a second."""
    return OmegaConf.structured(Config)


def _items(composed: DictConfig) -> list[tuple[str, Any]]:
    return [(str(key), composed._get_node(key)) for key in composed]


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(_container(config)))


def to_json(config: Config) -> str:
    return json.dumps(_container(config))


def _container(config: Config) -> Any:
    plain = _plain(config)
    if "${" in json.dumps(plain):  # of a Config that nobody composed
        return OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
    return plain


def _plain(value: Any) -> Any:
    """Dataclasses as mappings, members of enumerations by name: what OmegaConf makes of a structured configuration, but
    without building one, which takes a tenth of a second."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def flat(config: Config) -> dict[str, Any]:
    """Dotted leaf key -> value."""
    found: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, (dict, list)):
                walk(value, f"{prefix}{key}.")
            else:
                found[f"{prefix}{key}"] = value

    walk(json.loads(to_json(config)), "")  # as JSON, whose keys are text
    return found


def differences(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) wherever two configurations would compute something else; a value that one lacks
    is None there."""
    free = ("logging.", "launch.", "run.", "data.workers", "data.shard_bytes")
    before, after = flat(old), flat(new)
    return [
        (key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(free)
    ]


def from_yaml(text: str) -> Config:
    return to_config(cast(DictConfig, OmegaConf.create(text)))


def load(path: Path) -> Config:
    """A resolved config.yaml. Raises UserError if it is missing, does not fit the schema, or holds what no resolved one
    does: it may come with somebody else's run."""
    if not path.is_file():
        raise UserError(f"{path}: no such configuration; give the run directory of an earlier command")
    try:
        text = path.read_text(encoding="utf-8")
        _check_plain(text, path)
        return from_yaml(text)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {explain(error)}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: no configuration ({' '.join(str(error).split())})") from error


def _check_plain(text: str, path: Path, deepest: int = 32) -> None:
    """Aliases can grow without bound when they are resolved, nesting can exhaust the stack, tags name objects."""
    depth = 0
    for token in yaml.scan(text):
        opens = isinstance(token, yaml.BlockMappingStartToken | yaml.BlockSequenceStartToken)
        opens = opens or isinstance(token, yaml.FlowMappingStartToken | yaml.FlowSequenceStartToken)
        closes = isinstance(token, yaml.BlockEndToken | yaml.FlowMappingEndToken | yaml.FlowSequenceEndToken)
        depth += opens - closes
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken | yaml.TagToken) or depth > deepest:
            raise UserError(
                f"{path}: line {token.start_mark.line + 1}: no tags, anchors, aliases or nesting beyond {deepest} are "
                "read; a resolved configuration has none"
            )


def keys(node: dict[str, Any] | None = None, prefix: str = "") -> list[str]:
    """Every key of the schema, dotted."""
    container = cast(dict[str, Any], OmegaConf.to_container(_schema()) if node is None else node)
    found: list[str] = []
    for key, value in container.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += keys(value, f"{prefix}{key}.")
    return found


def explain(error: Exception) -> str:
    """One line for a composition error: the key, what is wrong, the fix."""
    if isinstance(error, yaml.YAMLError):
        return f"not YAML: {' '.join(str(error).split())}"
    if override := getattr(error, "override", None):  # Hydra's parser: its text names the place, not the argument
        hint = f"; did you mean experiment={override}?" if re.fullmatch(r"\w+", override) else ""
        return f"{override}: not KEY=VALUE in Hydra's grammar ({' '.join(str(error).split())}){hint}"
    cause: BaseException = error
    while cause.__cause__ is not None and isinstance(cause.__cause__, OmegaConfBaseException):
        cause = cause.__cause__
    text = " ".join(str(cause).split())
    full_key = getattr(cause, "full_key", None) or ""
    if not full_key and (match := re.search(r"Could not override '([^']+)'", str(error))):
        full_key = match[1]
    named = re.search(r"Key '([^']+)' not in '(\w+)'", text)
    if named and "." not in full_key and named[2] in _sections(Config):
        file = re.search(r"In '([^']+)'", text)
        return (f"{file[1]}.yaml: " if file else "") + _unknown_field(named[1], named[2])
    if re.match(r"(data|sft|rl\.replay)\.mixture\.[^.]+$|stages\.\d+\.mixture\.", full_key) and "truct" in text:
        return f"{full_key}: not there yet; a new entry begins with +, such as +{full_key}=0.5, and 0 leaves one out"
    if re.match(r"stages\[", full_key) and "not a subclass" in text:
        return f"{full_key}: there is no such stage; write stages as a whole, in an experiment's file (docs/own.md)"
    unknown = re.search(r"is not in struct|not in '|Could not override|Key '.*' not in", text + str(error))
    if unknown and full_key and full_key not in keys():
        siblings = [key for key in keys() if key.count(".") == full_key.count(".")]
        close = difflib.get_close_matches(full_key, siblings, n=1, cutoff=0.7)
        hint = f"did you mean {close[0]}?" if close else "`farside train --cfg job` prints every key"
        return f"{full_key}: no such key; {hint}"
    if match := re.search(r"Could not find '([^']+)' Available options in '[^']+': (.*?) Config search path", text):
        return f"{match[1].replace('/', '=', 1)}: no such option; there are: {match[2]}"
    first = re.split(r" full_key:| object_type=", text)[0]
    return f"{full_key}: {first}" if full_key else first


def _unknown_field(key: str, section: str) -> str:
    """What to say of a key that no field of that class of the schema has."""
    place, kind = _sections(Config)[section]
    near = difflib.get_close_matches(key, [field.name for field in fields(kind)], n=1)
    hint = f"did you mean {place}{near[0]}?" if near else "`farside train --cfg job` prints every key"
    if kind is Config and not near:
        hint = "a file of experiments begins with the line '# @package _global_' and has the keys of --cfg job"
    return f"{place}{key}: no such key; {hint}"


def _sections(kind: type, place: str = "") -> dict[str, tuple[str, type]]:
    """Where the classes of the schema stand, by their names: the dotted beginning of their keys."""
    found = {kind.__name__: (place, kind)}
    for name, hint in get_type_hints(kind).items():
        for inner in [hint, *get_args(hint)]:
            if is_dataclass(inner) and isinstance(inner, type):
                found = _sections(inner, f"{place}{name}{'[]' * (inner is not hint)}.") | found
    return found
