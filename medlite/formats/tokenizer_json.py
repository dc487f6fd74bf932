"""tokenizer.json, read by the package `tokenizers`."""

from pathlib import Path
from typing import Any

from medlite.errors import MedliteError
from medlite.formats.json import decode_json


def read_tokenizer(path: Path, error: type[MedliteError], hint: str) -> tuple[Any, dict[str, Any]]:
    """The Tokenizer and the JSON object in `path`. Raises `error` where the file is missing or malformed."""
    text = _text(path, error, hint)
    stated = decode_json(text, dict[str, Any], error, where=str(path), hint=hint)
    return _tokenizer(text, path, error, hint), stated


def load_tokenizer(path: Path, error: type[MedliteError], hint: str) -> Any:
    """As `read_tokenizer`, the Tokenizer alone: only `tokenizers` parses the file."""
    return _tokenizer(_text(path, error, hint), path, error, hint)


def _text(path: Path, error: type[MedliteError], hint: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path}: {cause}", hint) from cause


def _tokenizer(text: str, path: Path, error: type[MedliteError], hint: str) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except Exception as cause:
        if type(cause) is not Exception:  # what the package raises for every fault of a file, and nothing narrower
            raise
        raise error(f"{path}: {cause}", hint) from cause
