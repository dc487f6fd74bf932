"""What a runtime must offer: text to tokens and back, a streamed generation, and either logits or answers.

An engine is a plain object that satisfies one of two protocols; no engine inherits from them. What runs here is a
`LogitsEngine`: it gives raw logits, and `bench.score.scoring` turns them into log-probabilities for all of them alike.
A server may return no logits but the log-probabilities of given answers: it is an `AnswersEngine`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from medlite.devices import DEVICES
from medlite.errors import DeviceError, EngineError

N_BATCH = 512  # tokens of one decode; llama-bench's n_ubatch
Logits = NDArray[np.float32]
# Hears how many of a prompt's new tokens are read, and how many there are: (0, n) first, then after each batch.
OnPrompt = Callable[[int, int], None]
OnLoad = Callable[[float], None]  # hears the loaded share, 0 to 1


@dataclass(frozen=True)
class OpenSettings:
    """How an artifact is opened. Raises EngineError or DeviceError for a value that no engine takes.

    n_context None: from the model's training and the free memory. n_threads None: one per physical core. kv_type: of
    the llama.cpp engine's cache. dtype: of the torch engine's weights; empty for float32 on CPU and the checkpoint's
    own on CUDA. n_batch: tokens of one decode, which bounds its scratch memory.
    """

    device: str = "auto"
    n_context: int | None = None
    n_threads: int | None = None
    kv_type: str = "f16"
    dtype: str = ""
    n_batch: int = N_BATCH

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise DeviceError(f"unknown device {self.device!r}", hint=f"one of {', '.join(DEVICES)}")
        if self.n_batch < 1:
            raise EngineError(f"batches of {self.n_batch} tokens")
        if self.n_threads is not None and self.n_threads < 1:
            raise EngineError(f"{self.n_threads} threads", hint="--threads takes a positive number")


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
    ignore_end: write on past the tokens that end a turn, for measurements of max_tokens tokens.
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
    ignore_end: bool = False


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
    """What every engine offers. `close` frees its memory and may be called twice."""

    @property
    def info(self) -> EngineInfo: ...

    def tokenize(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`. parse_special turns the text of control tokens into their ids (templates only)."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The bytes of `tokens`, without control tokens' text."""
        ...

    def generate(
        self, tokens: Sequence[int], settings: GenerationSettings, on_prompt: OnPrompt | None = None
    ) -> Iterator[GeneratedToken]:
        """Tokens one by one. What `tokens` shares with the previous call's sequence is not read again, except by the
        torch reference, which keeps nothing between two calls.

        Closing the iterator cancels. Raises ContextError if the prompt leaves no room for one token, EngineError for
        a grammar that is wrong, or that this engine cannot hold a reply to.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class LogitsEngine(Engine, Protocol):
    """What gives logits."""

    def logits(self, requests: Sequence[LogitsRequest]) -> Iterator[Logits]:
        """Raw next-token logits, one array (len(positions), n_vocab) per request, in the order of `requests`.

        Prefixes that requests share are computed once. Raises ContextError before any work if a request is
        longer than n_context.
        """
        ...


class LocalEngine(LogitsEngine, Protocol):
    """An artifact loaded in this process. Calls are serialised: a call holds the engine until its iterator is exhausted
    or closed, other threads wait for it, and a second call of the same thread is an EngineError. `front.py` does that.
    """

    def cancel(self) -> None:
        """End the running generation from another thread; its last token carries finish "cancelled"."""
        ...


@dataclass(frozen=True)
class ServedModel:
    """What a server says of its model; 0 or empty where it does not say. server: what kind of server it is."""

    name: str
    server: str
    n_params: int = 0
    n_bytes: int = 0
    recipe: str = ""
    chat_template: str = ""
    special_tokens: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class AnswersEngine(Engine, Protocol):
    """What gives the log-probabilities of given answers, in nats. May be called from several threads at once.

    One that returns whole distributions is a `LogitsEngine` too.
    """

    @property
    def served(self) -> ServedModel: ...

    @property
    def has_tokenizer(self) -> bool:
        """Whether `tokenize` works and `log_probabilities` may be asked; else only texts are compared."""
        ...

    def log_probabilities(self, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Of each continuation, the sum over its tokens. Raises RefusedError if one of them is not told."""
        ...

    def text_log_probabilities(self, context: str, continuations: Sequence[str]) -> tuple[list[float], int]:
        """The same from texts, and how many tokens the context has."""
        ...


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
