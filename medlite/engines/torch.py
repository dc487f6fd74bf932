"""The full-precision reference: a Hugging Face checkpoint in Transformers, at float32, bfloat16 or float16.

It shows what the published weights say, before any conversion: compare it with a BF16 GGUF file to see what the
conversion costs. Several GPUs share a model that one cannot hold (needs accelerate). No code of the checkpoint runs.
"""

import copy
import importlib.metadata
import inspect
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medlite.devices import cpu_name
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
from medlite.engines.grammar import TokenTable, token_table_of_json
from medlite.engines.reply import Reply
from medlite.engines.requests import WINDOW_BYTES, WINDOW_REQUESTS, checked_token
from medlite.engines.sampler import Sampler
from medlite.errors import ArtifactError, DeviceError, EngineError, MissingExtraError

DTYPES = ("float32", "bfloat16", "float16")
BATCH_TOKENS = 8192  # tokens of one forward pass, padding included
LEAST_FILL = 0.9  # a sequence shorter than this share of the batch's longest begins the next batch
SHARED_TOKENS_WORTH_IT = 32  # shorter common beginnings are read again rather than kept apart


class TorchReferenceEngine:
    """An `engine.LocalEngine` over a Transformers model. It keeps nothing between two calls."""

    def __init__(self, model: Any, tokenizer: Any, info: EngineInfo, end_tokens: frozenset[int]) -> None:
        self.info = info
        self._model, self._tokenizer = model, tokenizer
        # transformers 5 renamed the argument and the output, and warns of the old name.
        self._cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self._end_tokens = end_tokens
        self._front = Front(info, partial(JoinedText, self.detokenize), end_tokens.__contains__, self._token_table)
        self._access = self._front.access

    def tokenize(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        self._access.check_open()
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=add_bos, split_special_tokens=not parse_special
        )
        return ids

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        self._access.check_open()
        known = [checked_token(token, self.info) for token in tokens]
        text: str = self._tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.encode()

    def logits(self, requests: Sequence[LogitsRequest]) -> Iterator[Logits]:
        return self._front.logits(requests, self._read_all)

    def _read_all(self, requests: list[LogitsRequest]) -> Iterator[Logits]:
        asked = windows([request for request in requests if request.positions])
        ready: deque[Logits] = deque()
        for request in requests:
            if not request.positions:
                yield np.empty((0, self.info.n_vocab), np.float32)
                continue
            if not ready:
                ready.extend(self._read_window(next(asked)))
            yield ready.popleft()

    def _read_window(self, window: list[LogitsRequest]) -> list[Logits]:
        rows: list[Logits] = [np.empty((0, 0), dtype=np.float32)] * len(window)
        n_shared = shared_prefix([request.tokens for request in window])
        n_shared = n_shared if n_shared >= SHARED_TOKENS_WORTH_IT and len(window) > 1 else 0
        n_shared = min(n_shared, min(request.positions[0] for request in window))
        past = self._read_shared(window[0].tokens[:n_shared]) if n_shared else None
        for batch in batches(window, n_shared, self.info.n_vocab):
            for i, row in zip(batch, self._forward([window[i] for i in batch], n_shared, past), strict=True):
                rows[i] = row
        return rows

    def _read_shared(self, tokens: tuple[int, ...]) -> Any:
        """The key-value cache of what all requests of a window begin with."""
        import torch

        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self._model.device)
            return self._model(input_ids=ids, use_cache=True, logits_to_keep=1)[self._cache]

    def _forward(self, batch: list[LogitsRequest], n_shared: int, past: Any) -> list[Logits]:
        """Logits of one batch. Sequences are padded on the left, so that the wanted positions end together."""
        import torch

        rests = [request.tokens[n_shared:] for request in batch]
        width = max(map(len, rests))
        device = self._model.device
        ids = torch.zeros((len(batch), width), dtype=torch.long, device=device)
        mask = torch.zeros((len(batch), n_shared + width), dtype=torch.long, device=device)
        mask[:, :n_shared] = 1
        for i, rest in enumerate(rests):
            ids[i, width - len(rest) :] = torch.tensor(rest, device=device)
            mask[i, n_shared + width - len(rest) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, n_shared:]
        keep = max(len(request.tokens) - request.positions[0] for request in batch)
        cache = None
        if past is not None:
            cache = copy.deepcopy(past)
            cache.batch_repeat_interleave(len(batch))
        with torch.inference_mode():
            out = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                **{self._cache: cache},
                use_cache=cache is not None,
                logits_to_keep=keep,
            ).logits
        table = out.float().cpu().numpy()
        return [table[i, [keep - len(r.tokens) + p for p in r.positions]] for i, r in enumerate(batch)]

    def generate(
        self, tokens: Sequence[int], settings: GenerationSettings, on_prompt: OnPrompt | None = None
    ) -> Iterator[GeneratedToken]:
        return self._front.generate(tokens, settings, on_prompt, self._write)

    def _token_table(self) -> TokenTable:
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        if fast is None:
            raise EngineError(f"{self.info.model_name}: its tokenizer is written in Python, which no grammar can read")
        ends = (token for token in self._end_tokens if token < len(self._tokenizer))
        return token_table_of_json(fast.to_str(), self.info.n_vocab, ends)

    def cancel(self) -> None:
        self._access.cancel()

    def _write(
        self, tokens: list[int], sampler: Sampler, reply: Reply, on_prompt: OnPrompt
    ) -> Iterator[GeneratedToken]:
        import torch

        past: Any = None

        def read(unread: list[int]) -> Logits:
            nonlocal past
            with torch.inference_mode():
                out = self._model(
                    input_ids=torch.tensor([unread], device=self._model.device),
                    **{self._cache: past},
                    use_cache=True,
                    logits_to_keep=1,
                )
            past = out[self._cache]
            last: Logits = out.logits[0, -1].float().cpu().numpy()
            return last

        on_prompt(0, len(tokens))
        logits = read(tokens)
        on_prompt(len(tokens), len(tokens))
        if not self._access.cancelled():
            yield from self._front.steps(sampler, reply, logits, lambda token: read([token]))

    def close(self) -> None:
        self._access.close(self._free)

    def _free(self) -> None:
        self._model = None


