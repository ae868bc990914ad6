"""The check builds twice in different environments, and names what differs: the stage, the file, the byte."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
GOOD = "open('{out}', 'w').write('same\\n' * 1000)"
BAD = {
    "clock": "open('{out}', 'w').write('x' * 5000 + str(time.time_ns()))",
    "folder": "open('{out}', 'w').write(os.getcwd())",
    "hash": "open('{out}', 'w').write(str(hash('a')))",
    "zone": "open('{out}', 'w').write(time.strftime('%H:%M', time.localtime(0)))",
    "language": "open('{out}', 'w').write(os.environ['LC_ALL'])",
    "workers": "open('{out}', 'w').write(open('params.yaml').read())",
}


def project(folder, stages):
    """{stage: (code, dependency)} as a DVC project of one-line stages in git."""
    folder.mkdir()
    graph = {}
    for name, (code, dep) in stages.items():
        (folder / f"{name}.py").write_text("import os, time\n" + code.format(out=f"{name}.out") + "\n")
        graph[name] = {
            "cmd": f"python {name}.py",
            "deps": [f"{name}.py", *([dep] if dep else [])],
            "outs": [f"{name}.out"],
        }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": graph}, sort_keys=False))
    (folder / "params.yaml").write_text("runtime:\n  workers: 0\n")
    for command in (
        ["git", "init", "-q"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "one"],
    ):
        subprocess.run(command, cwd=folder, check=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})
    return folder


def check(folder, *args):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.reproducible", *args], cwd=folder, env=env, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_equal_builds_are_reported_in_one_line(tmp_path):
    folder = project(tmp_path / "good", {"a": (GOOD, None), "b": (GOOD, "a.out")})
    code, text, _ = check(folder)
    assert code == 0 and "reproducible: 2 outputs of 2 stages are the same bytes" in text, text
    assert "TZ=UTC" in text and "TZ=Asia/Kathmandu" in text
    assert not list(folder.glob("*.out"))  # nothing was built here


def test_the_stage_the_file_and_the_byte_that_differ_are_named_not_what_follows_from_them(tmp_path):
    """One stage writes the clock, one copies it, and one per other part of the environment depends on that part."""
    copy = "open('{out}', 'w').write(open('clock.out').read())"
    others = {name: (code, None) for name, code in BAD.items() if name != "clock"}
    stages = {"a": (GOOD, None), "clock": (BAD["clock"], "a.out"), "follows": (copy, "clock.out"), **others}
    code, text, _ = check(project(tmp_path / "bad", stages), "--keep", str(tmp_path / "kept"))
    assert code == 1
    found = re.search(
        r"not reproducible\. stage clock, file clock\.out, offset ([\d,]+): b'(\d+)' in the first build, b'(\d+)'", text
    )
    assert found, text
    offset = int(found[1].replace(",", ""))
    one, other = ((tmp_path / "kept" / name / "clock.out").read_bytes() for name in ("one", "the other 二"))
    assert offset >= 5000 and one[:offset] == other[:offset] and one[offset] != other[offset]
    assert (
        f"these stages differ, too: {', '.join(others)}\n" in text
        and "follows" not in text.partition("these stages differ, too")[2]
    )


def test_a_stage_that_fails_and_a_folder_without_git_are_reported(tmp_path):
    code, _, errors = check(project(tmp_path / "fails", {"a": ("raise SystemExit('the reason')", None)}))
    assert code == 1 and "the reason" in errors and "Traceback" not in errors
    (tmp_path / "plain").mkdir()
    code, _, errors = check(tmp_path / "plain")
    assert code == 1 and "is not a git repository" in errors


def test_a_missing_file_and_a_longer_one_are_differences(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from scripts.reproducible import _compare

    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"abcd")
    assert _compare(tmp_path / "a", tmp_path / "a") is None
    assert _compare(tmp_path / "a", tmp_path / "b") == (3, b"", b"d")
    assert _compare(tmp_path / "a", tmp_path / "c") == (0, b"(a file)", b"(no such file)")
