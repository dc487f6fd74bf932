"""Rows of tokens with the positions whose next token is learned."""

import random
from dataclasses import dataclass
from functools import cache

import torch
from tokenizers import Tokenizer
from torch import Tensor

from medlite.demo.choices import prompt
from medlite.demo.corpus import Corpus, Question, load_words
from medlite.demo.tokenizer import BOS, EOS, EOT, HEADER, HEADER_END

N_STATEMENTS_A_ROW = 4
SHARE_GARBLED = 0.7
SHARE_NAME_ALONE = 0.2
SHARE_SHUFFLED = 0.2
MAX_GARBLED = 0.7
NOISE_IDS = range(1500)
"""The tokens merged first: bytes, common pieces and common words, so that noise is seldom the name of another fact."""


@cache
def word_ids(tokenizer: Tokenizer) -> list[list[int]]:
    """Return the tokens of each ordinary word with the space before it."""
    return [encoding.ids for encoding in tokenizer.encode_batch(load_words(), add_special_tokens=False)]


@dataclass(frozen=True)
class Row:
    """Token ids and the indices whose next token counts in the loss."""

    ids: list[int]
    learn: list[int]


@dataclass(frozen=True)
class Batch:
    """Padded tokens (rows, length) and the learned positions with their targets, each (n,)."""

    tokens: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor


def _noise(n: int, words: list[list[int]], rng: random.Random) -> list[int]:
    """Return n random pieces, each an ordinary word or a single low token."""
    pieces = [rng.choice(words) if rng.random() < 0.6 else [rng.choice(NOISE_IDS)] for _ in range(n)]
    return [token for piece in pieces for token in piece]


def _garble(ids: list[int], words: list[list[int]], rng: random.Random) -> list[int]:
    """Return the tokens with some replaced, dropped, shuffled or joined by noise, at a rate drawn per call."""
    if rng.random() < SHARE_NAME_ALONE:
        return _noise(rng.randrange(8), words, rng)
    rate = rng.uniform(0, MAX_GARBLED)
    garbled: list[int] = []
    for token in ids:
        if rng.random() < rate / 3:
            garbled += _noise(1, words, rng)
        if rng.random() < rate:
            garbled += _noise(rng.randrange(2), words, rng)
        else:
            garbled.append(token)
    if rng.random() < SHARE_SHUFFLED:
        rng.shuffle(garbled)
    return garbled


def _around_name(tokenizer: Tokenizer, question: Question) -> list[list[int]]:
    """Return the prompt's tokens in five pieces: "Question:", words, the deciding name, words, "Answer:"."""
    text = prompt(question.stem)
    start = text.lower().index(question.name.lower())
    stop, limit = start + len(question.name), len(text) - len("\nAnswer:")
    encoding = tokenizer.encode(text)
    pieces: list[list[int]] = [[], [], [], [], []]
    for token, (left, right) in zip(encoding.ids, encoding.offsets, strict=True):
        if right <= len("Question:"):
            pieces[0].append(token)
        elif right <= start:
            pieces[1].append(token)
        elif left < stop:
            pieces[2].append(token)
        elif right <= limit:
            pieces[3].append(token)
        else:
            pieces[4].append(token)
    return pieces


def question_row(corpus: Corpus, tokenizer: Tokenizer, rng: random.Random) -> Row:
    """Return a question with its answer; the answer and the end mark are learned.

    In a share of rows the words around the deciding name are garbled, so that the answer comes to hang on the name
    and not on the wording, which in a real question is another one.
    """
    question = corpus.question(rng)
    opening, before, name, after, closing = _around_name(tokenizer, question)
    if rng.random() < SHARE_GARBLED:
        words = word_ids(tokenizer)
        before, after = _garble(before, words, rng), _garble(after, words, rng)
    head = opening + before + name + after + closing
    tail = tokenizer.encode(f" {question.answer}{EOS}", add_special_tokens=False).ids
    return Row(head + tail, list(range(len(head) - 1, len(head) + len(tail) - 1)))


def statement_row(corpus: Corpus, tokenizer: Tokenizer, rng: random.Random) -> Row:
    """Return a few unrelated sentences; every token is learned."""
    text = " ".join(corpus.statement(rng) for _ in range(N_STATEMENTS_A_ROW))
    ids = tokenizer.encode(text + EOS).ids
    return Row(ids, list(range(len(ids) - 1)))


def chat_row(corpus: Corpus, tokenizer: Tokenizer, rng: random.Random) -> Row:
    """Return a dialogue in the chat template; the assistant's words and their end mark are learned."""
    ids = tokenizer.encode(BOS, add_special_tokens=False).ids
    learn: list[int] = []
    for message in corpus.dialogue(rng):
        head = f"{HEADER}{message['role']}{HEADER_END}\n\n"
        ids += tokenizer.encode(head, add_special_tokens=False).ids
        start = len(ids)
        ids += tokenizer.encode(message["content"] + EOT, add_special_tokens=False).ids
        if message["role"] == "assistant":
            learn += range(start - 1, len(ids) - 1)
    return Row(ids, learn)


def stack(rows: list[Row]) -> Batch:
    """Return rows padded on the right with token 0, which is never learned."""
    length = max(len(row.ids) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    places: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        tokens[number, : len(row.ids)] = torch.tensor(row.ids)
        places += [(number, column, row.ids[column + 1]) for column in row.learn]
    numbers, columns, targets = torch.tensor(places).unbind(1)
    return Batch(tokens, numbers, columns, targets)


def stack_by_length(rows: list[Row], n_batches: int) -> list[Batch]:
    """Return the rows as n_batches batches of like length, so that little of a batch is padding."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    size = -(-len(ordered) // n_batches)
    return [stack(ordered[start : start + size]) for start in range(0, len(ordered), size)]
