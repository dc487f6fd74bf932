"""The ONNX Runtime engine: a folder of `medlite quantize --format onnx`, on CPU or CUDA.

One sequence lives in a key-value buffer that the graph writes in place. Scoring reads sorted sequences behind what
they share, or, where they share little, side by side padded on the right; only wanted logits are computed.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from medlite.devices import available_memory, physical_cores
from medlite.engines import prefix
from medlite.engines.context import ContextNeeds, choose_context
from medlite.engines.engine import (
    EngineInfo,
    GeneratedToken,
    GenerationSettings,
    Logits,
    LogitsRequest,
    OnLoad,
    OnPrompt,
    OpenSettings,
)
from medlite.engines.front import Front
from medlite.engines.grammar import token_table
from medlite.engines.ort import session
from medlite.engines.ort.growing import GrowingDecoder
from medlite.engines.ort.moses import MosesTokenizer
from medlite.engines.ort.tokenizer import FolderTokenizer, open_tokenizer
from medlite.engines.reply import Reply
from medlite.engines.requests import WINDOW_BYTES, checked_token, windows
from medlite.engines.sampler import Sampler
from medlite.errors import ArtifactError
from medlite.formats.onnx_folder import OnnxFacts, folder_bytes, is_onnx_folder, read_onnx_facts

SHARED_WORTH_IT = 4  # sequences are chained if they share at least one token in this many
MAX_BATCH = 16
# Memory over file size, by the bits of a weight. float16 is widened, and both are held; int4 and int8 are repacked
# (1.15 to 1.75 measured).
MEMORY_FACTORS = {32: 2.0, 16: 3.0}
DEFAULT_MEMORY_FACTOR = 1.75


class OrtEngine:
    """An `engine.LocalEngine`. n_tokens_read counts what the model has computed so far."""

    def __init__(
        self,
        opened: session.Opened,
        facts: OnnxFacts,
        tokenizer: FolderTokenizer | MosesTokenizer,
        info: EngineInfo,
        n_batch: int,
    ) -> None:
        self.info, self._n_batch = info, n_batch
        self._opened, self._facts, self._tokenizer = opened, facts, tokenizer
        self._decoder = (
            session.CachedDecoder(opened, facts, info.n_context)
            if facts.shared_cache
            else GrowingDecoder(opened, facts)
        )
        self._resident: list[int] = []
        self._is_long = False  # whether what is resident was rotated by LongRoPE's long table
        piece, is_end = tokenizer.piece, frozenset(facts.end_tokens).__contains__
        self._front = Front(info, lambda: piece, is_end, lambda: token_table(info.n_vocab, piece, is_end))
        self._access = self._front.access
        self.n_tokens_read = 0

    # --- text --------------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        self._access.check_open()
        return self._tokenizer.encode(text, add_bos=add_bos, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        self._access.check_open()
        return self._tokenizer.pieces([checked_token(token, self.info) for token in tokens])

    # --- logits ------------------------------------------------------------------------------------------------------

    def logits(self, requests: Sequence[LogitsRequest]) -> Iterator[Logits]:
        return self._front.logits(requests, self._read_all)

    def _read_all(self, requests: list[LogitsRequest]) -> Iterator[Logits]:
        self._rewind(0)
        try:
            for window in windows(requests, self.info.n_vocab):
                branches, index = prefix.distinct_sequences(window)
                rows = self._read_window(branches)
                for request, i in zip(window, index, strict=True):
                    yield rows[i][np.searchsorted(branches[i].wanted, request.positions)]
        finally:
            if not self._access.closed:
                self._rewind(0)

    def _read_window(self, branches: list[prefix.Branch]) -> list[Logits]:
        """The wanted logits of every branch: behind what it shares with the one before, or side by side."""
        n_tokens = sum(len(branch.tokens) for branch in branches)
        n_shared = sum(prefix.keepable(branch, before.tokens) for before, branch in itertools.pairwise(branches))
        longest = max(len(branch.tokens) for branch in branches)
        if (
            len(branches) == 1
            or SHARED_WORTH_IT * n_shared >= n_tokens
            or 2 * longest > self._n_batch
            or (0 < self._facts.long_rope_from < longest)
        ):
            return [self._read_branch(branch) for branch in branches]
        rows: list[Logits] = [np.empty((0, self.info.n_vocab), np.float32)] * len(branches)
        for batch in self._batches(branches):
            for i, logits in zip(batch, self._read_batch([branches[i] for i in batch]), strict=True):
                rows[i] = logits
        return rows

    def _read_branch(self, branch: prefix.Branch) -> Logits:
        """The wanted logits of one sequence, read behind what the buffer shares with it."""
        n_total = len(branch.tokens)
        n_kept = prefix.keepable(branch, np.asarray(self._resident, np.int32)) if self._reusable(n_total) else 0
        self._rewind(n_kept)
        found = [np.empty((0, self.info.n_vocab), np.float32)]
        for first in range(n_kept, n_total, self._n_batch):
            piece = branch.tokens[first : first + self._n_batch]
            wanted = branch.wanted[(branch.wanted >= first) & (branch.wanted < first + len(piece))] - first
            start = int(wanted[0]) if len(wanted) else len(piece) - 1
            logits = self._read(piece.tolist(), start, n_total)
            found.append(logits[wanted - start].copy())
        return np.concatenate(found)

    def _batches(self, branches: list[prefix.Branch]) -> Iterator[list[int]]:
        """Indices of branches of about equal length, within n_batch tokens and WINDOW_BYTES of logits a run."""
        order = sorted(range(len(branches)), key=lambda i: len(branches[i].tokens))
        batch: list[int] = []
        for i in order:
            longest = len(branches[i].tokens)
            first = min(_first_row(branches[j]) for j in [*batch, i])
            n = len(batch) + 1
            too_much = n * longest > self._n_batch or 4 * n * (longest - first) * self.info.n_vocab > WINDOW_BYTES
            if batch and (n > MAX_BATCH or too_much):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _read_batch(self, branches: list[prefix.Branch]) -> list[Logits]:
        start = min(_first_row(branch) for branch in branches)
        tokens = [branch.tokens.astype(np.int64) for branch in branches]
        logits = session.read_batch(self._opened, self._facts, tokens, start)
        self.n_tokens_read += sum(map(len, tokens))
        return [row[branch.wanted - start] for row, branch in zip(logits, branches, strict=True)]

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
        logits = self._read_prompt(tokens, on_prompt)
        if logits is not None:
            yield from self._front.steps(sampler, reply, logits, self._read_next)

    def _read_prompt(self, tokens: list[int], on_prompt: OnPrompt) -> Logits | None:
        """The last token's logits, reading only what the buffer lacks; None if cancelled meanwhile."""
        n_shared = prefix.shared_length(np.asarray(tokens[:-1], np.int32), np.asarray(self._resident, np.int32))
        self._rewind(n_shared if self._reusable(len(tokens)) else 0)
        n_before = len(self._resident)
        logits: Logits | None = None
        on_prompt(0, len(tokens) - n_before)
        for first in range(n_before, len(tokens), self._n_batch):
            if self._access.cancelled():
                return None
            piece = tokens[first : first + self._n_batch]
            logits = self._read(piece, len(piece) - 1, len(tokens))[-1]
            on_prompt(len(self._resident) - n_before, len(tokens) - n_before)
        return logits

    def _read_next(self, token: int) -> Logits:
        """The logits behind one more token. Where it makes another rotary table rule, everything is read anew.

        Source: transformers, Phi3ForCausalLM.prepare_inputs_for_generation, which drops its cache there.
        """
        tokens = [token]
        if not self._reusable(len(self._resident) + 1):
            tokens = [*self._resident, token]
            self._rewind(0)
        n_total = len(self._resident) + len(tokens)
        for first in range(0, len(tokens), self._n_batch):
            piece = tokens[first : first + self._n_batch]
            logits = self._read(piece, len(piece) - 1, n_total)
        last: Logits = logits[-1]
        return last

    # --- the buffer --------------------------------------------------------------------------------------------------

    def _read(self, tokens: list[int], start: int, n_total: int) -> Logits:
        logits = self._decoder.read(np.asarray(tokens, np.int64), start, n_total)
        self._is_long = 0 < self._facts.long_rope_from < n_total
        self._resident += tokens
        self.n_tokens_read += len(tokens)
        return logits

    def _reusable(self, n_total: int) -> bool:
        """Whether what the buffer holds was rotated by the table that a sequence of n_total tokens uses."""
        return not self._resident or self._is_long == (0 < self._facts.long_rope_from < n_total)

    def _rewind(self, n_tokens: int) -> None:
        self._decoder.rewind(n_tokens)
        del self._resident[n_tokens:]

    def close(self) -> None:
        self._access.close(self._free)

    def _free(self) -> None:
        del self._decoder, self._opened


