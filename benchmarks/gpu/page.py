"""The results of `reports/gpu/*.json` as Markdown, and their place in docs/en/gpu.md and docs/zh/gpu.md.

python -m benchmarks.gpu.page        # writes both pages
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.child import ROOT
from benchmarks.gpu.record import Comparison, GpuReport, Number, Part, Side, read_report
from foundry.utils.files import write_text
from foundry.utils.markdown import inline
from foundry.utils.markdown import table as rows_of

BEGIN, END = "<!-- results: python -m benchmarks.gpu.page -->", "<!-- end of the results -->"
LANGUAGES = {
    "en": {
        "none": "There is no report of a card so far.",
        "numbers": ["", "measured", "required", "moonshot", "met"],
        "sides": ["", "side", "median", "best", "spread", "chosen or found"],
        "met": {True: "yes", False: "no", None: ""},
        "at most": "at most ",
        "tests": "Tests",
        "problems": "Problems",
        "incomplete": "not complete",
        "machine": "driver {driver}, CUDA {cuda}, torch {torch}, Python {python}, {cores} CPU cores",
        "part": "{name}: {date}, commit {commit}, {seconds:.0f} s",
    },
    "zh": {
        "none": "目前还没有任何显卡的报告。",
        "numbers": ["", "实测", "要求", "远期目标", "达到"],
        "sides": ["", "对比方", "中位数", "最佳", "离散度", "所选或所得"],
        "met": {True: "是", False: "否", None: ""},
        "at most": "至多 ",
        "tests": "测试",
        "problems": "问题",
        "incomplete": "未完成",
        "machine": "驱动 {driver}，CUDA {cuda}，torch {torch}，Python {python}，{cores} 个 CPU 核心",
        "part": "{name}：{date}，提交 {commit}，{seconds:.0f} 秒",
    },
}
LEFT_OUT = {"flops_per_token", "peak_flops", "bytes", "seconds"}  # facts that are in the report only


def table(reports: Sequence[GpuReport], language: str) -> list[str]:
    """The lines of all reports: of each card its derived numbers beside their targets, and every side's figures."""
    words = LANGUAGES[language]
    if not reports:
        return [words["none"]]
    lines: list[str] = []
    for report in reports:
        card = report.card
        lines += [f"### {card.name}{' (tiny)' if card.tiny else ''}", ""]
        lines += [words["machine"].format(**card.model_dump()), ""]
        for name, part in report.parts.items():
            lines += [f"- {_part(name, part, words)}"]
        numbers = [n for part in report.parts.values() for n in part.numbers]
        if numbers:
            lines += ["", *rows_of(words["numbers"], [_number(n, words) for n in numbers])]
        comparisons = [c for part in report.parts.values() for c in part.comparisons]
        if comparisons:
            lines += ["", *rows_of(words["sides"], [_side(c, s) for c in comparisons for s in c.sides])]
        lines.append("")
    return lines[:-1]


def _part(name: str, part: Part, words: dict) -> str:
    text = words["part"].format(name=name, date=part.date[:10], commit=(part.commit or "?")[:10], seconds=part.seconds)
    if not part.complete:
        text += f"; {words['incomplete']}"
    if part.outcomes:
        counts = Counter(o.result for o in part.outcomes)
        text += f"; {words['tests']}: " + ", ".join(f"{n} {result}" for result, n in counts.items())
    if part.problems:
        text += f"; {words['problems']}: " + "; ".join(_last_line(p) for p in part.problems)
    return text


def _number(number: Number, words: dict) -> list[str]:
    def shown(value: float | None) -> str:
        if value is None:
            return ""
        if number.unit == "share":
            return f"{value:.1%}" if value >= 0.1 else f"{value:.2%}"
        return f"{value:.3g} {number.unit}".strip()

    limit = words["at most"] if number.at_most else ""
    where = f" ({number.where})" if number.where else ""
    targets = [f"{limit}{shown(t)}{where}" if t is not None else "" for t in (number.required, number.moonshot)]
    return [number.name, shown(number.value), *targets, words["met"][number.met]]


def _side(comparison: Comparison, side: Side) -> list[str]:
    if side.median is None:
        return [comparison.name, side.name, "", "", "", _last_line(side.problem or "")]
    facts = "; ".join(f"{k} {_fact(v)}" for k, v in side.facts.items() if k not in LEFT_OUT)
    if side.problem:
        facts = "; ".join(filter(None, [facts, _last_line(side.problem)]))
    values = [f"{v:,.4g}" if v < 1000 else f"{v:,.0f}" for v in (side.median, side.best)]
    return [f"{comparison.name}, {comparison.unit}", side.name, *values, f"{side.spread:.1%}", facts]


def _fact(value: float | int | str | bool) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _last_line(text: str) -> str:
    """The last line of a problem, which of a traceback is the error."""
    return inline(text.strip().splitlines()[-1][:160]) if text.strip() else ""


def with_results(text: str, reports: Sequence[GpuReport], language: str) -> str:
    """A page with the results of the reports between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no place for results, between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n" + "\n".join(table(reports, language)) + f"\n\n{END}{after}"


def all_reports(folder: Path = ROOT / "reports" / "gpu") -> list[GpuReport]:
    """The reports of all cards, in the order of their names."""
    return [read_report(path) for path in sorted(folder.glob("*.json"))]


def main() -> None:
    reports = all_reports()
    for language in LANGUAGES:
        path = ROOT / "docs" / language / "gpu.md"
        write_text(path, with_results(path.read_text(encoding="utf-8"), reports, language))
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
