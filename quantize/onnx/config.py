"""The small files beside an ONNX model: what runtimes must know of it, and the tokenizer.

genai_config.json is onnxruntime-genai's (source: its src/config.cpp); medlite.json is ours, read by
medlite.formats.artifact.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medlite.errors import CheckpointError
from medlite.formats.chat_template import special_tokens
from medlite.formats.onnx_folder import FACTS_NAME, MODEL_NAME, SCHEMA
from quantize.onnx.plan import OnnxPlan

TOKENIZER_NAME = "tokenizer.json"
# fmt: off
COPIED_NAMES = (TOKENIZER_NAME, "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model",
                "generation_config.json", "chat_template.jinja")
# fmt: on
GENAI_NAME = "genai_config.json"

# Tokens that end a turn wherever they stand in a vocabulary. Source: llama.cpp src/llama-vocab.cpp, special_eog_ids.
# fmt: off
END_TEXTS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
             "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>")
# fmt: on


def companion_files(plan: OnnxPlan) -> dict[str, Path | dict[str, Any]]:
    """Name -> JSON content, or the source file that is copied. Raises CheckpointError without a tokenizer.json."""
    folder = plan.checkpoint.folder
    if not (folder / TOKENIZER_NAME).is_file():
        raise CheckpointError(
            f"{folder / TOKENIZER_NAME}: missing, an ONNX folder carries it for every runtime",
            hint="AutoTokenizer.from_pretrained(SOURCE).save_pretrained(SOURCE) writes it",
        )
    files: dict[str, Path | dict[str, Any]] = {
        name: folder / name for name in COPIED_NAMES if (folder / name).is_file()
    }
    files[FACTS_NAME] = facts(plan)
    files[GENAI_NAME] = genai_config(plan)
    return files


def facts(plan: OnnxPlan) -> dict[str, Any]:
    """medlite.json: what medlite.formats.artifact and the engine read before anything is loaded."""
    decoder = plan.decoder
    template = plan.model.vocabulary().get("tokenizer.chat_template")
    name = plan.model.general.get("general.name")
    return {
        "schema": SCHEMA,
        "name": str(name.value) if name else plan.checkpoint.folder.name,
        "architecture": decoder.family,
        "recipe": plan.recipe.name,
        "block": plan.block,
        "device": plan.device,
        "n_params": plan.n_params,
        "n_data_bytes": plan.n_data_bytes,
        "bits_per_weight": round(plan.bits_per_weight, 6),
        "n_vocab": decoder.n_vocab,
        "n_context_trained": decoder.n_context,
        "n_layer": len(decoder.layers),
        "n_head_kv": decoder.n_head_kv,
        "head_dim": decoder.head_dim,
        "kv_type": plan.float_name,
        "long_rope_from": decoder.long_rope_from,
        "shared_cache": True,
        "special_tokens": special_tokens({key: value.value for key, value in plan.model.vocabulary().items()}),
        "end_tokens": end_tokens(plan),
        "chat_template": template.value if template else None,
    }


def genai_config(plan: OnnxPlan) -> dict[str, Any]:
    """genai_config.json: inputs, sizes and token ids; the key-value cache is one buffer, written in place."""
    decoder = plan.decoder
    special, ends = _special_ids(plan), end_tokens(plan)
    end: int | list[int] = ends if len(ends) > 1 else ends[0] if ends else decoder.n_vocab - 1
    return {
        "model": {
            "bos_token_id": special.get("bos", 0),
            "context_length": decoder.n_context,
            "decoder": {
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "log_severity_level": 3,
                    "provider_options": [{"cuda": {}}] if plan.device == "cuda" else [],
                },
                "filename": MODEL_NAME,
                "head_size": decoder.head_dim,
                "hidden_size": decoder.hidden,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": decoder.n_head,
                "num_hidden_layers": len(decoder.layers),
                "num_key_value_heads": decoder.n_head_kv,
            },
            "eos_token_id": end,
            "pad_token_id": special.get("padding", ends[0] if ends else 0),
            "type": decoder.arithmetic.genai_type,
            "vocab_size": decoder.n_vocab,
        },
        "search": {
            "do_sample": False,
            "max_length": decoder.n_context,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


def _special_ids(plan: OnnxPlan) -> dict[str, int]:
    """bos, eos, eot, unknown, padding ... -> token id, those that the tokenizer names."""
    prefix, suffix = "tokenizer.ggml.", "_token_id"
    return {
        key[len(prefix) : -len(suffix)]: int(value.value)
        for key, value in plan.model.vocabulary().items()
        if key.startswith(prefix) and key.endswith(suffix)
    }


def end_tokens(plan: OnnxPlan) -> list[int]:
    """Every token that ends a turn: as the configs say, as the tokenizer says, and by its text."""
    ids, n_vocab = _special_ids(plan), plan.decoder.n_vocab
    found = {ids[key] for key in ("eos", "eot", "eom") if key in ids} | stated_ends(plan.model.config)
    found |= stated_ends(plan.checkpoint.files.object_if_any("generation_config.json"))
    tokens = plan.model.vocabulary()["tokenizer.ggml.tokens"].value
    places = {text: i for i, text in enumerate(tokens)}
    found |= {places[text] for text in END_TEXTS if text in places}
    return sorted(token for token in found if 0 <= token < n_vocab)


def stated_ends(config: Mapping[str, Any]) -> set[int]:
    """eos_token_id as a set, whether it is one id or several."""
    stated = config.get("eos_token_id")
    values = stated if isinstance(stated, list) else [stated]
    return {value for value in values if isinstance(value, int) and not isinstance(value, bool)}
