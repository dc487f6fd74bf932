"""The GGUF file that a config.json alone implies, before there are weights: every tensor's type, shape and size.

A plan (plan.py) reads the checkpoint's headers and is exact to the byte. An outline needs neither weights nor a
vocabulary, so it answers for a model that was not downloaded. tests/quantize/gguf/test_outline.py holds one
against the other.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from medlite.formats.gguf import DEFAULT_ALIGNMENT, GGML_TYPES, Header, Kind, Value, pack_header, pad_to, place_tensors
from quantize.families.config import positive
from quantize.families.names import expected_tensors, file_order
from quantize.gguf.recipes import Recipe, choose_types
from quantize.match import hyperparameters, match_config, query_heads_per_kv_head

# What a vocabulary takes in the file per token: text, type, and merges or score. Measured on Llama 3's and Llama 2's.
BPE_BYTES_PER_TOKEN, SENTENCEPIECE_BYTES_PER_TOKEN = 61, 23


class Outline:
    """The tensors of a model and its metadata without the vocabulary, ready for any recipe."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Raises CheckpointError naming what the config lacks, or what the runtime does not compute."""
        self.family, self.config = match_config(config)
        shapes = {name: shape for name, (_, shape) in expected_tensors(self.family, self.config).items()}
        extras = {extra.name: extra.values.shape for extra in self.family.extras(self.config)}
        self.n_params = sum(map(math.prod, shapes.values()))
        self.shapes = dict(sorted((shapes | extras).items(), key=lambda row: file_order(row[0])))
        prefix = self.family.gguf_name
        self.metadata = {
            "general.architecture": Value(Kind.STRING, prefix),
            f"{prefix}.vocab_size": Value(Kind.UINT32, positive(self.config, "vocab_size")),
            **hyperparameters(self.family, self.config),
        }

    @property
    def n_vocabulary_bytes(self) -> int:
        """About what the vocabulary adds to the file."""
        n_vocab = positive(self.config, "vocab_size")
        sentencepiece = self.family.has_sentencepiece(self.config)
        return n_vocab * (SENTENCEPIECE_BYTES_PER_TOKEN if sentencepiece else BPE_BYTES_PER_TOKEN)

    def header(self, recipe: Recipe) -> Header:
        """The file's header at a recipe: tensors exact, n_file_bytes with the vocabulary as estimated.

        A recipe that needs an importance matrix is taken to have one.
        """
        choices = choose_types(
            recipe,
            self.shapes,
            n_gqa=query_heads_per_kv_head(self.config),
            has_imatrix=recipe.needs_imatrix,
            is_70b=self.family.is_70b(self.config),
        )
        placed = place_tensors([(name, choices[name].type, shape) for name, shape in self.shapes.items()])
        end = pad_to(placed[-1].offset + placed[-1].n_bytes, DEFAULT_ALIGNMENT)
        return Header(self.metadata, placed, self._data_start, self._data_start + end)

    @cached_property
    def _data_start(self) -> int:
        """Where the tensors' data begins; the types do not change it."""
        f32 = GGML_TYPES["F32"]
        header = pack_header(self.metadata, place_tensors([(name, f32, shape) for name, shape in self.shapes.items()]))
        return pad_to(len(header) + self.n_vocabulary_bytes, DEFAULT_ALIGNMENT)
