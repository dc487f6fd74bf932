"""Chats become the tokens that transformers' apply_chat_template makes, for the real templates and vocabularies.

The vocabularies and templates are llama.cpp's own copies of the published ones. Needs transformers and the llama.cpp
source (MEDLITE_LLAMA_CPP); two minutes.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from medlite.formats.chat_template import ChatTemplate, Message, special_tokens
from medlite.formats.gguf import read_header
from medlite.models.catalog import PROMPT_FORMATS, CatalogModel, read_catalog
from medlite.native import open_vocabulary
from quantize.source.tokenizer import CONTROL, UNKNOWN
from tests.helpers.chat_templates import MESSAGES, TEMPLATES
from tests.helpers.tiny_vocabularies import sentencepiece_json
from tests.quantize.source.test_real_vocabularies import added_of, read_vocabulary

MODELS = Path(os.environ.get("MEDLITE_LLAMA_CPP", ""), "models")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (MODELS / "ggml-vocab-qwen2.gguf").is_file(), reason="MEDLITE_LLAMA_CPP names no llama.cpp source"
    ),
]

# Size of a vocabulary -> llama.cpp's file of it. Gemma 3's is not among them.
# fmt: off
VOCABULARIES = {128256: "llama-bpe", 32000: "llama-spm", 32017: "llama-spm", 32064: "phi-3", 151936: "qwen2",
                152064: "qwen2"}
# fmt: on
SENTENCEPIECE = ("llama-spm", "phi-3")  # transformers' reader of GGUF sets other blanks around their control tokens
# Vocabulary -> published templates that models of the catalogue carry, or their bases.
# fmt: off
PUBLISHED = {
    "llama-bpe": ("meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct",
                  "meta-llama-Llama-3.3-70B-Instruct", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B"),
    "qwen2": ("Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "Qwen-QwQ-32B"),
    "phi-3": ("microsoft-Phi-3.5-mini-instruct",)}
# fmt: on
# fmt: off
CONVERSATIONS = [MESSAGES, MESSAGES[1:], MESSAGES[:2], MESSAGES[1:2],
                 (("user", "Wie hoch ist die Höchstdosis?\n\t2 mg/kg <b>täglich</b> – 日本語 🩺"),)]
# fmt: on


@cache
def tokenizer(name: str) -> Any:
    """transformers' tokenizer: by its own reader of GGUF, or laid out as the checkpoint's tokenizer.json."""
    transformers = pytest.importorskip("transformers")
    if name not in SENTENCEPIECE:
        return transformers.AutoTokenizer.from_pretrained(MODELS, gguf_file=f"ggml-vocab-{name}.gguf")
    metadata = read_vocabulary(name)
    keys = ("tokens", "scores", "token_type")
    rows = list(zip(*(metadata[f"tokenizer.ggml.{key}"].value for key in keys), strict=True))[:32000]
    pieces = [
        (text, 0.0 if i < 3 else score, (UNKNOWN, CONTROL, CONTROL)[i] if i < 3 else kind)
        for i, (text, score, kind) in enumerate(rows)
    ]
    laid_out = json.dumps(sentencepiece_json(pieces, added_of(metadata), bos="<s>"), ensure_ascii=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(laid_out),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=special_tokens(read_header(MODELS / f"ggml-vocab-{name}.gguf"))["eos_token"],
    )


def check(name: str, source: str) -> None:
    """Every conversation under `source` becomes the same tokens."""
    path, theirs = MODELS / f"ggml-vocab-{name}.gguf", tokenizer(name)
    template = ChatTemplate(source, special_tokens(read_header(path)))
    with open_vocabulary(path) as vocabulary:
        for conversation in CONVERSATIONS:
            if conversation[0][0] == "system" and not template.takes_system:
                continue
            for prompt in (True, False):
                ours = template.render([Message(*row) for row in conversation], add_generation_prompt=prompt)
                wanted = theirs.apply_chat_template(
                    [{"role": role, "content": content} for role, content in conversation],
                    chat_template=source,
                    add_generation_prompt=prompt,
                    tokenize=True,
                    return_dict=False,
                )
                assert vocabulary.tokenize(ours, add_special=False, parse_special=True) == wanted


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in PUBLISHED.items() for file in files])
def test_a_published_template_becomes_the_same_tokens(name: str, file: str) -> None:
    check(name, (MODELS / "templates" / f"{file}.jinja").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "model",
    [m for m in read_catalog().values() if m.prompt != "none" and m.vocabulary in VOCABULARIES],
    ids=lambda m: m.name,
)
def test_a_catalogue_row_becomes_the_same_tokens(model: CatalogModel) -> None:
    name = VOCABULARIES[model.vocabulary]
    check(name, PROMPT_FORMATS[model.prompt].jinja())
    if model.prompt in TEMPLATES:
        check(name, TEMPLATES[model.prompt].source)


def test_the_formats_equal_the_published_templates() -> None:
    for name, file, wanted in (
        ("llama-bpe", "meta-llama-Llama-3.1-8B-Instruct", "llama-3.1"),
        ("phi-3", "microsoft-Phi-3.5-mini-instruct", "phi-3"),
        ("llama-spm", "google-gemma-2-2b-it", "gemma"),
        ("qwen2", "Qwen-Qwen2.5-7B-Instruct", "chatml"),
    ):
        tokens = special_tokens(read_header(MODELS / f"ggml-vocab-{name}.gguf"))
        theirs = ChatTemplate((MODELS / "templates" / f"{file}.jinja").read_text(encoding="utf-8"), tokens)
        ours = ChatTemplate(PROMPT_FORMATS[wanted].jinja(), tokens)
        for conversation in CONVERSATIONS:
            if wanted == "chatml" and conversation[0][0] != "system":
                continue  # Qwen's puts its own name there
            messages = [Message(*row) for row in conversation]
            assert ours.render(messages) == theirs.render(messages), wanted
