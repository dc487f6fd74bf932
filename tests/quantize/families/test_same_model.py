"""The converted model against the Hugging Face one: logits in float32, and the chat prompt.

Needs torch and transformers (the extra [torch]); a few seconds a family.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlite.formats.chat_template import TOKEN_KEYS, ChatTemplate, Message
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import SourceFiles, open_checkpoint
from quantize.source.parity_texts import CONVERSATIONS
from quantize.source.templates import pinned_date, source_template
from quantize.stream.writer import write
from tests.helpers.llama_logits import llama_logits
from tests.helpers.tiny_families import FAMILIES, make_family, plain_llama_of_mllama

MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install 'medlite[torch]'"),
    pytest.mark.filterwarnings("ignore"),  # torch's and transformers' own
]
N_TOKENS = 40  # more than Gemma's tiny window of 16, so the window is seen
LOGIT_TOLERANCE = 1e-3  # of the range of the logits
# llama2_model_only and _json_only have llama2's weights.
WITH_OWN_WEIGHTS = [name for name in FAMILIES if "_only" not in name]
WITH_TEMPLATE = [name for name in WITH_OWN_WEIGHTS if name != "llama2"]


def transformers_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """(len(ids), n_vocab) float32 logits of the checkpoint in `folder`, from text alone."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return np.asarray(logits.float().numpy())


def tokens_of(folder: Path) -> list[int]:
    plan = plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["F32"])
    n_vocab = len(plan.metadata["tokenizer.ggml.tokens"].value)
    return [int(i) for i in np.random.default_rng(11).integers(3, n_vocab, N_TOKENS)]


@pytest.mark.parametrize("family", WITH_OWN_WEIGHTS)
def test_logits_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = make_family(family, tmp_path / family)
    write([plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["F32"]).output(tmp_path / "f32.gguf")])
    ids = tokens_of(folder)
    theirs, ours = transformers_logits(folder, ids), llama_logits(tmp_path / "f32.gguf", ids)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= LOGIT_TOLERANCE * (theirs.max() - theirs.min())


@pytest.mark.parametrize("family", ["mllama", "mllama_new_names"])
def test_llama_vision_without_an_image_is_exactly_the_plain_llama(family: str, tmp_path: Path) -> None:
    """In torch, bit by bit: so dropping the cross-attention layers loses nothing."""
    folder, plain = make_family(family, tmp_path / family), plain_llama_of_mllama(tmp_path / "plain")
    ids = tokens_of(folder)
    assert np.array_equal(transformers_logits(folder, ids), transformers_logits(plain, ids))


@pytest.mark.parametrize("family", WITH_TEMPLATE)
def test_the_chat_prompt_equals_apply_chat_template(family: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = make_family(family, tmp_path / family)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    template, special = source_template(SourceFiles(folder))
    if tokenizer.chat_template is None:  # chat_template.json is a processor's, here read as its tokenizer's
        tokenizer.chat_template = template
    assert template is not None
    assert set(special) <= set(TOKEN_KEYS)
    for conversation in CONVERSATIONS:
        messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in conversation]
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert (
            ChatTemplate(template, special, now=pinned_date).try_render([Message(*row) for row in conversation])
            == theirs
        )
