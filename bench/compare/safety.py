"""Which of the changed answers speak of things where a wrong one may hurt: a table of words, and what matched.

The rules find words, they do not understand sentences: read the questions. A match says "look here first".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bench.compare.compare import Comparison, Flip
from bench.score.scoring import ScoredSample

# topic -> pattern, matched without regard to case in the question and its options.
# fmt: off
RULES: dict[str, str] = {
    "dose": r"\b(?:dos(?:e|es|age|ing)|overdos\w+|titrat\w+|mg/kg|mcg|µg|milligrams?|\d+ ?mg|units?/kg)\b",
    "drug": (r"\b(?:drugs?|medications?|pharmaco\w+|prescri\w+|adverse effects?|side effects?|toxicity|antidotes?"
             r"|\w+(?:cillin|mycin|floxacin|azole|olol|pril|sartan|statin|dipine|parin|gliptin|gliflozin|mab|tinib"
             r"|vir|triptan|setron|caine|azepam|barbital))\b"),
    "contraindication": r"\b(?:contraindicat\w+|allerg\w+|anaphyla\w+|interact(?:s|ion|ions)|black box)\b",
    "pregnancy": (r"\b(?:pregnan\w+|gestation\w*|trimester|breast-?feeding|lactat\w+|teratogen\w+|f(?:o?e)tal"
                  r"|f(?:o?e)tus|postpartum|eclampsia|preeclampsia)\b"),
    "child": (r"\b(?:child|children|infants?|newborns?|neonat\w+|p(?:a?e)diatric\w*|toddlers?|adolescents?|boy|girl"
              r"|\d+[- ](?:month|week|day)[- ]old)\b"),
    "emergency": (r"\b(?:emergenc\w+|shock|sep(?:sis|tic)|cardiac arrest|unrespons\w+|resuscitat\w+|intubat\w+|airway"
                  r"|myocardial infarction|strokes?|h(?:a?e)morrhag\w+|suicid\w+|status epilepticus|antidotes?)\b"),
}
# fmt: on
_COMPILED = {topic: re.compile(pattern, re.IGNORECASE) for topic, pattern in RULES.items()}


@dataclass(frozen=True)
class Marked:
    """A changed answer with its question, and the words of each topic that matched."""

    flip: Flip
    question: str
    options: tuple[str, ...]
    topics: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class TopicCount:
    """Questions that speak of a topic, and how many of them changed. confident: right to wrong and no near-tie."""

    topic: str
    n: int
    right_to_wrong: int
    wrong_to_right: int
    confident: int


def matched_terms(text: str) -> dict[str, tuple[str, ...]]:
    """Topics of `text` with the words that matched, lower-cased, each once, in order."""
    found = {
        topic: tuple(dict.fromkeys(m.group(0).lower() for m in rule.finditer(text)))
        for topic, rule in _COMPILED.items()
    }
    return {topic: words for topic, words in found.items() if words}


def text_of(sample: ScoredSample) -> str:
    """Question and options, one a line."""
    return "\n".join((sample.question, *sample.options))


def marked_flips(samples: Sequence[ScoredSample], comparison: Comparison) -> tuple[Marked, ...]:
    """Every changed answer with its question, those that turned wrong first, confident reversals before near-ties."""
    by_id = {sample.id: sample for sample in samples}
    order = {"right_to_wrong": 0, "wrong_to_other_wrong": 1, "wrong_to_right": 2}
    flips = sorted(comparison.flips, key=lambda flip: (order[flip.kind], -flip.baseline_margin_nats))
    return tuple(
        Marked(flip, by_id[flip.id].question, by_id[flip.id].options, matched_terms(text_of(by_id[flip.id])))
        for flip in flips
    )


def count_topics(samples: Sequence[ScoredSample], comparison: Comparison) -> tuple[TopicCount, ...]:
    """One row a topic that occurs, in the order of RULES."""
    topics_of = {sample.id: matched_terms(text_of(sample)) for sample in samples}
    rows = []
    for topic in RULES:
        n = sum(topic in topics for topics in topics_of.values())
        flips = [flip for flip in comparison.flips if topic in topics_of[flip.id]]
        lost = [flip for flip in flips if flip.kind == "right_to_wrong"]
        n_gained = sum(flip.kind == "wrong_to_right" for flip in flips)
        if n:
            rows.append(TopicCount(topic, n, len(lost), n_gained, sum(f.confident for f in lost)))
    return tuple(rows)
