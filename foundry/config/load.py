"""Reading `params.yaml`: all problems are collected and reported together, before any work."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from foundry.config.errors import ConfigError
from foundry.config.schema import Config
from foundry.config.section import section_in, short_repr

DEEPEST = 100  # levels of nested lists and mappings in a file
MOST, LONGEST = 20, 600  # problems that a message shows, and characters of each


def read_yaml(path: str | Path) -> Any:
    """Parses a YAML file as DVC does: see `parse_yaml`.

    Raises:
        ConfigError: if the file is missing, cannot be read or is not YAML; the message names the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist: run the command in the project's folder, or restore the file from git"
        ) from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 (byte {e.start}); save it as UTF-8") from None
    except (OSError, ValueError) as e:  # a folder, no permission; a name that no file can have
        raise ConfigError(f"{str(path)!r} cannot be read: {getattr(e, 'strerror', None) or e}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> Any:
    """Parses YAML with the library and the settings of DVC, so that both see the same values: YAML 1.2 by ruamel.yaml.

    `010` is ten, `0o10` is eight, `yes` and `12:30:00` are text, `1e3` is a number. A repeated key is an error.

    Raises:
        ConfigError: naming `origin`, the line, and what is wrong there.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import SafeConstructor
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

    class Constructor(SafeConstructor):
        """Raises only errors of the library, each with its line: its conversions leak others (`_`, `0x`, month 13)."""

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ArithmeticError, LookupError, TypeError, ValueError) as e:
                seen = f"{node.value[:80]!r}" if isinstance(node.value, str) else "this value"
                raise MarkedYAMLError(problem=f"{seen} cannot be read: {e}", problem_mark=node.start_mark) from None

        def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
            try:
                hash(key)  # a list was made a tuple, but its items may be lists
            except TypeError:
                raise MarkedYAMLError(problem="found unhashable key", problem_mark=key_node.start_mark) from None
            if key in mapping:
                problem = f"the key {key!r} is given twice; delete one of the two"
                raise MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            return super().check_mapping_key(node, key_node, mapping, key, value)

    yaml = YAML(typ="safe")
    yaml.Constructor = Constructor
    depth = 0
    try:
        # Reading events needs no recursion; the composer of libyaml crashes the process at some 25,000 levels.
        for event in yaml.parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > DEEPEST:
                raise MarkedYAMLError(problem="values are nested too deeply", problem_mark=event.start_mark)
        return yaml.load(text)
    except YAMLError as e:
        mark, problem = getattr(e, "problem_mark", None), getattr(e, "problem", None) or str(e)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = "; is a template like {{name}} not filled in?" if "{{" in text else ""
        raise ConfigError(f"{origin}: {where}not valid YAML: {problem}{hint}") from None


def yaml_text(value: Any) -> str:
    """YAML that `parse_yaml` and DVC read as this value, with its order of keys."""
    from io import StringIO

    from ruamel.yaml import YAML

    yaml, out = YAML(), StringIO()
    yaml.default_flow_style, yaml.width = False, 4096
    yaml.dump(value, out)
    return out.getvalue()


def load_params(path: str | Path = "params.yaml") -> Config:
    """Reads and checks the parameter file of the pipeline.

    Raises:
        ConfigError: listing every problem: the key, the value seen, the rule, and the nearest name for an unknown key.
    """
    return parse_config(read_yaml(path), str(path))


def parse_config(data: Any, origin: str = "params") -> Config:
    """Checks parameters of the pipeline that are already parsed.

    Args:
        data: what `read_yaml` returns.
        origin: names the parameters in the error.

    Raises:
        ConfigError: as `load_params`.
    """
    if data is None:
        raise ConfigError(f"{origin} is empty; expected are the sections {', '.join(Config.model_fields)}")
    if not isinstance(data, dict):
        raise ConfigError(
            f"{origin}: expected are sections with keys (`train:`, then `steps: 100` indented), not one "
            + ("list" if isinstance(data, list) else f"value ({short_repr(data)})")
        )
    try:
        return Config.model_validate(data)
    except ValidationError as e:
        raise ConfigError(listing(origin, [_sentence(err) for err in e.errors()])) from None


def listing(origin: str, problems: list[str]) -> str:
    """All problems of a file as one message, short even for a value of megabytes or thousands of wrong items."""
    lines = [p if len(p) <= LONGEST else f"{p[: LONGEST // 2]} … {p[-LONGEST // 2 :]}" for p in problems[:MOST]]
    if len(problems) > MOST:
        lines.append(f"… and {len(problems) - MOST} more")
    return f"{origin} has {len(problems)} problem{'s'[: len(problems) > 1]}:" + "".join(f"\n  - {x}" for x in lines)


def _sentence(error: ErrorDetails) -> str:
    """One of pydantic's errors, as a user of the parameter file reads it."""
    loc = error["loc"]
    key = ".".join(str(p) for p in loc)
    if error["type"] == "extra_forbidden":
        names = list(_fields_at(loc[:-1]))
        near = difflib.get_close_matches(str(loc[-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(names))}"
        return f"{key}: unknown key; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{key}: missing; {_description(loc) or 'it is required'}"
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, got {short_repr(error['input'])}"


def _fields_at(loc: tuple) -> Iterator[str]:
    model = _model_at(loc)
    yield from model.model_fields if model else ()


def _description(loc: tuple) -> str | None:
    model = _model_at(loc[:-1])
    field = model.model_fields.get(str(loc[-1])) if model else None
    return field.description if field else None


def _model_at(loc: tuple) -> type[BaseModel] | None:
    """The section class at a location such as ('download', 'sources', 0); None if there is none."""
    model: Any = Config
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if model else None
        model = section_in(field.annotation) if field else None
    return model


@dataclass(frozen=True)
class Parameter:
    """One key of the parameter file, as the reference shows it.

    Attributes:
        key: dotted; `[]` stands for each item of a list.
        default: as Python writes it, or "(required)".
    """

    key: str
    default: str
    description: str


def describe() -> list[Parameter]:
    """Every parameter, in the order of `params.yaml`."""

    def walk(model: type[BaseModel], prefix: str) -> Iterator[Parameter]:
        for name, field in model.model_fields.items():
            if section := section_in(field.annotation):
                many = "[]" if field.annotation is not section else ""
                yield from walk(section, f"{prefix}{name}{many}.")
            else:
                default = "(required)" if field.is_required() else repr(field.get_default(call_default_factory=True))
                yield Parameter(f"{prefix}{name}", default, field.description or "")

    return list(walk(Config, ""))
