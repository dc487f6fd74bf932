"""One sequence in a graph of another exporter: each run takes the key-value cache and returns a longer one.

Such graphs (Optimum's) also want position_ids. The cache stays in the runtime's memory from step to step.
"""

from typing import Any

import numpy as np

from medlite.engines.engine import Logits
from medlite.engines.ort.session import LOGITS_FROM, POSITIONS, Ids, Opened, run
from medlite.formats.onnx_folder import OnnxFacts


class GrowingDecoder:
    """As session.CachedDecoder, for graphs that do not write their cache in place."""

    def __init__(self, opened: Opened, facts: OnnxFacts) -> None:
        self._runtime, self._session, self._facts = opened.runtime, opened.session, facts
        self._wants_positions = POSITIONS in {one.name for one in opened.session.get_inputs()}
        names = [f"{layer}.{part}" for layer in range(facts.n_layer) for part in ("key", "value")]
        self._past = [f"past_key_values.{name}" for name in names]
        self._present = [f"present.{name}" for name in names]
        self._cache: list[Any] = []
        self.n_tokens = 0
        self.rewind(0)

    def read(self, tokens: Ids, logits_from: int, n_total: int) -> Logits:
        """Read `tokens` behind what is there; the logits of those from index `logits_from` on, (n, n_vocab)."""
        n, n_after = len(tokens), self.n_tokens + len(tokens)
        feed = {
            "input_ids": np.asarray(tokens, np.int64)[None],
            "attention_mask": np.ones((1, n_after), np.int64),
            LOGITS_FROM: np.array([logits_from], np.int64),
        }
        if self._wants_positions:
            feed[POSITIONS] = np.arange(self.n_tokens, n_after, dtype=np.int64)[None]
        binding = self._session.io_binding()
        for name, values in feed.items():
            binding.bind_input(name, "cpu", 0, np.int64, values.shape, values.ctypes.data)
        for name, value in zip(self._past, self._cache, strict=True):
            binding.bind_ortvalue_input(name, value)
        logits = np.empty((1, n - logits_from, self._facts.n_vocab), np.float32)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        for name in self._present:
            binding.bind_output(name)
        run(lambda: self._session.run_with_iobinding(binding))
        self._cache = binding.get_outputs()[1:]
        self.n_tokens = n_after
        one: Logits = logits[0]
        return one

    def rewind(self, n_tokens: int) -> None:
        """Keep the first n_tokens."""
        facts = self._facts
        if self._cache and n_tokens >= self.n_tokens:
            return
        if n_tokens:
            values = [np.ascontiguousarray(value.numpy()[:, :, :n_tokens]) for value in self._cache]
        else:
            values = [np.zeros((1, facts.n_head_kv, 0, facts.head_dim), np.dtype(facts.kv_type)) for _ in self._past]
        self._cache = [self._runtime.OrtValue.ortvalue_from_numpy(value) for value in values]
        self.n_tokens = n_tokens
