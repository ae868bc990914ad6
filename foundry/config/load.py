"""Reading `params.yaml`: every problem is collected and told at once, before any work."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from foundry.config.errors import ConfigError
from foundry.config.schema import Config, Section


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers, as DVC reads them: `3e-4` is a number, not a string. A key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ConfigError(
                    f"line {key.start_mark.line + 1}: the key {key.value!r} is given twice; delete one of the two"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> Any:
    """Parses a YAML file.

    Raises:
        ConfigError: if the file is missing or is not YAML; the message names the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; run the command in the project's folder") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 (byte {e.start}); save it as UTF-8") from None
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{path}: {where}not valid YAML: {getattr(e, 'problem', None) or e}") from None


def load_config(path: str | Path = "params.yaml") -> Any:
    """Reads and checks all parameters: a `Config`. Of a file with a section `training`: (ModelConfig, TrainConfig).

    Raises:
        ConfigError: listing every problem: the key, the value seen, the rule, and the nearest name for an unknown key.
    """
    data = read_yaml(path)
    if isinstance(data, dict) and "training" in data and "download" not in data:
        from foundry.config.presets import read_pair

        return read_pair(data, str(path))
    return parse_config(data, str(path))


def parse_config(data: Any, origin: str = "params") -> Config:
    """As `load_config`, for parameters that are already parsed."""
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: expected sections with keys, got {type(data).__name__}")
    try:
        return Config.model_validate(data, context={"pipeline": True})
    except ValidationError as e:
        lines = [_tell(err, data) for err in e.errors()]
        raise ConfigError(
            f"{origin} has {len(lines)} problem{'s'[: len(lines) > 1]}:\n" + "\n".join(f"  - {x}" for x in lines)
        ) from None


def _tell(error: dict, data: Any) -> str:
    loc = error["loc"]
    key = ".".join(str(p) for p in loc)
    if error["type"] == "extra_forbidden":
        names = list(_fields_at(loc[:-1]))
        near = difflib.get_close_matches(str(loc[-1]), names, n=1, cutoff=0.5)
        return f"{key}: unknown key" + (
            f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(sorted(names))}"
        )
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{key}: missing; {_description(loc) or 'it is required'}"
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, got {error['input']!r}"


def _fields_at(loc: tuple) -> Iterator[str]:
    model = _model_at(loc)
    yield from model.model_fields if model else ()


def _description(loc: tuple) -> str | None:
    model = _model_at(loc[:-1])
    field = model.model_fields.get(str(loc[-1])) if model else None
    return field.description if field else None


def _model_at(loc: tuple) -> type[BaseModel] | None:
    """The section class that a location such as ('download', 'sources', 0) leads to."""
    model: Any = Config
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if model else None
        model = _section_in(field.annotation) if field else None
    return model


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_in(arg))), None)


def describe() -> list[tuple[str, str, str]]:
    """(key, default, description) of every parameter, in the order of `params.yaml`."""

    def walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
        for name, field in model.model_fields.items():
            if section := _section_in(field.annotation):
                many = "[]" if field.annotation is not section else ""
                yield from walk(section, f"{prefix}{name}{many}.")
            else:
                default = "(required)" if field.is_required() else repr(field.get_default(call_default_factory=True))
                yield f"{prefix}{name}", default, field.description or ""

    return list(walk(Config, ""))
