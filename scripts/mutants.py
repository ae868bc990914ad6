"""Changes the code in small ways, one at a time, and counts how often a test notices (mutation testing).

    python -m scripts.mutants [--sample 200] [--seed 1] [FILE ...]      (make mutants)

A mutant is a file with one operator, comparison, number, condition, call or return value changed; it is killed when
one of the tests of its room fails or does not end. The tests run once without a change under coverage, so that a mutant
meets only those that run its lines, quick ones first; it meets all of them if its lines run only on import or in child
processes. Survivors are printed with their place: each is a missing test, or a change that means the same.

Known tools are not used for two reasons: they start an interpreter per mutant, which imports torch for seconds, and
those that fork do not change decorated functions or what child processes import. Here a parent imports the libraries
once, and each mutant is a forked child that works in a copy of the project which has the changed file. Messages, log
lines and annotations are not changed.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import Queue
from typing import Literal

import coverage
import pytest

QUICK = ("-m", "not slow")
# {files: the tests (arguments of pytest) that have to notice a change in them}
ROOMS: dict[str, tuple[str, ...]] = {
    "foundry/data/tokens/order.py": ("tests/data/tokens/test_loader.py", "tests/data/tokens/test_packing.py"),
    "foundry/data/tokens/packing.py": (
        "tests/data/tokens/test_loader.py",
        "tests/data/tokens/test_packing.py",
        "tests/training/test_plan.py",
    ),
    "foundry/data/tokens/loader.py": (
        "tests/data/tokens/test_loader.py",
        "tests/data/tokens/test_packing.py",
        "tests/training/test_plan.py",
    ),
    "foundry/evaluation/intervals.py": ("tests/evaluation/test_bits_per_byte.py", "tests/evaluation/test_tokens.py"),
    "foundry/utils/bootstrap.py": ("tests/utils/test_bootstrap.py", "tests/evaluation/test_bits_per_byte.py"),
    "foundry/models/*.py": (
        *QUICK,
        "tests/models",
        "tests/training/test_trainer.py",
        "tests/training/test_plan.py",
        "tests/inference",
        "tests/evaluation/test_bits_per_byte.py",
    ),
    "foundry/training/parallel.py": (
        "tests/training/test_parallel.py",
        "tests/training/test_numerics.py",
        "tests/training/test_distributed.py",
    ),
    "foundry/training/*.py": (*QUICK, "tests/training", "tests/models/test_options.py"),
}
COMPARE = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
COMPARE |= {ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is"}
BINARY = {ast.Add: "-", ast.Sub: "+", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*", ast.MatMult: "*"}
BINARY |= {ast.Mult: "/", ast.BitAnd: "|", ast.BitOr: "&", ast.BitXor: "&", ast.LShift: ">>", ast.RShift: "<<"}
PRELOADED = ("hypothesis", "numpy", "pyarrow.parquet", "safetensors.torch", "sentencepiece")
PRELOADED += ("torch.distributed.fsdp", "transformers")
LOGGING = ("log", "get_logger", "warn", "warning", "info")


@dataclass(frozen=True)
class Mutant:
    """One change: bytes [start, end) of a file become `new`."""

    path: str
    line: int
    start: int
    end: int
    old: str
    new: str
    lines: range  # from the start of its statement to its own end: a tracer may give an expression any of these lines

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.old[:70]!r} -> {self.new[:70]!r}"


def mutants_of(path: Path) -> list[Mutant]:
    """Every change of a file, in the order of its lines."""
    data = path.read_bytes()
    begins = [0]
    for line in data.split(b"\n"):
        begins.append(begins[-1] + len(line) + 1)

    def span(node: ast.AST) -> tuple[int, int]:
        return begins[node.lineno - 1] + node.col_offset, begins[node.end_lineno - 1] + node.end_col_offset

    found: list[Mutant] = []
    statement: ast.AST = ast.Pass()

    def change(node: ast.AST, start: int, end: int, new: str) -> None:
        old = data[start:end].decode()
        if new != old:
            lines = range(statement.lineno, max(node.end_lineno, node.lineno) + 1)
            found.append(Mutant(path.as_posix(), node.lineno, start, end, old, new, lines))

    def between(left: ast.AST, right: ast.AST, new: str) -> None:
        """Replaces the operator between two operands, with its parentheses."""
        start, end = span(left)[1], span(right)[0]
        gap = data[start:end].decode()
        kept = "".join(c for c in gap if c in "()")
        closing, opening = kept.count(")"), kept.count("(")
        if "#" not in gap:
            change(left, start, end, ")" * closing + f" {new} " + "(" * opening)

    def text(node: ast.AST) -> str:
        return data[slice(*span(node))].decode()

    def visit(node: ast.AST) -> None:
        nonlocal statement
        if isinstance(node, ast.stmt):
            statement = node
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in text(node.test):
            return
        if isinstance(node, ast.Expr):
            if isinstance(node.value, ast.Constant):
                return  # a docstring
            if isinstance(node.value, ast.Call):
                if any(s in text(node.value.func) for s in LOGGING):
                    return
                change(node, *span(node), "pass")
        match node:
            case ast.Compare(ops=[op]) if type(op) in COMPARE:
                between(node.left, node.comparators[0], COMPARE[type(op)])
            case ast.BinOp(op=op) if type(op) in BINARY:
                between(node.left, node.right, BINARY[type(op)])
            case ast.BoolOp(op=op):
                for left, right in zip(node.values, node.values[1:], strict=False):
                    between(left, right, "or" if isinstance(op, ast.And) else "and")
            case ast.UnaryOp(op=ast.Not()):
                change(node, *span(node), f"({text(node.operand)})")
            case ast.Constant(value=bool() as value):
                change(node, *span(node), str(not value))
            case ast.Constant(value=int() | float() as value):
                change(node, *span(node), repr(value + 1))
            case ast.If() | ast.IfExp() | ast.While():
                change(node.test, *span(node.test), f"(not ({text(node.test)}))")
            case ast.Return(value=ast.expr()) if text(node.value) != "None":
                change(node, *span(node), "return None")
            case ast.AugAssign(op=ast.Add()) | ast.AugAssign(op=ast.Sub()) | ast.AugAssign(op=ast.Mult()):
                change(node, *span(node), f"{text(node.target)} = {text(node.value)}")
            case ast.Break():
                change(node, *span(node), "continue")
            case ast.Continue():
                change(node, *span(node), "break")
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    visit(ast.parse(data))
    good = []
    for m in found:
        try:
            compile(data[: m.start] + m.new.encode() + data[m.end :], m.path, "exec")
        except SyntaxError:
            continue
        good.append(m)
    return sorted(set(good), key=lambda m: (m.line, m.start, m.new))


def remove(folder: Path) -> None:
    """Removes a copy; a test that was stopped may have left a mount in it."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in (m for m in mounts if m.startswith(f"{folder}/")):
        subprocess.run(["umount", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def tests_of(path: str) -> tuple[str, ...]:
    return next(tests for pattern, tests in ROOMS.items() if Path(path).match(pattern))


def copies(root: Path, count: int) -> Iterator[Path]:
    """Copies of the project's files, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"], cwd=root, capture_output=True, check=True
    )
    names = [n for n in listed.stdout.decode().split("\0") if n and (root / n).is_file()]
    for _ in range(count):
        folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / name)
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        yield folder


class Chosen:
    """A plugin of pytest that keeps the chosen tests, quick ones first, and fails those that take far too long."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.seconds), key=lambda i: self.seconds[i.nodeid])
        for item in items:
            item.add_marker(pytest.mark.timeout(20 + 6 * self.seconds[item.nodeid]), append=False)


class Watched:
    """A plugin of pytest that writes how long each test takes."""

    def __init__(self, path: Path) -> None:
        self.path, self.seconds = path, Counter[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self.seconds))


def run_tests(
    folder: Path, tests: Sequence[str], seconds: float, plugin: object, options: Sequence[str] = ()
) -> Literal["passed", "failed", "too slow"]:
    """Runs tests in a forked child that works in `folder`."""
    begin = time.monotonic()
    pid = os.fork()
    if not pid:
        try:
            os.setsid()
            os.chdir(folder)
            sys.path[:] = [str(folder), *(p for p in sys.path if p and Path(p) != Path.cwd())]
            with open("output.txt", "w") as output:
                for fd in (1, 2):
                    os.dup2(output.fileno(), fd)
            base = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *options, f"--basetemp={folder}/tmp"]
            os._exit(int(pytest.main([*base, *tests], plugins=[plugin])))
        finally:
            os._exit(99)
    while time.monotonic() - begin < seconds:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return "passed" if status == 0 else "failed"
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "too slow"


