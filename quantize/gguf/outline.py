"""The GGUF file that a config.json alone implies, before there are weights: every tensor's type, shape and size.

A plan (plan.py) reads the checkpoint's headers and is exact to the byte. An outline needs neither weights nor a
vocabulary, so it answers for a model that was not downloaded. tests/quantize/gguf/test_outline.py holds one
against the other.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from medlite.errors import CheckpointError
from medlite.formats.gguf import DEFAULT_ALIGNMENT, GGML_TYPES, Header, Kind, Value, pack_header, pad_to, place_tensors
from quantize.families import find_family
from quantize.families.config import head_counts, positive
from quantize.families.family import Family, text_config
from quantize.gguf.plan import file_order
from quantize.gguf.recipes import Recipe, TensorShape, choose_types

# What a vocabulary takes in the file per token: text, type, and merges or score. Measured on Llama 3's and Llama 2's.
BPE_BYTES_PER_TOKEN, SENTENCEPIECE_BYTES_PER_TOKEN = 61, 23


class Outline:
    """The tensors of a model and its metadata without the vocabulary, ready for any recipe."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Raises CheckpointError naming what the config lacks, or what the runtime does not compute."""
        self.family = find_family(config)
        self.config = text_config(config, self.family)
        self.tensors = _tensors(self.family, self.config)
        prefix = self.family.gguf_name
        self.metadata = {
            "general.architecture": Value(Kind.STRING, prefix),
            f"{prefix}.vocab_size": Value(Kind.UINT32, positive(self.config, "vocab_size")),
            **{f"{prefix}.{key}": value for key, value in self.family.metadata(self.config).items()},
        }

    @property
    def n_params(self) -> int:
        """Parameters; what only the config states (rotary factors) is none."""
        return sum(math.prod(row.shape) for row in self.tensors if not row.name.startswith("rope_"))

    @property
    def n_vocabulary_bytes(self) -> int:
        """About what the vocabulary adds to the file."""
        n_vocab = int(self.metadata[f"{self.family.gguf_name}.vocab_size"].value)
        sentencepiece = self.family.has_sentencepiece(self.config)
        return n_vocab * (SENTENCEPIECE_BYTES_PER_TOKEN if sentencepiece else BPE_BYTES_PER_TOKEN)

    def header(self, recipe: Recipe) -> Header:
        """The file's header at a recipe: tensors exact, n_file_bytes with the vocabulary as estimated.

        A recipe that needs an importance matrix is taken to have one.
        """
        n_head, n_head_kv = head_counts(self.config)
        choices = choose_types(
            recipe,
            self.tensors,
            n_gqa=n_head // n_head_kv,
            has_imatrix=recipe.needs_imatrix,
            is_70b=self.family.is_70b(self.config),
        )
        placed = place_tensors([(row.name, choices[row.name].type, row.shape) for row in self.tensors])
        end = pad_to(placed[-1].offset + placed[-1].n_bytes, DEFAULT_ALIGNMENT)
        return Header(self.metadata, placed, self._data_start, self._data_start + end)

    @cached_property
    def _data_start(self) -> int:
        """Where the tensors' data begins; the types do not change it."""
        f32 = GGML_TYPES["F32"]
        header = pack_header(self.metadata, place_tensors([(row.name, f32, row.shape) for row in self.tensors]))
        return pad_to(len(header) + self.n_vocabulary_bytes, DEFAULT_ALIGNMENT)


def _tensors(family: Family, config: Mapping[str, Any]) -> list[TensorShape]:
    """Every tensor that the rules make of a complete checkpoint, in llama.cpp's order."""
    shapes = family.shapes(config)
    tied = bool(config.get("tie_word_embeddings"))
    found: dict[str, TensorShape] = {}
    for rule in family.rules:
        if rule.optional or (rule.target == "output.weight" and tied):
            continue
        inner = rule.target.removeprefix("blk.{0}.")
        if inner not in shapes:
            raise CheckpointError(f"{family.hf_name}: the config does not say the shape of {rule.target}")
        for layer in range(config["num_hidden_layers"]) if inner != rule.target else (0,):
            name = rule.target.format(layer)
            found[name] = TensorShape(name, shapes[inner])
    for extra in family.extras(config):
        found[extra.name] = TensorShape(extra.name, extra.values.shape)
    return sorted(found.values(), key=lambda row: file_order(row.name))
