"""The pages that are generated from the code: `python -m docs.site.reference` writes them.

`docs/*/configuration.md` has every key of `params.yaml` (the typed parameters of `foundry.config`),
`docs/*/commands.md` every command of `foundry` (its argparse), `docs/*/api.md` every public name, whose docstring
mkdocstrings shows on the site. The Chinese pages translate each English text by `chinese.yaml`, a mapping of text to
translation: a text that was changed or added has none, and the test of these pages names it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from typing import Any

import yaml

from foundry.cli import parser
from foundry.config import Config
from foundry.config.sampling import PARAMETERS
from foundry.config.schema import EXECUTION
from foundry.config.section import Section, section_in
from foundry.utils.files import write_text

DOCS = Path(__file__).resolve().parents[1]
PACKAGES = (
    "foundry",
    "foundry.config",
    "foundry.tokenizers",
    "foundry.models",
    "foundry.training",
    "foundry.inference",
    "foundry.evaluation",
    "foundry.export",
    "foundry.tracking",
    "foundry.utils",
)
EXAMPLE = """```python
from foundry import DataLoader, MiniLLM, Trainer, get_preset_config

model_config, train_config = get_preset_config("small")
loader = DataLoader(file_path="book.txt", batch_size=8, block_size=256)  # its tokenizer is trained and kept beside it
model_config = model_config.model_copy(update={"vocab_size": loader.tokenizer.vocab_size})
model = MiniLLM(model_config)
Trainer(model=model, train_config=train_config, data_loader=loader).train()["val_losses"]
```"""


@cache
def table(name: str) -> dict[str, Any]:
    """`chinese.yaml`: English text to Chinese text; `words.yaml`: what the pages themselves say, by language."""
    return yaml.safe_load((Path(__file__).parent / name).read_text(encoding="utf-8"))


class Words:
    """The texts of one language; `missing` collects what has no translation."""

    def __init__(self, short: str) -> None:
        self.short, self.missing = short, list[str]()

    def __getitem__(self, name: str) -> str:
        return table("words.yaml")[name][self.short].rstrip("\n")

    def of(self, text: str) -> str:
        """A text of the code in this language."""
        if self.short == "en":
            return text
        if text not in table("chinese.yaml"):
            self.missing.append(text)
        return table("chinese.yaml").get(text, text)


def cell(text: str) -> str:
    """A text in a table of Markdown: names with stars or lower dashes are not emphasis, `<` is no markup."""
    plain = re.sub(r"\s+", " ", text).replace("|", "\\|")
    return "".join(
        p if i % 2 else re.sub(r"([*_<\[\]])", r"\\\1", p) for i, p in enumerate(re.split("(`[^`]*`)", plain))
    )


def configuration(words: Words) -> str:
    """The page of the parameters."""
    out = [f"# {words['config_title']}", "", words["config_head"]]
    plain = [name for name, field in Config.model_fields.items() if section_in(field.annotation) is None]
    out += ["", f"## {words['general']}", "", words["identity"], "", words["row"], "| --- | --- | --- | --- |"]
    out += rows(Config, "", words, only=plain)
    for name, field in Config.model_fields.items():
        if name in plain or (section := section_in(field.annotation)) is None:
            continue
        about = words.of((getdoc(section) or "").split("\n\n")[0].replace("\n", " "))
        kind = words["execution" if name in EXECUTION else "identity"]
        out += [
            "",
            f"## {name}",
            "",
            f"{about} {kind}".replace("。 ", "。"),
            "",
            words["row"],
            "| --- | --- | --- | --- |",
        ]
        out += rows(section, f"{name}.", words)
    return "\n".join(out) + "\n"


def rows(section: type[Section], prefix: str, words: Words, only: list[str] | None = None) -> Iterator[str]:
    """The rows of a section and of the sections in it."""
    schema = section.model_json_schema()
    for name, field in section.model_fields.items():
        if only is not None and name not in only:
            continue
        if inner := section_in(field.annotation):
            many = "" if field.annotation is inner else "[]"
            yield from rows(inner, f"{prefix}{name}{many}.", words)
            continue
        default = field.get_default(call_default_factory=True)
        shown = words["required"] if field.is_required() else f"`{yaml_value(default)}`"
        kind = values(schema["properties"][name], schema.get("$defs", {}), words)
        yield f"| `{prefix}{name}` | {shown} | {kind} | {cell(words.of(field.description or ''))} |"


def yaml_value(value: Any) -> str:
    """A value as `params.yaml` would have it, in one line."""
    value = list(value) if isinstance(value, (tuple, set, frozenset)) else value
    text = (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("\n...\n").strip()
    )
    if "\n" in text:  # a line end in a value: JSON writes it as an escape, and is YAML, too
        text = json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|")


def values(schema: dict[str, Any], defs: dict[str, Any], words: Words) -> str:
    """What a key may be, from its JSON schema."""
    if "$ref" in schema:
        return values(defs[schema["$ref"].rsplit("/", 1)[1]], defs, words)
    if "anyOf" in schema:
        kinds = [values(s, defs, words) for s in schema["anyOf"] if s.get("type") != "null"]
        nullable = f" {words['null']}" if len(kinds) < len(schema["anyOf"]) else ""
        return words["or"].join(kinds) + nullable
    if "enum" in schema or "const" in schema:
        return words["comma"].join(f"`{yaml_value(v)}`" for v in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "integer" | "number" as kind:
            return f"{words[kind]} {limits(schema, words)}".strip()
        case "array":
            items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
            return f"{words['array']}{values(items, defs, words)}"
        case "object":
            return f"{words['object']}{values(schema.get('additionalProperties') or {}, defs, words)}"
        case "boolean":
            return words["boolean"]
    return words["string"]


def limits(schema: dict[str, Any], words: Words) -> str:
    """The range of a number as an interval."""
    low, high = schema.get("minimum"), schema.get("maximum")
    open_low, open_high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    left = f"({number(open_low)}" if open_low is not None else f"[{number(low)}"
    right = f"{number(open_high)})" if open_high is not None else f"{number(high)}]"
    if high is None and open_high is None:
        return "" if low is None and open_low is None else f"{words['at least']} {number(low or open_low or 0)}"
    return f"{left}, {right}"


def number(value: float | None) -> str:
    """Short and exact: powers are written as powers."""
    if value is None:
        return "−∞"
    if isinstance(value, int) or value.is_integer():
        n = int(value)
        for base in (10, 2):
            power = len(str(n)) - 1 if base == 10 else n.bit_length() - 1
            if n == base**power and n > 99_999:
                return f"{base}^{power}"
        return str(n)
    return f"{value:g}"


def subparsers(p: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands of a parser."""
    return {n: sub for a in p._actions if isinstance(a, argparse._SubParsersAction) for n, sub in a.choices.items()}


