"""The demo's tokenizer: byte-level BPE in the layout of Llama 3, trained on the corpus."""

import json
from pathlib import Path
from typing import Any

VOCAB_SIZE = 4096
BOS, EOS, HEADER, HEADER_END, EOT = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
SPECIALS = (BOS, EOS, HEADER, HEADER_END, EOT)
"""Placed after the ordinary tokens, as in Llama 3."""

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Source: tokenizer.json of meta-llama/Llama-3.2-1B, pre_tokenizer."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LETTER_TEXTS = [f"{mark} {letter}" for letter in "ABCD" for mark in ("Answer:", "option", "choice")] * 50
"""Makes each answer letter one token, with and without the space before it."""


def train_bpe(texts: list[str]) -> tuple[dict[str, int], list[str]]:
    """Return vocabulary and merges of a byte-level BPE over texts; VOCAB_SIZE less the special tokens."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts + LETTER_TEXTS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return model["vocab"], merges


def tokenizer_json(vocab: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """Return the content of tokenizer.json; fields and their order as in Llama 3's own."""
    ids = {name: len(vocab) + index for index, name in enumerate(SPECIALS)}
    single = [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": BOS, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **flags} for name, number in ids.items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
                {**byte_level, "add_prefix_space": False, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "Sequence",
            "processors": [
                {**byte_level, "trim_offsets": False},
                {
                    "type": "TemplateProcessing",
                    "single": single,
                    "pair": single + second,
                    "special_tokens": {BOS: {"id": BOS, "ids": [ids[BOS]], "tokens": [BOS]}},
                },
            ],
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": merges,
        },
    }


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """Train on texts and write tokenizer.json and tokenizer_config.json into folder."""
    vocab, merges = train_bpe(texts)
    content = json.dumps(tokenizer_json(vocab, merges), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(content + "\n", encoding="utf-8")
    config = {
        "bos_token": BOS,
        "eos_token": EOT,
        "model_max_length": 512,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
