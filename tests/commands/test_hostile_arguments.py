"""Any argument of any subcommand ends in success or in one clear message; the parser itself provides the arguments."""

import argparse
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foundry import cli
from foundry.serving import registry

# Numbers, paths, addresses, revisions and texts that a shell can pass. "\\udcff" is a byte that is not UTF-8.
NUMBERS = ["-1", "0", "1", "1e300", "nan", "inf", "-inf", "0x10", "\uff11", "1_0", "9" * 5000]
WORDS = ["", " ", "True", "None", "x" * 300, "x" * 200_000, "\udcff", "a\nb", "\u202e", "\U0001f600", "%s%n{0}"]
PATHS = ["../..", "/proc/x", "/proc/self/mem", "/dev/null", "/dev/null/x", "folder", "file", "loop", "params.yaml/x"]
MODELS = ["", "x@y", "x/1", "x/y/z", "x" * 5000 + "@y", "a b@\udcff"]
STORES = ["://", ":////proc/x/y.db", ":///" + "x" * 5000, ":///loop"]
ADDRESSES = ["ftp://x", "http://[::1", "http://127.0.0.1:9", "file://host/x", *(f"sqlite{store}" for store in STORES)]
NAMES = ["HEAD", "@{-1}", "a..b", "--upload-pack=x", "cuda:99", "cuda:x", "mps", "smoke", "H100"]
TEXTS = [*NUMBERS, *WORDS, *PATHS, *(f"models:/{model}" for model in MODELS), *ADDRESSES, *NAMES]
NEEDED = {
    "inspect": ["--step", "1"],
    "relock": ["one"],
    "compare": ["file", "file"],
    "push": ["a/b"],
    "backup": ["copy"],
}
COMMANDS = {
    n: p for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction) for n, p in a.choices.items()
}


def generated(name: str) -> list[list[str]]:
    """Argument lists of a subcommand: none, one too many, every option and position with every text, every flag."""
    actions = [a for a in COMMANDS[name]._actions if not isinstance(a, argparse._HelpAction)]
    needed = NEEDED.get(name, [])
    flags = [a.option_strings[0] for a in actions if a.option_strings and a.nargs == 0]
    out = [
        [],
        needed,
        [*needed, "one-too-many", "two-too-many", "three"],
        [*needed, "--no-such-option"],
        [*needed, *flags],
    ]
    out += [[*needed, flag] for flag in flags]
    for action in actions:
        if action.option_strings and action.nargs != 0:
            option = action.option_strings[-1]
            rest = [] if option in needed else needed
            out += [[*rest, option], *([*rest, f"{option}={text}"] for text in TEXTS)]
    positions = sum(not a.option_strings for a in actions)
    options = [x for x in needed if needed[0].startswith("--")]
    out += [
        [*options, *[text if i == at else "file" for i in range(positions)]]
        for at in range(positions)
        for text in TEXTS
    ]
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with parameters, odd files, and no results."""
    root = tmp_path_factory.mktemp("place") / "with" / "parents"  # `../..` is still the test's
    root.mkdir(parents=True)
    (root / "params.yaml").write_text("download: {sources: [{name: one, url: 'file:corpus/x'}]}\n")
    (root / "folder").mkdir()
    (root / "file").write_bytes(b"\x00\xff{")
    (root / "loop").symlink_to("loop")
    return root


def as_the_system(command, **rest):
    """In place of DVC and git, which would take seconds each: what the system itself refuses, it refuses, too."""
    for word in map(os.fsencode, command):
        if b"\0" in word:
            raise ValueError("embedded null byte")
        if len(word) >= 1 << 17:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), command[0])
    return subprocess.CompletedProcess(command, 1, "", "fatal: not a git repository")


class OneChild(registry.Registry):
    """Asks MLflow through one process for all cases, in place of one for each: it takes a second to start."""

    child = None

    def _start(self):
        if OneChild.child is None or OneChild.child.poll() is not None:
            OneChild.child = super()._start()
        self._child = OneChild.child
        return self._child

    def close(self):
        self._closed = True


@pytest.fixture(scope="module", autouse=True)
def one_child():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "Registry", OneChild)
        yield
    if child := OneChild.child:
        child.kill()
        child.communicate()


def test_every_subcommand_is_generated_for():
    assert len(COMMANDS) >= 17 and {"check", "generate", "backup", "compare", "plan"} <= set(COMMANDS)
    assert len(generated("plan")) > 150 and [f"--gpus={t}" for t in TEXTS] == [
        a[0] for a in generated("plan") if a and a[0].startswith("--gpus=")
    ]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", COMMANDS)
def test_any_argument_ends_in_success_or_one_message(name, place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    monkeypatch.setenv("DVC_ROOT", str(place))
    for variable in ("MLFLOW_TRACKING_URI", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(subprocess, "run", as_the_system)
    wrong = []
    for args in generated(name):
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        code = 0
        try:
            cli.main([name, *args])
        except SystemExit as e:
            code = e.code
        except BaseException as e:
            wrong.append(f"{short(args)}: {type(e).__name__}: {str(e)[:200]}")
            continue
        out, err = capfd.readouterr()
        if code not in (None, 0, 1, 2) or "Traceback" in err + out:
            wrong.append(f"{short(args)}: exit {code}: {err[-300:]}")
        elif (
            code
            and len(
                [
                    x
                    for x in err.splitlines()
                    if x.startswith(("error: ", "foundry: error: ", f"foundry {name}: error: "))
                ]
            )
            != 1
        ):
            wrong.append(f"{short(args)}: exit {code} without a message: {err[-300:]!r}")
        elif code == 1 and len(err) > 8000:
            wrong.append(f"{short(args)}: a message of {len(err)} characters")
    assert not wrong, f"{len(wrong)} of {len(generated(name))}:\n" + "\n".join(wrong[:60])
    assert Path("params.yaml").read_text().startswith("download:")


def short(args: list[str]) -> str:
    return " ".join(repr(a if len(a) < 60 else f"{a[:20]}…({len(a)})") for a in args)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["plan", "--gpu", "H100", "--gpus", "0"], "number of GPUs must lie in [1, 100000], got 0"),
        (["plan", "--gpu", "H100", "--gpus=-1"], "number of GPUs"),
        (["plan", "--gpus", "0"], "--gpus needs --gpu"),
        (["sync", "--uri", "ftp://x"], "'ftp://x' is not an address of MLflow"),
        (["backup", "/proc/x"], "/proc/x cannot be the folder of a backup"),
        (["backup", "file"], "cannot be the folder of a backup (File exists)"),
        (["runs", "--commits=-1"], "number of commits"),
        (["compare", "x" * 200_000, "file"], "error: "),
    ],
)
def test_what_cannot_be_is_refused_with_its_rule(place, monkeypatch, capfd, args, expected):
    monkeypatch.chdir(place)
    monkeypatch.setenv("DVC_ROOT", str(place))
    monkeypatch.setattr(subprocess, "run", as_the_system)
    with pytest.raises(SystemExit) as e:
        cli.main(args)
    err = capfd.readouterr().err
    assert e.value.code == 1 and err.startswith("error: ") and expected in err and len(err) < 7000


def test_text_that_the_terminal_cannot_show_is_written_with_backslashes(place):
    done = subprocess.run(
        [sys.executable, "-m", "foundry.cli", "check", "--params", b"\xff\xf0\x9f\x98\x80.yaml"],
        cwd=place,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "DVC_ROOT": str(place)},
        check=False,
    )
    assert done.returncode == 1 and done.stderr.startswith(b"error: ") and b"Traceback" not in done.stderr
