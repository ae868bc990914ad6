"""Parameters in the form that MLflow accepts: flat names, and text that YAML reads back as the value of params.yaml,
with its type.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

LONGEST = 6000  # characters of a value: MLflow's limit
LONGEST_NAME = 250  # characters: MLflow's limit
PARAMS_PER_REQUEST = 100  # MLflow's limit
NUMBER = re.compile(r"[-+]?[\d_.]+([eE][-+]?\d+)?")


def flatten(values: Mapping[str, Any]) -> dict[str, str]:
    """Turns {"train": {"lr": 0.1}} into {"train.lr": "0.1"}.

    Sections of a list are numbered from 0; a list of values is one text.
    """
    found = ((k, v) for name, value in values.items() for k, v in _walk(value, name))
    return {re.sub(r"[^/\w.\- :]", "_", k)[:LONGEST_NAME]: as_text(v) for k, v in found}


def used(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections without the values of rule sets that are off: of those only `enabled: false` has a meaning."""
    if values.get("enabled") is False:
        return {"enabled": False}
    return {k: used(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for k, v in value.items():
            yield from _walk(v, f"{name}.{k}")
    elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
        for i, v in enumerate(value):
            yield from _walk(v, f"{name}.{i}")
    else:
        yield name, value


def as_text(value: Any) -> str:
    """A value as it could be written in params.yaml; one that is too long is cut, with the hash of the full text."""
    text = value if isinstance(value, str) and _plain(value) else _yaml(value)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 80]}… sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes every text: YAML 1.1, which PyYAML writes, and YAML 1.2 read different texts as numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(str, lambda d, text: d.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _yaml(value: Any) -> str:
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(text: str) -> bool:
    """Whether YAML 1.1 and YAML 1.2 read a text as that text without quotes."""
    if NUMBER.fullmatch(text):
        return False
    try:
        return yaml.safe_load(text) == text
    except yaml.YAMLError:
        return False
