"""Questions about recipes: documents with a title, a list of ingredients and a list of steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from foundry.chat.tasks.base import Question, Task, draw
from foundry.chat.tasks.corpus import Entry

COUNTS = range(3, 9)  # numbers of ingredients that are asked for
MOST_NAMES = 12  # of a list that is asked for
SHOWN = range(3, 7)  # names of a list that is asked about
RECIPE_CHARS = 560  # of a recipe that is an answer: about 150 tokens
COMMON = (
    *("salt", "sugar", "garlic", "butter", "onion", "flour", "milk", "lemon", "chicken", "cheese", "cream", "rice"),
    *("beef", "tomato", "vinegar", "vanilla", "paprika", "cinnamon", "cumin", "ginger", "pork", "honey", "celery"),
    *("oregano", "coconut", "chocolate", "mustard", "parsley", "thyme", "pepper", "water", "bread", "wine", "yeast"),
    *("oil", "corn", "nutmeg", "turmeric", "egg", "carrot", "potato", "mint", "basil", "coriander", "beans", "soy"),
)

INGREDIENTS = Task(
    "ingredients",
    (
        "What do I need for {name}?",
        "List the ingredients of {name}.",
        "Which ingredients are in {name}?",
        "I want to make {name}. What do I need?",
        "What are the ingredients of {name}?",
        "Give me a shopping list for {name}.",
        "What ingredients do I need to make {name}?",
        "Please list what I need for {name}.",
    ),
    None,
    most=900,
)
EXACTLY = Task(
    "ingredients_n",
    (
        "List {n} ingredients for {name}.",
        "What do I need for {name}? Name exactly {n} ingredients.",
        "Name {n} ingredients of {name}.",
        "Give me {n} ingredients for {name}.",
        "Tell me {n} ingredients that are in {name}.",
        "Write a list of exactly {n} ingredients for {name}.",
        "Which {n} ingredients do I need for {name}?",
        "Please list exactly {n} ingredients of {name}.",
    ),
    "list_count",
    most=7000,
)
RECIPE = Task(
    "recipe",
    (
        "How do I make {name}?",
        "Give me a recipe for {name}.",
        "Write the recipe of {name}.",
        "I would like to cook {name}. What is the recipe?",
        "Please write a recipe for {name}.",
        "How is {name} made?",
        "Can you give me a recipe for {name}?",
        "Show me how to make {name}.",
    ),
    "recipe",
    most=350,
    held_out=60,
)
WHICH_ITEM = Task(
    "which_item",
    (
        "{items}\n\nWhat is the {place} ingredient?",
        "What is the {place} ingredient of this list?\n\n{items}",
        "{items}\n\nName the {place} ingredient.",
        "Name the {place} ingredient of this list.\n\n{items}",
        "{items}\n\nWhich ingredient is the {place}?",
        "Which ingredient comes {place}?\n\n{items}",
        "{items}\n\nWhich is the {place} ingredient?",
        "Tell me the {place} ingredient.\n\n{items}",
    ),
    "exact",
    most=2000,
)
HOW_MANY = Task(
    "how_many",
    (
        "{items}\n\nHow many ingredients are listed?",
        "How many ingredients does this list have?\n\n{items}",
        "{items}\n\nHow many ingredients are there?",
        "Count the ingredients.\n\n{items}",
        "{items}\n\nCount the ingredients.",
        "How many ingredients are in this list?\n\n{items}",
        "{items}\n\nHow many ingredients does the list have?",
        "Please count the ingredients.\n\n{items}",
    ),
    "exact",
    most=1800,
)
HAS_ITEM = Task(
    "has_item",
    (
        "{items}\n\nIs there {item} in it?",
        "{items}\n\nDoes it contain {item}?",
        "Does this list contain {item}?\n\n{items}",
        "{items}\n\nDo I need {item}?",
        "Is there {item} in this list?\n\n{items}",
        "{items}\n\nIs {item} in the list?",
        "{items}\n\nDoes the list contain {item}?",
        "Do I need {item} for this?\n\n{items}",
    ),
    "exact",
    most=2400,
)


PLACES = ("first", "last")
_AMOUNT = re.compile(
    r"(?:about|approx\.?|heaped|level|scant|a few|a|an|some|few|of|[0-9¼½¾⅓⅔⅛⅜⅝⅞–—./x×~+-]+|cups?|tsps?|tbsps?"
    r"|teaspoons?|tablespoons?|ounces?|oz|lbs?|pounds?|k?g|grams?|kilograms?|[mdc]?l|lit(?:er|re)s?|deciliters?|cm"
    r"|inch(?:es)?|pinch(?:es)?|dash(?:es)?|cans?|tins?|packages?|packets?|packs?|pkg|cloves?|slices?|pieces?|sticks?"
    r"|quarts?|pints?|gallons?|handfuls?|bunch(?:es)?|sprigs?|heads?|jars?|bottles?|ea|each|large|medium|small|big)"
    r"\b\.?\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Recipe:
    """An entry as the tasks use it.

    Attributes:
        titles: how a question may name the dish.
        ingredients: as the recipe lists them.
        names: what these lines name, without amounts and remarks, each once; at most `MOST_NAMES`.
        body: the text below the title.
    """

    entry: Entry
    titles: tuple[str, ...]
    ingredients: list[str]
    names: list[str]
    body: str

    @property
    def key(self) -> str:
        return self.entry.origin.doc_id or ""

    @property
    def shown(self) -> list[str]:
        """The names of the list that is asked about: three to six."""
        return self.names[: SHOWN[draw(len(SHOWN), "shown", self.key)]]

    def title(self, task: str) -> str:
        return self.titles[draw(len(self.titles), "title", task, self.key)]


def recipes(entries: list[Entry]) -> list[Recipe]:
    """The entries that are recipes with at least three ingredients whose names are plain."""
    out = []
    for entry in entries:
        title, listed = entry.field("title"), entry.items("ingredients")
        names = list(dict.fromkeys(name for item in listed if (name := name_of(item))))
        if title and len(names) >= COUNTS[0]:
            short = title.split(" (")[0]
            titles = tuple(dict.fromkeys((short, short.lower())))
            out.append(Recipe(entry, titles, listed, names[:MOST_NAMES], entry.text.removeprefix(title).strip()))
    return out


def name_of(item: str) -> str:
    """What a line of a list of ingredients names; empty if that is not plain.

    `2 tbsp olive oil (extra virgin), warm` names `olive oil`.
    """
    name = re.sub(r"\([^)]*\)", " ", item).split(",")[0].split(";")[0].split(" or ")[0].split(" for ")[0].strip()
    while found := _AMOUNT.match(name):
        name = name[found.end() :]
    name = " ".join(name.split()).lower()
    return name if re.fullmatch(r"[a-zà-ÿ][a-zà-ÿ' -]{2,23}", name) else ""


def bullets(items: list[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def numbered(items: list[str]) -> str:
    """The lists that are answers: a small model counts by the numbers, and does not repeat itself without end."""
    return "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1))


def ingredients(found: list[Recipe]) -> Iterator[Question]:
    """The names of what a recipe lists."""
    for r in found:
        yield Question(r.key, {"name": r.title("ingredients")}, numbered(r.names), {}, r.entry.origin)


def exactly(found: list[Recipe]) -> Iterator[Question]:
    """As many names as are asked for, from the beginning of the list; every number that a recipe has, so that only the
    question says which."""
    for r in found:
        fitting = [n for n in COUNTS if n <= len(r.names)]
        for n in fitting:
            values = {"name": r.title("ingredients_n"), "n": str(n)}
            arguments = {"count": n, "reference": r.names}
            yield Question(f"{r.key} {n}", values, numbered(r.names[:n]), arguments, r.entry.origin)


def recipe(found: list[Recipe]) -> Iterator[Question]:
    """The whole recipe, of the short ones."""
    for r in found:
        if len(r.body) <= RECIPE_CHARS:
            name = r.title("recipe")
            yield Question(r.key, {"name": name}, r.body, {"name": name}, r.entry.origin)


def which_item(found: list[Recipe]) -> Iterator[Question]:
    for r in found:
        place = PLACES[draw(len(PLACES), "place", r.key)]
        answer = r.shown[-1 if place == "last" else 0]
        yield Question(r.key, {"items": bullets(r.shown), "place": place}, answer, {"expected": answer}, r.entry.origin)


def how_many(found: list[Recipe]) -> Iterator[Question]:
    for r in found:
        n = str(len(r.shown))
        yield Question(r.key, {"items": bullets(r.shown)}, n, {"expected": n}, r.entry.origin)


def has_item(found: list[Recipe]) -> Iterator[Question]:
    """Whether a common ingredient is in a list; yes and no are equally likely."""
    for r in found:
        inside = [w for w in COMMON if w in r.shown]
        outside = [w for w in COMMON if not any(w in name for name in r.shown)]
        yes = draw(2, "has", r.key) == 1
        if pool := inside if yes else outside:
            item, answer = pool[draw(len(pool), "item", r.key)], "Yes" if yes else "No"
            yield Question(
                r.key, {"items": bullets(r.shown), "item": item}, f"{answer}.", {"expected": answer}, r.entry.origin
            )
