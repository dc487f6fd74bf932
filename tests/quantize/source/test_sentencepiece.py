"""The reader of tokenizer.model: equal to sentencepiece's own, and no file makes it crash, hang or grow."""

import importlib.util
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlite.errors import TokenizerError
from quantize.source import sentencepiece as sentencepiece_model
from quantize.source.sentencepiece import Piece, read_sentencepiece
from tests.helpers.tiny_vocabularies import gemma_pieces, llama_pieces, pack_piece, pack_sentencepiece


def written(folder: Path, raw: bytes) -> Path:
    path = folder / "tokenizer.model"
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("pieces", [llama_pieces(), gemma_pieces()], ids=["llama", "gemma"])
@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_what_is_written_is_read(pieces: list[tuple[str, float, int]], dummy_prefix: bool, tmp_path: Path) -> None:
    model = read_sentencepiece(written(tmp_path, pack_sentencepiece(pieces, dummy_prefix=dummy_prefix)))
    assert model.pieces == tuple(Piece(*row) for row in pieces)
    assert model.add_dummy_prefix is dummy_prefix
    assert not model.normalizes


def test_defaults_are_those_of_the_format(tmp_path: Path) -> None:
    """A field that is not written has protobuf's default: unigram, a dummy prefix, extra spaces removed."""
    with pytest.raises(TokenizerError, match="model type 1"):
        read_sentencepiece(written(tmp_path, pack_piece("a", 0.0, 1)))
    bpe_only = pack_piece("a", 0.0, 1) + bytes([0x12, 2, 0x18, 2])
    model = read_sentencepiece(written(tmp_path, bpe_only))
    assert (model.add_dummy_prefix, model.normalizes) == (True, True)


@pytest.mark.parametrize("options", [{"keeps_spaces": False}, {"character_map": b"map"}])
def test_a_model_that_changes_text_says_so(options: dict[str, object], tmp_path: Path) -> None:
    assert read_sentencepiece(written(tmp_path, pack_sentencepiece([("a", 0.0, 1)], **options))).normalizes


GOOD = pack_sentencepiece([("<unk>", 0.0, 2), ("▁a", -1.0, 1)])
HOSTILE = {
    "empty": b"",
    "cut in a piece": GOOD[:9],
    "cut in a number": b"\x0a\xff",
    "a number without end": b"\x0a" + b"\xff" * 40,
    "a length past the end": b"\x0a\xff\xff\xff\xff\x07" + b"x" * 16,
    "a length of 2^63": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "field number 0": b"\x02\x01a",
    "a group": b"\x0b\x0c",
    "an unknown wire type": b"\x0f",
    "a piece that is a number": b"\x08\x01",
    "a text that is no UTF-8": b"\x0a\x04\x0a\x02\xff\xfe" + GOOD,
    "a score of NaN": pack_piece("a", float("nan"), 1) + GOOD,
    "a score of infinity": pack_piece("a", float("inf"), 1) + GOOD,
    "a score of 8 bytes": b"\x0a\x0b\x0a\x00\x11" + b"\0" * 8,
    "an unknown piece type": pack_piece("a", 0.0, 9) + GOOD,
    "a tiktoken file": b"IQ== 0\nIg== 1\n",
    "JSON": b'{"model": {}}',
    "unigram": pack_sentencepiece([("a", 0.0, 1)], model_type=1),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_model_is_an_error(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        read_sentencepiece(written(tmp_path, raw))


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="No such file"):
        read_sentencepiece(tmp_path / "tokenizer.model")


def test_a_file_beyond_the_limit_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece_model, "MAX_FILE_BYTES", 8)
    with pytest.raises(TokenizerError, match="more than 8 bytes"):
        read_sentencepiece(written(tmp_path, GOOD))


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
def test_no_bytes_do_anything_but_parse_or_raise(raw: bytes, at: int) -> None:
    for attempt in (raw, GOOD[:at] + raw + GOOD[at:], GOOD[:at]):
        try:
            model = sentencepiece_model._parse_model(attempt)
        except sentencepiece_model._DamagedError:
            continue
        assert sum(len(piece.text.encode()) for piece in model.pieces) <= len(attempt)


def test_unknown_fields_are_skipped(tmp_path: Path) -> None:
    """Of every wire type: a later sentencepiece may add some."""
    extra = b"\xa0\x06\x05" + b"\xa1\x06" + b"\0" * 8 + b"\xa2\x06\x03abc" + b"\xa5\x06" + struct.pack("<f", 1.0)
    assert len(read_sentencepiece(written(tmp_path, extra + GOOD + extra)).pieces) == 2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is None, reason="needs sentencepiece")
@pytest.mark.filterwarnings("ignore")
def test_sentencepiece_reads_the_same(tmp_path: Path) -> None:
    """Our hand-written files are true ones, and we read them as their own library does."""
    from sentencepiece import SentencePieceProcessor

    for pieces in (llama_pieces(), gemma_pieces()):
        path = written(tmp_path, pack_sentencepiece(pieces))
        theirs = SentencePieceProcessor(model_file=str(path))
        ours = read_sentencepiece(path)
        assert theirs.vocab_size() == len(ours.pieces)
        for i, piece in enumerate(ours.pieces):
            assert (theirs.IdToPiece(i), theirs.GetScore(i)) == (piece.text, piece.score)
            assert (theirs.IsUnknown(i), theirs.IsControl(i), theirs.IsUnused(i), theirs.IsByte(i)) == (
                piece.type == 2,
                piece.type == 3,
                piece.type == 5,
                piece.type == 6,
            )
