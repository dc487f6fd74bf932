"""The knowledge base: textbook facts as (subject, relation, object), read from facts/*.toml.

A relation is one table of a file:

    [drug_class]                  area, kind (what a subject is), role (what an object is to it),
    statements, asks, tests       phrasings; tests are held out and never trained on
    reverse_asks, reverse_tests   the same, from object to subject
    alike = [["x", "y"]]          objects that never stand against each other, being near or overlapping
    [drug_class.facts]            object = [subjects]; a subject has one object in a relation
    [drug_class.also]             subject = [objects that are true or arguable too]: never a wrong option

Placeholders in a phrasing: {s} subject, {o} object, {S} {O} the same with a capital, {a_o} {A_o} with a or an.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

VOWEL_LETTER_NAMES = "AEFHILMNORSX"
"""Letters whose own name starts with a vowel sound, so that an initialism takes 'an' (an SSRI)."""


@dataclass(frozen=True)
class Fact:
    """One true statement: `object` is the `relation`'s role of `subject`."""

    relation: str
    subject: str
    object: str


@dataclass(frozen=True, eq=False)
class Relation:
    """A table of facts of one kind, with the ways to say and to ask them."""

    name: str
    area: str
    kind: str
    role: str
    definite: bool
    statements: tuple[str, ...]
    asks: tuple[str, ...]
    tests: tuple[str, ...]
    reverse_asks: tuple[str, ...]
    reverse_tests: tuple[str, ...]
    facts: tuple[Fact, ...]
    alike: tuple[frozenset[str], ...]
    also: dict[str, frozenset[str]]

    def may_be_true(self, subject: str, obj: str) -> bool:
        """Return whether obj is, or could be argued to be, right for subject."""
        own = next(fact.object for fact in self.facts if fact.subject == subject)
        if obj == own or obj in self.also.get(subject, frozenset()):
            return True
        return any(own in group and obj in group for group in self.alike)


def with_article(name: str) -> str:
    """Return name after 'a' or 'an', by its sound: a biguanide, an SSRI, a P2Y12 inhibitor."""
    first, second = name[0], name[1:2]
    if first.isupper() and (second.isupper() or second.isdigit()):
        return f"{'an' if first in VOWEL_LETTER_NAMES else 'a'} {name}"
    return f"{'an' if first.lower() in 'aeiou' else 'a'} {name}"


def capital(text: str) -> str:
    """Return text with its first character in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]


def fill(template: str, relation: Relation, fact: Fact) -> str:
    """Return a phrasing with the names of one fact put in."""
    the = "the " if relation.definite else ""
    article = with_article(fact.object)
    return template.format(
        s=fact.subject,
        S=capital(fact.subject),
        o=fact.object,
        O=capital(fact.object),
        a_o=article,
        A_o=capital(article),
        the_s=the + fact.subject,
        the_o=the + fact.object,
        The_o=capital(the + fact.object),
        kind=relation.kind,
        role=relation.role,
        Role=capital(relation.role),
        area=capital(relation.area),
    )


def _relation(name: str, table: dict[str, Any]) -> Relation:
    facts = tuple(Fact(name, subject, obj) for obj, subjects in table["facts"].items() for subject in subjects)
    return Relation(
        name=name,
        area=table["area"],
        kind=table["kind"],
        role=table["role"],
        definite=table.get("definite", False),
        statements=tuple(table["statements"]),
        asks=tuple(table["asks"]),
        tests=tuple(table["tests"]),
        reverse_asks=tuple(table.get("reverse_asks", ())),
        reverse_tests=tuple(table.get("reverse_tests", ())),
        facts=facts,
        alike=tuple(frozenset(group) for group in table.get("alike", ())),
        also={subject: frozenset(objects) for subject, objects in table.get("also", {}).items()},
    )


@cache
def relations() -> tuple[Relation, ...]:
    """Return every relation, in the order of file name and table."""
    folder = files("medlite.demo").joinpath("facts")
    found: list[Relation] = []
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".toml"):
            tables = tomllib.loads(entry.read_text(encoding="utf-8"))
            found.extend(_relation(name, table) for name, table in tables.items())
    return tuple(found)


def all_facts() -> list[Fact]:
    """Return the facts of all relations in table order."""
    return [fact for relation in relations() for fact in relation.facts]
