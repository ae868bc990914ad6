"""`reports/data.html`: one self-contained page of what came in, what went where, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundry.data.clean.rules import REASONS
from foundry.data.schema import SPLITS
from foundry.utils.files import write_text
from foundry.utils.page import render

MAX_FILES, EXAMPLES = 200, 8

_TEMPLATE = """<h1>Data report</h1>
<p class="lead">Every record that came in is kept, dropped for a counted reason, or quarantined as unreadable.</p>
{% set dropped = r.documents.dropped.values() | sum %}
<div class="cards">
  <div class="card"><b>{{ n(r.records["in"]) }}</b>records in</div>
  <div class="card"><b style="color:var(--good)">{{ n(r.documents.kept) }}</b>kept, {{ share(r.documents.kept, r.records["in"]) }}</div>
  <div class="card"><b style="color:var(--bad)">{{ n(dropped) }}</b>dropped</div>
  <div class="card"><b>{{ n(r.records.quarantined) }}</b>quarantined</div>
  <div class="card"><b>{{ mb(r.splits.values() | sum(attribute="bytes")) }}</b>MB of text kept</div>
</div>
<div class="flow" role="img" aria-label="kept, dropped, quarantined">
  <div style="width:{{ share(r.documents.kept, r.records['in']) }};background:var(--good)"></div>
  <div style="width:{{ share(dropped, r.records['in']) }};background:var(--bad)"></div>
  <div style="width:{{ share(r.records.quarantined, r.records['in']) }};background:var(--soft)"></div>
</div>

<h2 id="sources">Sources and splits</h2>
<div class="scroll"><table><tr><th>source<th>records<th>kept<th>dropped<th>quarantined{% for s in splits %}<th>{{ s }}<th>MB{% endfor %}</tr>
{% for name, by in d.by_split %}{% set a = r.per_source[name] %}
<tr><td>{{ name }}<td>{{ n(a.records) }}<td>{{ n(a.kept) }}<td>{{ n(a.dropped.values() | sum) }}<td>{{ n(a.quarantined) }}{% for docs, size in by %}<td>{{ n(docs) }}<td>{{ mb(size) }}{% endfor %}</tr>
{% endfor %}</table></div>

<h2 id="dropped">Dropped, by rule</h2>
<table><tr><th>reason<th>documents<th>share<th class="wide"><th style="text-align:left">set by</tr>
{% for reason, count in r.documents.dropped.items() if count %}
<tr><td>{{ reason }}<td>{{ n(count) }}<td>{{ share(count, r.documents["in"]) }}<td class="wide"><div class="bar bad" style="width:{{ share(count, most) }}"></div><td style="text-align:left" class="soft">{{ reasons[reason] }}</tr>
{% else %}<tr><td>no document was dropped</tr>{% endfor %}</table>
{% for (source, kind), examples in samples.items() if kind.startswith("dropped ") %}
<details><summary>{{ kind[8:] }} <span class="soft">· {{ source }} · examples</span></summary>
{% for e in examples[:limit] %}<div class="soft">{{ e.file }}, record {{ e.record }}: {{ e.rule }} {{ e.value }} (threshold {{ e.threshold }}){% if "duplicate_of" in e %}, repeats {{ e.duplicate_of }}{% endif %}</div><pre>{{ e.excerpt }}</pre>{% endfor %}
</details>{% endfor %}

<h2 id="mended">Mended: before and after</h2>
<table><tr><th>what<th>times</tr>{% for what, count in r.documents.repaired.items() if count %}<tr><td>{{ what }}<td>{{ n(count) }}</tr>{% else %}<tr><td>nothing had to be mended</tr>{% endfor %}</table>
{% for (source, kind), examples in samples.items() if kind.startswith("repaired ") %}
<details><summary>{{ kind[9:] }} <span class="soft">· {{ source }} · examples</span></summary>
{% for e in examples[:limit] %}<div class="soft">{{ e.file }}, record {{ e.record }}</div><pre><span class="was">{{ e.before }}</span>
<span class="is">{{ e.after }}</span></pre>{% endfor %}</details>{% endfor %}

<h2 id="quarantined">Quarantined</h2>
{% if r.records.quarantined %}<table><tr><th>reason<th>records</tr>{% for reason, count in r.records.reasons.items() %}<tr><td>{{ reason }}<td>{{ n(count) }}</tr>{% endfor %}</table>
{% for e in r.records.examples %}<div class="soft">{{ e.file }}, record {{ e.record }}{% if e.offset is not none %}, byte {{ n(e.offset) }}{% endif %}: {{ e.reason }}</div><pre>{{ e.excerpt }}</pre>{% endfor %}
<p class="soft">All of them: <code>data/clean/quarantine.jsonl</code>.</p>{% else %}<p>Every record could be read.</p>{% endif %}

