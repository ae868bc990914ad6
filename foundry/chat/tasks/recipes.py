"""Questions about recipes: documents with a title, a list of ingredients and a list of steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from foundry.chat.tasks.base import Question, Task, draw
from foundry.chat.tasks.corpus import Entry
from foundry.chat.verifiers import verify

COUNTS = range(3, 9)  # numbers of ingredients that are asked for
ITEM_CHARS = 32  # of an ingredient that may be one of these: the short ones are without remarks
COMMON = (
    *("salt", "sugar", "garlic", "butter", "onion", "flour", "milk", "lemon", "chicken", "cheese", "cream", "rice"),
    *("beef", "tomato", "vinegar", "vanilla", "paprika", "cinnamon", "cumin", "ginger", "pork", "honey", "celery"),
    *("oregano", "coconut", "chocolate", "mustard", "parsley", "thyme", "pepper", "water", "bread", "wine", "yeast"),
    *("oil", "corn", "nutmeg", "turmeric", "egg", "carrot", "potato", "mint", "basil", "coriander", "beans", "soy"),
)
LIST_CHARS = 320  # of a list that is asked about: about 100 tokens

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
    most=600,
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
    "bullets_count",
    most=4000,
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
    most=400,
    held_out=60,
)
LIST_ITEMS = Task(
    "list_items",
    (
        "{recipe}\n\nList the ingredients of this recipe.",
        "Which ingredients does this recipe list?\n\n{recipe}",
        "List the ingredients.\n\n{recipe}",
        "{recipe}\n\nWhich ingredients are listed?",
        "{recipe}\n\nWhat are the ingredients?",
        "What are the ingredients of this recipe?\n\n{recipe}",
        "{recipe}\n\nWhich ingredients does the recipe list?",
        "Please list the ingredients of this recipe.\n\n{recipe}",
    ),
    "items",
    most=300,
    held_out=60,
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
    most=1200,
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
    most=1500,
)


@dataclass(frozen=True)
class Recipe:
    """An entry as the tasks use it: `names` are how a question may name the dish, `body` the text below the title."""

    entry: Entry
    names: tuple[str, ...]
    ingredients: list[str]
    body: str

    @property
    def key(self) -> str:
        return self.entry.origin.doc_id or ""

    @property
    def bullets(self) -> str:
        return bullets(self.ingredients)

    def name(self, task: str) -> str:
        return self.names[draw(len(self.names), "name", task, self.key)]


def recipes(entries: list[Entry]) -> list[Recipe]:
    """The entries that are recipes with at least two ingredients, each different."""
    out = []
    for entry in entries:
        title, ingredients = entry.field("title"), entry.items("ingredients")
        count = {"count": len(ingredients), "reference": ingredients}
        if title and len(ingredients) > 1 and verify("bullets_count", count, bullets(ingredients)).right:
            short = title.split(" (")[0]
            names = tuple(dict.fromkeys((short, short.lower())))
            out.append(Recipe(entry, names, ingredients, entry.text.removeprefix(title).strip()))
    return out


def bullets(items: list[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def ingredients(found: list[Recipe]) -> Iterator[Question]:
    for r in found:
        yield Question(r.key, {"name": r.name("ingredients")}, r.bullets, {}, r.entry.origin)


def exactly(found: list[Recipe]) -> Iterator[Question]:
    """As many as are asked for, the first that are short; two numbers for each recipe."""
    for r in found:
        short = [item for item in r.ingredients if len(item) <= ITEM_CHARS]
        fitting = [n for n in COUNTS if n <= len(short)]
        for k in range(min(2, len(fitting))):
            n = fitting[(draw(len(fitting), "n", r.key) + k * (len(fitting) // 2 or 1)) % len(fitting)]
            values = {"name": r.name("ingredients_n"), "n": str(n)}
            arguments = {"count": n, "reference": r.ingredients}
            yield Question(f"{r.key} {n}", values, bullets(short[:n]), arguments, r.entry.origin)


def recipe(found: list[Recipe]) -> Iterator[Question]:
    for r in found:
        name = r.name("recipe")
        yield Question(r.key, {"name": name}, r.body, {"name": name}, r.entry.origin)


def list_items(found: list[Recipe]) -> Iterator[Question]:
    for r in found:
        if verify("recipe", {"name": r.names[0]}, r.body).parts["form"]:
            yield Question(r.key, {"recipe": r.body}, r.bullets, {"expected": r.ingredients}, r.entry.origin)


def how_many(found: list[Recipe]) -> Iterator[Question]:
    for r in found:
        if len(r.bullets) <= LIST_CHARS:
            n = str(len(r.ingredients))
            yield Question(r.key, {"items": r.bullets}, n, {"expected": n}, r.entry.origin)


def has_item(found: list[Recipe]) -> Iterator[Question]:
    """Whether a common ingredient is in a list; yes and no are equally likely."""
    for r in found:
        text = r.bullets.casefold()
        inside = [w for w in COMMON if re.search(rf"\b{w}(?:e?s)?\b", text)]
        outside = [w for w in COMMON if w not in text]
        yes = draw(2, "has", r.key) == 1
        if len(r.bullets) <= LIST_CHARS and (pool := inside if yes else outside):
            item, answer = pool[draw(len(pool), "item", r.key)], "Yes" if yes else "No"
            yield Question(
                r.key, {"items": r.bullets, "item": item}, f"{answer}.", {"expected": answer}, r.entry.origin
            )
