"""Any value in any key of params.yaml is accepted or reported in one error; what is accepted can be planned."""

import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import pytest

from foundry.commands import parameters, training
from foundry.config import Config, ConfigError, load_params
from foundry.config.section import Section, section_in

SOURCE = "name: one, url: 'file:corpus/one.txt'"

# YAML texts: values of every type, at the edges of their ranges, and as other programs and YAML dialects write them.
NUMBERS = [
    "0",
    "1",
    "3",
    "-1",
    "010",
    "1_000",
    "-0.0",
    "0.5",
    "1.5",
    "1e3",
    "1e-320",
    "1e308",
    "-1e308",
    "1e400",
    ".inf",
]
NUMBERS += ["-.inf", ".nan", "9223372036854775807", "9223372036854775808", "1" + "0" * 400, "0x" + "f" * 5000]
LISTS = [
    "[]",
    "[[]]",
    "[null]",
    "[1, 2]",
    "[0.9, 0.95]",
    "[a, a]",
    "[" + ", ".join(["a"] * 300) + "]",
    "[" * 90 + "]" * 90,
]
MAPPINGS = ["{}", "{a: 1}", "{1: 2}", "{? [1] : 2}", "{one: 1}", "{one: -1}", "{one: .inf}", "{x: {y: {z: 1}}}"]
OTHERS = [
    "null",
    "true",
    "yes",
    "12:30:00",
    "2026-01-01",
    "''",
    "x",
    "&a [*a]",
    "&b {k: *b}",
    "!!binary aGk=",
    "!!set {a, b}",
]
VALUES = [*NUMBERS, *LISTS, *MAPPINGS, *OTHERS]
# For keys that take text, and for keys of mappings.
CHARACTERS = [
    "' '",
    "'\\n'",
    '"\\n"',
    '"\\0"',
    '"\\U0001F600"',
    "'\u202e'",
    "'\ufdfa'",
    "'\u2581'",
    "x" * 5000,
    "['', '']",
]
PATHS = ["'../../../etc/passwd'", "'/proc/self/mem'", "'~'", "'--help'", "'a b'", "'$(id)'", "'*'", "'**/*'"]
TEMPLATES = [
    "'%s%n'",
    "'{'",
    "'{0.__class__}'",
    "'{{x}}'",
    "'('",
    "'a{99999999999}'",
    "'" + "(" * 3000 + "'",
    "'(a+)+$'",
]
ADDRESSES = ["'http://[::1'", "'file:'", "'file://'", "'https://'", "'s3://'", "'hf:a@b'", "'pypi:'", "'npm:'"]
TEXTS = [*CHARACTERS, *PATHS, *TEMPLATES, *ADDRESSES]
# What is not YAML, or cannot be constructed by the loader: the key does not matter.
SYNTAX = [
    "[1",
    "{",
    "'",
    "@",
    "`",
    "- 1",
    "a: b: c",
    "\t1",
    "%TAG",
    "|\n  x",
    "*missing",
    "&c [[[[*c]]]]",
    "[" * 3000 + "]" * 3000,
]
SYNTAX += ["{{x}}", "{null: null}", "{? {a: 1} : 2}", "{? [[]] : 2}", "{a: 1, a: 2}", '"\\uD83D"', '"\\uD83D\\uDE00"']
SYNTAX += ["2026-13-45", "9" * 5000, "!!int ten", "!!float ten", "!!bool ten", "!!timestamp ten", "!unknown x"]
SYNTAX += ["!!python/object/apply:os.getcwd []"]


class Key(NamedTuple):
    """A place of the schema.

    Attributes:
        text: a parameter file with VALUE at this place, which is valid otherwise.
    """

    name: str
    text: str
    takes_text: bool


