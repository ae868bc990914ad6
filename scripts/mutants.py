"""Changes the code in small ways, one at a time, and counts how often a test notices (mutation testing).

    python -m scripts.mutants [--sample 200] [--seed 1] [FILE ...]      (make mutants)

A mutant is a file with one operator, comparison, number, condition, call or return value changed; it is killed when one of the tests of its
room fails or does not end. Survivors are printed with their place: each is a missing test, or a change that means the same.

Known tools were not used for two reasons: they start an interpreter per mutant, which imports torch for seconds, and those that fork
do not change decorated functions or what child processes import. Here a parent imports the libraries once, and each mutant is a forked
child that works in a copy of the project in which the changed file is written. Messages, log lines and annotations are not changed.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import Queue

# Which tests are to notice a change of which files; the quick ones first.
ROOMS: dict[str, list[str]] = {
    "foundry/data/order.py": ["tests/data/test_loader.py", "tests/data/test_packing.py"],
    "foundry/data/packing.py": ["tests/data/test_packing.py", "tests/data/test_loader.py"],
    "foundry/data/loader.py": ["tests/data/test_loader.py", "tests/data/test_packing.py"],
    "foundry/evaluation/intervals.py": ["tests/evaluation/test_bits_per_byte.py", "tests/evaluation/test_tokens.py"],
    "foundry/models/*.py": ["tests/models", "tests/training/test_trainer.py", "tests/evaluation/test_bits_per_byte.py"],
    "foundry/training/*.py": ["tests/training", "tests/models/test_options.py"],
}
COMPARE = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
BINARY = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*",
    ast.BitAnd: "|", ast.BitOr: "&", ast.BitXor: "&", ast.LShift: ">>", ast.RShift: "<<", ast.MatMult: "*",
}  # fmt: skip
PRELOADED = (
    "hypothesis", "numpy", "pyarrow.parquet", "pytest", "safetensors.torch", "sentencepiece", "torch.distributed.fsdp", "transformers"
)  # fmt: skip
SPEAKING = ("log", "get_logger", "warn", "warning", "info")


@dataclass(frozen=True)
class Mutant:
    """One change: bytes [start, end) of a file become `new`."""

    path: str
    line: int
    start: int
    end: int
    old: str
    new: str

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

    def change(node: ast.AST, start: int, end: int, new: str) -> None:
        old = data[start:end].decode()
        if new != old:
            found.append(Mutant(path.as_posix(), node.lineno, start, end, old, new))

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
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in text(node.test):
            return
        if isinstance(node, ast.Expr):
            if isinstance(node.value, ast.Constant):
                return  # a docstring
            if isinstance(node.value, ast.Call):
                if any(s in text(node.value.func) for s in SPEAKING):
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


def tests_of(path: str) -> list[str]:
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


def run_tests(folder: Path, tests: list[str], seconds: float) -> tuple[str, float]:
    """("passed", "failed" or "too slow", seconds) of the tests in a forked child that works in `folder`."""
    begin = time.monotonic()
    pid = os.fork()
    if not pid:
        try:
            os.setsid()
            os.chdir(folder)
            sys.path[:] = [str(folder), *(p for p in sys.path if p and Path(p) != Path.cwd())]
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            import pytest

            base = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not slow and not distributed"]
            os._exit(int(pytest.main([*base, f"--basetemp={folder}/tmp", *tests])))
        finally:
            os._exit(99)
    while time.monotonic() - begin < seconds:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return "passed" if status == 0 else "failed", time.monotonic() - begin
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "too slow", time.monotonic() - begin


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("files", nargs="*", help="files to change (default: those of ROOMS)")
    p.add_argument("--sample", type=int, default=0, help="so many mutants drawn by the seed; 0: all")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--least", type=float, default=0.9, help="share that has to be killed (default: %(default)s)")
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
    limits: dict[str, float] = {}
    for path in {m.path for m in chosen}:
        key = " ".join(tests_of(path))
        if key not in limits:
            folder = folders.get()
            outcome, seconds = run_tests(folder, tests_of(path), 1800)
            folders.put(folder)
            if outcome != "passed":
                raise SystemExit(f"the tests of {path} ({key}) do not pass without a change: {outcome}")
            limits[key] = 60 + 8 * seconds
            print(f"{key}: {seconds:.0f} s", flush=True)

    def attempt(m: Mutant) -> tuple[Mutant, str]:
        folder = folders.get()
        target = folder / m.path
        data = originals[m.path]
        try:
            target.write_bytes(data[: m.start] + m.new.encode() + data[m.end :])
            outcome, _ = run_tests(folder, tests_of(m.path), limits[" ".join(tests_of(m.path))])
        finally:
            target.write_bytes(data)
            shutil.rmtree(folder / "tmp", ignore_errors=True)
            folders.put(folder)
        return m, outcome

    killed, tried = Counter[str](), Counter[str]()
    try:
        with ThreadPoolExecutor(args.workers) as pool:
            for m, outcome in pool.map(attempt, chosen):
                tried[m.path] += 1
                killed[m.path] += outcome != "passed"
                if outcome == "passed":
                    print(f"survived  {m}", flush=True)
                if tried.total() % 50 == 0:
                    print(f"{killed.total()} of {tried.total()} killed so far", flush=True)
    finally:
        while not folders.empty():
            shutil.rmtree(folders.get())
    for path in tried:
        print(f"{killed[path]:4d} of {tried[path]:4d} killed  {path}")
    share = killed.total() / max(tried.total(), 1)
    print(f"{killed.total()} of {tried.total()} mutants killed: {share:.1%} (mark: {args.least:.0%})")
    raise SystemExit(share < args.least)


if __name__ == "__main__":
    main()
