"""Installs extras of pyproject.toml into the environment that runs it, at the versions of constraints.txt.

    python -m scripts.install [--installer uv|pip] EXTRA ...      (make setup extras="EXTRA ..."; most targets call it)

uv is the installer: it asks the index for all packages at once, where pip asks for one after the other
(`python -m benchmarks.install` compares them). pip installs uv, and then everything else if there is no uv for this
machine or if pip is configured in a way that uv cannot follow. Both use the same index, as pip's settings name it.
`.ready-EXTRA` in the environment's folder marks what is complete; make compares its time with that of the two files.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = "constraints.txt"
OWN = re.compile(r"foundry-lm\[([^\]]+)\]")  # an extra that contains others
# Settings of pip: the option of uv for each of their values; the environment variable of uv; no effect on the result.
OPTIONS = {
    "constraint": "--constraint",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "index-url": "--default-index",
    "trusted-host": "--allow-insecure-host",
}
VARIABLES = {
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
}
HARMLESS = {
    *("break-system-packages", "cache-dir", "disable-pip-version-check", "no-cache-dir", "no-color", "no-compile"),
    *("no-input", "no-python-version-warning", "no-warn-script-location", "prefer-binary", "progress-bar", "quiet"),
    *("require-virtualenv", "retries", "root-user-action", "verbose"),
}


def contained(extras: Iterable[str], table: Mapping[str, list[str]]) -> list[str]:
    """The extras and those that they contain, sorted.

    Args:
        table: `[project.optional-dependencies]`.

    Raises:
        ValueError: if an extra is unknown.
    """
    found: set[str] = set()
    waiting = list(extras)
    while waiting:
        extra = waiting.pop()
        if extra not in table:
            raise ValueError(f"no extra is called {extra!r}: there are {', '.join(sorted(table))}")
        if extra not in found:
            found.add(extra)
            waiting += [e.strip() for r in table[extra] for inner in OWN.findall(r) for e in inner.split(",")]
    return sorted(found)


def pip_settings(text: str) -> dict[str, str]:
    """The settings that apply to `pip install`, from the output of `pip config list`: {option: value}."""
    order = {"global": 0, "install": 1, ":env:": 2}  # a later one replaces an earlier one
    lines = [re.fullmatch(r"([^.]+)\.([^=]+)=(.*)", line) for line in text.splitlines()]
    found = sorted((m.groups() for m in lines if m and m[1] in order), key=lambda g: order[g[0]])
    return {option: str(ast.literal_eval(value)) for _, option, value in found}


def as_uv(settings: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Settings of pip as arguments and environment variables of uv.

    Raises:
        ValueError: if uv has no counterpart of a setting.
    """
    arguments, env = [], {}
    for option, value in settings.items():
        if option in OPTIONS:
            arguments += [word for each in value.split() for word in (OPTIONS[option], each)]
        elif option in VARIABLES:
            env[VARIABLES[option]] = value
        elif option not in HARMLESS:
            raise ValueError(f"uv has no counterpart of pip's setting {option}")
    # Of several indexes pip takes the best version; uv would take the first index that has the package.
    return [*arguments, "--index-strategy", "unsafe-best-match"], env


def uv_command() -> tuple[list[str], dict[str, str]]:
    """Makes uv available; returns its command and what to add to its environment.

    Raises:
        ValueError: if pip has to install.
    """
    settings = _run(["pip", "config", "list"], capture_output=True)
    arguments, env = as_uv(pip_settings(settings.stdout))
    if _run(["pip", "install", "--quiet", "-c", CONSTRAINTS, "uv"], capture_output=True).returncode:
        raise ValueError("pip could not install uv")
    # Packages that are built from source get the pinned setuptools, too.
    pinned = ["-c", CONSTRAINTS, "--build-constraint", CONSTRAINTS]
    # pip compiles what it installs; Python itself compiles only what is imported, at the first import, if it may.
    compiled = ["--compile-bytecode"] if sys.dont_write_bytecode else []
    return ["uv", "pip", "install", "--quiet", "--python", sys.executable, *compiled, *pinned, *arguments], env


def install(extras: list[str], installer: str) -> int:
    """Installs the project, editable, with its extras; returns the exit code of the installer."""
    project = ["-e", f".[{','.join(extras)}]"]
    if installer == "uv":
        try:
            command, env = uv_command()
            if _run([*command, *project], env).returncode == 0:
                return 0
            why = "uv could not install everything"
        except ValueError as e:
            why = str(e)
        print(f"{why}: pip installs it, which takes longer", file=sys.stderr)
    return _run(["pip", "install", "--quiet", "-c", CONSTRAINTS, *project]).returncode


def _run(
    module: list[str], env: Mapping[str, str] | None = None, capture_output: bool = False
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(env or {})}
    return subprocess.run([sys.executable, "-m", *module], cwd=ROOT, env=env, capture_output=capture_output, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Install extras of this project into the running environment.")
    parser.add_argument("extras", nargs="+", metavar="EXTRA")
    parser.add_argument("--installer", choices=("uv", "pip"), default="uv")
    args = parser.parse_args()
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    try:
        complete = contained(args.extras, table)
    except ValueError as e:
        sys.exit(f"error: {e}")
    if code := install(args.extras, args.installer):
        sys.exit(code)
    for extra in complete:
        Path(sys.prefix, f".ready-{extra}").touch()


if __name__ == "__main__":
    main()
