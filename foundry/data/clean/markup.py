"""Remnants of HTML are removed from running text; code, and prose about markup, are left as they are.

- Comments, scripts, styles and MediaWiki's `<ref>` are removed with their content. `br` and block elements become line
  ends, the tags of other known elements are removed. Entities with a semicolon are decoded once, after the tags are
  removed: an escaped `&lt;b&gt;` is text.
- A text whose lines are mostly code is not changed at all. In other texts, code in Markdown (between backquotes) and
  string literals on lines of code are not changed.
- A tag without attributes can be a type parameter (`List<Object>`, `Option<S>`) or the name of a marker (`<s>, </s>`).
  It is removed if it encloses text together with its counterpart, or if the text has other markup and the tag does not
  follow an identifier.
"""

from __future__ import annotations

import html
import re
from bisect import bisect_left
from itertools import accumulate
from typing import Literal

_names = str.split
_BLOCKS = _names(
    "address article aside blockquote body br caption center dd div dl dt fieldset figcaption figure footer form "
    "frame frameset h1 h2 h3 h4 h5 h6 head header hr html li main nav noscript ol option p pre section select table "
    "tbody td tfoot th thead title tr ul "
)
_INLINE = _names(
    "a abbr acronym area audio b base basefont bdi bdo big button canvas cite code col colgroup data datalist del "
    "details dfn dir em embed font i iframe img includeonly input ins kbd label legend link map mark meta meter "
    "noinclude nowiki object onlyinclude optgroup output param picture progress q ref references rp rt ruby s samp "
    "small source span strike strong sub summary sup svg template textarea time tt u var video wbr "
)
# Elements whose content is not running text.
_DROPPED = re.compile(r"<!--.*?-->|<(script|style|ref)\b(?:\s[^<>]*)?(?<!/)>.*?</\1\s*>", re.I | re.S)
_ATTRIBUTES = r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=]+))*"""
_TAG = re.compile(
    rf"<(?P<close>/?)(?P<name>{'|'.join(sorted([*_BLOCKS, *_INLINE], key=len, reverse=True))})"
    rf"(?P<attributes>{_ATTRIBUTES})\s*(?P<empty>/?)>(?P<after>[ \t]*)|<!doctype\s[^<>]*>",
    re.I,
)
_LINE_BREAKING = frozenset(_BLOCKS)
_EMPTY = frozenset(_names("area base basefont br col embed frame hr img input link meta param source wbr"))
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

# A line of a program: how it ends, a call or an assignment with a string, how it begins.
_CODE_LINE = re.compile(
    r"""[;{}]\s*(?://.*|\#.*)?$|[\w\])]\(\s*[a-z]{0,2}["']|[^=!<>]=\s*[a-z]?["'`]|=>\s*[{(]|\)\s*:\s*$"""
    r"""|^\s*(?:import|from\s\S+\simport|def|class|return|public|private|protected|static|const|let|var|func|fn"""
    r"""|pub|impl|struct|enum|template|using|package|\#include|\#define|@\w+|(?:if|for|while|switch)\s*\("""
    r"""|else\b.*[:{]|end$|//|/\*|\*\s)"""
)
LINE = 1000  # characters of each end of a long line that are examined
CODE_SHARE = 0.4  # share of the lines that are not empty, from which on a text is code
_MARKDOWN_CODE = re.compile(r"^```.*?^```|(`+)(?!`)[^\n]{1,500}?(?<!`)\1(?!`)", re.M | re.S)
_STRING = re.compile(r"""(?<!\w)(["'`])(?:\\.|(?!\1).)*?\1""")

_Spans = tuple[list[int], list[int]]  # sorted starts, and the furthest end so far
Treatment = Literal["auto", "strip", "keep"]


def is_code(text: str) -> bool:
    """Whether most lines that are not empty look like lines of a program."""
    lines = [line for line in text.split("\n") if line.strip()]
    return sum(map(_is_code_line, lines)) >= CODE_SHARE * max(len(lines), 1)


def _is_code_line(line: str) -> bool:
    if len(line) > 2 * LINE:
        line = line[:LINE] + line[-LINE:]
    return bool(_CODE_LINE.search(_TAG.sub("", line) if "<" in line else line))  # an attribute is not an assignment


