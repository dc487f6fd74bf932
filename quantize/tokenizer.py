"""The vocabulary of a checkpoint as GGUF metadata: tokens, types, merges, special ids, chat template.

A byte-level BPE tokenizer is recognised by its pre-tokenizer pattern, not by a hash of one sample text, so a
fine-tune that only added tokens is known. What cannot be carried over exactly is an error.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medlite.errors import TokenizerError
from medlite.gguf_format import Kind, Value
from quantize.checkpoint import read_json_object

# Token types. Source: llama.cpp include/llama.h, enum llama_token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Pre-tokenizer pattern (tokenizer.json, Split) -> tokenizer.ggml.pre.
# Source: the regular expressions in llama.cpp src/llama-vocab.cpp and the tokenizer.json of each family.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS: dict[str, str] = {
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}": "qwen2",
}


def vocabulary(folder: Path, n_vocab: int) -> dict[str, Value]:
    """The tokenizer.* metadata of the checkpoint in `folder`, for a model with `n_vocab` embedding rows.

    Raises TokenizerError where the tokenizer is of an unknown kind or does not fit the embeddings.
    """
    path = folder / "tokenizer.json"
    tokenizer = read_json_object(path)
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise TokenizerError(f"{path}: model.vocab is missing")
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece-style BPE with byte fallback" if model.get("byte_fallback") else repr(model.get("type"))
        raise TokenizerError(f"{path}: {kind}, a byte-level BPE was needed")
    tokens, types = _tokens(path, model["vocab"], tokenizer.get("added_tokens") or [], n_vocab)
    return {
        "tokenizer.ggml.model": Value(Kind.STRING, "gpt2"),
        "tokenizer.ggml.pre": Value(Kind.STRING, pre_tokenizer(path, tokenizer)),
        "tokenizer.ggml.tokens": Value(Kind.STRING, tokens, is_array=True),
        "tokenizer.ggml.token_type": Value(Kind.INT32, types, is_array=True),
        **_special(folder, n_vocab),
    }


def _tokens(path: Path, vocab: Mapping[str, Any], added: list[Any], n_vocab: int) -> tuple[list[str], list[int]]:
    """Token texts and types by id; ids that no token has are padding."""
    tokens = [f"[PAD{i}]" for i in range(n_vocab)]
    types = [UNUSED] * n_vocab

    def place(text: Any, index: Any, token_type: int) -> None:
        if not isinstance(text, str) or not isinstance(index, int):
            raise TokenizerError(f"{path}: token {text!r} has id {index!r}")
        if not 0 <= index < n_vocab:
            raise TokenizerError(f"{path}: token {text!r} has id {index}, the model has {n_vocab} embeddings",
                                 hint="the tokenizer and the weights are of different models")
        if types[index] != UNUSED and tokens[index] != text:
            raise TokenizerError(f"{path}: id {index} is both {tokens[index]!r} and {text!r}")
        tokens[index], types[index] = text, token_type

    for text, index in vocab.items():
        place(text, index, NORMAL)
    for entry in added:
        if not isinstance(entry, dict):
            raise TokenizerError(f"{path}: added token {entry!r} is no object")
        content = entry.get("content")
        special = bool(entry.get("special")) or looks_special(str(content))
        place(content, entry.get("id"), CONTROL if special else USER_DEFINED)
    return tokens, types


def looks_special(text: str) -> bool:
    """True for added tokens that models mark as ordinary although they are control tokens.

    Source: llama.cpp conversion/base.py, does_token_look_special.
    """
    return (text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
            or (text.startswith("<|") and text.endswith("|>"))
            or (text.startswith("<｜") and text.endswith("｜>"))
            or (text.startswith("<unused") and text.endswith(">")))


def pre_tokenizer(path: Path, tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer, found by its pattern. Raises TokenizerError showing an unknown one."""
    stated = tokenizer.get("pre_tokenizer") or {}
    steps = stated.get("pretokenizers", [stated])
    patterns = [step["pattern"]["Regex"] for step in steps
                if step.get("type") == "Split" and "Regex" in step.get("pattern", {})]
    if not patterns and any(step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in steps):
        return "gpt-2"
    if len(patterns) == 1 and patterns[0] in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[patterns[0]]
    raise TokenizerError(f"{path}: unknown pre-tokenizer {' then '.join(patterns) or stated.get('type')!r}",
                         hint=f"known: {', '.join(PRE_TOKENIZERS.values())}")


# SpecialVocab's fields -> GGUF keys. Source: gguf-py/gguf/constants.py, Keys.Tokenizer.
SPECIAL_KEYS = {"bos": "bos_token_id", "eos": "eos_token_id", "eot": "eot_token_id", "eom": "eom_token_id",
                "unk": "unknown_token_id", "sep": "seperator_token_id", "pad": "padding_token_id",
                "cls": "cls_token_id", "mask": "mask_token_id"}


def _special(folder: Path, n_vocab: int) -> dict[str, Value]:
    """Merges, special ids, add_bos/add_eos and the chat template, as the gguf package reads them."""
    import gguf

    try:
        found = gguf.SpecialVocab(folder, load_merges=True, n_vocab=n_vocab)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
        raise TokenizerError(f"{folder}: the special tokens cannot be read: {error}") from error
    result: dict[str, Value] = {}
    if found.merges:
        result["tokenizer.ggml.merges"] = Value(Kind.STRING, list(found.merges), is_array=True)
    for name, token_id in found.special_token_ids.items():
        if name in SPECIAL_KEYS:
            result[f"tokenizer.ggml.{SPECIAL_KEYS[name]}"] = Value(Kind.UINT32, token_id)
    for name, wanted in found.add_special_token.items():
        if name in ("bos", "eos", "sep"):
            result[f"tokenizer.ggml.add_{name}_token"] = Value(Kind.BOOL, wanted)
    if isinstance(found.chat_template, str):
        result["tokenizer.chat_template"] = Value(Kind.STRING, found.chat_template)
    elif found.chat_template:
        named = {row["name"]: row["template"] for row in found.chat_template}
        if "default" not in named:
            raise TokenizerError(f"{folder}: chat templates {sorted(named)} without a default")
        result["tokenizer.chat_template"] = Value(Kind.STRING, named["default"])
    return result
