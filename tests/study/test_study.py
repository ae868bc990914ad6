"""`foundry study`: a citation that is not true is found, with the code and, as far as possible, without it."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from toy import git

from foundry.cli import main
from foundry.study import notes
from foundry.study.citations import citations_in

ROOT = Path(__file__).resolve().parents[2]
CODE = "".join(f"def function_{i}(x):\n    return x * {i:03d}  # the factor of {i}\n" for i in range(40))
WORD = "reason "


def page(first, last):
    """Prose with a citation of each function from first to last."""
    cites = "".join(f'See [`src/code.py:{2 * i + 1}-{2 * i + 2}`] "return x * {i:03d}".\n' for i in range(first, last))
    return f"# toy\n\n{WORD * 400}\n\n{cites}"


@pytest.fixture
def clone(tmp_path):
    """A repository with one file of 80 lines."""
    folder = tmp_path / "clone"
    (folder / "src").mkdir(parents=True)
    (folder / "src/code.py").write_text(CODE)
    git(folder, "init", "-q")
    commit(folder)
    return folder


def commit(folder):
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def study(tmp_path, clone, monkeypatch):
    """A complete study of that repository, in a project of its own."""
    project = tmp_path / "project"
    (project / "foundry").mkdir(parents=True)
    (project / "foundry/ours.py").touch()
    monkeypatch.chdir(project)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    main(["study", "add", "toy", "--repository", "a/toy", "--licence", "MIT", "--source", str(clone)])
    folder = project / "study/toy"
    write_pages(folder)
    main(["study", "update", "toy", "--source", str(clone)])
    return folder


def write_pages(folder):
    (folder / "overview.md").write_text(page(0, 8) + "\n## 摘要\n" + "真" * 150 + "\n")
    (folder / "architecture.md").write_text(page(8, 16) + "It corresponds to `foundry/ours.py`.\n")
    (folder / "core-insights.md").write_text(page(16, 24))
    (folder / "code-reading-log.md").write_text(page(24, 30))


def run(capsys, *args):
    capsys.readouterr()
    code = 0
    try:
        main(["study", *map(str, args)])
    except SystemExit as e:
        code = e.code
    return code, *capsys.readouterr()


def test_a_true_study_passes_with_the_code_and_without_it(study, clone, capsys):
    code, out, _ = run(capsys, "check", "toy", "--source", clone)
    assert code == 0 and out.startswith("toy: 30 citations resolved in the pinned code, 16")
    shutil.rmtree(clone)
    code, out, _ = run(capsys, "check")
    assert code == 0 and out.startswith("toy: 30 citations compared with their record")


FIRST = '[`src/code.py:1-2`] "return x * 000"'
FAULTS = {
    "a citation that is not recorded": (
        FIRST,
        '[`src/code.py:1`] "def function_0"',
        '1 "def function_0" is not recorded',
    ),
    "a record that nothing cites": (FIRST, "", "is recorded, but no page cites it any more"),
    "more than twelve words": ("return x * 000", "a b c d e f g h i j k l m", "quotes 13 words; quote at most 12"),
    "a fragment that says nothing": ("return x * 000", "x", "quote at least 4 characters"),
    "lines in the wrong order": ("code.py:1-2", "code.py:2-1", "cites lines 2 to 1"),
    "too many lines": ("code.py:1-2", "code.py:1-200", "cites lines 1 to 200; give 1 to 100"),
    "no fragment": (FIRST, "[`src/code.py:1-2`]", "src/code.py:1 has no quoted fragment behind it"),
    "a thin study": (WORD * 400, "", "English words; a study has at least 1500"),
    "a short summary": ("真" * 150, "真" * 149, "149 Chinese characters"),
    "a file that we do not have": ("See ", "See `foundry/lost.py`, ", "names foundry/lost.py, which does not exist"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_without_the_code_each_fault_of_a_page_is_reported(fault, study, capsys):
    old, new, message = FAULTS[fault]
    overview = study / "overview.md"
    text = overview.read_text()
    assert old in text
    overview.write_text(text.replace(old, new, 1))
    code, _, err = run(capsys, "check", "toy")
    assert code == 1 and message in err, err


def test_a_missing_page_a_missing_record_and_another_pin_are_reported(study, capsys):
    (study / "references.md").unlink()
    code, _, err = run(capsys, "check", "toy")
    assert code == 1 and "missing pages: references.md" in err
    source = study / "source.toml"
    text = source.read_text()
    source.write_text(text.replace(commit_of(study), "0" * 40))
    code, _, err = run(capsys, "check", "toy")
    assert code == 1 and "but source.toml pins 0000" in err
    source.write_text(text.replace('repository = "a/toy"', "repository = 1"))
    code, _, err = run(capsys, "check", "toy")
    assert code == 1 and "source.toml is not valid: repository" in err
    source.write_text(text)
    (study / "citations.json").unlink()
    code, _, err = run(capsys, "check", "toy")
    assert code == 1 and "citations.json does not exist" in err and err.count("\n  - ") == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return x * 000", "return x * 001", "these lines do not contain the fragment; line 4 does"),
        ("return x * 000", "return x * 099", "these lines do not contain the fragment, nor does the file"),
        ("code.py:1-2", "code.py:81-82", "the file has only 81 lines; line 2 does"),
        ("code.py:1-2", "lost.py:1-2", "the file does not exist"),
    ],
)
def test_with_the_code_an_untrue_citation_says_where_it_would_be_true(old, new, message, study, clone, capsys):
    overview = study / "overview.md"
    overview.write_text(overview.read_text().replace(old, new, 1))
    before = (study / "citations.json").read_bytes()
    for action in ("check", "update"):
        code, _, err = run(capsys, action, "toy", "--source", clone)
        assert code == 1 and message in err, err
    assert (study / "citations.json").read_bytes() == before


def test_a_changed_hash_and_another_tree_are_found_with_the_code(study, clone, capsys):
    path = study / "citations.json"
    record = json.loads(path.read_text())
    record["citations"][3]["sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    assert run(capsys, "check", "toy")[0] == 0  # without the code nobody can know
    code, _, err = run(capsys, "check", "toy", "--source", clone)
    assert code == 1 and "its recorded hash is not that of the pinned lines" in err and err.count("\n  - ") == 1
    source = study / "source.toml"
    source.write_text(source.read_text().replace('tree = "', 'tree = "0')[:-3] + '"\n')
    code, _, err = run(capsys, "check", "toy", "--source", clone)
    assert code == 1 and "is not the pinned source of toy" in err


def test_drift_is_reported_and_an_update_moves_the_line_numbers(study, clone, capsys):
    old = commit_of(study)
    lines = CODE.splitlines(keepends=True)
    lines[4] = "def function_2(x, y):\n"
    new_text = "import math\n\n\n" + "".join(lines[6:] + lines[:2] + lines[4:6])  # 1 is gone, 2 moved and changed
    (clone / "src/code.py").write_text(new_text)
    new = commit(clone)
    code, out, _ = run(capsys, "check", "toy", "--source", clone, "--against", "HEAD")
    assert code == 0 and "in HEAD: 2 gone, 28 moved" in out
    assert 'now at src/code.py:78-79 "return x * 000"' in out and 'gone: src/code.py:3-4 "return x * 001"' in out
    overview = study / "overview.md"
    before = overview.read_text()
    code, _, err = run(capsys, "update", "toy", "--source", clone, "--commit", "HEAD")
    assert code == 1 and "nothing was written" in err and "line 81 does" in err and overview.read_text() == before
    assert commit_of(study) == old
    overview.write_text(
        before.replace('See [`src/code.py:3-4`] "return x * 001".', "").replace("code.py:5-6", "code.py:80-81")
    )
    code, out, _ = run(capsys, "update", "toy", "--source", clone, "--commit", "HEAD")
    assert code == 0 and commit_of(study) == new
    assert [c.place for c in citations_in(overview.read_text())[:2]] == ["src/code.py:78-79", "src/code.py:80-81"]
    assert run(capsys, "check", "toy", "--source", clone)[0] == 0


def commit_of(study):
    return next(line for line in (study / "source.toml").read_text().splitlines() if "commit" in line).split('"')[1]


def test_lines_that_changed_around_a_fragment_are_named_to_be_read_again(study, clone, capsys):
    (clone / "src/code.py").write_text(CODE.replace("def function_2(x)", "def function_2(x, y)"))
    commit(clone)
    code, out, _ = run(capsys, "update", "toy", "--source", clone, "--commit", "HEAD")
    assert code == 0 and "1 changed, 29 same" in out
    assert 'the lines changed, read them again: src/code.py:5-6 "return x * 002"' in out


def test_a_source_archive_is_pinned_as_a_commit_is(study, clone, tmp_path, capsys):
    shutil.rmtree(clone / ".git")
    shutil.move(clone, tmp_path / "toy-1.0/vendored")
    archive = tmp_path / "toy-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "toy-1.0", "toy-1.0")
    pin = ("--source", tmp_path / "toy-1.0", "--archive", archive, "--folder", "vendored")
    code, out, _ = run(capsys, "update", "toy", *pin)
    assert code == 0 and "30 same" in out
    assert 'sdist = "toy-1.0.tar.gz"' in (study / "source.toml").read_text()
    assert run(capsys, "check", "toy", "--source", tmp_path / "toy-1.0")[0] == 0
    (tmp_path / "toy-1.0/vendored/src/more.py").touch()
    code, _, err = run(capsys, "check", "toy", "--source", tmp_path / "toy-1.0")
    assert code == 1 and "is not the pinned source of toy" in err


def test_adding_keeps_pages_that_exist_and_refuses_a_second_pin(study, clone, capsys):
    add = ("add", "toy", "--repository", "a/toy", "--licence", "MIT", "--source", clone)
    code, _, err = run(capsys, *add)
    assert code == 1 and "is pinned already" in err
    (study / "source.toml").unlink()
    before = (study / "overview.md").read_text()
    code, out, _ = run(capsys, *add)
    assert code == 0 and "overview.md" not in out and (study / "overview.md").read_text() == before


@pytest.mark.parametrize("name", notes.studies(ROOT))
def test_the_studies_of_this_project_agree_with_their_record(name):
    found = notes.check(ROOT, name)
    assert found.problems == [] and found.citations >= notes.MIN_CITATIONS
