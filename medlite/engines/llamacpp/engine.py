"""The llama.cpp engine: a GGUF file on CPU or CUDA.

Scoring is in `scoring.py`, the sequence that generations continue in `sequence.py`, the load below.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from medlite.engines.engine import (
    DraftCounts,
    EngineInfo,
    GeneratedToken,
    GenerationSettings,
    Logits,
    LogitsRequest,
    OnLoad,
    OnPrompt,
    OpenSettings,
    RestoredState,
)
from medlite.engines.front import Front
from medlite.engines.grammar import token_table
from medlite.engines.llamacpp import state
from medlite.engines.llamacpp.drafts import Drafter, open_drafter
from medlite.engines.llamacpp.guard import load_model
from medlite.engines.llamacpp.memory import EXACT_ROWS, KV_TYPES, MemoryEstimate, read_shape
from medlite.engines.llamacpp.native import Context, Model
from medlite.engines.llamacpp.place import place
from medlite.engines.llamacpp.scoring import Scorer
from medlite.engines.llamacpp.sequence import ResidentSequence
from medlite.engines.reply import Reply
from medlite.engines.requests import checked_token
from medlite.engines.sampler import Sampler
from medlite.errors import EngineError
from medlite.formats.gguf import read_header
from medlite.native import gpu_build, runtime_version


class LlamaCppEngine:
    """An `engine.LocalEngine`."""

    def __init__(self, path: Path, model: Model, context: Context, info: EngineInfo, memory: MemoryEstimate) -> None:
        self.info, self.memory = info, memory
        self._model, self._context = model, context
        self._resident = ResidentSequence(model, context)
        self._scorer = Scorer(self._resident, info)
        words = model.vocabulary
        table = partial(token_table, info.n_vocab, words.piece, words.is_end)
        self._front = Front(info, lambda: words.piece, words.is_end, table)
        self._access = self._front.access
        self._drafter: Drafter | None = None
        self.draft_counts = DraftCounts()  # of the last generation
        self._identity = state.identify(path, info)

    @property
    def n_decodes(self) -> int:
        """Calls of llama_decode so far."""
        return self._resident.n_decodes

    @property
    def n_tokens_read(self) -> int:
        """Tokens that the model has computed so far."""
        return self._resident.n_tokens_read

    # --- text --------------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        self._access.check_open()
        return self._model.vocabulary.tokenize(text, add_special=add_bos, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        self._access.check_open()
        return b"".join(self._model.vocabulary.piece(checked_token(token, self.info)) for token in tokens)

    # --- logits ------------------------------------------------------------------------------------------------------

    def logits(self, requests: Sequence[LogitsRequest]) -> Iterator[Logits]:
        return self._front.logits(requests, self._read)

    def _read(self, requests: list[LogitsRequest]) -> Iterator[Logits]:
        self._resident.forget()
        try:
            yield from self._scorer.logits(requests)
        finally:
            if not self._access.closed:
                self._resident.forget()

    # --- generation --------------------------------------------------------------------------------------------------

    def generate(
        self, tokens: Sequence[int], settings: GenerationSettings, on_prompt: OnPrompt | None = None
    ) -> Iterator[GeneratedToken]:
        return self._front.generate(tokens, settings, on_prompt, self._write)

    def cancel(self) -> None:
        self._access.cancel()

    def _write(
        self, tokens: list[int], sampler: Sampler, reply: Reply, on_prompt: OnPrompt
    ) -> Iterator[GeneratedToken]:
        if self._resident.read_prompt(tokens, on_prompt, self._access.cancelled):
            self.draft_counts = DraftCounts()
            yield from self._steps(sampler, reply)

    def _steps(self, sampler: Sampler, reply: Reply) -> Iterator[GeneratedToken]:
        """The reply behind what was read. Each round chooses a token, guesses what may follow, and reads both at once;
        a guess is kept only where the sampler chooses it too, so a draft changes the speed and not the distribution.
        """
        resident = self._resident
        first_slot, drafted = resident.last_slot, list[int]()
        while True:
            n_before = len(resident.tokens) - len(drafted)
            for n_accepted in range(len(drafted) + 1):
                step = reply.step(*sampler.choose(self._context.logits_at(first_slot + n_accepted)))
                self.draft_counts.n_accepted += n_accepted < len(drafted) and step.token == drafted[n_accepted]
                yield step
                self._access.check_open()
                if step.finish:
                    return
                if n_accepted == len(drafted) or step.token != drafted[n_accepted]:
                    break
            if n_accepted < len(drafted):
                resident.rewind(n_before + n_accepted)
                if len(resident.tokens) != n_before + n_accepted:
                    raise EngineError(
                        f"{self.info.model_name}: its memory could not be cut back", hint="leave --draft out"
                    )
            drafted = self._guess(step.token, reply.n_left)
            resident.read([step.token, *drafted])
            first_slot = 0

    def _guess(self, token: int, n_left: int) -> list[int]:
        """What may follow `token`; nothing without a draft."""
        if self._drafter is None:
            return []
        n_most = min(n_left - 1, self.info.n_context - len(self._resident.tokens) - 1)
        drafted = self._drafter.propose([*self._resident.tokens, token], n_most) if n_most > 0 else []
        self.draft_counts.n_drafted += len(drafted)
        return drafted

    def set_draft(self, draft: Path | str | Drafter | None) -> None:
        with self._access.exclusive():
            if self._drafter is not None:
                self._drafter.free()
                self._drafter = None
            if draft is not None:
                self._drafter = open_drafter(draft, self._model, self.info) if isinstance(draft, Path | str) else draft

    # --- the conversation on disk (engine.KeepsState) ----------------------------------------------------------------

    def save_state(self, path: Path) -> int:
        with self._access.exclusive():
            return state.save_state(path, self._resident, self._identity)

    def restore_state(self, path: Path) -> RestoredState:
        with self._access.exclusive():
            return state.restore_state(path, self._resident, self._identity, self.info.n_context)

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._access.close(self._free)

    def _free(self) -> None:
        if self._drafter is not None:
            self._drafter.free()
        self._context.free()
        self._model.free()


def open_llamacpp(path: Path, settings: OpenSettings, on_progress: OnLoad | None = None) -> LlamaCppEngine:
    """Load a GGUF file. Raises MemoryShortError before the load if it cannot fit, EngineError if llama.cpp refuses."""
    started = time.perf_counter()
    kv_type, n_batch = settings.kv_type, settings.n_batch
    if kv_type not in KV_TYPES:
        raise EngineError(f"unknown KV cache type {kv_type!r}", hint=f"one of {', '.join(KV_TYPES)}")
    if n_batch < EXACT_ROWS:
        raise EngineError(f"batches of {n_batch} tokens, the llama.cpp engine takes {EXACT_ROWS} or more")
    header = read_header(path)
    placement = place(read_shape(header), settings)
    model = load_model(path, n_gpu_layers=placement.n_gpu_layers, on_progress=on_progress)
    try:
        context = Context(model, placement.n_context, settings)
    except BaseException:
        model.free()
        raise
    info = EngineInfo(
        engine="llamacpp",
        engine_version=runtime_version(),
        device=placement.choice.device,
        device_name=placement.choice.device_name,
        model_name=str(header.get("general.name") or path.stem),
        n_vocab=model.n_vocab,
        n_context=placement.n_context,
        n_threads=context.n_threads,
        load_seconds=time.perf_counter() - started,
        n_gpu_layers=placement.n_gpu_layers,
        settings={"kv_type": kv_type, "n_batch": str(n_batch), "flash_attention": "auto"},
        buffer_bytes=model.buffer_bytes | context.buffer_bytes,
        warnings=(placement.choice.warning,) if placement.choice.warning else (),
    )
    return LlamaCppEngine(path, model, context, info, placement.memory)


def probe() -> dict[str, object]:
    """The runtime's version, and whether it can use a GPU. Raises EngineError if it does not load."""
    return {"version": runtime_version(), "gpu": gpu_build()}
