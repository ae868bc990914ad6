"""What an extra of pyproject.toml installs here, and environments in which nothing else can be imported."""

import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HIDING = """import os, sys
from importlib.machinery import PathFinder

HIDDEN = set(os.environ["FOUNDRY_TEST_HIDDEN"].split())

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if path is None and name in HIDDEN else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def installs(extra):
    """Names of the distributions that `foundry-lm[extra]` needs on this machine, those of dependencies included."""
    seen, todo = set(), [Requirement(f"foundry-lm[{extra}]")]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for chosen in {"", *requirement.extras}:
            if (name, chosen) in seen:
                continue
            seen.add((name, chosen))
            if name == "foundry-lm":
                lines = PROJECT["optional-dependencies"][chosen] if chosen else PROJECT["dependencies"]
            else:
                lines = requires(name) or []
            needed = map(Requirement, lines)
            todo += [r for r in needed if r.marker is None or r.marker.evaluate({"extra": chosen})]
    return {name for name, _ in seen}


def modules_without(extra):
    """Modules that only packages outside the extra have; coverage measures from inside and stays."""
    inside = installs(extra) | {"coverage"}
    found = packages_distributions().items()
    return {module for module, names in found if not inside & {canonicalize_name(name) for name in names}}


def hidden(folder, modules):
    """Environment variables for a Python process, and for its children, that cannot import these modules.

    Args:
        folder: gets a `sitecustomize.py`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(HIDING)
    return {"PYTHONPATH": str(folder), "FOUNDRY_TEST_HIDDEN": " ".join(sorted(modules))}
