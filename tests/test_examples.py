"""Every example of `examples/` runs from another folder, asserts what it teaches, and leaves that folder as it was.

They run at their quick size here. At full size, by hand: `make examples` (FOUNDRY_EXAMPLES=full).
"""

import logging
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
AS_PROGRAM = ROOT / "examples" / "02_custom_data.py"
QUICK = "--quick" if os.environ.get("FOUNDRY_EXAMPLES") != "full" else None
READMES = ("README.md", "README.zh.md")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder that has nothing to do with the project, and an environment without the project's variables."""
    for name in [n for n in os.environ if n.startswith(("MLFLOW_", "DVC_", "FOUNDRY_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FOUNDRY_PROGRESS", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the processes that an example starts
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in EXAMPLES if p != AS_PROGRAM], ids=lambda p: p.stem)
def test_an_example_runs_from_any_folder_and_what_it_asserts_is_true(path, elsewhere, monkeypatch, capsys):
    """In this process, as if it were a program: that saves seven times the import of PyTorch."""
    monkeypatch.setattr(sys, "argv", [str(path), *filter(None, [QUICK])])
    runpy.run_path(str(path), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) > 2
    assert Path.cwd() == elsewhere and not list(elsewhere.iterdir()), "it works in a folder of its own"


def test_an_example_is_a_program_that_runs_from_any_folder(elsewhere):
    command = [sys.executable, str(AS_PROGRAM), *filter(None, [QUICK])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    print(done.stdout)
    assert done.returncode == 0 and "data/clean again" in done.stdout, done.stdout + done.stderr
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_one_file_that_shows_its_output_and_asserts(path):
    text = path.read_text(encoding="utf-8")
    docstring = text.split('"""')[1]
    assert f"python examples/{path.name}" in docstring and "Expected output" in docstring
    shown = [line for line in docstring.split("Expected output", 1)[1].splitlines() if line.startswith("    ")]
    assert len(shown) >= 3 and "EXPECTED" not in docstring and "EXAMPLE_TIME" not in docstring
    assert text.count("assert ") >= 3
    assert not re.search(r"^(from|import) (examples|tests|benchmarks)", text, re.M) and len(text.splitlines()) < 300


def test_the_pages_list_every_example():
    assert len(EXAMPLES) == 8
    for name in READMES:
        text = (ROOT / "examples" / name).read_text(encoding="utf-8")
        assert all(f"({p.name})" in text for p in EXAMPLES)


def test_the_first_documents_of_a_data_set_are_those_that_the_manifest_names(elsewhere, monkeypatch, capsys):
    from foundry.config import DataError, parse_config
    from foundry.data.fetch.download import download

    (elsewhere / "corpus").mkdir()
    (elsewhere / "corpus/a.jsonl").write_text('{"title": "One", "body": "first"}\n{"title": "Two", "body": "second"}\n')
    source = {"name": "notes", "url": "file:corpus/a.jsonl", "text": "{title}: {body}", "license": "CC0-1.0"}
    config = parse_config({"download": {"sources": [source]}})
    download(config, Path("set"), logging.getLogger("foundry"))
    path = ROOT / "examples/datasets/first_documents.py"
    monkeypatch.setattr(sys, "argv", [str(path), "set", "--count", "1"])
    runpy.run_path(str(path), run_name="__main__")
    shown = capsys.readouterr().out
    assert "notes: a.jsonl, " in shown and "'One: first' …" in shown and "Two" not in shown
    (elsewhere / "set/notes/a.jsonl").write_text('{"title": "One", "body": "other"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl"):
        runpy.run_path(str(path), run_name="__main__")
