"""Special ids of a checkpoint, and whether BOS and EOS are added, as GGUF metadata.

The keys and values are those that llama.cpp's converter writes.
Source: llama.cpp gguf-py/gguf/vocab.py, SpecialVocab, restated as rules.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medlite.errors import TokenizerError
from medlite.formats.chat_template import token_text
from medlite.formats.gguf import Kind, Value
from quantize.source.checkpoint import SourceFiles

# Kind of special token -> its GGUF key (the spelling of "seperator" is the format's). Source: gguf constants.py.
# fmt: off
ID_KEYS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "sep": "seperator_token_id",
           "pad": "padding_token_id", "cls": "cls_token_id", "mask": "mask_token_id", "eot": "eot_token_id"}
# fmt: on
SPECIAL = "SpecialToken"
STATED_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def special_tokens(files: SourceFiles, tokenizer: Mapping[str, Any] | None, n_vocab: int) -> dict[str, Value]:
    """The tokenizer.* keys of special tokens.

    tokenizer: the tokenizer.json beside the weights, None where there is none. Ids of n_vocab and more are left
    out: the model has no such embedding.
    """
    has_config = files.has("tokenizer_config.json")
    stated = files.object_if_any("tokenizer_config.json")
    texts = {kind: text for kind in STATED_KINDS if (text := token_text(stated.get(f"{kind}_token"))) is not None}
    flags: dict[str, bool] = {}
    if tokenizer is not None:
        texts.setdefault("bos", texts.get("cls", ""))
        texts.setdefault("eos", texts.get("sep", ""))
        flags = _flags_of_post_processor(files.path("tokenizer.json"), tokenizer, texts)
    for kind in STATED_KINDS:
        if isinstance(stated.get(f"add_{kind}_token"), bool):
            flags.setdefault(kind, stated[f"add_{kind}_token"])
    ids = _ids(files, tokenizer, texts if has_config else {}, n_vocab)
    result = {f"tokenizer.ggml.{ID_KEYS[kind]}": Value(Kind.UINT32, index) for kind, index in ids.items()}
    return result | {
        f"tokenizer.ggml.add_{kind}_token": Value(Kind.BOOL, flag)
        for kind, flag in flags.items()
        if kind in ("bos", "eos", "sep")
    }


def _ids(
    files: SourceFiles, tokenizer: Mapping[str, Any] | None, texts: Mapping[str, str], n_vocab: int
) -> dict[str, int]:
    """The id of each special token: by its text among the added tokens, else as config.json states it."""
    added: dict[str, int] = {}
    for entry in (tokenizer or {}).get("added_tokens") or []:
        if isinstance(entry, dict) and isinstance(entry.get("id"), int) and isinstance(entry.get("content"), str):
            added.setdefault(entry["content"], entry["id"])
    config = files.object("config.json")
    nested = config.get("text_config")
    ids: dict[str, int] = {}
    for kind in (*STATED_KINDS, "eot"):
        candidates: list[Any] = [added.get(texts[kind])] if kind in texts else []
        if kind in STATED_KINDS or kind in texts:
            stated = config.get(f"{kind}_token_id")
            candidates.append(nested.get(f"{kind}_token_id") if stated is None and isinstance(nested, dict) else stated)
        for index in candidates:
            if isinstance(index, int) and not isinstance(index, bool) and index < n_vocab:
                if index < 0:
                    raise TokenizerError(f"{files.folder}: {kind}_token_id is {index}")
                ids[kind] = index
                break
    return ids


def _flags_of_post_processor(path: Path, tokenizer: Mapping[str, Any], texts: dict[str, str]) -> dict[str, bool]:
    """Which special tokens are put around a text. Corrects `texts` where the template contradicts them."""
    stated = tokenizer.get("post_processor")
    if not stated:
        return {}
    flags: dict[str, bool] = {}
    for step in stated.get("processors", [stated]):
        kind = step.get("type")
        if kind == "ByteLevel":
            flags.setdefault("bos", False)
            flags.setdefault("eos", False)
        elif kind == "TemplateProcessing":
            flags |= _flags_of_template(step, texts)
        else:
            raise TokenizerError(
                f"{path}: post-processor {kind!r} is not known", hint="known: ByteLevel, TemplateProcessing"
            )
    return flags


def _flags_of_template(step: Mapping[str, Any], texts: dict[str, str]) -> dict[str, bool]:
    flags: dict[str, bool] = {}
    single, pair = step.get("single") or [], step.get("pair") or []
    first = _id(single[0], SPECIAL) if len(single) > 1 else None
    last = _id(single[-1], SPECIAL) if len(single) > 1 else None
    if first:
        if first not in (texts.get("bos"), texts.get("cls")):
            texts["bos"], texts["cls"] = texts.get("bos") or first, texts.get("cls") or first
        flags["bos"] = first in (texts.get("bos"), texts.get("cls"))
    if last:
        if last != texts.get("eos"):
            texts["eot"], texts["eos"] = texts.get("eos", ""), last
        flags["eos"] = True
    if first and pair and _id(pair[0], SPECIAL) == first:
        pair = pair[1:]
    if last and pair and _id(pair[-1], SPECIAL) == last:
        pair = pair[:-1]
    between = [_id(entry, SPECIAL) for entry in pair[1:-1]]
    if between and _id(pair[0], "Sequence") == "A" and _id(pair[-1], "Sequence") == "B":
        ends = (texts.get("sep"), texts.get("eos"))
        flags["sep"] = (between[0] in ends and not last) or (len(between) == 2 and between[1] in ends)
        if flags["sep"] and not texts.get("sep"):
            texts["sep"] = texts.get("eos", "")
    return flags


def _id(entry: Any, kind: str) -> str | None:
    """The id of a template's entry of `kind`, SpecialToken or Sequence; None for one of another kind."""
    found = entry.get(kind) if isinstance(entry, dict) else None
    return found.get("id") if isinstance(found, dict) else None
