"""The llama.cpp engine: a GGUF file on CPU or CUDA, through the batch API.

Logits: requests are taken in windows, sorted into a trie, and each wave of it is decoded with every shared token
read once (`prefix.py`). Nothing of an earlier call stays in the cache, so the same requests give the same bits.
Generation: one sequence stays in the cache, and a prompt that continues it is read from where they part.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medlite.devices import DeviceChoice, available_memory, cpu_name, find_gpus, physical_cores, resolve_device
from medlite.engines import llama_memory, llama_native, prefix
from medlite.engines.engine import EngineInfo, GeneratedToken, GenerationSettings, Logits, LogitsRequest
from medlite.engines.interrupt import noted_interrupt
from medlite.engines.sampler import PENALTY_WINDOW, Sampler
from medlite.engines.text_stream import TextStream
from medlite.errors import ContextError, DeviceError, EngineError
from medlite.gguf_format import read_header

N_BATCH = 512                       # tokens per decode; llama-bench's n_ubatch
WINDOW_REQUESTS = 64                # requests planned together: enough to share prefixes, few enough to report progress
WINDOW_BYTES = 256 << 20            # of logits held until their turn
CLOSE_SECONDS = 30.0


class LlamaCppEngine:
    """An `engine.Engine`. Calls from several threads wait for each other; a generation holds the engine until its
    iterator is exhausted or closed. n_decodes and n_tokens_read count what the model has computed so far.
    """

    def __init__(self, model: llama_native.Model, context: llama_native.Context, info: EngineInfo,
                 memory: llama_memory.MemoryEstimate, settings: llama_native.ContextSettings) -> None:
        self.info, self.memory = info, memory
        self._model, self._context = model, context
        self._n_cells, self._n_outputs = settings.n_cells, settings.n_outputs
        self._batch = llama_native.Batch(N_BATCH)
        self._resident: list[int] = []          # tokens of sequence 0, which generations continue
        self._lock = threading.Lock()
        self._holder: int | None = None         # the thread that holds the lock
        self._cancelled = threading.Event()
        self._closed = False
        self.n_decodes = self.n_tokens_read = 0

    # --- text --------------------------------------------------------------------------------------------------------

    @property
    def bos_text(self) -> str:
        """The token that begins a sequence, as a template writes it; empty if there is none."""
        return self._model.token_text(self._model.bos)

    @property
    def eos_text(self) -> str:
        return self._model.token_text(self._model.eos)

    def tokenize(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        self._check_open()
        return self._model.tokenize(text, add_special=add_bos, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        self._check_open()
        return b"".join(self._model.piece(self._checked(token)) for token in tokens)

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.info.n_vocab:
            raise EngineError(f"token {token} is outside the vocabulary of {self.info.n_vocab}")
        return token

    # --- logits ------------------------------------------------------------------------------------------------------

    def logits(self, requests: Sequence[LogitsRequest]) -> Iterator[Logits]:
        self._check_open()
        for number, request in enumerate(requests):
            self._check_request(number, request)
        return self._logits(list(requests))

    def _check_request(self, number: int, request: LogitsRequest) -> None:
        n, positions = len(request.tokens), request.positions
        if n > self.info.n_context:
            raise ContextError(f"request {number}: {n} tokens, the context holds {self.info.n_context}",
                               hint=f"--context {n} or more, if the model and the memory allow it")
        if any(b <= a for a, b in itertools.pairwise(positions)) or (
                positions and not 0 <= positions[0] <= positions[-1] < n):
            raise EngineError(f"request {number}: positions {positions[:4]}... must ascend within its {n} tokens")
        if n and not 0 <= min(request.tokens) <= max(request.tokens) < self.info.n_vocab:
            raise EngineError(f"request {number}: a token is outside the vocabulary of {self.info.n_vocab}")

    def _logits(self, requests: list[LogitsRequest]) -> Iterator[Logits]:
        with self._exclusive():
            self._forget()
            try:
                resident: list[prefix.Ids] = []      # by sequence id, what the previous wave left in the cache
                for window in self._windows(requests):
                    branches, index = prefix.distinct_sequences(window)
                    rows: list[Logits] = []
                    while len(rows) < len(branches):
                        new_rows, resident = self._decode_wave(branches[len(rows):], resident)
                        rows += new_rows
                    for request, i in zip(window, index, strict=True):
                        yield rows[i][np.searchsorted(branches[i].wanted, request.positions)]
            finally:
                if not self._closed:
                    self._forget()

    def _windows(self, requests: list[LogitsRequest]) -> Iterator[list[LogitsRequest]]:
        """Consecutive requests whose logits may be held at once; at least one."""
        window: list[LogitsRequest] = []
        n_bytes = 0
        for request in requests:
            size = 4 * self.info.n_vocab * len(request.positions)
            if window and (len(window) == WINDOW_REQUESTS or n_bytes + size > WINDOW_BYTES):
                yield window
                window, n_bytes = [], 0
            window.append(request)
            n_bytes += size
        if window:
            yield window

    def _decode_wave(self, branches: list[prefix.Branch],
                     resident: list[prefix.Ids]) -> tuple[list[Logits], list[prefix.Ids]]:
        """Logits of as many leading `branches` as one wave takes, and the tokens now in the cache by sequence."""
        kept = self._keep_best(branches[0], resident)
        n_most = llama_memory.MAX_SEQUENCES - 1 if self._model.can_rewind else 1
        wave = prefix.plan_wave(branches, kept, max_sequences=n_most,
                                max_tokens=min(N_BATCH, self._n_cells - len(kept)))
        n = len(wave.n_kept)
        for i, n_shared in enumerate(wave.n_kept):
            if n_shared:
                self._context.copy(0, i + 1, n_shared)
        values = np.empty((int(wave.wanted.sum()), self.info.n_vocab), dtype=np.float32)
        row_of = np.cumsum(wave.wanted) - 1
        for start, end in self._chunks(wave):
            self._batch.fill(wave.tokens[start:end], wave.positions[start:end], wave.wanted[start:end],
                             wave.members[start:end] + 1)
            self._decode()
            for slot in np.flatnonzero(wave.wanted[start:end]):
                values[row_of[start + slot]] = self._context.logits_at(int(slot))
        if not np.isfinite(values.max(axis=1, initial=0)).all():
            raise EngineError(f"{self.info.model_name}: the model returned NaN or infinite logits",
                              hint="the file may be damaged, or its recipe too low for this model")
        rows = [values[row_of[slots]] for slots in wave.slots]
        return rows, [kept, *(branch.tokens for branch in branches[:n])]

    def _keep_best(self, first: prefix.Branch, resident: list[prefix.Ids]) -> prefix.Ids:
        """Cut the cache down to the longest prefix of `first` in it, as sequence 0, and return that prefix."""
        if not resident or not self._model.can_rewind:
            self._context.clear()
            return np.zeros(0, dtype=np.int32)
        lengths = [prefix.keepable(first, tokens) for tokens in resident]
        best = int(np.argmax(lengths))
        if best != 0:
            self._context.remove(0)
            self._context.copy(best, 0, lengths[best])
        else:
            self._context.remove(0, lengths[0])
        for sequence in range(1, len(resident)):
            self._context.remove(sequence)
        return first.tokens[: lengths[best]]

    def _chunks(self, wave: prefix.Wave) -> Iterator[tuple[int, int]]:
        """Slices of the wave's tokens that one decode takes: at most N_BATCH tokens and n_outputs wanted rows."""
        counts = np.concatenate([[0], np.cumsum(wave.wanted)])
        start, n = 0, len(wave.tokens)
        while start < n:
            # counts ascends, so this is the last end with at most n_outputs wanted rows
            end = int(np.searchsorted(counts, counts[start] + self._n_outputs, side="right")) - 1
            end = min(end, start + N_BATCH, n)
            yield start, end
            start = end

    # --- generation --------------------------------------------------------------------------------------------------

    def generate(self, tokens: Sequence[int], settings: GenerationSettings) -> Iterator[GeneratedToken]:
        self._check_open()
        if not tokens:
            raise EngineError("an empty prompt", hint="give at least one token; tokenize adds the first one by default")
        if len(tokens) >= self.info.n_context:
            raise ContextError(f"the prompt has {len(tokens)} tokens, the context holds {self.info.n_context}",
                               hint="shorten it, or take a larger --context if the model allows it")
        return self._generate([self._checked(token) for token in tokens], settings)

    def cancel(self) -> None:
        """End the running generation from another thread; its last token carries finish "cancelled"."""
        self._cancelled.set()

    def _generate(self, tokens: list[int], settings: GenerationSettings) -> Iterator[GeneratedToken]:
        with self._exclusive():
            self._cancelled.clear()
            n_left = min(settings.max_tokens, self.info.n_context - len(tokens))
            if n_left < 1 or not self._read_prompt(tokens):
                return
            sampler, stream = Sampler(settings, tokens[-PENALTY_WINDOW:]), TextStream(settings.stop)
            last_slot = int(self._batch.struct.n_tokens) - 1
            # From here on one token is read at a time: only the first entry of the batch changes.
            self._batch.fill([0], np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.bool_))
            while True:
                token, log_probability = sampler.choose(self._context.logits_at(last_slot))
                n_left -= 1
                step = self._step(token, log_probability, stream, n_left)
                yield step
                self._check_open()
                if step.finish:
                    return
                self._read_token(token)
                last_slot = 0

    def _step(self, token: int, log_probability: float, stream: TextStream, n_left: int) -> GeneratedToken:
        if self._model.is_end(token):
            return GeneratedToken(token, stream.flush(), log_probability, "stop")
        text = stream.push(self._model.piece(token))
        if stream.stopped:
            return GeneratedToken(token, text, log_probability, "stop")
        if self._cancelled.is_set():
            return GeneratedToken(token, text + stream.flush(), log_probability, "cancelled")
        if not n_left:
            return GeneratedToken(token, text + stream.flush(), log_probability, "length")
        return GeneratedToken(token, text, log_probability)

    def _read_token(self, token: int) -> None:
        self._batch.tokens[0] = token
        self._batch.positions[0] = len(self._resident)
        self._decode()
        self._resident.append(token)

    def _read_prompt(self, tokens: list[int]) -> bool:
        """Bring sequence 0 to `tokens`, reading only what it lacks; False if cancelled meanwhile.

        The last token is always read, since its logits are needed.
        """
        n_shared = prefix.shared_length(np.asarray(tokens[:-1], dtype=np.int32),
                                        np.asarray(self._resident, dtype=np.int32))
        if n_shared < len(self._resident):
            if n_shared and self._model.can_rewind and self._context.remove(0, n_shared):
                del self._resident[n_shared:]
            else:
                self._forget()
        new = np.asarray(tokens[len(self._resident):], dtype=np.int32)
        positions = np.arange(len(self._resident), len(tokens), dtype=np.int32)
        wanted = positions == len(tokens) - 1
        for start in range(0, len(new), N_BATCH):
            piece = slice(start, start + N_BATCH)
            self._batch.fill(new[piece], positions[piece], wanted[piece])
            if not self._decode_interruptibly():
                return False
            self._resident += new[piece].tolist()
        return True

    # --- the native side ---------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """Read the batch. Raises EngineError; the cache is then empty."""
        self._count()
        try:
            self._context.decode(self._batch)
        except EngineError:
            self._forget()
            raise

    def _decode_interruptibly(self) -> bool:
        """Read the batch; on `cancel` return False, on Ctrl-C raise KeyboardInterrupt, and leave the cache whole."""
        self._count()
        with noted_interrupt() as interrupted:
            self._context.abort_when(lambda: interrupted() or self._cancelled.is_set())
            try:
                finished = self._context.decode(self._batch)
            except EngineError:
                self._forget()
                raise
            finally:
                self._context.abort_when(None)
            if not finished:  # what was read of this batch goes; llama.cpp removes only the part it stopped in
                n_whole = len(self._resident)
                if not (n_whole and self._model.can_rewind and self._context.remove(0, n_whole)):
                    self._forget()
        return finished and not self._cancelled.is_set()

    def _count(self) -> None:
        self.n_decodes += 1
        self.n_tokens_read += int(self._batch.struct.n_tokens)

    def _forget(self) -> None:
        self._context.clear()
        self._resident.clear()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the engine. Raises EngineError, instead of waiting forever, if this thread's own generation holds it."""
        me = threading.get_ident()
        if self._holder == me:
            raise EngineError("a generation of this thread is still open", hint="exhaust or close its iterator first")
        with self._lock:
            self._holder = me
            try:
                self._check_open()
                yield
            finally:
                self._holder = None

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed")

    def close(self) -> None:
        if self._closed:
            return
        mine = self._holder == threading.get_ident()
        self.cancel()
        if not mine and not self._lock.acquire(timeout=CLOSE_SECONDS):
            raise EngineError("another thread still uses the engine", hint="close its iterator first")
        try:
            self._closed = True
            self._context.free()
            self._model.free()
        finally:
            if not mine:
                self._lock.release()

    def __enter__(self) -> "LlamaCppEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_llamacpp(path: Path, *, device: str = "auto", n_context: int | None = None, n_threads: int | None = None,
                  kv_type: str = "f16", on_progress: Callable[[float], None] | None = None) -> LlamaCppEngine:
    """Load a GGUF file. Raises MemoryShortError before the load if it cannot fit, EngineError if llama.cpp refuses.

    n_context None: from the model's training and the free memory. n_threads None: one per physical core.
    kv_type: one of llama_memory.KV_TYPES.
    """
    started = time.perf_counter()
    if kv_type not in llama_memory.KV_TYPES:
        raise EngineError(f"unknown KV cache type {kv_type!r}", hint=f"one of {', '.join(llama_memory.KV_TYPES)}")
    if n_threads is not None and n_threads < 1:
        raise EngineError(f"{n_threads} threads", hint="--threads takes a positive number")
    header = read_header(path)
    placement = _place(llama_memory.read_shape(header), device, n_context, kv_type)
    model = llama_native.Model(path, n_gpu_layers=placement.n_gpu_layers, on_progress=on_progress)
    settings = llama_native.ContextSettings(
        n_cells=llama_memory.n_cells_for(placement.n_context, N_BATCH), n_batch=N_BATCH,
        n_outputs=llama_memory.max_outputs(model.n_vocab, N_BATCH),
        n_threads=n_threads or physical_cores(), kv_type=kv_type)
    try:
        context = llama_native.Context(model, settings)
    except BaseException:
        model.free()
        raise
    info = EngineInfo(
        engine="llamacpp", engine_version=f"llama-cpp-python {llama_native.SUPPORTED_VERSION}",
        device=placement.choice.device, device_name=placement.choice.device_name,
        model_name=str(header.get("general.name") or path.stem), n_vocab=model.n_vocab, n_context=placement.n_context,
        n_threads=settings.n_threads, load_seconds=time.perf_counter() - started, n_gpu_layers=placement.n_gpu_layers,
        settings={"kv_type": kv_type, "n_batch": str(N_BATCH), "flash_attention": "auto"},
        buffer_bytes=model.buffer_bytes | context.buffer_bytes,
        warnings=(placement.choice.warning,) if placement.choice.warning else ())
    return LlamaCppEngine(model, context, info, placement.memory, settings)


