"""tokenizer.json: the tokenizer and what the file states, or one error of the caller's for every fault of the file."""

import json
from pathlib import Path

import pytest

from medlite.errors import ArtifactError, TokenizerError
from medlite.formats.tokenizer_json import load_tokenizer, read_tokenizer

WORDS = {"model": {"type": "WordLevel", "vocab": {"a": 0, "é": 1}, "unk_token": "a"}, "added_tokens": []}


def test_both_readings_are_of_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(WORDS, ensure_ascii=False), encoding="utf-8")
    tokenizer, stated = read_tokenizer(path, ArtifactError, "again")
    assert (tokenizer.token_to_id("é"), stated) == (1, WORDS)
    assert load_tokenizer(path, ArtifactError, "again").to_str() == tokenizer.to_str()


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{}", b'{"model": {"type": "BPE"}}', b'{"model": {"type": "Unknown"}}', b"\xff", b"[" * 200_000,
     json.dumps(WORDS | {"added_tokens": 7}).encode()],
)  # fmt: skip
def test_a_damaged_file_is_the_callers_error(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(raw)
    for read in (read_tokenizer, load_tokenizer):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: ") as found:
            read(path, TokenizerError, "download it again")
        assert found.value.hint == "download it again"


def test_a_missing_file_is_the_callers_error(tmp_path: Path) -> None:
    for read in (read_tokenizer, load_tokenizer):
        with pytest.raises(TokenizerError, match="missing"):
            read(tmp_path / "tokenizer.json", TokenizerError, "again")