def _keys(model: type[Section] = Config, prefix: str = "", text: str = "{VALUE}") -> Iterator[Key]:
    """Every key, including sections, items of lists, and keys and values of mappings."""
    for name, field in model.model_fields.items():
        at = text.replace("VALUE", f"{name}: VALUE")
        if not prefix and name != "download":
            at = f"{{download: {{sources: [{{{SOURCE}}}]}}, {at[1:]}"
        key, kinds = prefix + name, _kinds(field.annotation)
        yield Key(key, at, str in kinds)
        section = section_in(field.annotation)
        if section is field.annotation:
            yield from _keys(section, f"{key}.", at.replace("VALUE", "{VALUE}"))
        elif section:
            yield Key(f"{key}[]", at.replace("VALUE", "[VALUE]"), False)
            for inner in _keys(section, f"{key}[].", at.replace("VALUE", "[{VALUE}]")):
                rest = ", ".join(
                    part for part in SOURCE.split(", ") if part.split(":")[0] != inner.name.split(".")[-1].strip("[]")
                )
                yield inner._replace(text=inner.text.replace("}]", f", {rest}}}]", 1))
        elif list in kinds or tuple in kinds:
            yield Key(f"{key}[]", at.replace("VALUE", "[VALUE]"), str in kinds)
        elif dict in kinds:
            yield Key(f"{key}{{}}", at.replace("VALUE", "{one: VALUE}"), False)
            yield Key(f"{key} key", at.replace("VALUE", "{? VALUE : 0.5}"), True)


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    return {annotation, get_origin(annotation)}.union(*map(_kinds, get_args(annotation)))


KEYS = [
    k._replace(text=k.text.replace("VALUE}}", f"VALUE, sources: [{{{SOURCE}}}]}}}}"))
    if k.name == "download.allow_private"
    else k
    for k in _keys()
]


def test_the_walk_reaches_every_kind_of_key():
    names = {k.name for k in KEYS}
    assert len(names) > 180 and len(VALUES) > 40 and all(k.text.count("VALUE") == 1 for k in KEYS)
    assert {"seed", "model.dim", "clean.c4", "clean.c4.min_sentences", "train.betas[]", "runtime.device"} <= names
    assert {"download.sources[].url", "download.sources[].mirrors[]", "evaluate.prompts[]"} <= names
    assert {"shard.weights{}", "shard.weights key", "clean.gopher_repetition.max_top_ngram_chars key"} <= names


@pytest.mark.parametrize("section", list(Config.model_fields))
def test_every_value_in_every_key_is_accepted_or_reported_in_one_error(section, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keys = [k for k in KEYS if re.match(rf"{section}\b", k.name)]
    done = [_outcome(tmp_path / "params.yaml", k, v) for k in keys for v in [*VALUES, *(TEXTS if k.takes_text else [])]]
    done += [_outcome(tmp_path / "params.yaml", keys[0], v) for v in SYNTAX]
    capsys.readouterr()
    wrong = [line for line in done if line not in ("accepted", "refused")]
    assert not wrong, f"{len(wrong)} are neither accepted nor refused:\n" + "\n".join(wrong[:40])
    assert "accepted" in done and done.count("refused") > len(SYNTAX)


def _outcome(path: Path, key: Key, value: str) -> str:
    """`accepted`, if it can be checked and planned too; `refused`, if one error names the place; else what happened."""
    path.write_text(key.text.replace("VALUE", value), encoding="utf-8")
    seen = f"{key.name}: {value[:60]}: "
    try:
        load_params(path)
        parameters.check(Namespace(params=str(path), describe=False))
        training.plan(Namespace(params=str(path), profile=None, json=False, gpu="H100", gpus=1, probe=False))
    except ConfigError as e:
        text = str(e)
        text.encode()  # what cannot be printed is no message
        last = re.split(r"[.\[{ ]", key.name.rstrip("[]{}").removesuffix(" key"))[-1]
        named = last in text or re.search(r"line \d, column", text)
        return "refused" if str(path) in text and named and len(text) < 5000 else f"{seen}unclear: {text[:300]}"
    except Exception as e:
        return f"{seen}{type(e).__name__}: {str(e)[:300]}"
    return "accepted"
