"""What a runtime must offer: tokens, logits at chosen positions of many sequences, and a streamed generation.

An engine is a plain object that satisfies `Engine`; nothing inherits from it. Scoring never happens inside an
engine: it returns raw logits, and `bench.score.scoring` turns them into log-probabilities for every engine alike.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
# Hears how many of a prompt's new tokens are read, and how many there are: (0, n) first, then after each batch.
OnPrompt = Callable[[int, int], None]


@dataclass(frozen=True)
class EngineInfo:
    """Facts of a loaded model, for banners and run records. Sizes in bytes, times in seconds."""

    engine: str  # "llamacpp"
    engine_version: str  # "llama-cpp-python 0.3.36"
    device: str  # "cpu" or "cuda"
    device_name: str  # "AMD EPYC 9354" or "NVIDIA H100 80GB HBM3"
    model_name: str
    n_vocab: int
    n_context: int  # tokens that one sequence may hold
    n_threads: int
    load_seconds: float
    n_gpu_layers: int = 0
    settings: dict[str, str] = field(default_factory=dict)
    buffer_bytes: dict[str, int] = field(default_factory=dict)  # what the runtime allocated, by its own names
    warnings: tuple[str, ...] = ()  # what the user should know before trusting speed or memory, e.g. an unused GPU


@dataclass(frozen=True)
class LogitsRequest:
    """One sequence and the positions whose next-token logits are wanted.

    tokens: ids from `Engine.tokenize`. positions: indices into `tokens`, ascending; the logits at position i
    predict token i + 1. Common case: the last position only.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class GenerationSettings:
    """How the next token is chosen. temperature 0 is greedy and deterministic.

    grammar: what the whole reply must follow, from `gbnf.lark_from_gbnf` or `json_schema.lark_from_json_schema`;
    None leaves it free.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: str | None = None


@dataclass(frozen=True)
class GeneratedToken:
    """One streamed step. `text` may be empty while a UTF-8 character is incomplete; the last one carries `finish`.

    The token that ends a turn is streamed too, with empty text of its own.
    """

    token: int
    text: str
    log_probability: float  # nats, of the chosen token under the unscaled distribution
    finish: str | None = None  # "stop" (end-of-turn token or stop text), "length", "cancelled"


class Engine(Protocol):
    """A loaded artifact. Calls are serialised by the engine; `close` frees its memory and may be called twice."""

    @property
    def info(self) -> EngineInfo: ...

    def tokenize(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`. parse_special turns the text of control tokens into their ids (templates only)."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The bytes of `tokens`, without control tokens' text."""
        ...

    def logits(self, requests: Sequence[LogitsRequest]) -> Iterator[Logits]:
        """Raw next-token logits, one array (len(positions), n_vocab) per request, in the order of `requests`.

        Prefixes that requests share are computed once. Raises ContextError before any work if a request is
        longer than n_context.
        """
        ...

    def generate(
        self, tokens: Sequence[int], settings: GenerationSettings, on_prompt: OnPrompt | None = None
    ) -> Iterator[GeneratedToken]:
        """Tokens one by one. What `tokens` shares with the previous call's sequence is not read again.

        Closing the iterator cancels. Raises ContextError if the prompt leaves no room for one token, EngineError for
        a grammar that is wrong, or that this engine cannot hold a reply to.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class RestoredState:
    """What a restore did: tokens that need not be read again, or 0 and why."""

    n_tokens: int
    reason: str


@runtime_checkable
class KeepsState(Protocol):
    """What an engine may offer beside `Engine`: the state of the conversation it last generated in, on disk."""

    def save_state(self, path: Path) -> int:
        """Write the state to `path` (mode 0600; replaced if it exists) and return how many tokens it holds.

        Raises EngineError if nothing was read yet or a generation is open, OutputError if the disk refuses.
        """
        ...

    def restore_state(self, path: Path) -> RestoredState:
        """Bring the state back: the next generation reads only what its prompt adds.

        A file of another model, setting or machine, a damaged or missing one: nothing restored, and the reason.
        Raises EngineError if a generation is open.
        """
        ...


@dataclass
class DraftCounts:
    """Guesses that were read ahead in a generation, and how many of them the model chose too."""

    n_drafted: int = 0
    n_accepted: int = 0


@runtime_checkable
class ReadsAhead(Protocol):
    """What an engine may offer beside `Engine`: guessing tokens, so that one decode reads several."""

    draft_counts: DraftCounts  # of the last generation

    def set_draft(self, draft: Path | str | None) -> None:
        """Guess from now on: "lookup" from the text so far, a path with that smaller model; None stops.

        Raises EngineError, naming the difference, for a model of another vocabulary, and where this model's memory
        cannot be cut back to the guesses that were right.
        """
        ...
