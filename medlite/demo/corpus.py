"""Training text: questions with their answers, statements and chat dialogues, all in training phrasings.

Held-out phrasings (`tests`, `reverse_tests`) are never read here.
"""

import random
import tomllib
from dataclasses import dataclass
from importlib.resources import files

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
    "{S} comes up in a lecture. What is its {role}?",
    "The notes of a case mention {the_s}. Give the {role}.",
    "For {the_s}, state the {role}.",
)
REVERSE_STEMS = (
    "Which {kind} has this {role}: {o}?",
    "{The_o} is the {role} of which {kind}?",
    "Name the {kind} whose {role} is {the_o}.",
    "Given the {role} {o}, choose the {kind}.",
    "{O}: which {kind}?",
    "Which {kind} goes with {the_o}?",
    "An exam mentions {the_o}. The right {kind} is:",
    "{O} comes up in a lecture. Which {kind} is meant?",
    "The notes of a case mention {the_o}. Give the {kind}.",
    "For the {role} {o}, state the {kind}.",
)
LEADS = ("", "", "", "", "Quick question: ", "In class: ", "On the ward: ", "A colleague asks: ", "Review: ")
TAILS = ("", "", "", "", " Which one?", " Answer in a word.", " Pick one.")
N_WORD_REPEATS = 8
"""How often the tokenizer reads each ordinary word: enough for a token, less than any name of a fact."""

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
class Question:
    """A stem, the name in it that decides, and the answer."""

    stem: str
    name: str
    answer: str


@dataclass(frozen=True)
class Corpus:
    """All facts with their relation, ready to be drawn from."""

    pairs: tuple[tuple[Relation, Fact], ...]

    def statement(self, rng: random.Random) -> str:
        """Return one random fact as a sentence."""
        relation, fact = rng.choice(self.pairs)
        return fill(rng.choice(relation.statements + STATEMENTS), relation, fact)

    def dialogue(self, rng: random.Random) -> list[dict[str, str]]:
        """Return one or two question and answer turns as chat messages."""
        messages = []
        for _ in range(rng.choice((1, 1, 1, 2))):
            ask, reply = self._turn(rng)
            messages += [{"role": "user", "content": ask}, {"role": "assistant", "content": reply}]
        return messages

    def _turn(self, rng: random.Random) -> tuple[str, str]:
        if rng.random() < 0.03:
            return rng.choice(SMALL_TALK)
        relation, fact = rng.choice(self.pairs)
        one_to_one = sum(other.object == fact.object for other in relation.facts) == 1
        asks = relation.asks + ASKS + STEMS
        if one_to_one and relation.reverse_asks and rng.random() < 0.25:
            asks = relation.reverse_asks
        return fill(rng.choice(asks), relation, fact), fill(relation.statements[0], relation, fact)

    def question(self, rng: random.Random) -> Question:
        """Return a question about the object of a subject or, in reverse, about a subject of an object."""
        relation, fact = rng.choice(self.pairs)
        backward = bool(relation.reverse_asks) and rng.random() < 0.4
        stems = relation.reverse_asks + REVERSE_STEMS if backward else relation.asks + ASKS + STEMS
        stem = rng.choice(LEADS) + fill(rng.choice(stems), relation, fact) + rng.choice(TAILS)
        if backward:
            return Question(stem, fact.object, fact.subject)
        return Question(stem, fact.subject, fact.object)


def load_corpus() -> Corpus:
    """Return the corpus over every fact of the knowledge base."""
    return Corpus(tuple((relation, fact) for relation in relations() for fact in relation.facts))


def load_words() -> list[str]:
    """Return ordinary words, each with a space before it, in the order of words.toml."""
    text = files("medlite.demo").joinpath("words.toml").read_text(encoding="utf-8")
    return [f" {word}" for word in tomllib.loads(text)["words"].split()]


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
            texts += [
                f"Question: {fact.subject}\nAnswer: {fact.object}",
                f"Question: {fact.object}\nAnswer: {fact.subject}",
            ]
    texts += [text for turn in SMALL_TALK for text in turn]
    texts += load_words() * N_WORD_REPEATS
    return texts
