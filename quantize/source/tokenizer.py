"""The vocabulary of a checkpoint as GGUF metadata: tokens, scores, types, merges, special ids, chat template.

Two kinds: byte-level BPE (tokenizer.json), recognised by its pre-tokenizer pattern and not by a hash of one sample
text, so a fine-tune that only added tokens is known; and SentencePiece BPE, from tokenizer.model or from the
tokenizer.json that was made of one. What cannot be carried over exactly is an error.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medlite.errors import TokenizerError
from medlite.formats.gguf import Kind, Value
from quantize.source.checkpoint import SourceFiles, read_json_object
from quantize.source.sentencepiece import SentencePieceModel, read_sentencepiece
from quantize.source.special_tokens import special_tokens
from quantize.source.templates import chat_templates

# Token types. Source: llama.cpp include/llama.h, enum llama_token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
PADDING_SCORE, ADDED_SCORE = -10000.0, -1000.0  # Source: llama.cpp conversion/base.py, _create_vocab_sentencepiece

# Pre-tokenizer pattern (tokenizer.json, Split) -> tokenizer.ggml.pre.
# Source: the regular expressions in llama.cpp src/llama-vocab.cpp and the tokenizer.json of each family.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PRE_TOKENIZERS: dict[str, str] = {
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}": "qwen2",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
GPT2 = "gpt-2"


def vocabulary(files: SourceFiles, n_vocab: int, pre: str | None = None) -> dict[str, Value]:
    """The tokenizer.* metadata of a checkpoint's files, for a model with `n_vocab` embedding rows.

    pre: llama.cpp's name of the pre-tokenizer, where its pattern is in no table (--pre-tokenizer). Raises
    TokenizerError where the tokenizer is of an unknown kind or does not fit the embeddings.
    """
    folder, json_path, model_path = files.folder, files.path("tokenizer.json"), files.path("tokenizer.model")
    # Read past the cache of `files`: parsed, a large one takes 100 MB, which a conversion would hold to its end.
    tokenizer = read_json_object(json_path) if json_path.is_file() else None
    if tokenizer is not None and not _is_sentencepiece(json_path, tokenizer):
        table = _byte_level(json_path, tokenizer, n_vocab, pre)
    elif pre is not None:
        raise TokenizerError(f"{folder}: --pre-tokenizer {pre} has no effect on a SentencePiece vocabulary")
    elif model_path.is_file():
        table = _sentencepiece(*_from_model(files, model_path, tokenizer, n_vocab))
    elif tokenizer is not None:
        table = _sentencepiece(*_from_json(json_path, tokenizer, n_vocab))
    else:
        raise TokenizerError(
            f"{folder}: neither tokenizer.json nor tokenizer.model",
            hint="download the tokenizer files beside the weights",
        )
    return {**table, **special_tokens(files, tokenizer, n_vocab), **chat_templates(files)}


def _is_sentencepiece(path: Path, tokenizer: Mapping[str, Any]) -> bool:
    """True for a BPE with byte fallback, False for a byte-level one. Raises TokenizerError for anything else."""
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise TokenizerError(f"{path}: model.vocab is missing")
    if model.get("type") != "BPE" or not isinstance(model["vocab"], dict):
        raise TokenizerError(f"{path}: a {model.get('type')!r} tokenizer, BPE was needed")
    return bool(model.get("byte_fallback"))


@dataclass
class TokenTable:
    """Texts, types and scores by id while they are filled in; an id that no token takes stays padding."""

    where: Path
    texts: list[str]
    types: list[int]
    scores: list[float]
    taken: set[int] = field(default_factory=set)

    @classmethod
    def empty(cls, where: Path, n_vocab: int) -> "TokenTable":
        return cls(where, [f"[PAD{i}]" for i in range(n_vocab)], [UNUSED] * n_vocab, [PADDING_SCORE] * n_vocab)

    def place(self, index: Any, text: Any, token_type: int, score: float = 0.0) -> None:
        """Give id `index` to `text`. Raises TokenizerError where it lies outside the model's embeddings."""
        if not isinstance(text, str) or not isinstance(index, int) or isinstance(index, bool):
            raise TokenizerError(f"{self.where}: token {text!r} has id {index!r}")
        if not 0 <= index < len(self.texts):
            raise TokenizerError(
                f"{self.where}: token {text!r} has id {index}, the model has {len(self.texts)} embeddings",
                hint="the tokenizer and the weights are of different models",
            )
        self.texts[index], self.types[index], self.scores[index] = text, token_type, score
        self.taken.add(index)


# --- byte-level BPE --------------------------------------------------------------------------------------------------


