"""BioGPT's tokenizer, which no tokenizer.json can hold: words by Moses's rules, then byte-pair merges within each word.

Text comes back as Moses writes it, words and punctuation apart ("TNF-alpha" as "TNF - alpha"): joining them again
needs the words that follow, and an answer is shown token by token.
Source: transformers' models/biogpt/tokenization_biogpt.py; sacremoses for Moses's rules.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from medlite.errors import ArtifactError, MissingExtraError
from medlite.formats.json import read_json

VOCABULARY_NAME, MERGES_NAME = "vocab.json", "merges.txt"
END_OF_WORD = "</w>"
SEPARATOR, UNKNOWN = "</s>", "<unk>"  # a sequence begins with the separator
SPECIAL = ("<s>", "<pad>", SEPARATOR, UNKNOWN)
# What Moses writes instead of characters that its tools reserve. Source: sacremoses, MosesDetokenizer.
# fmt: off
SHOWN = (("&#124;", "|"), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'"), ("&#91;", "["),
         ("&#93;", "]"), ("&amp;", "&"), ("@-@", "-"))
# fmt: on
KEPT_WORDS = 1 << 14


class MosesTokenizer:
    """As tokenizer.FolderTokenizer, for a folder with vocab.json and merges.txt. control: ids never shown."""

    def __init__(self, folder: Path, control: Iterable[int]) -> None:
        try:
            from sacremoses import MosesTokenizer as Moses
        except ImportError as error:
            raise MissingExtraError("sacremoses", "biogpt") from error
        self._moses = Moses(lang="en")
        self._ids, self._ranks = _vocabulary(folder / VOCABULARY_NAME), _merges(folder / MERGES_NAME)
        self._texts = {token: text for text, token in self._ids.items()}
        self._control = {*control, *(self._ids[text] for text in SPECIAL if text in self._ids)}
        self._unknown = self._ids[UNKNOWN]
        self._special = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
        self._of_word = lru_cache(KEPT_WORDS)(self._merge)

    def encode(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. parse_special turns the text of control tokens into their ids."""
        ids = [self._ids[SEPARATOR]] if add_bos else []
        for i, part in enumerate(self._special.split(text) if parse_special else (text,)):
            if i % 2:
                ids.append(self._ids[part])
                continue
            for word in self._moses.tokenize(part, aggressive_dash_splits=True, return_str=False, escape=True):
                ids += self._of_word(word)
        return ids

    def _merge(self, word: str) -> tuple[int, ...]:
        """The ids of one word: of its parts that are merged, lowest rank first, until none is."""
        parts = [*word[:-1], word[-1] + END_OF_WORD]
        while len(parts) > 1:
            ranked = [(self._ranks[pair], pair) for pair in itertools.pairwise(parts) if pair in self._ranks]
            if not ranked:
                break
            _, (first, second) = min(ranked)
            merged: list[str] = []
            for part in parts:
                if merged and part == second and merged[-1] == first:
                    merged[-1] = first + second
                else:
                    merged.append(part)
            parts = merged
        return tuple(self._ids.get(part, self._unknown) for part in parts)

    def piece(self, token: int) -> bytes:
        """The bytes of one token, a space behind the end of a word; none for a control token."""
        return self.pieces((token,))

    def pieces(self, tokens: Sequence[int]) -> bytes:
        text = "".join(self._texts.get(token, "") for token in tokens if token not in self._control)
        for written, meant in SHOWN:
            text = text.replace(written, meant)
        return text.replace(END_OF_WORD, " ").encode()


def _vocabulary(path: Path) -> dict[str, int]:
    """Text -> id. Raises ArtifactError where the file is no such table."""
    stated = read_json(path, dict[str, int], ArtifactError, hint="the folder is incomplete; make it again")
    if not {SEPARATOR, UNKNOWN} <= stated.keys():
        raise ArtifactError(f"{path}: no table of tokens with {SEPARATOR} and {UNKNOWN}")
    return stated


def _merges(path: Path) -> dict[tuple[str, str], int]:
    """Pair -> rank; of a pair that stands twice the last rank holds, as in the source."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: {error}", hint="the folder is incomplete; make it again") from error
    pairs = [line.split()[:2] for line in lines]
    return {(pair[0], pair[1]): rank for rank, pair in enumerate(pairs) if len(pair) == 2}
