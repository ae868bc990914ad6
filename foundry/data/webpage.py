"""Pages to text: the main part of an HTML page, by resiliparse.

Guarantees: navigation, scripts and forms are left out, paragraphs keep their line ends; a page that is UTF-8
is read as that, another in the encoding that it names, else a detected one. A page without a main part has an empty text, which the rules count as too short.
"""

from __future__ import annotations


def main_text(raw: bytes) -> tuple[str, bool]:
    """(main text, whether bytes had to be replaced)."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    try:
        page, clean = raw.decode("utf-8-sig"), True
    except UnicodeDecodeError:
        encoding = detect_encoding(raw, from_html_meta=True) or "utf-8"
        page, clean = bytes_to_str(raw, encoding, errors="replace", fallback_encodings=()), False
    text = extract_plain_text(page, preserve_formatting=True, main_content=True, alt_texts=False, comments=False)
    return text, not clean and "\ufffd" in text
