"""The page at `/`: one self-contained document, joined at start from the files in `web/`.

It requests nothing from any other server. Its header `Content-Security-Policy` allows the one script and the one style
sheet by their hashes, and connections to this server only; with `require-trusted-types-for` the browser refuses to
parse text as markup. So a model that writes `<script>` shows text, even if the script of the page had a mistake.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from importlib import resources

from foundry.config.sampling import ANSWERING, PARAMETERS
from foundry.config.serving import Serving

ALTERNATIVES = 5  # that the card of a token lists
DEFAULT_TOKENS = 128  # of an answer, unless the user says otherwise
SCRIPTS = ("1-base.js", "2-api.js", "3-tokens.js", "4-parameters.js", "5-answers.js", "6-model.js", "7-main.js")


@dataclass(frozen=True)
class Page:
    """The document and the headers that it is sent with."""

    html: bytes
    headers: dict[str, str]


def build_page(config: Serving) -> Page:
    """Joins the page for a server: its limits, and whether feedback is recorded, are written into it."""
    style = _read("page.css")
    script = '"use strict";\n{\n' + "\n".join(_read(name) for name in SCRIPTS) + "}\n"
    data = {
        "words": json.loads(_read("words.json")),
        "parameters": [asdict(p) for p in PARAMETERS],
        "answering": {p.name: v for p in PARAMETERS if (v := getattr(ANSWERING, p.name)) != p.default},
        "recording": config.record is not None,
        "limits": {
            "max_new_tokens": config.max_new_tokens,
            "default_tokens": min(DEFAULT_TOKENS, config.max_new_tokens),
            "max_n": config.max_n,
            "alternatives": min(ALTERNATIVES, config.max_logprobs),
        },
    }
    text = _read("index.html")
    for mark, part in (
        ("/*STYLE*/", style),
        ("/*DATA*/", json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")),
        ("/*SCRIPT*/", script),
    ):
        before, after = text.split(mark)
        text = before + part + after
    policy = [
        "default-src 'none'",
        f"script-src {_hash(script)}",
        f"style-src {_hash(style)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Page(text.encode(), headers)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return (resources.files("foundry.serving") / "web" / name).read_text(encoding="utf-8")
