"""Pages to text: the main part of an HTML page, by resiliparse.

Guarantees: navigation, scripts and forms are left out, paragraphs keep their line ends; a page that is UTF-8 is read as
that, another in the encoding that it names, else a detected one. Of a page without a main part all running text is taken.
"""

from __future__ import annotations


def page_fields(raw: bytes) -> tuple[dict[str, str], bool]:
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
