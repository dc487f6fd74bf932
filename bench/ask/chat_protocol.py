"""The `chat` protocol: what a user would see. Template, greedy reply, strict parse.

A reply that does not name exactly one option is `unparsed`: it counts as wrong and is never mapped to a letter.
(Mapping what cannot be parsed to "A", or taking the first letter found anywhere, is how evaluators come to measure
their parser.)
"""

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.ask.prompts import lettered
from bench.ask.question import LETTERS, Prompt, PromptBuilder, Sample
from medlite.errors import TaskError
from medlite.formats.chat_template import ChatTemplate, Message, read_template, special_tokens
from medlite.formats.gguf import Header

INSTRUCTION = "Answer with the letter of the correct option only."
# Templates that print today's date would change every prompt every day; this is the date of Llama 3.1's own examples.
PINNED_DATE = datetime.datetime(2024, 7, 26)

# The whole reply is a letter: "B", "(B)", "**B.**"
_ALONE = re.compile(r"[\W_]*([A-Z])[\W_]*")
# It begins with a letter and a mark: "B. aspirin", "B) aspirin", "(B) aspirin", "**B**: aspirin"; not "A patient ..."
_FIRST = re.compile(r"[\s*_\[]*(?:\(([A-Z])\)|([A-Z])[*_]*[.):\]])")
# It says so: "The correct answer is B", "Answer: **B**", "answer is (B)"
_NAMED = re.compile(r"\b[Aa]nswer(?:\s+is)?\s*:?\s*[*_(\[]*\s*(?:[Oo]ption\s+)?([A-Z])\b")


@dataclass(frozen=True)
class TemplateSource:
    """A chat template as its model carries it. special_tokens: bos_token, eos_token, ... as text."""

    text: str
    special_tokens: Mapping[str, str]


def template_of_header(header: Header) -> TemplateSource | None:
    """The template of a GGUF file, or None for a model without one."""
    found = read_template(header)
    return TemplateSource(found.source, special_tokens(header)) if found else None


def builder_for(source: TemplateSource | None) -> PromptBuilder:
    """The prompt builder under a model's own template. Raises TaskError if the model has none."""
    if source is None:
        raise TaskError("the model carries no chat template, the chat protocol needs one", hint="--protocol letters")
    template = ChatTemplate(source.text, source.special_tokens, now=lambda: PINNED_DATE)

    def build(sample: Sample, shots: Sequence[Sample]) -> Prompt:
        if shots:
            raise TaskError("the chat protocol has no few-shot form", hint="--shots 0")
        return Prompt(template.render([Message("user", user_text(sample))]), ())

    return build


def user_text(sample: Sample) -> str:
    """What the user says: context, question, lettered options, the instruction."""
    context = f"{sample.context}\n\n" if sample.context else ""
    return f"{context}{sample.question}\n\n{lettered(sample.options)}\n{INSTRUCTION}"


def parse_reply(text: str, n_options: int) -> int | None:
    """The option that the reply names; None if it names none, several, or one that does not exist."""
    letters = LETTERS[:n_options]
    if match := _ALONE.fullmatch(text.strip()) or _FIRST.match(text):
        letter = next(group for group in match.groups() if group)
        return letters.find(letter) if letter in letters else None
    named = {match.group(1) for match in _NAMED.finditer(text)}
    if len(named) != 1 or not named <= set(letters):
        return None
    return letters.index(named.pop())