def strip_html(text: str, treatment: Treatment = "auto") -> str:
    """The text without tags and with entities decoded.

    Args:
        text: running text.
        treatment: `auto` leaves code and mentions of tags as they are; `strip` removes every known element, for a
            source that is only web text; `keep` changes nothing.
    """
    if treatment == "keep" or ("<" not in text and "&" not in text):
        return text
    if treatment == "auto" and "<" in text and is_code(text):
        return text
    if "<" in text:
        text = _without_tags(text, treatment == "strip")
    if "&" in text:
        text = _ENTITY.sub(lambda m: html.unescape(m[0]), text)
    return text


def _without_tags(text: str, every: bool) -> str:
    shorter = _DROPPED.sub("", text) if every else _outside_code(text)
    dropped, text = shorter != text, shorter
    found = list(_TAG.finditer(text))
    removed = range(len(found)) if every else _removed(text, found, dropped)
    out, at = [], 0
    for i in removed:
        m = found[i]
        breaking = (m["name"] or "").lower() in _LINE_BREAKING
        before = text[at : m.start()]
        out += [before.rstrip(" \t"), "\n"] if breaking else [before]
        at = m.end() if breaking or m["name"] is None else m.start("after")
    return "".join([*out, text[at:]])


def _outside_code(text: str) -> str:
    """Removes the elements that are dropped with their content, but not from code inside the text."""
    code = _code_spans(text)
    return _DROPPED.sub(lambda m: m[0] if _inside(m.start(), code) else "", text)


def _code_spans(text: str) -> _Spans:
    """Where code in Markdown and string literals on lines of code are."""
    spans = [m.span() for m in _MARKDOWN_CODE.finditer(text)] if "`" in text else []
    at = 0
    for line in text.split("\n"):
        if "<" in line and _is_code_line(line):
            spans += [(at + m.start(), at + m.end()) for m in _STRING.finditer(line)]
        at += len(line) + 1
    spans.sort()
    return [a for a, _ in spans], list(accumulate((b for _, b in spans), max))


def _inside(place: int, spans: _Spans) -> bool:
    i = bisect_left(spans[0], place) - 1
    return i >= 0 and place < spans[1][i]


def _removed(text: str, found: list[re.Match[str]], dropped: bool) -> list[int]:
    """Which of the tags are removed."""
    code = _code_spans(text)
    places = [i for i, m in enumerate(found) if not _inside(m.start(), code)]
    partner = _pairs(text, found, places)
    certain = {i for i in places if i in partner or _is_certain(text, found[i])}
    markup = bool(certain) or dropped
    return [i for i in places if i in certain or (markup and not _is_parameter(text, found[i]))]


def _pairs(text: str, found: list[re.Match[str]], places: list[int]) -> set[int]:
    """Tags that enclose text: their content has a letter or a digit, and touches one of the two tags."""
    waiting: dict[str, list[int]] = {}
    paired: set[int] = set()
    for i in places:
        m = found[i]
        name = m["name"]
        if name is None or m["empty"]:
            continue
        if not m["close"]:
            waiting.setdefault(name, []).append(i)
        elif opened := waiting.get(name):
            first = opened.pop()
            content = text[found[first].start("after") : m.start()]
            touches = not (content[:1].isspace() and content[-1:].isspace()) or "\n" in content
            if touches and re.search(r"\w", content):
                paired |= {first, i}
    return paired


def _is_certain(text: str, m: re.Match[str]) -> bool:
    if m["name"] is None or m["attributes"] or m["empty"]:
        return True
    name = m["name"]
    one_case = name.islower() or name.isupper()
    return one_case and name.lower() in _LINE_BREAKING | _EMPTY and not _is_parameter(text, m)


def _is_parameter(text: str, m: re.Match[str]) -> bool:
    """Whether a bare tag follows an identifier, as in `List<Object>`; `br` and closing tags are never type
    parameters."""
    if m["name"] is None or m["close"] or m["name"].lower() in _EMPTY:
        return False
    before = text[m.start() - 1 : m.start()]
    return before.isalnum() or before in ("_", ":")
