"""The tokenizer of an ONNX folder: tokenizer.json read by the `tokenizers` package, and the bytes of each token.

Not the runtime's own: onnxruntime-genai's adds no BOS and decodes some vocabularies differently.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medlite.engines.ort.moses import VOCABULARY_NAME, MosesTokenizer
from medlite.errors import ArtifactError
from medlite.formats.tokenizer_json import read_tokenizer

TOKENIZER_NAME = "tokenizer.json"
SPACE = "▁"  # SentencePiece's letter for a space


def open_tokenizer(folder: Path, architecture: str, control: Iterable[int]) -> "FolderTokenizer | MosesTokenizer":
    """The folder's tokenizer. Raises ArtifactError where it is missing or damaged."""
    if architecture == "biogpt" and (folder / VOCABULARY_NAME).is_file():
        return MosesTokenizer(folder, control)
    return FolderTokenizer(folder, control)


class FolderTokenizer:
    """control: ids whose text is never shown, beside those that the file calls special."""

    def __init__(self, folder: Path, control: Iterable[int]) -> None:
        self._tokenizer, stated = read_tokenizer(
            folder / TOKENIZER_NAME, ArtifactError, "the folder is incomplete or damaged; make it again"
        )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = [token for token in stated.get("added_tokens") or [] if isinstance(token, dict)]
        self._control = {*control, *(token.get("id") for token in added if token.get("special"))}
        self._added = {token.get("id"): str(token.get("content")) for token in added}
        self._is_byte_level = "ByteLevel" in _kinds(stated.get("decoder"))
        self._letters = _byte_of_letter()

    def encode(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. parse_special turns the text of control tokens into their ids."""
        self._tokenizer.encode_special_tokens = not parse_special
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_bos).ids
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes of one token; none for a control token or an id without text."""
        if token in self._control:
            return b""
        if token in self._added:
            return self._added[token].encode()
        text: str | None = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._is_byte_level:
            return bytes(self._letters[letter] for letter in text if letter in self._letters)
        if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text):
            return bytes([int(match[1], 16)])
        return text.replace(SPACE, " ").encode()

    def pieces(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.piece(token) for token in tokens)


def _kinds(decoder: Any) -> set[str]:
    """The types of a decoder and of those inside it."""
    if not isinstance(decoder, dict):
        return set()
    inner = decoder.get("decoders")
    found = {str(decoder.get("type"))}
    for one in inner if isinstance(inner, list) else ():
        found |= _kinds(one)
    return found


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's letter -> byte. Source: openai/gpt-2 src/encoder.py, bytes_to_unicode."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    extra = iter(range(256, 512))
    return {chr(byte) if byte in plain else chr(next(extra)): byte for byte in range(256)}
