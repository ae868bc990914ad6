"""`reports/report.html`: one self-contained page about a model, for a person: how good, on what, where not, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundry.evaluation.plots import calibration_svg, curves_svg, position_svg
from foundry.utils.files import write_text
from foundry.utils.page import render

_TEMPLATE = """
<style>figure { margin: 1rem 0; background: #fff; border-radius: .6rem; padding: .4rem; } figure svg { width: 100%; height: auto; } figure svg text { fill: #1d2733; font-size: inherit; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; } .prompt { color: var(--mark); font-weight: 600; }
.range { position: relative; height: .8rem; background: var(--tint); border-radius: .2rem; } .range i { position: absolute; height: 100%; background: var(--mark); border-radius: .2rem; min-width: 2px; } .range i.chance { background: var(--bad); width: 2px; }</style>
{% macro iv(b, d=4) %}{% if b %}{{ ("%." ~ d ~ "f") | format(b.value) }} <span class="soft">{{ ("%." ~ d ~ "f") | format(b.low) }} to {{ ("%." ~ d ~ "f") | format(b.high) }}</span>{% else %}<span class="soft">n/a</span>{% endif %}{% endmacro %}
{% macro pc(b) %}{% if b %}{{ "%.1f" | format(100 * b.value) }} % <span class="soft">{{ "%.1f" | format(100 * b.low) }} to {{ "%.1f" | format(100 * b.high) }}</span>{% else %}<span class="soft">no text is long enough</span>{% endif %}{% endmacro %}
<h1>Model report</h1>
<p class="lead">Run {{ r.fingerprint }}. Beside every number stands its 95 % interval: how far it would move if the held-out documents were drawn anew.</p>
<div class="cards">
  <div class="card"><b>{{ "%.3f" | format(r.test.bits_per_byte.value) }}</b>bits per byte on test<br><span class="soft">{{ "%.3f" | format(r.test.bits_per_byte.low) }} to {{ "%.3f" | format(r.test.bits_per_byte.high) }}</span></div>
  {% if ppmd %}<div class="card"><b style="color:var(--{{ 'good' if r.test.bits_per_byte.value < ppmd else 'bad' }})">{{ "%+.1f" | format(100 * (r.test.bits_per_byte.value / ppmd - 1)) }} %</b>against PPMd that has<br>read the training text</div>{% endif %}
  <div class="card"><b>{{ n(t.params) }}</b>parameters</div>
  <div class="card"><b>{{ mb(t.tokens) }} M</b>tokens of training<br><span class="soft">{{ "%.2f" | format(t.epochs) }} epochs</span></div>
</div>

<h2 id="curves">Training</h2>
<figure>{{ curves | safe }}</figure>

<h2 id="test">Test text</h2>
<table><tr><th>part<th>bits per byte<th>documents<th>MB</tr>
<tr><td><b>all</b><td>{{ iv(r.test.bits_per_byte) }}<td>{{ n(r.test.documents) }}<td>{{ mb(r.test.bytes) }}</tr>
<tr><td>all, windows that overlap by half<td>{{ iv(r.test.bits_per_byte_overlap) }}<td>{{ n(r.test.documents) }}<td>{{ mb(r.test.bytes) }}</tr>
{% if r.test.not_in_training is defined and r.test.not_in_training %}<tr><td>of it, no run of {{ r.contamination.ngram }} words in the training text<td>{{ iv(r.test.not_in_training.bits_per_byte) }}<td>{{ n(r.test.not_in_training.documents) }}<td>{{ mb(r.test.not_in_training.bytes) }}</tr>{% endif %}
{% for title, group in (("source", r.by_source), ("language", r.by_lang), ("bytes", r.by_length)) %}{% for name, p in group.items() %}
<tr><td class="soft">{{ title }} {{ name }}<td>{{ iv(p.bits_per_byte) }}<td>{{ n(p.documents) }}<td>{{ mb(p.bytes) }}</tr>{% endfor %}{% endfor %}</table>
<p class="soft">Perplexity a token {{ iv(r.test.perplexity_token, 2) }}, a word {{ iv(r.test.perplexity_word, 1) }}. Every byte is scored once, the begin and end symbols never.</p>

{% if r.baselines is defined %}<h2 id="baselines">The same bytes, compressed</h2>
<table><tr><th>what<th>alone<th>given the training text</tr>
{% for name, b in r.baselines.items() %}<tr><td>{{ name }}<td>{{ "%.4f" | format(b.alone) }}<td>{{ "%.4f" | format(b.given_train) }}</tr>{% endfor %}
<tr><td>every token equally likely<td>{{ "%.4f" | format(r.uniform.tokens) }}<td></tr><tr><td>every byte equally likely<td>{{ "%.4f" | format(r.uniform.bytes) }}<td></tr></table>
<p class="soft">Sizes of these very bytes: they have no interval.</p>{% endif %}

<div class="two"><div><h2 id="position">Use of the context</h2><figure>{{ position | safe }}</figure><p class="soft">A model that uses its context pays less the more of it has been seen.</p></div>
<div><h2 id="calibration">Calibration</h2><figure>{{ calibration | safe }}</figure><p class="soft">Expected calibration error {{ iv(r.calibration.expected_error) }}.</p></div></div>

{% if r.tasks %}<h2 id="tasks">Questions</h2>
<table><tr><th>task<th>right<th>by length<th>chance<th>questions<th>seen in training<th class="wide"></tr>
{% for name, k in r.tasks.items() %}<tr><td>{{ name }}<td>{{ pc({"value": k.score, "low": k.low, "high": k.high}) }}<td>{{ pc(k.acc_norm) }}<td>{{ "%.0f" | format(100 * k.chance) }} %<td>{{ n(k.n) }}<td>{% if k.contamination is defined %}{{ pc(k.contamination.texts) }}{% endif %}
<td class="wide"><div class="range"><i style="left:{{ 100 * k.low }}%;width:{{ 100 * (k.high - k.low) }}%"></i><i class="chance" style="left:{{ 100 * k.chance }}%"></i></div></tr>{% endfor %}</table>
<p class="soft">The bar is the interval, the red line what guessing gives.</p>{% endif %}
{% if r.harness is defined and r.harness %}<table><tr><th>lm-evaluation-harness<th>metric<th>value<th>standard error</tr>{% for name, k in r.harness.items() %}{% for metric, v in k.items() if metric != "n" %}<tr><td>{{ name }}<td>{{ metric }}<td>{{ v.value }}<td>{{ v.stderr if v.stderr is not none else "none" }}</tr>{% endfor %}{% endfor %}</table>{% endif %}

<h2 id="honesty">What could fool these numbers</h2>
<table>{% if r.contamination is defined %}<tr><td>test documents with a run of {{ r.contamination.ngram }} words of the training text<td>{{ pc(r.contamination.texts) }}</tr>
<tr><td>such runs among all of theirs<td>{{ pc(r.contamination.runs) }}</tr>{% endif %}
{% for what, found in r.leaks.items() %}<tr><td>{{ what | replace("_", " ") }}<td>{{ found }}</tr>{% endfor %}</table>

<h2 id="samples">What it writes</h2>
<table><tr><th>continuations<th>distinct words<th>distinct pairs<th>distinct triples<th>repeated fours<th>recited</tr>
{% for kind, f in r.samples.items() %}<tr><td>{{ kind }}<td>{{ pc(f.distinct_1) }}<td>{{ pc(f.distinct_2) }}<td>{{ pc(f.distinct_3) }}<td>{{ pc(f.repeated_4) }}<td>{% if f.recited is defined %}{{ pc(f.recited) }}{% else %}not looked for{% endif %}</tr>{% endfor %}</table>
<p class="soft">Recited: runs of {{ r.contamination.ngram if r.contamination is defined else 13 }} words that stand in the training text.</p>
{% for row in samples %}<details{% if loop.first %} open{% endif %}><summary>{{ row.prompt | trim or "(no prompt)" }}</summary>
{% for kind in ("greedy", "sampled") %}<div class="soft">{{ kind }}</div><pre><span class="prompt">{{ row.prompt }}</span>{{ row[kind] }}</pre>{% endfor %}
{% if row.note is defined %}<p class="soft">{{ row.note }}</p>{% endif %}</details>{% endfor %}

<h2 id="data">Data</h2>
<div class="scroll"><table><tr><th>source<th>address<th>language<th>licence<th>attribution<th>records<th>kept<th>dropped</tr>
{% for s in c.sources %}{% set a = c.per_source[s.name] %}<tr><td>{{ s.name }}<td><code>{{ s.url }}</code><td>{{ s.lang }}<td>{{ s.license }}<td>{{ s.attribution or "none given" }}<td>{{ n(a.records) }}<td>{{ n(a.kept) }}<td>{{ n(a.dropped.values() | sum) }}</tr>{% endfor %}</table></div>
<p class="soft">More of it: <code>reports/data.html</code>, <code>reports/data_card.md</code>.</p>

<h2 id="custody">Chain of custody</h2>
<table>{% for what, digest in (("weights", r.weights_sha256), ("data index", t.index_sha256), ("tokenizer", t.tokenizer_sha256), ("test text", r.test_sha256)) %}<tr><td>{{ what }}<td><code>{{ digest }}</code></tr>{% endfor %}</table>
"""


def write_page(
    path: str | Path,
    report: dict[str, Any],
    train: dict[str, Any],
    cleaning: dict[str, Any],
    samples: list[dict[str, str]],
    curve: list[dict[str, str]],
    validations: list[dict[str, str]],
) -> None:
    """Renders the page.

    Args:
        report, train, cleaning: `reports/evaluate.json`, `train.json`, `clean.json`.
        curve, validations: rows of `reports/train.csv` and `validation.csv`.
    """
    ppmd = report.get("baselines", {}).get("ppmd_order_8", {}).get("given_train")
    write_text(
        path,
        render(
            "Model report", _TEMPLATE, r=report, t=train, c=cleaning, samples=samples, ppmd=ppmd,
            curves=curves_svg(curve, validations, ppmd), position=position_svg(report["by_position"]), calibration=calibration_svg(report["calibration"]),
        ),
    )  # fmt: skip
