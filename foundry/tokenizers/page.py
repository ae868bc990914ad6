"""`reports/tokenizer.html`: how well the vocabulary serves each language, beside a reference if there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundry.utils.files import write_text
from foundry.utils.page import render

_TEMPLATE = """<h1>Tokenizer</h1>
<p class="lead">Counted on {{ n(f.held_out_documents) }} documents that it was not trained on.</p>
<div class="cards">
  <div class="card"><b>{{ n(f.vocab_size) }}</b>{{ f.kind }} pieces</div>
  <div class="card"><b>{{ "%.3f" | format(f.bytes_per_token) }}</b>bytes a token</div>
  <div class="card"><b>{{ "{:.2%}".format(f.byte_token_share) }}</b>tokens that are bytes</div>
  <div class="card"><b>{{ "{:.1%}".format(f.pieces_used_share) }}</b>of the pieces used</div>
</div>
<h2 id="languages">Languages</h2>
<table><tr><th>language<th>vocabulary<th>documents<th>MB<th>tokens<th>bytes a token<th>tokens a character<th>tokens a word</tr>
{% for lang in f.languages %}{% for name, side in sides %}{% set x = side.languages[lang] %}
<tr><td>{{ lang }}<td>{{ name }}<td>{{ n(x.documents) }}<td>{{ mb(x.bytes) }}<td>{{ n(x.tokens) }}<td>{{ x.bytes_per_token }}<td>{{ x.tokens_per_char }}<td>{{ x.get("tokens_per_word", "") }}</tr>
{% endfor %}{% endfor %}</table>
{% for name, side in sides %}
<h2>Lengths of the pieces, {{ name }}</h2>
<table>{% for length, count in side.piece_lengths.items() %}<tr><td>{{ length }} character{{ "s" if length != "1" }}<td>{{ n(count) }}<td class="wide"><div class="bar" style="width:{{ share(count, side.piece_lengths.values() | max) }}"></div></tr>{% endfor %}</table>
<h2>Share of the text by rank, {{ name }}</h2>
<p class="soft">The commonest pieces first: what a rare piece is worth shows in the last rows.</p>
<table>{% for rank, part in side.token_share_by_rank.items() %}<tr><td>{{ rank }}<td>{{ "{:.1%}".format(part) }}<td class="wide"><div class="bar good" style="width:{{ share(part, side.token_share_by_rank.values() | max) }}"></div></tr>{% endfor %}</table>
{% endfor %}
"""


def write_page(path: str | Path, facts: dict[str, Any]) -> None:
    """Renders the page of `tokenizer_facts`."""
    sides = [("trained", facts)] + ([("reference", facts["reference"])] if "reference" in facts else [])
    write_text(path, render("Tokenizer", _TEMPLATE, f=facts, sides=sides))
