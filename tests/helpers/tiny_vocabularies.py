"""Small vocabularies of true structure: byte-level BPE and SentencePiece, trained on a few sentences.

tokenizer.model is written here by hand, field by field, so the tests need no sentencepiece.
"""

import json
import struct
from pathlib import Path
from typing import Any

TEXT = (
    "The patient takes metformin 500 mg twice daily for type 2 diabetes. Vitamin C deficiency causes scurvy. "
    "Question: which drug class?\n\nAnswer: A B C D\nDie Patientin hat Fieber; le médecin prescrit du "
    "paracétamol. Кровяное давление 120/80. 患者は頭痛を訴える。 "
) * 8
UNKNOWN, CONTROL, NORMAL, USER_DEFINED, BYTE = 2, 3, 1, 4, 6


def _varint(n: int) -> bytes:
    out = b""
    while n > 0x7F:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def _bytes_field(number: int, raw: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _number_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def pack_piece(text: str, score: float, piece_type: int) -> bytes:
    raw = _bytes_field(1, text.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", score)
    return _bytes_field(1, raw + _number_field(3, piece_type))


def pack_sentencepiece(
    pieces: list[tuple[str, float, int]],
    *,
    model_type: int = 2,
    dummy_prefix: bool = True,
    keeps_spaces: bool = True,
    character_map: bytes = b"",
) -> bytes:
    """The bytes of a tokenizer.model."""
    trainer = _number_field(3, model_type) + _number_field(4, len(pieces)) + _number_field(35, 1)
    normalizer = (
        _bytes_field(1, b"identity")
        + _bytes_field(2, character_map)
        + _number_field(3, int(dummy_prefix))
        + _number_field(4, int(not keeps_spaces))
        + _number_field(5, 1)
    )
    return b"".join(pack_piece(*row) for row in pieces) + _bytes_field(2, trainer) + _bytes_field(3, normalizer)


def train_pieces(n_merges: int = 90) -> tuple[list[str], list[tuple[str, str]]]:
    """Characters and merges of a BPE over TEXT with "▁" for a space."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    characters = sorted(set(TEXT.replace("\n", " ").replace(" ", "▁")))
    trainer = trainers.BpeTrainer(
        vocab_size=len(characters) + n_merges, show_progress=False, initial_alphabet=characters
    )
    tokenizer.train_from_iterator([TEXT.replace("\n", " ")], trainer)
    merges = [tuple(row) for row in json.loads(tokenizer.to_str())["model"]["merges"]]
    return characters, merges


def llama_pieces() -> list[tuple[str, float, int]]:
    """As Llama 2 lays them out: unknown, BOS, EOS, bytes, merged pieces by rank, characters."""
    characters, merges = train_pieces()
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)]
    texts = list(dict.fromkeys("".join(pair) for pair in merges)) + characters
    return pieces + [(text, -float(i), NORMAL) for i, text in enumerate(texts)]


def gemma_pieces() -> list[tuple[str, float, int]]:
    """As Gemma lays them out: pad, EOS, BOS, unknown, user-defined runs and tags, then bytes and pieces."""
    pieces = [
        ("<pad>", 0.0, CONTROL),
        ("<eos>", 0.0, CONTROL),
        ("<bos>", 0.0, CONTROL),
        ("<unk>", 0.0, UNKNOWN),
        ("<mask>", 0.0, USER_DEFINED),
        ("<unused0>", 0.0, USER_DEFINED),
        ("<start_of_turn>", 0.0, USER_DEFINED),
        ("<end_of_turn>", 0.0, USER_DEFINED),
        ("\n", 0.0, USER_DEFINED),
        ("\n\n", 0.0, USER_DEFINED),
        *(("▁" * n, 0.0, USER_DEFINED) for n in range(2, 17)),
        ("<table>", 0.0, USER_DEFINED),
    ]
    return pieces + llama_pieces()[3:]


def merges_of(pieces: list[tuple[str, float, int]]) -> list[list[str]]:
    """Every way to make a piece of two, best piece first, as Transformers derives merges from scores."""
    ids = {text: i for i, (text, _, _) in enumerate(pieces)}
    found = []
    for text, score, piece_type in pieces:
        if piece_type in (NORMAL, USER_DEFINED):
            pairs = [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in ids and text[i:] in ids]
            found += [(score, [left, right]) for left, right in sorted(pairs, key=lambda p: (ids[p[0]], ids[p[1]]))]
    return [pair for _, pair in sorted(found, key=lambda row: -row[0])]


def added_token(text: str, index: int, special: bool, rstrip: bool = False) -> dict[str, Any]:
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": rstrip,
        "normalized": False,
        "special": special,
    }


def sentencepiece_json(
    pieces: list[tuple[str, float, int]], added: list[dict[str, Any]], *, bos: str, prepends: bool = True
) -> dict[str, Any]:
    """The tokenizer.json of a SentencePiece model: BPE with byte fallback, BOS before a text."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    ids = {text: i for i, (text, _, _) in enumerate(pieces)}
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": (
            {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]} if prepends else replace
        ),
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                begin,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": bos, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prepends else []),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges_of(pieces),
        },
    }


def write_byte_level(
    folder: Path,
    *,
    n_vocab: int,
    pattern: str,
    special: tuple[str, ...],
    bos: str | None,
    eos: str,
    template: str | None,
    ignore_merges: bool = False,
    normalizes: bool = False,
    joined_merges: bool = False,
) -> None:
    """A byte-level BPE of n_vocab tokens, special ones last. bos: put before every text, where there is one."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if normalizes:
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab - len(special), show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens(list(special))
    tokenizer.decoder = decoders.ByteLevel()
    byte_level = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = (
        byte_level
        if bos is None
        else processors.Sequence(
            [
                byte_level,
                processors.TemplateProcessing(
                    single=f"{bos} $A",
                    pair=f"{bos} $A {bos}:1 $B:1",
                    special_tokens=[(bos, tokenizer.token_to_id(bos))],
                ),
            ]
        )
    )
    made = json.loads(tokenizer.to_str())
    if joined_merges:
        made["model"]["merges"] = [" ".join(row) for row in made["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False))
    config = {
        "eos_token": eos,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    config |= {} if bos is None else {"bos_token": bos}
    config |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_sentencepiece(
    folder: Path,
    pieces: list[tuple[str, float, int]],
    added: list[dict[str, Any]],
    *,
    bos: str,
    eos: str,
    model: bool = True,
    fast: bool = True,
    template: str | None = None,
    prepends: bool = True,
    **config: Any,
) -> None:
    """tokenizer.model and tokenizer.json (either may be left out), added_tokens.json, tokenizer_config.json."""
    if model:
        (folder / "tokenizer.model").write_bytes(pack_sentencepiece(pieces, dummy_prefix=prepends))
    if fast:
        made = sentencepiece_json(pieces, added, bos=bos, prepends=prepends)
        (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False))
    stated = {
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(row["id"]): {k: v for k, v in row.items() if k != "id"} for row in added},
    }
    stated |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated | config))
