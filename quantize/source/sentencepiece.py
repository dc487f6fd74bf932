"""Reads a SentencePiece tokenizer.model: its pieces and the few settings that matter. No sentencepiece needed.

The file is a protobuf message; the reader knows the wire format and the fields it wants and skips the rest.
It is hostile until checked: every length is held against the bytes that are left, so nothing grows with a number in
the file. Source of the field numbers: google/sentencepiece src/sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medlite.errors import TokenizerError

MAX_FILE_BYTES = 64 << 20  # Gemma's 262144 pieces take 4.7 MB
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
BPE = 2  # TrainerSpec.ModelType
PIECE_TYPES = (1, 2, 3, 4, 5, 6)  # normal, unknown, control, user-defined, unused, byte

Field = tuple[int, int, int | bytes]


@dataclass(frozen=True)
class Piece:
    """text: with "▁" for a space. type: one of PIECE_TYPES, which are GGUF's token types too."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """pieces: by id. add_dummy_prefix: text is encoded as if a space stood before it.

    normalizes: the model changes text before it is cut (a character map, or extra spaces removed).
    """

    pieces: tuple[Piece, ...]
    add_dummy_prefix: bool
    normalizes: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """The BPE model in `path`. Raises TokenizerError where it is damaged or of another kind than BPE."""
    try:
        with path.open("rb") as handle:
            raw = handle.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror or error}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise TokenizerError(f"{path}: more than {MAX_FILE_BYTES} bytes, no tokenizer is that large")
    try:
        return _parse_model(raw)
    except _DamagedError as error:
        raise TokenizerError(f"{path}: {error}", hint="download the file again; it is no SentencePiece BPE") from error


class _DamagedError(Exception):
    """What is wrong with the bytes; the caller adds the file's name."""


def _parse_model(raw: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    model_type, add_dummy_prefix, removes_spaces, has_map = 1, True, True, False
    for number, kind, value in _fields(raw):
        if number == 1:
            pieces.append(_parse_piece(_message(kind, value)))
        elif number == 2:
            for inner, inner_kind, inner_value in _fields(_message(kind, value)):
                if inner == 3:
                    model_type = _integer(inner_kind, inner_value)
        elif number == 3:
            for inner, inner_kind, inner_value in _fields(_message(kind, value)):
                if inner == 2:
                    has_map = bool(_message(inner_kind, inner_value))
                elif inner == 3:
                    add_dummy_prefix = bool(_integer(inner_kind, inner_value))
                elif inner == 4:
                    removes_spaces = bool(_integer(inner_kind, inner_value))
    if not pieces:
        raise _DamagedError("holds no pieces")
    if model_type != BPE:
        raise _DamagedError(f"model type {model_type}, {BPE} (BPE) was needed")
    return SentencePieceModel(tuple(pieces), add_dummy_prefix, has_map or removes_spaces)


def _parse_piece(raw: bytes) -> Piece:
    text, score, piece_type = "", 0.0, 1
    for number, kind, value in _fields(raw):
        if number == 1:
            try:
                text = _message(kind, value).decode("utf-8")
            except UnicodeDecodeError:
                raise _DamagedError(f"piece {value!r} is no UTF-8") from None
        elif number == 2:
            if kind != FIXED32 or not isinstance(value, bytes):
                raise _DamagedError(f"a score of wire type {kind}")
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            piece_type = _integer(kind, value)
    if piece_type not in PIECE_TYPES:
        raise _DamagedError(f"piece {text!r} is of unknown type {piece_type}")
    if score != score or score in (float("inf"), float("-inf")):
        raise _DamagedError(f"piece {text!r} has score {score}")
    return Piece(text, score, piece_type)


def _message(kind: int, value: int | bytes) -> bytes:
    if kind != LENGTH or not isinstance(value, bytes):
        raise _DamagedError(f"wire type {kind} where {LENGTH} (bytes) was needed")
    return value


def _integer(kind: int, value: int | bytes) -> int:
    if kind != VARINT or not isinstance(value, int):
        raise _DamagedError(f"wire type {kind} where {VARINT} (a number) was needed")
    return value


def _fields(raw: bytes) -> Iterator[Field]:
    """The fields of one message: number, wire type, value."""
    position = 0
    while position < len(raw):
        tag, position = _varint(raw, position)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise _DamagedError(f"field number 0 at byte {position}")
        if kind == VARINT:
            value, position = _varint(raw, position)
            yield number, kind, value
            continue
        if kind == LENGTH:
            length, position = _varint(raw, position)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise _DamagedError(f"unknown wire type {kind} at byte {position}")
        if length > len(raw) - position:
            raise _DamagedError(f"{length} bytes announced at byte {position}, {len(raw) - position} left")
        yield number, kind, raw[position : position + length]
        position += length


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    """A base-128 number and the position after it."""
    result = 0
    for i in range(10):
        if position + i >= len(raw):
            raise _DamagedError(f"a number is cut short at byte {position}")
        byte = raw[position + i]
        result |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return result, position + i + 1
    raise _DamagedError(f"a number of more than 10 bytes at byte {position}")
