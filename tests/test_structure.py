"""The structure of AGENTS.md: no import circles between modules or rooms, and no file that is too long to read."""

import tomllib
from pathlib import Path

import grimp
import networkx as nx
import pytest

import foundry

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def imports():
    """Who imports whom; imports inside functions and those for type checkers count as any other."""
    graph = grimp.build_graph("foundry", "stages", "flows", cache_dir=None, exclude_type_checking_imports=False)
    return [(m, n) for m in graph.modules for n in graph.find_modules_directly_imported_by(m)]


def circles(edges):
    return [sorted(c) for c in nx.strongly_connected_components(nx.DiGraph(edges)) if len(c) > 1]


def room(module):
    """foundry.data.read.tables → foundry.data.read; the contracts between the data rooms are a room of their own."""
    parts = module.split(".")
    return ".".join(parts[: 3 if parts[:2] == ["foundry", "data"] else 2])


def test_no_module_imports_itself_by_way_of_others(imports):
    assert len(imports) > 500 and ("foundry.cli", "foundry.commands.generation") in imports
    assert circles(imports) == []


def test_no_room_imports_itself_by_way_of_others(imports):
    """A package's own `__init__` offers what its modules have: that is no way back."""
    edges = {(room(m), room(n)) for m, n in imports}
    assert ("foundry.training", "foundry.data.tokens") in edges
    assert circles((m, n) for m, n in edges if m != n and "foundry" not in (m, n)) == []


def test_a_circle_would_be_found():
    assert circles([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]) == [["a", "b", "c"]]


def test_the_version_of_the_code_is_that_of_the_package():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == foundry.__version__


def test_no_file_has_500_lines():
    files = [
        f
        for top in ("foundry", "stages", "flows", "tests", "scripts", "benchmarks")
        for f in (ROOT / top).rglob("*.py")
    ]
    assert len(files) > 300
    assert [f.name for f in files if len(f.read_text(encoding="utf-8").splitlines()) >= 500] == []
