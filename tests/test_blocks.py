"""Every shell and Python block of every page runs in a finished project, or the page says why not.

`make blocks` also runs those that a page marks as `by hand`, in a copy of this project with its models
(`FOUNDRY_BLOCKS=FOLDER` names another project). What no block is run of is at least checked word by word: the command,
its options, the target, the module and the file exist. Notes in `study/` have commands of other projects, and say which
of them were run.
"""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from blocks import PYTHON, blocks_of, make_variables, on_path, parts, run_command, run_python
from pages import PAGES
from pipeline import commit
from toy import ROOT

from foundry import cli

BY_HAND = os.environ.get("FOUNDRY_BLOCKS", "")
NO_COUNTERPART = ["presets/README.md", "corpus/README.md", "tasks/README.md", "AGENTS.md", "CONTRIBUTING.md"]
ENGLISH = [p for p in [*PAGES, *NO_COUNTERPART] if (ROOT / p).exists()]
BLOCKS = {page: blocks_of(ROOT, page) for page in ENGLISH}
# Programs that are neither ours nor installed with the project.
OTHERS = {"cd", "curl", "docker", "git", "kubectl", "llama-cli", "llama-server", "ollama", "printf", "source", "sudo"}
OTHERS |= {"text-generation-launcher", "trtllm-serve", "vllm", "xinference", "time"}
FILES = re.compile(r"^(?:deploy|tutorials|examples|scripts|configs|benchmarks|presets|tasks)/[\w./-]+$")


def test_there_are_blocks_and_every_mark_has_a_reason():
    found = [b for blocks in BLOCKS.values() for b in blocks]
    assert len(found) > 40
    assert all(len(b.reason) > 10 for b in found if b.mark)
    for block in found:
        for begin in block.only:
            one = replace(block, only=(begin,))
            assert any(one.is_marked(c) for c in block.commands), f"{block.page}:{block.line}: no command is {begin}"
    run = sum(not b.is_marked(c) for b in found for c in (b.commands if b.kind not in PYTHON else [""]))
    assert run > 25, "most blocks are to be run"


@pytest.mark.parametrize("page", PAGES)
def test_both_languages_leave_out_the_same_commands(page):
    english, chinese = BLOCKS[page], blocks_of(ROOT, PAGES[page])
    assert [(b.mark, b.only) for b in english] == [(b.mark, b.only) for b in chinese]


@pytest.mark.parametrize("page", [p for p in ENGLISH if any(b.kind not in PYTHON for b in BLOCKS[p])])
def test_every_command_exists_with_its_options(page):
    from dvc.cli.parser import get_main_parser

    targets, variables = make_variables(ROOT / "Makefile")
    for block in (b for b in BLOCKS[page] if b.kind not in PYTHON):
        for words in (w for c in block.commands for w in parts(c)):
            name, where = words[0], f"{page}:{block.line}: {' '.join(words)}"
            modules = [m for flag, m in pairwise(words) if flag == "-m" and name != "curl"]
            if name in ("foundry", "dvc"):
                parser = cli.parser() if name == "foundry" else get_main_parser()
                assert accepted(parser, words[1:]), where
            elif name == "make":
                assert {w for w in words[1:] if "=" not in w} <= targets, where
                assert {w.split("=")[0] for w in words[1:] if "=" in w} <= variables, where
            elif name in ("python", "python3", "torchrun"):
                assert all(importlib.util.find_spec(m) for m in modules if not m.startswith("venv")), where
                assert modules or "-c" in words or (ROOT / words[1]).is_file(), where
            else:
                assert name in OTHERS or on_path(name), where
            assert all((ROOT / w).exists() for w in words[1:] if FILES.match(w)), where


def accepted(parser, words):
    """Whether a parser of argparse takes these words."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            parser.parse_args(words)
        except SystemExit as e:
            assert not e.code, said.getvalue()
    return True


@pytest.fixture(scope="module")
def project(request, tmp_path_factory):
    """A finished project that the blocks may change: a repository with two commits, and the files that pages name."""
    folder = tmp_path_factory.mktemp("blocks") / "project"
    if BY_HAND:
        skipped = shutil.ignore_patterns(".git", ".venv", "site", "__pycache__", "*.tmp")
        shutil.copytree(Path(BY_HAND).resolve(), folder, symlinks=True, ignore=skipped)
        subprocess.run(["git", "init", "-q", "-b", "main"], cwd=folder, check=True)
    else:
        shutil.copytree(request.getfixturevalue("finished")[0], folder, symlinks=True)
        subprocess.run(["git", "symbolic-ref", "HEAD", "refs/heads/main"], cwd=folder, check=True)
    commit(folder, "built")
    (folder / "schema.json").write_text('{"type": "object", "properties": {}}')
    (folder / "book.txt").write_text((ROOT / "LICENSE").read_text(encoding="utf-8") * 40)
    commit(folder, "the reader's files")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in ENGLISH if BLOCKS[p]])
def test_the_blocks_of_a_page_run(page, project, monkeypatch):
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    names = {"__name__": "block"}
    limit = 3600 if BY_HAND else 120
    for block in BLOCKS[page]:
        left_out = "not run" if BY_HAND else block.mark
        for command in [""] if block.kind in PYTHON else block.commands:
            if block.mark == left_out and block.is_marked(command):
                continue
            try:
                said = run_command(command, project, limit) if command else run_python(block.code, project, names)
            except Exception as e:
                raise AssertionError(f"{page}:{block.line}: {command or block.code}") from e
            if BY_HAND:
                print(f"{page}:{block.line}: {command or 'python'}\n{said}")