<h2 id="lengths">Lengths</h2>
<p class="soft">Documents by their number of characters, as they came (grey) and as they stay (green).</p>
{% set lengths = d.lengths[first:] %}{% set top = lengths | map("max_of") | max %}
<svg viewBox="0 0 {{ 60 * lengths | length }} 190" role="img" aria-label="lengths of documents" style="width:100%;max-height:16rem">
{% for least, before, after in lengths %}{% set x = 60 * loop.index0 %}
<rect x="{{ x + 6 }}" y="{{ 150 - 140 * before / top }}" width="22" height="{{ 140 * before / top }}" fill="var(--soft)" opacity=".5"><title>{{ n(before) }} came</title></rect>
<rect x="{{ x + 30 }}" y="{{ 150 - 140 * after / top }}" width="22" height="{{ 140 * after / top }}" fill="var(--good)"><title>{{ n(after) }} stay</title></rect>
<text x="{{ x + 30 }}" y="168" text-anchor="middle">{{ n(least) }}+</text>{% endfor %}</svg>

<h2 id="languages">Languages</h2>
<table><tr><th>language<th>documents<th>MB<th class="wide"></tr>{% for lang, count, size in d.languages %}<tr><td>{{ lang }}<td>{{ n(count) }}<td>{{ mb(size) }}<td class="wide"><div class="bar" style="width:{{ share(count, r.documents.kept) }}"></div></tr>{% endfor %}</table>

<h2 id="duplicates">Duplicate clusters</h2>
{% if d.clusters %}<table><tr><th>the document that stays<th>copies dropped</tr>{% for c in d.clusters %}<tr><td>{{ c.excerpt }}<td>{{ n(c.copies) }}</tr>{% endfor %}</table>{% else %}<p>No duplicates were found.</p>{% endif %}

<h2 id="leakage">Leakage between splits</h2>
{% set l = r.leakage %}{% if l.recall %}<p>{{ n(l.grouped) }} documents are in {{ n(l.groups) }} groups of similar documents (the largest has {{ n(l.largest) }}); each group is in one split.
Of {{ n(l.held_out) }} held-out documents, so many have a training document that is at least this similar to them, as far as such pairs are found:</p>
<table><tr><th>similarity<th>held-out documents<th>share of such pairs that is found</tr>{% for s, count in l.similar_in_training.items() %}<tr><td>{{ s }}<td>{{ n(count) }}<td>{{ share(l.recall[s], 1) }}</tr>{% endfor %}</table>{% else %}<p>Similar documents were not looked for (clean.near_dedup, clean.split_similarity).</p>{% endif %}

{% if d.domains %}<h2 id="domains">Top domains</h2>
<table><tr><th>domain<th>documents</tr>{% for domain, count in d.domains %}<tr><td>{{ domain }}<td>{{ n(count) }}</tr>{% endfor %}</table>{% endif %}

<h2 id="files">Account of each file</h2>
<div class="scroll"><table><tr><th>file<th>records in<th>kept<th>dropped<th>quarantined</tr>{% for f in d.files[:max_files] %}<tr><td>{{ f.file }}<td>{{ n(f.records) }}<td>{{ n(f.kept) }}<td>{{ n(f.dropped) }}<td>{{ n(f.quarantined) }}</tr>{% endfor %}
<tr><td><b>all {{ n(d.files | length) }} files</b><td><b>{{ n(r.records["in"]) }}</b><td><b>{{ n(r.documents.kept) }}</b><td><b>{{ n(dropped) }}</b><td><b>{{ n(r.records.quarantined) }}</b></tr></table></div>
"""


def write_page(
    path: Path, report: dict[str, Any], samples: dict[tuple[str, str], list[dict]], details: dict[str, Any]
) -> None:
    """Renders the page.

    Args:
        report: the content of `clean.json`.
        samples: examples of what was dropped and mended, by (source, kind).
        details: see `report._details`.
    """
    write_text(
        path,
        render(
            "Data report", _TEMPLATE,
            r=report, d=details, samples=samples, reasons=REASONS, splits=SPLITS, limit=EXAMPLES, max_files=MAX_FILES,
            most=max(report["documents"]["dropped"].values()), first=first_bucket(details["lengths"]),
        ),
    )  # fmt: skip


def first_bucket(lengths: list[tuple[int, int, int]]) -> int:
    """The first bucket of lengths that any document is in."""
    return next((i for i, (_, before, after) in enumerate(lengths) if before or after), 0)
