"""The installer follows pip's settings, takes pip where uv cannot, and marks what is complete."""

import subprocess
import sys

import pytest

from scripts import install
from scripts.install import as_uv, contained, pip_settings

TABLE = {"a": ["one>=1"], "b": ["foundry-lm[a]", "two"], "c": ["foundry-lm[b, a]"], "d": []}
LISTED = """:env:.cert='/etc/ca.pem'
:env:.find-links='/wheels /more'
global.extra-index-url='file:///a\\nfile:///b'
global.index-url='https://one.example/simple'
install.index-url='https://two.example/simple'
download.index-url='https://three.example/simple'
"""


def test_an_extra_contains_those_that_it_names():
    assert contained(["c"], TABLE) == ["a", "b", "c"] and contained(["d", "a"], TABLE) == ["a", "d"]
    with pytest.raises(ValueError, match=r"no extra is called 'e': there are a, b, c, d"):
        contained(["a", "e"], TABLE)


def test_settings_of_pip_are_those_that_apply_to_install():
    assert pip_settings(LISTED) == {
        "cert": "/etc/ca.pem",
        "extra-index-url": "file:///a\nfile:///b",
        "find-links": "/wheels /more",
        "index-url": "https://two.example/simple",
    }
    assert pip_settings("") == {}


def test_uv_gets_the_settings_of_pip():
    arguments, env = as_uv(pip_settings(LISTED))
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    assert sorted(pairs) == [
        ("--default-index", "https://two.example/simple"),
        ("--find-links", "/more"),
        ("--find-links", "/wheels"),
        ("--index", "file:///a"),
        ("--index", "file:///b"),
        ("--index-strategy", "unsafe-best-match"),
    ]
    assert env == {"SSL_CERT_FILE": "/etc/ca.pem"}


@pytest.fixture
def commands(monkeypatch):
    """What is run, with exit codes by the first two words; other commands succeed."""
    called, codes = [], {}

    def run(module, env=None, capture_output=False):
        called.append(module)
        code = codes.get(" ".join(module[:2]) if "uv" not in module[2:] else "bootstrap", 0)
        return subprocess.CompletedProcess(module, code, stdout=codes.get("settings", ""))

    monkeypatch.setattr(install, "_run", run)
    return called, codes


@pytest.mark.parametrize("may_write", [True, False])
def test_uv_compiles_only_where_python_may_not_do_it_later(commands, monkeypatch, may_write):
    called, _ = commands
    monkeypatch.setattr(sys, "dont_write_bytecode", not may_write)
    assert install.install(["a"], "uv") == 0
    assert ("--compile-bytecode" in called[-1]) != may_write


def test_uv_installs_and_takes_the_versions_of_constraints(commands):
    called, _ = commands
    assert install.install(["a", "b"], "uv") == 0
    settings, bootstrap, last = called
    assert settings == ["pip", "config", "list"] and bootstrap[-3:] == ["-c", "constraints.txt", "uv"]
    assert last[:3] == ["uv", "pip", "install"] and last[-2:] == ["-e", ".[a,b]"]
    assert last[last.index("-c") :][:2] == ["-c", "constraints.txt"]
    assert last[last.index("--python") + 1] == sys.executable


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ({"settings": "global.require-hashes='true'"}, "uv has no counterpart of pip's setting require-hashes"),
        ({"bootstrap": 1}, "pip could not install uv"),
        ({"uv pip": 2}, "uv could not install everything"),
    ],
)
def test_pip_installs_where_uv_cannot(commands, codes, said, capsys):
    called, given = commands
    given.update(codes)
    assert install.install(["a"], "uv") == 0
    assert called[-1] == ["pip", "install", "--quiet", "-c", "constraints.txt", "-e", ".[a]"]
    assert f"{said}: pip installs it" in capsys.readouterr().err
    given["pip install"] = 3
    assert install.install(["a"], "pip") == 3


def test_extras_are_marked_only_when_they_are_complete(commands, tmp_path, monkeypatch):
    _, codes = commands
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["install", "ui"])
    codes.update({"uv pip": 1, "pip install": 1})
    with pytest.raises(SystemExit) as ended:
        install.main()
    assert ended.value.code == 1 and list(tmp_path.iterdir()) == []
    codes.clear()
    install.main()
    marked = {p.name for p in tmp_path.iterdir()}
    assert {".ready-ui", ".ready-repro", ".ready-data"} <= marked and ".ready-dev" not in marked