def _first_row(branch: prefix.Branch) -> int:
    """The first position whose logits are computed: the first wanted one, the last where none is."""
    return int(branch.wanted[0]) if len(branch.wanted) else max(len(branch.tokens) - 1, 0)


def open_ort(path: Path, settings: OpenSettings, on_progress: OnLoad | None = None) -> OrtEngine:
    """Load an ONNX folder. Raises MemoryShortError before the load if it cannot fit, EngineError if the runtime
    refuses, DeviceError if cuda is asked for and not what runs.
    """
    started = time.perf_counter()
    if not is_onnx_folder(path):
        raise ArtifactError(f"{path}: no ONNX folder of medlite", hint="medlite quantize SOURCE --format onnx")
    facts = read_onnx_facts(path)
    tokenizer = open_tokenizer(path, facts.architecture, facts.end_tokens)
    n_context = choose_context(context_needs(facts, folder_bytes(path, facts)), settings.n_context, available_memory())
    n_threads = settings.n_threads or physical_cores()
    opened = session.open_session(path, facts, settings.device, n_threads)
    if on_progress:
        on_progress(1.0)
    info = EngineInfo(
        engine="ort",
        engine_version=f"onnxruntime {opened.version}",
        device=opened.device,
        device_name=opened.device_name,
        model_name=facts.name,
        n_vocab=facts.n_vocab,
        n_context=n_context,
        n_threads=n_threads,
        load_seconds=time.perf_counter() - started,
        n_gpu_layers=facts.n_layer if opened.device == "cuda" else 0,
        settings={"kv_type": facts.kv_type, "n_batch": str(settings.n_batch), "graph": facts.device},
        warnings=(opened.warning,) if opened.warning else (),
    )
    return OrtEngine(opened, facts, tokenizer, info, settings.n_batch)


def probe() -> dict[str, object]:
    """The runtime's version, and whether it can use a GPU. Raises as `session.import_runtime`."""
    runtime = session.import_runtime()
    gpu = session.PROVIDERS["cuda"] in runtime.get_available_providers()
    return {"version": f"onnxruntime {runtime.__version__}", "gpu": gpu}


def context_needs(facts: OnnxFacts, n_bytes: int) -> ContextNeeds:
    """What `choose_context` weighs, for a folder of `n_bytes`."""
    weights = int(n_bytes * MEMORY_FACTORS.get(round(facts.bits_per_weight), DEFAULT_MEMORY_FACTOR))
    # A growing cache is copied as it grows: the old one and the new one exist at once.
    per_token = facts.kv_bytes_per_token() * (1 if facts.shared_cache else 2)
    return ContextNeeds(
        n_trained=facts.n_context_trained,
        weights=weights,
        total=lambda n_context: weights + n_context * per_token,
        cache=lambda n_context: n_context * per_token,
        per_token=per_token,
    )
