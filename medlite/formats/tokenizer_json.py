"""tokenizer.json, read by the package `tokenizers`."""

from pathlib import Path
from typing import Any

from medlite.errors import MedliteError
from medlite.formats.json import decode_json, read_bytes


def read_tokenizer(path: Path, error: type[MedliteError], hint: str) -> tuple[Any, dict[str, Any]]:
    """The Tokenizer and the JSON object in `path`. Raises `error` where the file is missing or malformed."""
    raw = read_bytes(path, error, hint)
    stated = decode_json(raw, dict[str, Any], error, where=str(path), hint=hint)
    return _tokenizer(raw, path, error, hint), stated


def load_tokenizer(path: Path, error: type[MedliteError], hint: str) -> Any:
    """As `read_tokenizer`, the Tokenizer alone: only `tokenizers` parses the file."""
    return _tokenizer(read_bytes(path, error, hint), path, error, hint)


def _tokenizer(raw: bytes, path: Path, error: type[MedliteError], hint: str) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(raw)  # from_str raises a bare Exception where this raises ValueError
    except ValueError as cause:
        raise error(f"{path}: {cause}", hint) from cause
