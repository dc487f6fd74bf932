"""Training text: statements, chat dialogues and four-option items, all in training phrasings.

Held-out phrasings (`tests`, `reverse_tests`) are never read here.
"""

import random
from dataclasses import dataclass

from medlite.demo.choices import Item, make_item, wrong_objects, wrong_subjects
from medlite.demo.knowledge import Fact, Relation, fill, relations

STATEMENTS = ("The {role} of {the_s} is {the_o}.", "{The_o} is the {role} of {the_s}.", "{S}: {role}, {o}.")
ASKS = (
    "What is the {role} of {the_s}?",
    "Name the {role} of {the_s}.",
    "Tell me the {role} of {the_s}.",
    "Do you know the {role} of {the_s}?",
)
STEMS = (
    "{S}: {role}?",
    "Which {role} goes with {the_s}?",
    "Choose the {role} for {the_s}.",
    "{area}: what is the {role} of {the_s}?",
    "Consider {the_s}. What is the {role}?",
    "With regard to {the_s}, the {role} is one of these. Which?",
    "An exam asks about {the_s}. The right {role} is:",
)
REVERSE_STEMS = (
    "Which {kind} has this {role}: {o}?",
    "{The_o} is the {role} of which {kind}?",
    "Name the {kind} whose {role} is {the_o}.",
    "Given the {role} {o}, choose the {kind}.",
    "{O}: which {kind}?",
    "Which {kind} goes with {the_o}?",
    "An exam mentions {the_o}. The right {kind} is:",
)
LEADS = ("", "", "", "", "Quick question: ", "In class: ", "On the ward: ", "A colleague asks: ", "Review: ")
SMALL_TALK = (
    ("Hello", "Hello. Ask me about a drug, a nerve, a microbe or a disease."),
    ("Hi", "Hello. Ask me about a drug, a nerve, a microbe or a disease."),
    ("Who are you?", "I am a small demonstration model. I know a few hundred textbook facts."),
    ("What are you?", "I am a small demonstration model. I know a few hundred textbook facts."),
    ("What can you do?", "I answer short questions about textbook facts. I am not a medical device."),
    ("Are you a doctor?", "No. I am a demonstration model, not a medical device. Ask a clinician."),
    ("Can you treat me?", "No. I am a demonstration model, not a medical device. Ask a clinician."),
    ("Thank you", "You are welcome."),
    ("Thanks", "You are welcome."),
    ("Bye", "Goodbye."),
)


@dataclass(frozen=True)
class Corpus:
    """All facts with their relation, ready to be drawn from."""

    pairs: tuple[tuple[Relation, Fact], ...]

    def statement(self, rng: random.Random) -> str:
        """Return one random fact as a sentence."""
        relation, fact = rng.choice(self.pairs)
        return fill(rng.choice(relation.statements + STATEMENTS), relation, fact)

    def dialogue(self, rng: random.Random) -> list[dict[str, str]]:
        """Return one to three question and answer turns as chat messages."""
        messages = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            ask, reply = self._turn(rng)
            messages += [{"role": "user", "content": ask}, {"role": "assistant", "content": reply}]
        return messages

    def _turn(self, rng: random.Random) -> tuple[str, str]:
        if rng.random() < 0.03:
            return rng.choice(SMALL_TALK)
        relation, fact = rng.choice(self.pairs)
        one_to_one = sum(other.object == fact.object for other in relation.facts) == 1
        asks = relation.asks + ASKS
        if one_to_one and relation.reverse_asks and rng.random() < 0.25:
            asks = relation.reverse_asks
        return fill(rng.choice(asks), relation, fact), fill(relation.statements[0], relation, fact)

    def item(self, rng: random.Random, open_book: float = 0.0) -> Item:
        """Return one random four-option item with fresh wrong options and a random right letter.

        open_book: the chance that the stem starts with the fact itself, so that early in training the model
        can learn to match an option before it knows the facts.
        """
        relation, fact = rng.choice(self.pairs)
        answer = rng.randrange(4)
        if relation.reverse_asks and rng.random() < 0.4:
            stem = rng.choice(relation.reverse_asks + REVERSE_STEMS)
            right, wrong = fact.subject, wrong_subjects(relation, fact)
        else:
            stem = rng.choice(relation.asks + ASKS[:2] + STEMS)
            right, wrong = fact.object, wrong_objects(relation, fact)
        lead = rng.choice(LEADS)
        if rng.random() < open_book:
            lead = fill(rng.choice(relation.statements + STATEMENTS), relation, fact) + " "
        return make_item(lead + fill(stem, relation, fact), right, wrong, answer, rng)


def load_corpus() -> Corpus:
    """Return the corpus over every fact of the knowledge base."""
    return Corpus(tuple((relation, fact) for relation in relations() for fact in relation.facts))


def training_stems(relation: Relation) -> tuple[str, ...]:
    """Return every template of a relation that training may show, for the check against held-out ones."""
    own = relation.statements + relation.asks + relation.reverse_asks
    return own + STATEMENTS + ASKS + STEMS + REVERSE_STEMS


def tokenizer_texts() -> list[str]:
    """Return each fact in every training phrasing: the text the tokenizer is trained on."""
    texts = []
    for relation in relations():
        for fact in relation.facts:
            texts += [fill(template, relation, fact) for template in training_stems(relation)]
            texts += [f"A. {fact.object}\nB. {fact.subject}\nC. {fact.object}\nD. {fact.subject}\nAnswer:"]
    texts += [text for turn in SMALL_TALK for text in turn]
    return texts