class JoinedText:
    """The bytes that each token adds to a text: byte-level pieces join only in the whole of it."""

    def __init__(self, detokenize: Callable[[Sequence[int]], bytes]) -> None:
        self._detokenize = detokenize
        self._tokens: list[int] = []
        self._shown = b""

    def __call__(self, token: int) -> bytes:
        self._tokens.append(token)
        # A character that is not whole yet is decoded as U+FFFD; once shown, the text behind it would never fit.
        whole = self._detokenize(self._tokens).decode().rstrip("\ufffd").encode()
        if not whole.startswith(self._shown):
            return b""
        piece, self._shown = whole[len(self._shown) :], whole
        return piece


def windows(requests: Sequence[LogitsRequest]) -> Iterator[list[LogitsRequest]]:
    """Consecutive requests that are worked on together, at most WINDOW_REQUESTS.

    One whose beginning differs from what all in the window so far begin with (five examples of another subject, another
    question's options) begins the next window, so that each shared beginning is read once.
    """
    window: list[LogitsRequest] = []
    n_shared = 0
    for request in requests:
        if window:
            both = shared_prefix([window[0].tokens, request.tokens])
            n_new = both if len(window) == 1 else min(both, n_shared)
            parts = len(window) > 1 and n_shared >= SHARED_TOKENS_WORTH_IT and n_new < n_shared / 2
            if parts or len(window) == WINDOW_REQUESTS:
                yield window
                window = []
            n_shared = n_new
        window.append(request)
    if window:
        yield window


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with in common, leaving at least one of each."""
    shortest = min(len(sequence) for sequence in sequences) - 1
    first = sequences[0]
    for n in range(shortest):
        if any(sequence[n] != first[n] for sequence in sequences):
            return n
    return max(shortest, 0)


def batches(window: Sequence[LogitsRequest], n_shared: int, n_vocab: int) -> list[list[int]]:
    """Indices of `window` in batches within BATCH_TOKENS and WINDOW_BYTES, of which little is padding (LEAST_FILL)."""
    found: list[list[int]] = []
    n_tokens = n_keep = 0
    for i in sorted(range(len(window)), key=lambda i: -len(window[i].tokens)):
        request = window[i]
        keep = max(n_keep, len(request.tokens) - request.positions[0])
        size = len(found[-1]) + 1 if found else 1
        short = len(request.tokens) - n_shared < LEAST_FILL * n_tokens
        if not found or short or size * n_tokens > BATCH_TOKENS or size * keep * n_vocab * 4 > WINDOW_BYTES:
            found.append([])
            n_tokens, keep = len(request.tokens) - n_shared, len(request.tokens) - request.positions[0]
        n_keep = keep
        found[-1].append(i)
    return found


def open_torch_reference(path: Path, settings: OpenSettings, on_progress: OnLoad | None = None) -> TorchReferenceEngine:
    """The checkpoint folder at `path` in Transformers. Raises MissingExtraError without torch and transformers."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "torch") from error
    device, dtype = settings.device, settings.dtype
    if not (path / "config.json").is_file():
        raise ArtifactError(f"{path}: no config.json, a checkpoint folder was needed")
    if dtype and dtype not in DTYPES:
        raise EngineError(f"unknown dtype {dtype!r}", hint=f"one of {', '.join(DTYPES)}")
    cuda = torch.cuda.is_available() and device != "cpu"
    if device == "cuda" and not cuda:
        raise DeviceError("torch finds no CUDA device", hint="--device cpu")
    if settings.n_threads:
        torch.set_num_threads(settings.n_threads)
    started = time.perf_counter()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=getattr(torch, dtype or "float32") if dtype or not cuda else "auto",
            device_map=("auto" if torch.cuda.device_count() > 1 else "cuda") if cuda else None,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EngineError(f"{path}: Transformers could not load it: {str(error).splitlines()[0]}") from error
    model.eval()
    if on_progress:
        on_progress(1.0)
    trained = int(getattr(model.config, "max_position_embeddings", 0) or 4096)
    info = EngineInfo(
        engine="torch",
        engine_version=f"transformers {importlib.metadata.version('transformers')}, torch {torch.__version__}",
        device="cuda" if cuda else "cpu",
        device_name=torch.cuda.get_device_name(0) if cuda else cpu_name(),
        model_name=path.name,
        n_vocab=int(model.config.vocab_size),
        n_context=min(settings.n_context or trained, trained),
        n_threads=torch.get_num_threads(),
        load_seconds=time.perf_counter() - started,
        settings={
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": str(getattr(model.config, "_attn_implementation", "")),
        },
    )
    return TorchReferenceEngine(model, tokenizer, info, end_tokens(model, tokenizer))


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a reply: the tokenizer's, the config's and the generation config's."""
    found: set[int] = set()
    for value in (tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id):
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)


def probe() -> dict[str, object]:
    """The runtime's version, and whether it can use a GPU. Raises ImportError without torch and transformers."""
    import torch
    import transformers  # noqa: F401

    return {"version": f"torch {torch.__version__}", "gpu": torch.cuda.is_available()}
