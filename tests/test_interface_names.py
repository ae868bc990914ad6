"""Every name that a package offers exists: they are imported on first use, so that nothing else notices a wrong one."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [
    ".".join(p.parent.relative_to(ROOT).parts)
    for room in ("foundry", "flows")
    for p in (ROOT / room).rglob("__init__.py")
]


def test_the_packages_are_found():
    assert {"foundry", "foundry.evaluation", "foundry.config", "foundry.export", "foundry.utils"} <= set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_resolves_and_others_are_attribute_errors(package):
    module = import_module(package)
    names = getattr(module, "__all__", [])
    missing = [n for n in [*names, *getattr(module, "_HOME", ())] if not hasattr(module, n)]
    assert not missing and len(set(names)) == len(names)
    exec(f"from {package} import *", {})
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


@pytest.mark.parametrize("package", PACKAGES)
def test_names_for_type_checkers_are_those_of_the_facade(package):
    tree = ast.parse(Path(import_module(package).__file__).read_text(encoding="utf-8"))
    lists = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    for node in (n for block in lists for n in block.body if isinstance(n, ast.ImportFrom)):
        for alias in node.names:
            assert getattr(import_module(node.module), alias.name) is getattr(import_module(package), alias.name)