class Room:
    """Which tests run which lines of the files of a room, and how long each takes."""

    def __init__(self, folder: Path, tests: Sequence[str], quick: bool) -> None:
        """Runs them all under coverage in `folder`.

        Raises:
            SystemExit: if they do not pass without a change.
        """
        # Not the project's configuration, which also traces child processes: there the current test is not known.
        config = folder / ".coveragerc"
        config.write_text("[run]\nsource = foundry\n")
        self.folder, self.quick = folder, quick
        options = ["--cov", f"--cov-config={config}", "--cov-context=test", "--cov-report="]
        watched = Watched(folder / "seconds.json")
        if (outcome := run_tests(folder, tests, 3600, watched, options)) != "passed":
            print((folder / "output.txt").read_text()[-4000:])
            raise SystemExit(f"the tests {' '.join(tests)} do not pass without a change: {outcome}")
        self.seconds: dict[str, float] = json.loads(watched.path.read_text())
        path = (folder / ".coverage").rename(folder / f"coverage-{id(self)}")  # the next room has its own
        self.data = coverage.CoverageData(str(path))
        self.data.read()

    def tests_of(self, m: Mutant) -> dict[str, float]:
        """The tests that run a mutant's lines, with their seconds.

        All (none if `quick`) if the lines run on import or in child processes only.
        """
        by_line = self.data.contexts_by_lineno(str(self.folder / m.path))
        contexts = {c for line in m.lines for c in by_line.get(line, ())}
        if not contexts or "" in contexts:
            return {} if self.quick else self.seconds
        names = {c.rpartition("|")[0] for c in contexts}
        # A fixture of a file may be shared by its tests.
        shared = {c.split("::")[0] for c in contexts if not c.endswith("|run")}
        return {t: s for t, s in self.seconds.items() if t in names or t.split("::")[0] in shared}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("files", nargs="*", help="files to change (default: those of ROOMS)")
    p.add_argument("--sample", type=int, default=0, help="how many mutants to draw at random; 0: all")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--quick", action="store_true", help="leave out lines that run only on import or in child processes")
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--least", type=float, default=0.9, help="share that must be killed (default: %(default)s)")
    args = p.parse_args()
    root = Path.cwd()
    paths = [Path(f) for f in args.files] or sorted(
        {q.relative_to(root) for pattern in ROOMS for q in root.glob(pattern) if q.name != "__init__.py"}
    )
    every = [m for path in paths for m in mutants_of(path)]
    originals = {path.as_posix(): path.read_bytes() for path in paths}  # the project may be edited meanwhile
    chosen = every
    if args.sample and args.sample < len(every):
        chosen = sorted(random.Random(args.seed).sample(every, args.sample), key=lambda m: (m.path, m.line))
    print(f"{len(every)} mutants of {len(paths)} files, {len(chosen)} of them tried (seed {args.seed})", flush=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "FOUNDRY_PROGRESS": "0"}
    sys.dont_write_bytecode = True
    for name in PRELOADED:
        import_module(name)
    folders: Queue[Path] = Queue()
    for folder in copies(root, args.workers):
        folders.put(folder)
    rooms: dict[tuple[str, ...], Room] = {}
    measured = folders.get()  # stays as it is: its paths are those of the coverage
    for key in sorted({tests_of(m.path) for m in chosen}):
        rooms[key] = Room(measured, key, args.quick)
        print(f"{' '.join(key)}: {len(rooms[key].seconds)} tests, {sum(rooms[key].seconds.values()):.0f} s", flush=True)
    folders.put(measured)

    def attempt(m: Mutant) -> tuple[Mutant, str]:
        tests = rooms[tests_of(m.path)].tests_of(m)
        if not tests:
            return m, "left out"
        folder = folders.get()
        target = folder / m.path
        data = originals[m.path]
        try:
            target.write_bytes(data[: m.start] + m.new.encode() + data[m.end :])
            files = sorted({t.split("::")[0] for t in tests})
            outcome = run_tests(folder, files, 60 + 8 * sum(tests.values()), Chosen(tests))
        finally:
            target.write_bytes(data)
            remove(folder / "tmp")
            folders.put(folder)
        return m, outcome

    killed, tried, left_out = Counter[str](), Counter[str](), 0
    try:
        with ThreadPoolExecutor(args.workers) as pool:
            for m, outcome in pool.map(attempt, chosen):
                if outcome == "left out":
                    left_out += 1
                    continue
                tried[m.path] += 1
                killed[m.path] += outcome != "passed"
                if outcome == "passed":
                    print(f"survived  {m}", flush=True)
                if tried.total() % 50 == 0:
                    print(f"{killed.total()} of {tried.total()} killed so far", flush=True)
    finally:
        while not folders.empty():
            remove(folders.get())
    for path in tried:
        print(f"{killed[path]:4d} of {tried[path]:4d} killed  {path}")
    if left_out:
        print(f"{left_out} left out")
    share = killed.total() / max(tried.total(), 1)
    print(f"{killed.total()} of {tried.total()} mutants killed: {share:.1%} (at least {args.least:.0%} needed)")
    raise SystemExit(share < args.least)


if __name__ == "__main__":
    main()
