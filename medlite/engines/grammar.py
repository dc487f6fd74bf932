"""A reply held to a grammar by llguidance, whatever runs the model: which tokens may come next.

A grammar is a text in llguidance's Lark notation; `gbnf.py` and `json_schema.py` make one. A token is taken as the
bytes that it writes, so a control token can never stand for its name, and a reply is UTF-8 at every character.
llguidance is imported with the first grammar: a process without one does not hold its 6 MB.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medlite.errors import EngineError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# A grammar that is too much for these ends in an error; no mask takes longer than about half a second.
MAX_ITEMS_IN_ROW, MAX_ITEMS_IN_STEP = 100_000, 500_000


@dataclass(frozen=True)
class TokenTable:
    """The tokens of a model as llguidance wants them. Making one takes about half a second at 128k tokens."""

    tokenizer: "LLTokenizer"
    n_vocab: int
    ends: frozenset[int]


def token_table(n_vocab: int, piece: Callable[[int], bytes], is_end: Callable[[int], bool]) -> TokenTable:
    """piece: the bytes that a token writes, none for a control token. is_end: whether it ends a turn.

    Raises EngineError for a vocabulary without an end: no reply could be whole.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    ends = _checked_ends(token for token in range(n_vocab) if is_end(token))
    tokens = _Tokens([piece(token) for token in range(n_vocab)], ends)
    return TokenTable(LLTokenizer(TokenizerWrapper(tokens), eos_token=ends), n_vocab, frozenset(ends))


def token_table_of_json(tokenizer_json: str, n_vocab: int, ends: Iterable[int]) -> TokenTable:
    """The tokens that the text of a tokenizer.json writes. Raises EngineError as `token_table`, or for another kind."""
    from llguidance import LLTokenizer

    tokens = _checked_ends(ends)
    try:
        return TokenTable(LLTokenizer(tokenizer_json, n_vocab, eos_token=tokens), n_vocab, frozenset(tokens))
    except ValueError as error:
        raise EngineError(f"llguidance does not know this kind of tokenizer: {error}") from error


def _checked_ends(ends: Iterable[int]) -> list[int]:
    found = sorted(ends)
    if not found:
        raise EngineError("this model has no token that ends a reply, so none can be held to a grammar")
    return found


class _Tokens:
    """What llguidance asks of a tokenizer that is not its own."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], ends: list[int]) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, ends, ends[0]

    def __call__(self, _text: bytes) -> list[int]:
        return []  # asked only to force tokens, which the grammars forbid


class Grammar:
    """The state of a grammar after the tokens that were accepted."""

    def __init__(self, tokens: TokenTable, text: str) -> None:
        """Raises EngineError for a text that is no grammar, or one that is too much."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            max_items_in_row=MAX_ITEMS_IN_ROW, step_max_items=MAX_ITEMS_IN_STEP, verbose_errors=False
        )
        self._tokens = tokens
        self._matcher = LLMatcher(tokens.tokenizer, text, log_level=0, limits=limits)
        self._check()

    def allows(self, token: int) -> bool:
        """Whether the token may come next."""
        if token in self._tokens.ends:
            return self._matcher.is_accepting()
        allowed = self._matcher.validate_tokens([token]) == 1
        self._check()
        return allowed

    def allowed(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each token whether it may come next. The state stays."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        bits: NDArray[np.bool_] = np.unpackbits(mask, bitorder="little")[: self._tokens.n_vocab].astype(np.bool_)
        return bits[tokens]

    def accept(self, token: int) -> None:
        """Move on by a token that is allowed."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().splitlines()[0]
            raise EngineError(f"llguidance does not take the grammar: {reason}", hint="a simpler one may do")
