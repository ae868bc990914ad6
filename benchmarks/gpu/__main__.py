"""The command: runs the parts one after the other, writes `reports/gpu/<card>.json`, prints its table."""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
import traceback
from pathlib import Path

from benchmarks.gpu import decode, evaluate, suite, train
from benchmarks.gpu.bench import Bench, children
from benchmarks.gpu.child import ROOT, TOLD, Clock, SideFailed
from benchmarks.gpu.page import table
from benchmarks.gpu.record import Card, GpuReport, Part, read_report
from benchmarks.gpu.shapes import work_folder, write_data

PARTS = {"tests": suite.run, "train": train.run, "decode": decode.run, "evaluate": evaluate.run}
MINUTES = 7.5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of a part at most (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: tries the script, measures nothing")
    parser.add_argument("--out", type=Path, help="folder of the report (default: reports/gpu; tiny: .foundry/gpu)")
    parser.add_argument("--commit", help="of the code, where there is no git (default: as git says)")
    args = parser.parse_args()
    sys.exit(measure(args))


def measure(args: argparse.Namespace) -> int:
    """Runs the parts; returns the exit code: 0, or 1 if a part is not good."""
    out = args.out or ROOT / (".foundry/gpu" if args.tiny else "reports/gpu")
    commit = args.commit or commit_of(ROOT)
    with work_folder() as tmp:
        folder = Path(tmp)
        try:
            card = ask_card(args, folder)
        except SideFailed as e:
            print(f"no GPU can be used here: {e}", file=sys.stderr)
            return 1
        path = out / f"{file_name(card)}.json"
        report = begin_report(path, card)
        print(f"{card.name}, torch {card.torch}; the report is {path}", flush=True)
        if set(args.only) & {"train", "evaluate"}:
            write_data(folder, args.tiny)
        good = True
        for name in args.only:
            print(f"\n== {name}: at most {args.minutes:g} minutes", flush=True)
            part = run_part(name, report, path, folder, args.minutes, commit)
            good &= part.good
    print("\n" + "\n".join(table([read_report(path)], "en")))
    return 0 if good else 1


def run_part(name: str, report: GpuReport, path: Path, folder: Path, minutes: float, commit: str | None) -> Part:
    """Runs one part; what it finds is in the report from then on, and a crash is written down there."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def save(bench: Bench, complete: bool = False) -> None:
        report.parts[name] = Part(
            date=now,
            commit=commit,
            seconds=round(bench.clock.spent, 1),
            complete=complete,
            problems=bench.problems,
            comparisons=list(bench.comparisons.values()),
            numbers=list(bench.numbers.values()),
            outcomes=list(bench.outcomes.values()),
        )
        report.write(path)

    bench = Bench(report.card, folder, Clock(60 * minutes), save)
    save(bench)
    try:
        PARTS[name](bench)
        save(bench, complete=True)
    except Exception:
        bench.problem(traceback.format_exc()[-TOLD:])
    return report.parts[name]


def ask_card(args: argparse.Namespace, folder: Path) -> Card:
    with children({"device": ("device:Device", {"device": args.device})}, folder / "logs") as sides:
        return Card(**sides["device"].ask("card", 120, tiny=args.tiny))


def begin_report(path: Path, card: Card) -> GpuReport:
    """The report with the parts that an earlier run on the same card and versions left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        before = read_report(path)
        if before.card == card:
            return before
        print(f"the earlier report {path} is of other versions or settings: it is replaced", flush=True)
    return GpuReport(card=card)


def file_name(card: Card) -> str:
    """The card's name in lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", card.name.lower().replace("nvidia", "")).strip("-") or "unknown"


def commit_of(root: Path) -> str | None:
    """The commit of a checkout, with `+` if files that git knows were changed; None without git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()
