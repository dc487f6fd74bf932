"""Four-option items: one right option, three wrong ones of the same kind that the table knows to be false."""

import random
from dataclasses import dataclass
from functools import cache

from medlite.demo.knowledge import Fact, Relation

LETTERS = "ABCD"


@dataclass(frozen=True)
class Item:
    """A stem, its four options in order, and the index of the right one."""

    stem: str
    options: tuple[str, str, str, str]
    answer: int


@cache
def wrong_objects(relation: Relation, fact: Fact) -> tuple[str, ...]:
    """Return the objects of the relation that are false for the fact's subject, in table order."""
    objects = dict.fromkeys(other.object for other in relation.facts)
    return tuple(obj for obj in objects if not relation.may_be_true(fact.subject, obj))


@cache
def wrong_subjects(relation: Relation, fact: Fact) -> tuple[str, ...]:
    """Return the subjects of the relation for which the fact's object is false, in table order."""
    return tuple(other.subject for other in relation.facts if not relation.may_be_true(other.subject, fact.object))


def make_item(stem: str, right: str, wrong: tuple[str, ...], answer: int, rng: random.Random) -> Item:
    """Return an item whose right option stands at index `answer` among three drawn from `wrong`."""
    options = rng.sample(wrong, 3)
    options.insert(answer, right)
    first, second, third, fourth = options
    return Item(stem, (first, second, third, fourth), answer)


def prompt(stem: str) -> str:
    """Return the text after which each option is weighed, and after which training puts the answer.

    Source: bench/ask/prompts.py, cloze.
    """
    return f"Question: {stem}\nAnswer:"