def commands(words: Words) -> str:
    """The page of the commands."""
    out = [f"# {words['commands_title']}", "", words["commands_head"]]

    def walk(name: str, p: argparse.ArgumentParser, level: str) -> None:
        out.extend(["", f"{level} {name}", "", cell(words.of(p.description or ""))])
        inner = subparsers(p)
        if not inner:
            out.extend(["", "```text", usage(p, name), "```"])
        out.extend(arguments(p, words))
        for sub, q in inner.items():
            walk(f"{name} {sub}", q, f"{level}#")

    for name, p in subparsers(parser()).items():
        walk(f"foundry {name}", p, "##")
    return "\n".join(out) + "\n"


def usage(p: argparse.ArgumentParser, name: str) -> str:
    """The command line, without the sampling parameters, of the same width on every terminal."""
    shown = []
    actions = [a for a in p._actions if not isinstance(a, argparse._HelpAction) and not is_sampling(a)]
    for action in sorted(actions, key=lambda a: bool(a.option_strings)):  # what has no name comes first
        text = spelt(action)
        shown.append(text if action.required or (not action.option_strings and action.nargs is None) else f"[{text}]")
    return " ".join([name, *shown])


def spelt(action: argparse.Action) -> str:
    """An argument as one types it."""
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    value = " ".join(value) if isinstance(value, tuple) else value
    if not action.option_strings:
        value = action.metavar or action.dest
        return f"{value} ..." if action.nargs in ("+", "*", argparse.REMAINDER) else str(value)
    many = " ..." if action.nargs in ("+", "*") else ""
    return action.option_strings[-1] if action.nargs == 0 else f"{action.option_strings[-1]} {value}{many}"


def is_sampling(action: argparse.Action) -> bool:
    """Whether an option is one of the sampling parameters."""
    return any(s in {f"--{p.name.replace('_', '-')}" for p in PARAMETERS} for s in action.option_strings)


def arguments(p: argparse.ArgumentParser, words: Words) -> list[str]:
    """The table of a command's arguments."""
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    actions = [a for a in p._actions if not isinstance(a, hidden) and a.help != argparse.SUPPRESS]
    out = []
    for action in (a for a in actions if not is_sampling(a)):
        text = re.sub(r"[;,]? ?\(?\bdefault: %\(default\)s\)?", "", action.help or "")
        default = "" if action.default in (None, argparse.SUPPRESS, False, []) else f"`{action.default}`"
        out.append(f"| `{spelt(action)}` | {cell(words.of(text)) if text else ''} | {default} |".replace("{", "{"))
    out = ["", words["option"], "| --- | --- | --- |", *out] if out else []
    if options := [f"`{a.option_strings[0]}`" for a in actions if is_sampling(a)]:
        out += ["", f"{words['sampling']} {words['comma'].join(options)}."]
    return out


def api(words: Words) -> str:
    """The page of the public names, each once, in the first package that offers it."""
    out = [f"# {words['api_title']}", "", words["api_head"], "", words["api_example"], EXAMPLE]
    seen = set()
    for package in PACKAGES:
        module = import_module(package)
        found = [getattr(module, name) for name in module.__all__ if not name.startswith("_")]
        paths = [f"{value.__module__}.{value.__qualname__}" for value in found]
        out += ["", f"## {package}", "", words.of((getdoc(module) or "").split("\n\n")[0].replace("\n", " "))]
        out += [line for path in paths if path not in seen for line in ("", f"::: {path}")]
        seen.update(paths)
    return "\n".join(out) + "\n"


def pages() -> tuple[dict[Path, str], list[str]]:
    """({file: its text}, texts without a translation)."""
    out, missing = {}, []
    for short in ("en", "zh"):
        words = Words(short)
        out[DOCS / short / "configuration.md"] = configuration(words)
        out[DOCS / short / "commands.md"] = commands(words)
        out[DOCS / short / "api.md"] = api(words)
        missing += words.missing
    return out, list(dict.fromkeys(missing))


def main() -> None:
    """Writes the pages; exits with 1 if a text has no translation."""
    written, missing = pages()
    for path, text in written.items():
        write_text(path, text)
        print(f"wrote {path.relative_to(DOCS.parent)}")
    if missing:
        sys.exit("docs/site/chinese.yaml lacks a translation of:\n" + "\n".join(f"{text}:" for text in missing))


if __name__ == "__main__":
    main()
