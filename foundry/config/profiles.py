"""Profiles: one recipe for a test, a laptop and a GPU, as a small table of keys (`profiles.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config.errors import ConfigError
from foundry.config.load import parse_config, read_yaml
from foundry.config.pipelines import read_stages
from foundry.config.schema import Config

_TABLE = Path(__file__).with_name("profiles.yaml")


def profile_names() -> list[str]:
    return list(read_yaml(_TABLE))


def profile_values(name: str) -> dict[str, Any]:
    """{dotted key: value} of one profile.

    Raises:
        ConfigError: for an unknown profile.
    """
    table = read_yaml(_TABLE)
    if name not in table:
        raise ConfigError(f"unknown profile {name!r}; profiles are {', '.join(table)}")
    return table[name]


def profile_config(name: str, params: str | Path = "params.yaml") -> Config:
    """The complete configuration of a profile: `params` with the values of the profile.

    Raises:
        ConfigError: for an unknown profile, or listing every problem of the result.
    """
    return parse_config(_apply(read_yaml(params), profile_values(name)), f"profile {name}")


def _apply(data: dict, values: dict[str, Any]) -> dict:
    for key, value in values.items():
        *path, field = key.split(".")
        at = data
        for name in path:
            at = at.setdefault(name, {}) if isinstance(at, dict) else None
        if not isinstance(at, dict):
            raise ConfigError(f"{key} cannot be set: {'.'.join(path)} contains no keys")
        at[field] = value
    return data


@dataclass(frozen=True)
class Change:
    """A dotted key, its present value (None if the file has none), and its value in a profile."""

    key: str
    old: Any
    new: Any


def changes(params: str | Path, name: str) -> list[Change]:
    """What switching `params` to a profile would change.

    Raises:
        ConfigError: for an unknown profile, or if the file cannot be read.
    """
    data = read_yaml(params)
    rows = (Change(key, _at(data, key), new) for key, new in profile_values(name).items())
    return [row for row in rows if row.old != row.new]


def _at(data: Any, key: str) -> Any:
    """The value of a dotted key; None if the file, which need not be valid here, has none."""
    for name in key.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return data


def switch(params: str | Path, name: str) -> str:
    """The text of `params` with the values of a profile; comments, order and all other keys are kept.

    Raises:
        ConfigError: listing every problem, if the result would not be valid. The file is not written here.
    """
    return with_values(params, {row.key: row.new for row in changes(params, name)}, f"profile {name}")


def with_values(params: str | Path, values: dict[str, Any], what: str = "params.yaml with these values") -> str:
    """The text of `params` with other values; comments, order and all other keys are kept.

    Args:
        values: by dotted key, such as `train.lr`.
        what: names the result in an error.

    Raises:
        ConfigError: listing every problem, if the result would not be valid. The file is not written here.
    """
    from io import StringIO

    from ruamel.yaml import YAML

    parse_config(_apply(read_yaml(params), values), what)
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    data = yaml.load(Path(params).read_text(encoding="utf-8"))
    _apply(data, values)
    out = StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def stages_to_rerun(keys: list[str], root: str | Path = ".") -> list[str]:
    """Stages that depend on one of the parameter keys, directly or through another stage, in the graph's order."""
    sections = {k.split(".")[0] for k in keys}
    stale: list[str] = []
    outs: set[str] = set()
    for name, stage in read_stages(root).items():  # each file lists its stages in the order of the pipeline
        if sections & set(stage.entry.get("params", [])) or outs & set(stage.entry.get("deps", [])):
            stale.append(name)
            outs.update(stage.outs)
    return stale
