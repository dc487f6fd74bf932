"""tokenizer.json, read by the package `tokenizers`."""

import json
from pathlib import Path
from typing import Any

from medlite.errors import MedliteError


def read_tokenizer(path: Path, error_type: type[MedliteError], hint: str) -> tuple[Any, dict[str, Any]]:
    """The Tokenizer and the JSON object in `path`. Raises error_type where the file is missing or malformed."""
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
        stated = json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise error_type(f"{path}: {error}", hint) from error
    if not isinstance(stated, dict):
        raise error_type(f"{path}: holds a {type(stated).__name__}, an object was needed", hint)
    try:
        return Tokenizer.from_str(text), stated
    except Exception as error:
        if type(error) is not Exception:  # what the package raises for every fault of a file, and nothing narrower
            raise
        raise error_type(f"{path}: {error}", hint) from error
