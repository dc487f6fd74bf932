"""The shipped vocabularies of Llama 2, Llama 3, Qwen 2 and Phi-3, as llama.cpp's own test files hold them.

Each is laid out again as the checkpoint's tokenizer files and must come back equal, and read text as the Hugging Face
tokenizer does. Needs the llama.cpp source (MEDLITE_LLAMA_CPP); about a minute.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medlite.formats.gguf import Value, read_header
from quantize.source.checkpoint import SourceFiles
from quantize.source.parity import check_metadata
from quantize.source.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, vocabulary
from tests.helpers.tiny_checkpoint import PATTERN
from tests.helpers.tiny_families import QWEN_PATTERN
from tests.helpers.tiny_vocabularies import added_token, pack_sentencepiece, sentencepiece_json

MODELS = Path(os.environ.get("MEDLITE_LLAMA_CPP", ""), "models")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (MODELS / "ggml-vocab-qwen2.gguf").is_file(), reason="MEDLITE_LLAMA_CPP names no llama.cpp source"
    ),
]
T = "tokenizer.ggml."


def read_vocabulary(name: str) -> dict[str, Value]:
    """The metadata; the converter of its day called padding unknown, today's calls it unused."""
    metadata = dict(read_header(MODELS / f"ggml-vocab-{name}.gguf").metadata)
    types = metadata[T + "token_type"]
    padding = [text.startswith("[PAD") for text in metadata[T + "tokens"].value]
    metadata[T + "token_type"] = replace(
        types, value=[UNUSED if is_padding else kind for kind, is_padding in zip(types.value, padding, strict=True)]
    )
    return metadata


def added_of(metadata: dict[str, Value]) -> list[dict[str, Any]]:
    """What is no ordinary piece, as added tokens; Phi-3's strip the space after them."""
    rows = zip(metadata[T + "tokens"].value, metadata[T + "token_type"].value, strict=True)
    rstrip = metadata["general.architecture"].value == "phi3"
    return [
        added_token(text, i, kind == CONTROL, rstrip=rstrip and text not in ("<unk>", "<s>", "<|endoftext|>"))
        for i, (text, kind) in enumerate(rows)
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]


@pytest.mark.parametrize(
    ("name", "pattern", "pre"), [("llama-bpe", PATTERN, "llama-bpe"), ("qwen2", QWEN_PATTERN, "qwen2")]
)
def test_a_shipped_byte_level_vocabulary_comes_back(name: str, pattern: str, pre: str, tmp_path: Path) -> None:
    theirs = read_vocabulary(name)
    tokens, types = theirs[T + "tokens"].value, theirs[T + "token_type"].value
    bos = tokens[theirs[T + "bos_token_id"].value] if name == "llama-bpe" else None
    byte_level: dict[str, Any] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {bos: {"id": bos, "ids": [tokens.index(bos)] if bos else [], "tokens": [bos]}},
    }
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "normalizer": None,
                "added_tokens": added_of(theirs),
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                        byte_level,
                    ],
                },
                "post_processor": {"type": "Sequence", "processors": [byte_level, template]} if bos else byte_level,
                "decoder": byte_level,
                "model": {
                    "type": "BPE",
                    "dropout": None,
                    "unk_token": None,
                    "continuing_subword_prefix": None,
                    "end_of_word_suffix": None,
                    "fuse_unk": False,
                    "byte_fallback": False,
                    "ignore_merges": bos is not None,
                    "vocab": {tokens[i]: i for i, kind in enumerate(types) if kind == NORMAL},
                    "merges": theirs[T + "merges"].value,
                },
            },
            ensure_ascii=False,
        )
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": bos, "eos_token": tokens[theirs[T + "eos_token_id"].value]})
    )
    (tmp_path / "config.json").write_text("{}")
    ours = vocabulary(SourceFiles(tmp_path), len(tokens))
    assert ours[T + "pre"].value == pre
    for key in ("tokens", "token_type", "merges", "eos_token_id"):
        assert ours[T + key] == theirs[T + key], key
    report = check_metadata(metadata_with(ours, theirs), SourceFiles(tmp_path))
    report.require()
    assert report.n_tokens > 2000


@pytest.mark.parametrize("name", ["llama-spm", "phi-3"])
@pytest.mark.parametrize("has_model", [True, False])
def test_a_shipped_sentencepiece_vocabulary_comes_back(name: str, has_model: bool, tmp_path: Path) -> None:
    theirs = read_vocabulary(name)
    rows = list(zip(*(theirs[T + key].value for key in ("tokens", "scores", "token_type")), strict=True))
    pieces = [
        (text, 0.0 if i < 3 else score, (UNKNOWN, CONTROL, CONTROL)[i] if i < 3 else kind)
        for i, (text, score, kind) in enumerate(rows[:32000])
    ]
    added = added_of(theirs)
    if has_model:
        (tmp_path / "tokenizer.model").write_bytes(pack_sentencepiece(pieces))
    made = sentencepiece_json(pieces, added, bos="<s>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False))
    (tmp_path / "config.json").write_text("{}")
    stated = {str(row["id"]): row for row in added} if name == "phi-3" else {}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": "<s>",
                "eos_token": theirs[T + "tokens"].value[theirs[T + "eos_token_id"].value],
                "unk_token": "<unk>",
                "add_bos_token": True,
                "add_eos_token": False,
                "added_tokens_decoder": stated,
            }
        )
    )
    ours = vocabulary(SourceFiles(tmp_path), len(rows))
    assert ours[T + "tokens"] == theirs[T + "tokens"]
    if has_model:
        assert ours[T + "scores"] == theirs[T + "scores"]
        assert ours[T + "token_type"] == theirs[T + "token_type"]
    else:
        assert ours[T + "token_type"].value[3:259] == [BYTE] * 256
    for key in ("bos_token_id", "eos_token_id", "unknown_token_id", "add_bos_token", "add_eos_token"):
        assert ours[T + key] == theirs[T + key], key
    report = check_metadata(metadata_with(ours, theirs), SourceFiles(tmp_path))
    report.require()
    assert report.n_tokens > 2000


def metadata_with(ours: dict[str, Value], theirs: dict[str, Value]) -> dict[str, Value]:
    """What llama.cpp needs beside the vocabulary."""
    return {key: theirs[key] for key in ("general.architecture", "general.name")} | {
        key: value for key, value in ours.items() if "chat_template" not in key
    }
