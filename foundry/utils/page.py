"""Reports to look at: one self-contained HTML page each, in one style, with nothing to load and nothing to run."""

from __future__ import annotations

from typing import Any

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page_title }}</title>
<style>
:root { --ink: #1d2733; --soft: #5b6878; --line: #dfe5ec; --paper: #fff; --tint: #f5f7fa; --good: #2f7d5b; --bad: #c2543d; --mark: #3b6fb6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ef; --soft: #9aa7b6; --line: #313b47; --paper: #151b22; --tint: #1d252e; --good: #57b58a; --bad: #e0836d; --mark: #7ba9e6; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; font-size: 1.2rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
p.lead, .soft { color: var(--soft); } .cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.card { background: var(--tint); border-radius: .6rem; padding: .7rem 1.1rem; min-width: 8rem; } .card b { display: block; font-size: 1.5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; } td, th { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
td:first-child, th:first-child { text-align: left; } th { color: var(--soft); font-weight: 500; } td.wide { text-align: left; width: 40%; }
.bar { height: .8rem; background: var(--mark); border-radius: .2rem; min-width: 1px; } .bar.bad { background: var(--bad); } .bar.good { background: var(--good); }
.flow { display: flex; height: 1.6rem; border-radius: .4rem; overflow: hidden; margin: .6rem 0; }
details { margin: .5rem 0; background: var(--tint); border-radius: .5rem; padding: .4rem .9rem; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .8rem; font: 13px/1.45 ui-monospace, monospace; } .was { color: var(--bad); } .is { color: var(--good); }
svg text { fill: var(--soft); font-size: 11px; } .scroll { overflow-x: auto; }
</style></head><body>
{% macro n(x) %}{{ "{:,}".format(x) }}{% endmacro %}
{% macro mb(x) %}{{ "{:,.2f}".format(x / 1e6) }}{% endmacro %}
{% macro share(x, all) %}{{ "{:.1%}".format(x / all if all else 0) }}{% endmacro %}
"""


def render(title: str, body: str, **values: Any) -> str:
    """The page of a Jinja template; every value is escaped, an unknown name is an error.

    The template may use the macros n (a number with separators), mb (bytes as MB), share (a part of a whole in percent).
    """
    import jinja2

    env = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    env.filters["max_of"] = lambda row: max(row[1], row[2], 1)
    return env.from_string(_HEAD + body + "</body></html>\n").render(page_title=title, **values)
