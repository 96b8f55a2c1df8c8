"""Words of commands that take paths and a few keys of their own: ``farside chat PATH temperature=0.5``."""

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from farside.configs import compose
from farside.configs.errors import UserError

Settings = TypeVar("Settings")


def parse(command: str, words: list[str], kind: type[Settings], paths: str) -> tuple[list[Path], Settings]:
    """The paths and the settings of a command line. paths: what the user must name, such as "FOLDER OUT_DIR".

    Raises UserError for another number of paths and for a setting that ``kind`` does not have.
    """
    given = [word for word in words if "=" not in word or Path(word).exists()]
    if len(given) != len(paths.split()) or any(word.startswith("-") for word in given):
        raise UserError(f"farside {command}: give {paths}, then KEY=VALUE; `farside --help` shows examples")
    dotlist = [word for word in words if word not in given]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.from_dotlist(dotlist))
    except (OmegaConfBaseException, YAMLError) as error:
        keys = ", ".join(item.name for item in fields(cast(Any, kind)))
        raise UserError(
            f"farside {command}: {compose.explain(error).partition(':')[0]}: give one of {keys}, fitting its type"
        ) from error
    return [Path(word) for word in given], cast(Settings, OmegaConf.to_object(merged))