def _byte_level(path: Path, tokenizer: Mapping[str, Any], n_vocab: int, pre: str | None) -> dict[str, Value]:
    table = TokenTable.empty(path, n_vocab)
    for text, index in tokenizer["model"]["vocab"].items():
        if index in table.taken:
            raise TokenizerError(f"{path}: id {index} is both {table.texts[index]!r} and {text!r}")
        table.place(index, text, NORMAL)
    for text, index, special in _added_tokens(path, tokenizer):
        if index in table.taken and table.texts[index] != text:
            raise TokenizerError(f"{path}: id {index} is both {table.texts[index]!r} and {text!r}")
        _place_added(table, text, index, special=special)
    return {
        "tokenizer.ggml.model": Value(Kind.STRING, "gpt2"),
        "tokenizer.ggml.pre": Value(Kind.STRING, pre or pre_tokenizer(path, tokenizer)),
        "tokenizer.ggml.tokens": Value(Kind.STRING, table.texts, is_array=True),
        "tokenizer.ggml.token_type": Value(Kind.INT32, table.types, is_array=True),
        "tokenizer.ggml.merges": Value(Kind.STRING, _merges(path, tokenizer["model"]), is_array=True),
    }


def _added_tokens(path: Path, tokenizer: Mapping[str, Any]) -> Iterator[tuple[str, int, bool]]:
    """Text, id and "special" of tokenizer.json's added tokens."""
    for entry in tokenizer.get("added_tokens") or []:
        if not (isinstance(entry, dict) and isinstance(entry.get("content"), str) and isinstance(entry.get("id"), int)):
            raise TokenizerError(f"{path}: added token {entry!r} has no content or no id")
        yield entry["content"], entry["id"], bool(entry.get("special"))


def _merges(path: Path, model: Mapping[str, Any]) -> list[str]:
    """The merges as "left right", from texts or from pairs; a space inside a part is written as byte-level BPE does."""
    stated = model.get("merges")
    if not isinstance(stated, list) or not stated:
        raise TokenizerError(f"{path}: model.merges is missing")
    if all(isinstance(row, str) for row in stated):
        return stated
    return [" ".join(part.replace(" ", chr(ord(" ") + 256)) for part in pair) for pair in _pairs(path, model)]


def looks_special(text: str) -> bool:
    """True for added tokens that models mark as ordinary although they are control tokens.

    Source: llama.cpp conversion/base.py, does_token_look_special.
    """
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def pre_tokenizer(path: Path, tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer, found by its pattern. Raises TokenizerError showing an unknown one."""
    stated = tokenizer.get("pre_tokenizer") or {}
    steps = stated.get("pretokenizers", [stated])
    patterns = [
        step["pattern"]["Regex"] for step in steps if step.get("type") == "Split" and "Regex" in step.get("pattern", {})
    ]
    others = [step.get("type") for step in steps if step.get("type") not in ("Split", "ByteLevel")]
    own_pattern = any(step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in steps)
    if not others:
        if own_pattern and not patterns:
            return GPT2
        if not own_pattern and len(patterns) == 1 and patterns[0] in PRE_TOKENIZERS:
            return PRE_TOKENIZERS[patterns[0]]
    shown = " then ".join([*patterns, *map(str, others), *(["ByteLevel with its own pattern"] if own_pattern else [])])
    raise TokenizerError(
        f"{path}: unknown pre-tokenizer {shown or 'none'}",
        hint=f"known: {', '.join(PRE_TOKENIZERS.values())}, {GPT2}; --pre-tokenizer NAME gives "
        "llama.cpp's name of this one",
    )


# --- SentencePiece ---------------------------------------------------------------------------------------------------


def _sentencepiece(tokens: TokenTable, prefix: bool | None) -> dict[str, Value]:
    """The metadata of a SentencePiece vocabulary. prefix: add_space_prefix, None where it is llama.cpp's default."""
    return {
        "tokenizer.ggml.model": Value(Kind.STRING, "llama"),
        "tokenizer.ggml.pre": Value(Kind.STRING, "default"),
        "tokenizer.ggml.tokens": Value(Kind.STRING, tokens.texts, is_array=True),
        "tokenizer.ggml.scores": Value(Kind.FLOAT32, tokens.scores, is_array=True),
        "tokenizer.ggml.token_type": Value(Kind.INT32, tokens.types, is_array=True),
        **({} if prefix is None else {"tokenizer.ggml.add_space_prefix": Value(Kind.BOOL, prefix)}),
    }


def _from_model(
    files: SourceFiles, path: Path, tokenizer: Mapping[str, Any] | None, n_vocab: int
) -> tuple[TokenTable, bool | None]:
    """The tokens of tokenizer.model with those added later, and add_space_prefix where it must be stated.

    Pieces and added tokens past the embeddings are left out, as llama.cpp does: Med42's <pad> has no embedding.
    """
    model = read_sentencepiece(path)
    table = TokenTable.empty(path, n_vocab)
    for index, piece in enumerate(model.pieces[:n_vocab]):
        text = piece.text.replace("▁", " ") if piece.type == USER_DEFINED else piece.text
        table.place(index, text, piece.type, piece.score)
    stated = files.object_if_any("tokenizer_config.json")
    for text, index in files.object_if_any("added_tokens.json").items():
        if not isinstance(index, int) or index < n_vocab:
            table.place(index, text, USER_DEFINED, ADDED_SCORE)
    for text, index, special in _stated_added_tokens(files.path("tokenizer_config.json"), stated):
        if index < n_vocab:
            _place_added(table, text, index, special=special)
    for text, index, special in _added_tokens(path, tokenizer or {}):
        if index < n_vocab and index not in table.taken:
            _place_added(table, text, index, special=special)
    if tokenizer is None and model.normalizes:
        raise TokenizerError(
            f"{path}: changes text before cutting it, llama.cpp does not",
            hint="with the tokenizer.json of the model it can be compared",
        )
    return table, _space_prefix(stated, model)


def _place_added(table: TokenTable, text: str, index: int, *, special: bool) -> None:
    if special or looks_special(text):
        table.place(index, text, CONTROL, ADDED_SCORE)
    else:
        table.place(index, text.replace("▁", " "), USER_DEFINED, ADDED_SCORE)


def _stated_added_tokens(path: Path, stated: Mapping[str, Any]) -> Iterator[tuple[str, int, bool]]:
    """Text, id and "special" of tokenizer_config.json's added_tokens_decoder."""
    decoder = stated.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise TokenizerError(f"{path}: added_tokens_decoder is a {type(decoder).__name__}, an object was needed")
    for index, entry in decoder.items():
        if not (index.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str)):
            raise TokenizerError(f"{path}: added token {index!r} {entry!r} has no content or no id")
        yield entry["content"], int(index), bool(entry.get("special"))


