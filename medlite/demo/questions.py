"""The embedded question set: each fact asked once forward, some in reverse, in held-out phrasings only."""

import json
import random
from pathlib import Path

from medlite.demo.choices import LETTERS, Item, make_item, wrong_objects, wrong_subjects
from medlite.demo.knowledge import fill, relations

SEED = 2024
N_REVERSE = 300
"""Reverse questions drawn from those possible. A count set before any training, for a narrow interval."""


def _forward(rng: random.Random) -> list[tuple[str, Item]]:
    drawn = []
    for relation in relations():
        for fact in relation.facts:
            stem = fill(rng.choice(relation.tests), relation, fact)
            drawn.append((relation.area, make_item(stem, fact.object, wrong_objects(relation, fact), 0, rng)))
    return drawn


def _reverse(rng: random.Random) -> list[tuple[str, Item]]:
    possible: dict[str, tuple[str, Item]] = {}
    for relation in relations():
        if not relation.reverse_tests:
            continue
        for fact in rng.sample(relation.facts, len(relation.facts)):
            stem = fill(rng.choice(relation.reverse_tests), relation, fact)
            item = make_item(stem, fact.subject, wrong_subjects(relation, fact), 0, rng)
            possible.setdefault(stem, (relation.area, item))
    return rng.sample(list(possible.values()), N_REVERSE)


def build_questions(seed: int = SEED) -> list[dict[str, object]]:
    """Return the question records in file order; the letters are as even as the count allows."""
    rng = random.Random(seed)
    drawn = _forward(rng) + _reverse(rng)
    rng.shuffle(drawn)
    answers = [index % 4 for index in range(len(drawn))]
    rng.shuffle(answers)
    records: list[dict[str, object]] = []
    for number, ((area, item), answer) in enumerate(zip(drawn, answers, strict=True)):
        right, *options = item.options
        options.insert(answer, right)
        records.append(
            {
                "id": f"demo-{number:04d}",
                "dataset": "demo",
                "split": "test",
                "subject": area,
                "question": item.stem,
                "options": dict(zip(LETTERS, options, strict=True)),
                "answer": LETTERS[answer],
            }
        )
    return records


def write_questions(path: Path, seed: int = SEED) -> None:
    """Write the question records as JSON, one a line."""
    lines = [json.dumps(record, ensure_ascii=False) for record in build_questions(seed)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
