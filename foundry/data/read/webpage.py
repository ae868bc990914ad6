"""Reader of HTML pages: the main part of a page, by resiliparse.

Guarantees: navigation, scripts and forms are left out, paragraphs keep their line ends; a page that is UTF-8 is read as
UTF-8, another in the encoding that it names, else in a detected one. All running text is taken from a page without a
main part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from foundry.data.read.encoding import foreign
from foundry.data.read.readers import reads
from foundry.data.read.records import Bad, Document, DocumentBuilder, excerpt
from foundry.data.read.streams import read_all


@reads("html")
def read_page(stream: Any, shown: str, builder: DocumentBuilder) -> Iterator[Document | Bad]:
    """A page is one document, with the fields `text` (its main part), `title` and `url` (the canonical one)."""
    raw, complete = read_all(stream, builder.limit)
    if not complete:
        yield Bad(shown, 0, 0, "record_too_long", excerpt(raw))
    elif b"\0" in raw:
        yield Bad(shown, 0, 0, "binary", excerpt(raw), foreign(raw))
    elif raw.strip():
        fields, repaired = _page_fields(raw)
        yield builder.build(shown, 0, fields, 0, foreign(raw) if repaired else b"")


def _page_fields(raw: bytes) -> tuple[dict[str, str], bool]:
    """({text, title, url}, whether bytes had to be replaced)."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    from resiliparse.parse.html import HTMLTree

    try:
        page, clean = raw.decode("utf-8-sig"), True
    except UnicodeDecodeError:
        encoding = detect_encoding(raw, from_html_meta=True) or "utf-8"
        page, clean = bytes_to_str(raw, encoding, errors="replace", fallback_encodings=()), False
    tree = HTMLTree.parse(page)
    link = tree.document.query_selector("link[rel=canonical]") if tree.document else None
    url = (link.getattr("href") or "") if link else ""
    kept = {"preserve_formatting": True, "alt_texts": False, "comments": False}
    text = extract_plain_text(tree, main_content=True, **kept) or extract_plain_text(tree, **kept)
    return {"text": text, "title": tree.title or "", "url": url}, not clean and "\ufffd" in text