def _space_prefix(stated: Mapping[str, Any], model: SentencePieceModel) -> bool | None:
    """add_space_prefix where it is stated or is not llama.cpp's default, which is to add it."""
    if isinstance(stated.get("add_prefix_space"), bool) and model.add_dummy_prefix:
        return bool(stated["add_prefix_space"])
    return None if model.add_dummy_prefix else False


def _from_json(path: Path, tokenizer: Mapping[str, Any], n_vocab: int) -> tuple[TokenTable, bool | None]:
    """The tokens of a tokenizer.json that was made of a tokenizer.model, scored by the rank of their merge.

    llama.cpp joins the pair whose piece scores highest; tokenizer.json joins the pair that stands first in merges.
    """
    model = tokenizer["model"]
    table = TokenTable.empty(path, n_vocab)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(_pairs(path, model)):
        ranks.setdefault("".join(merge), rank)
    for text, index in model["vocab"].items():
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            table.place(index, text, BYTE)
        elif text == model.get("unk_token"):
            table.place(index, text, UNKNOWN)
        else:
            table.place(index, text, NORMAL, -float(ranks.get(text, len(ranks))))
    for text, index, special in _added_tokens(path, tokenizer):
        if index < n_vocab:
            _place_added(table, text, index, special=special)
    return table, None if _prefix_of_steps(path, tokenizer) else False


def _pairs(path: Path, model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The merges as pairs; a text splits at its only space, since a part with one is only in a pair."""
    for row in model.get("merges") or []:
        parts = row.split(" ") if isinstance(row, str) else row
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)):
            raise TokenizerError(f"{path}: merge {row!r} is not two texts")
        yield parts[0], parts[1]


def _prefix_of_steps(path: Path, tokenizer: Mapping[str, Any]) -> bool:
    """Whether the normalizer or the pre-tokenizer puts a space before a text."""
    normalizer = tokenizer.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    for step in steps:
        if step.get("type") not in ("Prepend", "Replace"):
            raise TokenizerError(
                f"{path}: normalizer {step.get('type')!r} changes text, llama.cpp does not",
                hint="with the tokenizer.model of the model it can be carried over",
            )
    metaspace = tokenizer.get("pre_tokenizer") or {}
    if metaspace.get("type") == "Metaspace":
        return bool(metaspace.get("prepend_scheme", "always") != "never")
    return any(step.get("type") == "Prepend" for step in steps)
