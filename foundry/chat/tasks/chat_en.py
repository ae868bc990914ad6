"""The preset `chat-en`: everything that the default corpus can ask and answer, without a download of its own."""

from __future__ import annotations

from pathlib import Path

from foundry.chat.tasks import articles as wiki
from foundry.chat.tasks import letters, smalltalk
from foundry.chat.tasks import recipes as cook
from foundry.chat.tasks.base import Fits, Made
from foundry.chat.tasks.conversations import conversations
from foundry.chat.tasks.corpus import common_words, read_entries, without_held_out_titles
from foundry.config import DataError


def chat_en(clean: Path, fields: Path, licenses: dict[str, str], seed: int, fits: Fits) -> Made:
    """Makes the examples.

    Args:
        clean: the folder of the clean documents; `fields`: that of their side table.
        licenses: of the sources, by name.
        seed: of the draws.
        fits: whether a conversation fits the context of the model.

    Raises:
        DataError: if no source keeps the fields that the questions are made from.
    """
    made = Made()
    entries = without_held_out_titles(read_entries(clean, fields, licenses), made, "all")
    articles, recipes = wiki.articles(entries), cook.recipes(entries)
    if not articles and not recipes:
        raise DataError(
            "chat-en is made from articles (fields title, and description or topic) and recipes (fields title, "
            "ingredients, steps), and no source keeps them: add `fields:` to a source of download.sources, or take "
            "another preset"
        )
    for task, questions in (
        (wiki.DEFINE, wiki.define(articles)),
        (wiki.TELL, wiki.tell(articles)),
        (wiki.TOPIC, wiki.topic(articles)),
        (wiki.FOLLOW_UP, wiki.follow_up(articles)),
        (cook.INGREDIENTS, cook.ingredients(recipes)),
        (cook.EXACTLY, cook.exactly(recipes)),
        (cook.RECIPE, cook.recipe(recipes)),
        (cook.WHICH_ITEM, cook.which_item(recipes)),
        (cook.HOW_MANY, cook.how_many(recipes)),
        (cook.HAS_ITEM, cook.has_item(recipes)),
    ):
        made.add(task, questions, seed, fits)
    words = common_words(clean)
    for task, questions in (
        (letters.SPELL, letters.spell(words)),
        (letters.REVERSE, letters.reverse(words)),
        (letters.COUNT, letters.count_letter(words)),
        (letters.SORT, letters.sort(words)),
        (letters.ADD, letters.add()),
        (letters.SUBTRACT, letters.subtract()),
        (letters.COMPARE, letters.compare()),
        (smalltalk.UNKNOWN, smalltalk.unknown(set(words))),
    ):
        made.add(task, questions, seed, fits)
    smalltalk.smalltalk(made)
    conversations(made, seed, fits)
    return made
