"""A deterministic engine without a model, for tests of what stands on the Engine protocol.

Tokens are bytes plus a few control tokens. The logits after a sequence are a pure function of its tokens, the seed
and `noise`, so runs repeat bit for bit, and an engine with noise plays the quantized twin of one without.
What it "knows" is a table: a text that ends with a key is continued with its value, then ends the turn.
"""

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medlite.engines.engine import EngineInfo, GeneratedToken, GenerationSettings, Logits, LogitsRequest, OnPrompt
from medlite.engines.front import Front
from medlite.engines.grammar import token_table
from medlite.engines.reply import Reply
from medlite.engines.sampler import Sampler

CONTROL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
N_BYTES = 256
BOS, END, EOT = N_BYTES, N_BYTES + 1, N_BYTES + 4
N_VOCAB = N_BYTES + len(CONTROL_TOKENS)
KNOWN_BONUS = 8.0
TABLE = token_table(N_VOCAB, lambda token: bytes([token]) if token < N_BYTES else b"", {END, EOT}.__contains__)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def chat_knowledge(replies: Mapping[str, str]) -> dict[str, str]:
    """A table for chats under CHAT_TEMPLATE: the last user text -> the reply."""
    turn = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    return {question + turn: reply for question, reply in replies.items()}


class ToyEngine:
    """An Engine. knowledge: ending of the text -> its continuation. noise: scale of the seeded disturbance, in nats.

    `n_decoded` counts the tokens that were read, so tests can see that a prefix was not read twice;
    `calls` records the logits requests, in order.
    """

    def __init__(
        self,
        knowledge: Mapping[str, str] | None = None,
        *,
        noise: float = 0.0,
        seed: int = 0,
        n_context: int = 2048,
        model_name: str = "toy",
    ) -> None:
        self.knowledge = {key.encode(): value.encode() for key, value in (knowledge or {}).items()}
        self.noise, self.seed = noise, seed
        self.n_decoded = 0
        self.calls: list[LogitsRequest] = []
        self._resident: list[int] = []
        self.info = EngineInfo(
            engine="toy",
            engine_version="toy 1",
            device="cpu",
            device_name="toy",
            model_name=model_name,
            n_vocab=N_VOCAB,
            n_context=n_context,
            n_threads=1,
            load_seconds=0.0,
            settings={"noise": str(noise)},
        )
        piece = lambda token: self.detokenize([token])  # noqa: E731
        self._front = Front(self.info, lambda: piece, {END, EOT}.__contains__, lambda: TABLE)

    def tokenize(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        tokens = [BOS] if add_bos else []
        pieces = re.split(f"({'|'.join(map(re.escape, CONTROL_TOKENS))})", text) if parse_special else [text]
        for piece in pieces:
            if parse_special and piece in CONTROL_TOKENS:
                tokens.append(N_BYTES + CONTROL_TOKENS.index(piece))
            else:
                tokens += piece.encode()
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return bytes(token for token in tokens if token < N_BYTES)

    def logits(self, requests: Sequence[LogitsRequest]) -> Iterator[Logits]:
        return self._front.logits(requests, self._read)

    def _read(self, requests: list[LogitsRequest]) -> Iterator[Logits]:
        for request in requests:
            self.calls.append(request)
            self.n_decoded += len(request.tokens)
            rows = [self._row(request.tokens[: at + 1]) for at in request.positions]
            yield np.stack(rows) if rows else np.empty((0, N_VOCAB), np.float32)

    def generate(
        self, tokens: Sequence[int], settings: GenerationSettings, on_prompt: OnPrompt | None = None
    ) -> Iterator[GeneratedToken]:
        return self._front.generate(tokens, settings, on_prompt, self._write)

    def _write(
        self, tokens: list[int], sampler: Sampler, reply: Reply, on_prompt: OnPrompt
    ) -> Iterator[GeneratedToken]:
        n_shared = 0
        while n_shared < min(len(tokens), len(self._resident)) and tokens[n_shared] == self._resident[n_shared]:
            n_shared += 1
        on_prompt(0, len(tokens) - n_shared)
        self.n_decoded += len(tokens) - n_shared
        on_prompt(len(tokens) - n_shared, len(tokens) - n_shared)
        self._resident = tokens

        def read_next(token: int) -> Logits:
            tokens.append(token)
            self.n_decoded += 1
            return self._row(tokens)

        yield from self._front.steps(sampler, reply, self._row(tokens), read_next)

    def cancel(self) -> None:
        self._front.access.cancel()

    def close(self) -> None:
        self._front.access.close(lambda: None)

    def _row(self, tokens: Sequence[int]) -> Logits:
        raw = np.asarray(tokens, dtype=np.int32).tobytes()
        row = 0.1 * np.random.default_rng(zlib.crc32(raw)).standard_normal(N_VOCAB)
        row[N_BYTES:] -= 4.0
        following = self._known(tokens)
        if following is not None:
            row[following] += KNOWN_BONUS
        if self.noise:
            row += self.noise * np.random.default_rng([zlib.crc32(raw), self.seed + 1]).standard_normal(N_VOCAB)
        return row.astype(np.float32)

    def _known(self, tokens: Sequence[int]) -> int | None:
        """The token that the table says comes next."""
        text = b"".join(bytes([t]) if t < N_BYTES else CONTROL_TOKENS[t - N_BYTES].encode() for t in tokens)
        for key, value in self.knowledge.items():
            for n_said in range(len(value), -1, -1):
                if text.endswith(key + value[:n_said]):
                    return value[n_said] if n_said < len(value) else EOT
        return None
