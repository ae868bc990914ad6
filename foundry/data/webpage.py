"""A web page's running text: navigation, scripts and forms left out (Resiliparse), headings and lists kept as lines."""

from __future__ import annotations

from typing import Any

from foundry.data.formats import Bad, Document, Reading, build, excerpt
from foundry.data.streams import read_up_to


def read_html(stream: Any, how: Reading) -> Document | Bad:
    """The page as one document; its encoding is what its bytes or its `meta` element say."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    from resiliparse.parse.html import HTMLTree

    raw = read_up_to(stream, how.limits.record)
    if raw is None:
        return Bad(how.shown, 0, 0, "record_too_long", "")
    if b"\0" in raw[:1024] and raw[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        return Bad(how.shown, 0, 0, "binary", excerpt(raw))
    tree = HTMLTree.parse(bytes_to_str(raw, detect_encoding(raw, html5_compatible=True)))
    text = extract_plain_text(tree, main_content=True, alt_texts=False, links=False) or extract_plain_text(
        tree, alt_texts=False
    )
    link = tree.document.query_selector("link[rel=canonical]") if tree.document else None
    return build(
        how, 0, {"text": text, "title": tree.title or "", "url": link.getattr("href") or "" if link else ""}, 0
    )