@dataclass(frozen=True)
class _Placement:
    """Where a model goes and what it takes there."""

    choice: DeviceChoice
    n_context: int
    n_gpu_layers: int
    memory: llama_memory.MemoryEstimate


def _place(shape: llama_memory.ModelShape, device: str, n_context: int | None, kv_type: str) -> _Placement:
    """Device, context and layers for a model of `shape`, before anything is loaded."""
    gpus = find_gpus() if device != "cpu" else ()
    choice = resolve_device(device, gpu_build=llama_native.gpu_build(), gpus=gpus)
    free_gpu_bytes = gpus[0].n_bytes_free if choice.device == "cuda" else 0
    n_context = llama_memory.choose_context(shape, n_context, kv_type, available_memory() + free_gpu_bytes, N_BATCH)
    need = llama_memory.estimate(shape, n_context, kv_type, N_BATCH)
    if choice.device == "cpu":
        return _Placement(choice, n_context, 0, need)
    n_gpu_layers = llama_memory.layers_that_fit(shape, need, free_gpu_bytes)
    if n_gpu_layers == 0:
        if device == "cuda":
            raise DeviceError(f"{choice.device_name}: not one layer fits into its free memory", hint="--device cpu")
        choice = DeviceChoice("cpu", cpu_name(), f"not one layer fits into the free memory of {choice.device_name}")
    return _Placement(choice, n_context, n_gpu_layers, need)
