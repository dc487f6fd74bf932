"""The full-precision reference: a Hugging Face checkpoint in Transformers, at float32, bfloat16 or float16.

It shows what the published weights say, before any conversion: compare it with a BF16 GGUF file to see what the
conversion costs. Several GPUs share a model that one cannot hold (needs accelerate). No code of the checkpoint runs.
"""

import importlib.metadata
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
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
from medlite.engines.grammar import Grammar, TokenTable, token_table_of_json
from medlite.engines.sampler import PENALTY_WINDOW, Sampler
from medlite.engines.text_stream import TextStream
from medlite.errors import ArtifactError, ContextError, DeviceError, EngineError, MissingExtraError

DTYPES = ("float32", "bfloat16", "float16")
WINDOW_REQUESTS = 64  # requests sorted by length together, so that little is padded
BATCH_TOKENS = 8192  # tokens of one forward pass, padding included
LEAST_FILL = 0.9  # a sequence shorter than this share of the batch's longest begins the next batch
LOGITS_BYTES = 256 << 20  # of float32 logits that one forward pass may return
SHARED_TOKENS_WORTH_IT = 32  # shorter common beginnings are read again rather than kept apart


class TorchReferenceEngine:
    """An `engine.Engine` over a Transformers model. Calls must come one at a time."""

    def __init__(self, model: Any, tokenizer: Any, info: EngineInfo, end_tokens: frozenset[int]) -> None:
        self.info = info
        self._model, self._tokenizer, self._end_tokens = model, tokenizer, end_tokens

    def tokenize(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=add_bos, split_special_tokens=not parse_special
        )
        return ids

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.encode()

    def logits(self, requests: Sequence[LogitsRequest]) -> Iterator[Logits]:
        self._check_open()
        for number, request in enumerate(requests):
            n = len(request.tokens)
            if n > self.info.n_context:
                raise ContextError(f"request {number}: {n} tokens, the context holds {self.info.n_context}")
            if not request.positions or not 0 <= request.positions[0] <= request.positions[-1] < n:
                raise EngineError(f"request {number}: positions {request.positions[:4]}... of {n} tokens")
        return self._logits(list(requests))

    def _logits(self, requests: list[LogitsRequest]) -> Iterator[Logits]:
        for window in windows(requests):
            rows: list[Logits] = [np.empty((0, 0), dtype=np.float32)] * len(window)
            n_shared = shared_prefix([request.tokens for request in window])
            n_shared = n_shared if n_shared >= SHARED_TOKENS_WORTH_IT and len(window) > 1 else 0
            n_shared = min(n_shared, min(request.positions[0] for request in window))
            past = self._read_shared(window[0].tokens[:n_shared]) if n_shared else None
            for batch in batches(window, n_shared, self.info.n_vocab):
                for i, row in zip(batch, self._forward([window[i] for i in batch], n_shared, past), strict=True):
                    rows[i] = row
            yield from rows

    def _read_shared(self, tokens: tuple[int, ...]) -> Any:
        """The key-value cache of what all requests of a window begin with."""
        import torch

        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self._model.device)
            return self._model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def _forward(self, batch: list[LogitsRequest], n_shared: int, past: Any) -> list[Logits]:
        """Logits of one batch. Sequences are padded on the left, so that the wanted positions end together."""
        import copy

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
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=keep,
            ).logits
        table = out.float().cpu().numpy()
        return [table[i, [keep - len(r.tokens) + p for p in r.positions]] for i, r in enumerate(batch)]

    def generate(
        self, tokens: Sequence[int], settings: GenerationSettings, on_prompt: OnPrompt | None = None
    ) -> Iterator[GeneratedToken]:
        self._check_open()
        grammar = None if settings.grammar is None else Grammar(self._token_table, settings.grammar)
        if not tokens:
            raise EngineError("an empty prompt", hint="give at least one token")
        if len(tokens) >= self.info.n_context:
            raise ContextError(
                f"the prompt has {len(tokens)} tokens, the context holds {self.info.n_context}", hint="shorten it"
            )
        sampler = Sampler(settings, tokens[-PENALTY_WINDOW:], grammar)
        return self._generate(list(tokens), sampler, on_prompt or (lambda _read, _total: None))

    @cached_property
    def _token_table(self) -> TokenTable:
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        if fast is None:
            raise EngineError(f"{self.info.model_name}: its tokenizer is written in Python, which no grammar can read")
        ends = (token for token in self._end_tokens if token < len(self._tokenizer))
        return token_table_of_json(fast.to_str(), self.info.n_vocab, ends)

    def _generate(self, tokens: list[int], sampler: Sampler, on_prompt: OnPrompt) -> Iterator[GeneratedToken]:
        import torch

        settings, stream = sampler.settings, TextStream(sampler.settings.stop)
        n_left, past, unread, shown = min(settings.max_tokens, self.info.n_context - len(tokens)), None, tokens, b""
        generated: list[int] = []
        on_prompt(0, len(tokens))
        while n_left > 0:
            with torch.inference_mode():
                out = self._model(
                    input_ids=torch.tensor([unread], device=self._model.device),
                    past_key_values=past,
                    use_cache=True,
                    logits_to_keep=1,
                )
            if past is None:
                on_prompt(len(tokens), len(tokens))
            past = out.past_key_values
            token, log_probability = sampler.choose(out.logits[0, -1].float().cpu().numpy())
            n_left -= 1
            if token in self._end_tokens:
                yield GeneratedToken(token, stream.flush(), log_probability, "stop")
                return
            generated.append(token)
            whole = self.detokenize(generated)  # byte-level pieces join only in the whole text
            piece, shown = (whole[len(shown) :], whole) if whole.startswith(shown) else (b"", shown)
            text, finish = stream.push(piece), None
            if stream.stopped:
                finish = "stop"
            elif not n_left:
                text, finish = text + stream.flush(), "length"
            yield GeneratedToken(token, text, log_probability, finish)
            if finish:
                return
            unread = [token]

    def close(self) -> None:
        self._model = None

    def _check_open(self) -> None:
        if self._model is None:
            raise EngineError("the engine is closed")


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
    """Indices of `window` in batches within BATCH_TOKENS and LOGITS_BYTES, of which little is padding (LEAST_FILL)."""
    found: list[list[int]] = []
    n_tokens = n_keep = 0
    for i in sorted(range(len(window)), key=lambda i: -len(window[i].tokens)):
        request = window[i]
        keep = max(n_keep, len(request.tokens) - request.positions[0])
        size = len(found[-1]) + 1 if found else 1
        short = len(request.tokens) - n_shared < LEAST_FILL * n_tokens
        if not found or short or size * n_tokens > BATCH_TOKENS or size * keep * n_vocab * 4 > LOGITS_BYTES:
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
