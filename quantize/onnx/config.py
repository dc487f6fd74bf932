"""The small files beside an ONNX model: what runtimes must know of it, and the tokenizer.

genai_config.json is onnxruntime-genai's (source: its src/config.cpp); medlite.json is ours, read by
medlite.formats.artifact.
"""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from medlite.files import json_text
from medlite.formats.chat_template import special_tokens
from medlite.formats.gguf import Value
from medlite.formats.onnx_folder import MODEL_NAME
from quantize.match import SourceModel
from quantize.onnx.decoder import Decoder
from quantize.onnx.folder import FLOATS, facts_file
from quantize.source.checkpoint import SourceFiles
from quantize.stream.plan import Plan

TOKENIZER_NAME = "tokenizer.json"
# fmt: off
COPIED_NAMES = (TOKENIZER_NAME, "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model",
                "generation_config.json", "chat_template.jinja")
GENAI_NAME = "genai_config.json"
# Tokens that end a turn wherever they stand in a vocabulary. Source: llama.cpp src/llama-vocab.cpp, special_eog_ids.
END_TEXTS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
             "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>")
# fmt: on


def companion_files(plan: Plan, decoder: Decoder, model: SourceModel) -> dict[str, bytes | Path]:
    """Name -> content, or the source file that is copied; tokenizer.json even where the source lacks it."""
    folder, vocabulary = model.checkpoint.folder, model.vocabulary
    found: dict[str, bytes | Path] = {name: folder / name for name in COPIED_NAMES if (folder / name).is_file()}
    found[TOKENIZER_NAME] = folder / TOKENIZER_NAME
    template, name = vocabulary.get("tokenizer.chat_template"), model.general.get("general.name")
    device, ids = plan.facts["device"], special_ids(vocabulary)
    places = {text: i for i, text in enumerate(vocabulary["tokenizer.ggml.tokens"].value)}
    named = {ids[key] for key in ("eos", "eot", "eom") if key in ids}
    ends = end_tokens(model.config, model.checkpoint.files, places, named, n_vocab=decoder.n_vocab)
    of_graph = {
        "n_vocab": decoder.n_vocab,
        "n_context_trained": decoder.n_context,
        "n_layer": len(decoder.layers),
        "n_head_kv": decoder.n_head_kv,
        "head_dim": decoder.head_dim,
        "kv_type": FLOATS[device].name,
        "long_rope_from": decoder.long_rope_from,
        "shared_cache": True,
        "special_tokens": special_tokens({key: value.value for key, value in vocabulary.items()}),
        "end_tokens": ends,
        "chat_template": template.value if template else None,
    }
    found |= facts_file(plan, str(name.value) if name else folder.name, of_graph)
    found[GENAI_NAME] = json_text(genai_config(device, decoder, ids, ends)).encode()
    return found


def genai_config(device: str, decoder: Decoder, special: Mapping[str, int], ends: list[int]) -> dict[str, Any]:
    """genai_config.json: inputs, sizes and token ids; the key-value cache is one buffer, written in place."""
    end: int | list[int] = ends if len(ends) > 1 else ends[0] if ends else decoder.n_vocab - 1
    # fmt: off
    return {
        "model": {
            "type": decoder.arithmetic.genai_type, "vocab_size": decoder.n_vocab, "context_length": decoder.n_context,
            "bos_token_id": special.get("bos", 0), "eos_token_id": end,
            "pad_token_id": special.get("padding", ends[0] if ends else 0),
            "decoder": {
                "session_options": {
                    "log_id": "onnxruntime-genai", "log_severity_level": 3,
                    "provider_options": [{"cuda": {}}] if device == "cuda" else [],
                },
                "filename": MODEL_NAME,
                "head_size": decoder.head_dim, "hidden_size": decoder.hidden,
                "num_attention_heads": decoder.n_head, "num_key_value_heads": decoder.n_head_kv,
                "num_hidden_layers": len(decoder.layers),
                "inputs": {
                    "input_ids": "input_ids", "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key", "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False, "max_length": decoder.n_context, "min_length": 0, "num_beams": 1,
            "past_present_share_buffer": True, "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 1, "top_p": 1.0,
        },
    }
    # fmt: on


def special_ids(vocabulary: Mapping[str, Value]) -> dict[str, int]:
    """bos, eos, eot, unknown, padding ... -> token id, those that the tokenizer names."""
    prefix, suffix = "tokenizer.ggml.", "_token_id"
    return {
        key[len(prefix) : -len(suffix)]: int(value.value)
        for key, value in vocabulary.items()
        if key.startswith(prefix) and key.endswith(suffix)
    }


def end_tokens(
    config: Mapping[str, Any], files: SourceFiles, places: Mapping[str, int], named: Set[int], *, n_vocab: int
) -> list[int]:
    """Every token that ends a turn: as the configs say, as the tokenizer says (`named`), and by its text.

    places: text -> id of the vocabulary, or of what was added to it.
    """
    found = named | stated_ends(config) | stated_ends(files.object_if_any("generation_config.json"))
    found |= {places[text] for text in END_TEXTS if text in places}
    return sorted(token for token in found if 0 <= token < n_vocab)


def stated_ends(config: Mapping[str, Any]) -> set[int]:
    """eos_token_id as a set, whether it is one id or several."""
    stated = config.get("eos_token_id")
    values = stated if isinstance(stated, list) else [stated]
    return {value for value in values if isinstance(value, int) and not isinstance(value, bool)}
