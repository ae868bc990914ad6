"""Texts on which tokenizers were seen to differ; an export's token ids are compared on all of them.

Besides the fixed texts there are texts made from the vocabulary: its symbols in all positions, and each of its pieces
as typed text. U+2581 is not among them: SentencePiece spells the space with it and cleaning replaces it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from foundry.tokenizers import Tokenizer

PIECES = 256  # pieces per text that joins neighbours of the vocabulary
PAIRED = 16  # up to so many user symbols, every pair is joined; with more, only neighbours

HOSTILE = (
    # white space: collapsed, stripped, or joined with a dummy prefix by other settings
    "",
    " ",
    "  ",
    "   ",
    "a",
    " a",
    "  a",
    "a ",
    "a  b",
    " leading",
    "trailing ",
    "\t",
    "\ttab\tand\ttab",
    "\n",
    "\n\n\nlines\n",
    "\r\n",
    "mixed \t\n \r end",
    "\u00a0no-break\u00a0",
    "\u2003em\u3000wide",
    "\u2028\u2029\x85",
    # scripts and byte fallback
    "日本語のテキスト",
    "简体中文，标点。",
    "繁體中文「引號」",
    "한국어 텍스트",
    "مرحبا بالعالم",
    "שלום עולם",
    "Привет, мир",
    "ไทย हिन्दी",
    "🙂",
    "👩‍👩‍👧‍👦 family",
    "🇩🇪🇨🇳",
    "👍🏽",
    "\U0010ffff\U0001f9ff",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    # what a normaliser would rewrite
    "e\u0301 combining",
    "é composed",
    "a\u0323\u0307",
    "½ ﬁ Ａ①ﷺ™",
    "\u200bzero\u200dwidth\u2060",
    "\ufeffbom",
    "Straße ẞ İı",
    # control characters and U+FFFD itself
    "a\x00b\x01\x1b[0m\x7f",
    "\ufffd",
    # markers typed as text must stay text
    "<s>",
    "</s><unk>",
    "<|im_start|>user\nhi<|im_end|>",
    "<|reserved_0|>",
    "<0x41>",
    "<0x0A>",
    "<|im_start|><|im_start|>",
    "< s >",
    # numbers, code, long runs
    "1234567890 3.14159 1,000",
    "0" * 65,
    "٣٤٥ ４５",
    "x" * 400,
    " " * 70,
    "don't can't won't",
    "https://example.org/a?b=c#d",
    "def f(x):\n    return x ** 2\n",
    '{"a": [1, 2.5e-3, null]}',
    "ALL CAPS camelCase snake_case",
    "....!!!???---___",
)


def own_texts(tokenizer: Tokenizer) -> list[str]:
    """The texts that are made from this vocabulary, besides `HOSTILE`: with its symbols and all of its pieces."""
    return [*symbol_texts(tokenizer), *piece_texts(tokenizer)]


def symbol_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """User and control symbols as typed text: alone, in a word, at spaces and line ends, doubled, side by side."""
    ids = range(tokenizer.vocab_size)
    user = [tokenizer.text_of(i) for i in ids if tokenizer.is_user_defined(i)]
    control = [tokenizer.text_of(i) for i in ids if tokenizer.is_control(i)]
    for s in (*user, *control):
        yield from (s, f"wo{s}rd", f"a {s} b", f" {s}", f"{s} ", f"  {s}  ", f"{s}{s}", f"{s} {s}")
        yield from (f"{s}\n{s}\n\n{s}", f"x\n{s}y", f"é{s}水{s}🙂", f"1{s}2", f"<{s}>")
        yield from (s[:-1], s[1:], f"{s[:-1]}{s}", f"{s}{s[1:]}", f"\t{s}\r\n")
    every = [*user, *control]
    few = len(user) <= PAIRED
    pairs = ((a, b) for a in every for b in every if a != b and (a in user or b in user)) if few else pairwise(every)
    for a, b in pairs:
        yield from (f"{a}{b}", f"{a} {b}", f"x{a}y{b}z", f"{a[:-1]}{b}", f"{a}{b[1:]}")
        # If one ends with the beginning of the other, a text can contain both in fewer characters.
        yield from (a + b[n:] for n in range(1, min(len(a), len(b))) if a.endswith(b[:n]))
    if user:
        yield "".join(user)
        yield " ".join(reversed(user))


def piece_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """Every piece as typed text: neighbours of the vocabulary are joined with nothing, then with a space."""
    texts = [tokenizer.text_of(i) for i in range(tokenizer.vocab_size)]
    for first in range(0, len(texts), PIECES):
        yield from (between.join(texts[first : first + PIECES]) for between in ("", " "))
