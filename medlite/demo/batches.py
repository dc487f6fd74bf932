"""Rows of tokens with the positions whose next token is learned."""

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from medlite.demo.choices import prompt
from medlite.demo.corpus import Corpus
from medlite.demo.tokenizer import BOS, EOS, EOT, HEADER, HEADER_END

N_STATEMENTS_A_ROW = 4


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


def question_row(corpus: Corpus, tokenizer: Tokenizer, rng: random.Random) -> Row:
    """Return a question with its answer; the answer and the end mark are learned."""
    stem, answer = corpus.question(rng)
    head = tokenizer.encode(prompt(stem)).ids
    tail = tokenizer.encode(f" {answer}{EOS}", add_special_tokens=False).ids
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
