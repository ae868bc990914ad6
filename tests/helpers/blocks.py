"""The shell and Python blocks of the pages, and what they need to run.

The line before a block may say what no test runs and why; code hosts do not show it:

    <!-- not run: a server, which ends with Ctrl-C -->
    <!-- not run (make ui, make deploy): servers -->     only the commands that begin so; `foundry chat$`: only that one
    <!-- by hand: minutes of training -->                run by `make blocks` only, in a copy of this project
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline import environment

from foundry import cli

BLOCK = re.compile(r"(?:^<!-- (not run|by hand)(?: \(([^)]*)\))?: ([^\n]*?) -->\n+)?^```(\w+)\n(.*?)^```", re.M | re.S)
SHELL, PYTHON = ("bash", "sh"), ("python",)


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        mark: `not run`, `by hand` or nothing.
        only: the beginnings of the commands that the mark is about; empty: all.
        reason: what the mark says.
    """

    page: str
    line: int
    kind: str
    code: str
    mark: str
    only: tuple[str, ...]
    reason: str

    @property
    def commands(self):
        """The commands of a shell block, each with the lines that it takes, without comments."""
        found, lines = [], ""
        for line in self.code.splitlines():
            lines += line
            if lines.endswith("\\"):
                lines = lines[:-1]
                continue
            try:
                words = shlex.split(lines, comments=True)
            except ValueError:  # a quotation that continues
                lines += "\n"
                continue
            if words:
                found.append(lines)
            lines = ""
        assert not lines, f"{self.page}:{self.line}: {lines}"
        return found

    def is_marked(self, command=""):
        plain = " ".join(shlex.split(command, comments=True))
        exact = any(plain == p.removesuffix("$") for p in self.only if p.endswith("$"))
        return bool(self.mark) and (not self.only or exact or plain.startswith(self.only))


def blocks_of(root, page):
    """The shell and Python blocks of a page, in order."""
    text = (root / page).read_text(encoding="utf-8")
    found = []
    for m in BLOCK.finditer(text):
        mark, only, reason, kind, code = m.groups(default="")
        if kind in SHELL + PYTHON:
            begins = tuple(p.strip() for p in only.split(",") if p.strip())
            found.append(Block(page, text[: m.start(5)].count("\n"), kind, code, mark, begins, reason))
    return found


def parts(command):
    """The simple commands of a line of a shell, each as its words, without redirections and variables before it."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    out = [[]]
    for word in lexer:
        if set(word) <= set("&|;()"):
            out.append([])
        elif out[-1] or not re.match(r"[A-Z_]+=", word):
            out[-1].append(word)
    return [words for words in out if words]


def run_command(command, folder, limit):
    """Runs a line of a shell block; a plain command of `foundry` in this process, which has imported what it needs."""
    words = parts(command)
    if len(words) == 1 and words[0][0] == "foundry" and not re.search(r"[<>]", command):
        said = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                cli.main(words[0][1:])
            except SystemExit as e:
                assert not e.code, f"{command}: exit code {e.code}\n{said.getvalue()}"
        return said.getvalue()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment(PYTHON=sys.executable),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
    )
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_python(code, folder, names):
    """Runs a Python block in this process, with the names that the blocks before it on the page have defined."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        exec(compile(code, "a block of the page", "exec"), names)
    return said.getvalue()


def make_variables(makefile: Path):
    """(targets, variables) of a Makefile."""
    text = makefile.read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):", text, re.M)), set(re.findall(r"\$\((\w+)\)", text)) | {"PYTHON"}


def on_path(name):
    """Whether a program is beside this Python, where `make` puts those of the project."""
    return os.access(Path(sys.executable).parent / name, os.X_OK)
