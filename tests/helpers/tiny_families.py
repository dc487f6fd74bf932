"""A tiny random checkpoint of the true structure of every family: names, shapes, config keys, tokenizer files."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.tiny_checkpoint import PATTERN, SPECIAL, TEMPLATE, llama_config, llama_tensors, write_safetensors
from tests.helpers.tiny_vocabularies import (
    BYTE,
    added_token,
    gemma_pieces,
    llama_pieces,
    write_byte_level,
    write_sentencepiece,
)

QWEN_PATTERN = PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' "
    "else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# fmt: off
LLAMA31_ROPE = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 64, "rope_type": "llama3"}
# fmt: on
Tensors = dict[str, np.ndarray]


def _save(folder: Path, config: Mapping[str, Any], tensors: Tensors, dtype: str = "BF16") -> Path:
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_safetensors(folder / "model.safetensors", tensors, dtype)
    return folder


def _random(shapes: Mapping[str, tuple[int, ...]], *, norm: float = 1.0) -> Tensors:
    """Norms around `norm`, everything else small."""
    rng = np.random.default_rng(3)
    return {
        name: (
            (norm if "norm" in name else 0.0) + 0.1 * rng.standard_normal(shape)
            if len(shape) == 1
            else 0.05 * rng.standard_normal(shape)
        ).astype(np.float32)
        for name, shape in shapes.items()
    }


# --- Llama and Mistral -----------------------------------------------------------------------------------------------


def _llama2_added(n_base: int) -> list[dict[str, Any]]:
    """Meditron's kind: the model's own special tokens, and ChatML tokens past the base vocabulary."""
    return [
        added_token("<unk>", 0, True),
        added_token("<s>", 1, True),
        added_token("</s>", 2, True),
        added_token("<|im_start|>", n_base, True),
        added_token("<|im_end|>", n_base + 1, True),
        added_token("<CLS>", n_base + 2, False),
    ]


def _spm_llama(folder: Path, files: Mapping[str, bool], **changes: Any) -> Path:
    pieces = llama_pieces()
    added = _llama2_added(len(pieces))
    config = llama_config(
        vocab_size=len(pieces) + 5, bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-6, head_dim=None, **changes
    )
    del config["head_dim"], config["rope_theta"]  # neither stands in Llama 2's config.json
    write_sentencepiece(folder, pieces, added, bos="<s>", eos="</s>", **files)
    (folder / "added_tokens.json").write_text(json.dumps({row["content"]: row["id"] for row in added[3:]}))
    return _save(folder, config, llama_tensors(config | {"head_dim": 32}))


def llama2(folder: Path) -> Path:
    return _spm_llama(folder, {"model": True, "fast": True}, num_key_value_heads=8)


def llama2_model_only(folder: Path) -> Path:
    return _spm_llama(folder, {"model": True, "fast": False}, num_key_value_heads=8)


def llama2_json_only(folder: Path) -> Path:
    return _spm_llama(folder, {"model": False, "fast": True}, num_key_value_heads=8)


def llama3(folder: Path) -> Path:
    config = llama_config()
    write_byte_level(
        folder,
        n_vocab=512,
        pattern=PATTERN,
        special=SPECIAL,
        bos=SPECIAL[0],
        eos=SPECIAL[4],
        template=TEMPLATE,
        ignore_merges=True,
    )
    return _save(folder, config, llama_tensors(config), "F16")


def llama32(folder: Path) -> Path:
    config = llama_config(
        tie_word_embeddings=True,
        rope_scaling=LLAMA31_ROPE,
        rope_theta=500000.0,
        head_dim=64,
        num_attention_heads=4,
        num_key_value_heads=1,
    )
    write_byte_level(
        folder,
        n_vocab=512,
        pattern=PATTERN,
        special=SPECIAL,
        bos=SPECIAL[0],
        eos=SPECIAL[4],
        template=TEMPLATE,
        ignore_merges=True,
        joined_merges=True,
    )
    return _save(folder, config, llama_tensors(config))


def mistral(folder: Path) -> Path:
    pieces = llama_pieces()
    config = llama_config(
        architectures=["MistralForCausalLM"],
        model_type="mistral",
        sliding_window=128,
        vocab_size=len(pieces),
        bos_token_id=1,
        eos_token_id=2,
    )
    del config["head_dim"]
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' "
        "else m['content'] + eos_token }}{% endfor %}"
    )
    write_sentencepiece(folder, pieces, _llama2_added(len(pieces))[:3], bos="<s>", eos="</s>", template=template)
    return _save(folder, config, llama_tensors(config | {"head_dim": 32}))


# --- Qwen ------------------------------------------------------------------------------------------------------------


def _qwen(folder: Path, config: dict[str, Any], more: Mapping[str, tuple[int, ...]]) -> Path:
    """The vocabulary has fewer tokens than the model embeddings, as Qwen's has."""
    write_byte_level(
        folder,
        n_vocab=config["vocab_size"] - 16,
        pattern=QWEN_PATTERN,
        special=QWEN_SPECIAL,
        bos=None,
        eos="<|im_end|>",
        template=CHATML,
        normalizes=True,
    )
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05})
    )
    return _save(folder, config, llama_tensors(config) | _random(more))


def qwen2(folder: Path) -> Path:
    config = llama_config(
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        rope_theta=1e6,
        sliding_window=512,
        use_sliding_window=False,
        max_window_layers=2,
        bos_token_id=493,
        eos_token_id=495,
    )
    biases = {
        f"model.layers.{i}.self_attn.{name}_proj.bias": (n,)
        for i in range(2)
        for name, n in (("q", 256), ("k", 64), ("v", 64))
    }
    made = _qwen(folder, config, biases)
    del config["head_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    return made


def qwen3(folder: Path) -> Path:
    config = llama_config(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        rope_theta=1e6,
        head_dim=64,
        attention_bias=False,
        sliding_window=None,
        use_sliding_window=False,
        max_window_layers=2,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        bos_token_id=493,
        eos_token_id=495,
    )
    norms = {f"model.layers.{i}.self_attn.{name}_norm.weight": (64,) for i in range(2) for name in "qk"}
    return _qwen(folder, config, norms)


# --- Phi-3 -----------------------------------------------------------------------------------------------------------


def _phi3(folder: Path, **changes: Any) -> Path:
    pieces = llama_pieces()
    n = len(pieces)
    names = ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>")
    added = [
        added_token("<unk>", 0, True),
        added_token("<s>", 1, True),
        added_token("</s>", 2, False, rstrip=True),
        *(added_token(text, n + i, True, rstrip=text != "<|endoftext|>") for i, text in enumerate(names)),
    ]
    write_sentencepiece(
        folder,
        pieces,
        added,
        bos="<s>",
        eos="<|endoftext|>",
        template=PHI_TEMPLATE,
        add_bos_token=False,
        pad_token="<|endoftext|>",
    )
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None  # Phi-3 adds no BOS
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage:\n- en\ntags:\n- nlp\n---\n# Phi-3\n")
    config = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "original_max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "sliding_window": 127,
        "vocab_size": n + 16,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": n,
        "pad_token_id": n,
        "torch_dtype": "bfloat16",
        "attention_bias": False,
    } | changes
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (n + 16, 256)}
    for i in range(2):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (256,),
            layer + "mlp.down_proj.weight": (256, 512),
            layer + "mlp.gate_up_proj.weight": (1024, 256),
            layer + "post_attention_layernorm.weight": (256,),
            layer + "self_attn.o_proj.weight": (256, 256),
            layer + "self_attn.qkv_proj.weight": (768, 256),
        }
    shapes |= {"model.norm.weight": (256,), "lm_head.weight": (n + 16, 256)}
    return _save(folder, config, _random(shapes))


def phi3(folder: Path) -> Path:
    return _phi3(folder)


def phi3_long(folder: Path) -> Path:
    factors = [1.0 + i / 7 for i in range(16)]
    return _phi3(
        folder,
        max_position_embeddings=8192,
        sliding_window=16384,
        rope_scaling={"type": "longrope", "short_factor": [1.0 + i / 99 for i in range(16)], "long_factor": factors},
    )


# --- Gemma 3 ---------------------------------------------------------------------------------------------------------


def _gemma_vocabulary(folder: Path) -> int:
    pieces = gemma_pieces()
    added = [
        added_token(text, i, piece_type == 3 or text == "<unk>" or text.endswith("_of_turn>"))
        for i, (text, _, piece_type) in enumerate(pieces[: pieces.index(("<0x00>", 0.0, BYTE))])
    ]
    write_sentencepiece(
        folder, pieces, added, bos="<bos>", eos="<eos>", template=GEMMA_TEMPLATE, prepends=False, pad_token="<pad>"
    )
    return len(pieces) + 11


def _gemma_text(n_vocab: int, **changes: Any) -> tuple[dict[str, Any], Tensors]:
    """Eight layers: one full one after five that slide, and two more that slide. head_dim is not hidden / heads."""
    config = {
        "model_type": "gemma3_text",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": n_vocab,
        "max_position_embeddings": 512,
        "sliding_window": 16,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "query_pre_attn_scalar": 32,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
    } | changes
    names = llama_tensors(config | {"tie_word_embeddings": True})
    shapes = {name: value.shape for name, value in names.items()}
    for i in range(8):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "pre_feedforward_layernorm.weight": (256,),
            layer + "post_feedforward_layernorm.weight": (256,),
            layer + "self_attn.q_norm.weight": (32,),
            layer + "self_attn.k_norm.weight": (32,),
        }
    return config, _random(shapes, norm=0.2)


def gemma3(folder: Path) -> Path:
    config, tensors = _gemma_text(_gemma_vocabulary(folder))
    special = {"architectures": ["Gemma3ForCausalLM"], "bos_token_id": 2, "eos_token_id": [1, 7], "pad_token_id": 0}
    return _save(folder, config | special, tensors)


def _gemma3_vision(folder: Path, old_names: bool) -> Path:
    """MedGemma 4B's layout: a nested config without tie_word_embeddings, and a vision tower."""
    text, tensors = _gemma_text(_gemma_vocabulary(folder))
    prefix, outer = ("language_model.model.", "") if old_names else ("model.language_model.", "model.")
    renamed = {prefix + name.removeprefix("model."): value for name, value in tensors.items()}
    renamed |= _random(
        {
            f"{outer}vision_tower.vision_model.embeddings.patch_embedding.weight": (32, 3, 4, 4),
            f"{outer}vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": (32, 32),
            f"{outer}multi_modal_projector.mm_input_projection_weight": (32, 256),
        }
    )
    vision = {
        "hidden_size": 32,
        "image_size": 16,
        "intermediate_size": 64,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": 4,
    }
    return _save(
        folder,
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "eos_token_id": [1, 7],
            "boi_token_index": 4,
            "eoi_token_index": 5,
            "image_token_index": 5,
            "mm_tokens_per_image": 4,
            "text_config": text,
            "vision_config": vision,
        },
        renamed,
    )


def gemma3_vision(folder: Path) -> Path:
    return _gemma3_vision(folder, old_names=True)


def gemma3_vision_new_names(folder: Path) -> Path:
    return _gemma3_vision(folder, old_names=False)


# --- Llama 3.2 Vision ------------------------------------------------------------------------------------------------

CROSS_LAYERS = (1, 4)


# fmt: off
MLLAMA_TEXT = {
    "model_type": "mllama_text_model", "hidden_size": 256, "intermediate_size": 512, "vocab_size": 512,
    "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu",
    "cross_attention_layers": list(CROSS_LAYERS), "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "rope_scaling": LLAMA31_ROPE, "tie_word_embeddings": False, "bos_token_id": 507,
    "eos_token_id": 511, "pad_token_id": 508, "dropout": 0}
# fmt: on


def _mllama_tensors() -> Tensors:
    """Five Llama layers and an embedding of eight rows more than there are tokens."""
    tensors = llama_tensors(MLLAMA_TEXT | {"head_dim": 64})
    tensors["model.embed_tokens.weight"] = _random({"e": (512 + 8, 256)})["e"]
    return tensors


def plain_llama_of_mllama(folder: Path) -> Path:
    """What Llama 3.2 Vision is where there is no image: a Llama of its self-attention layers."""
    folder.mkdir(parents=True)
    kept = [i for i in range(5) if i not in CROSS_LAYERS]
    config = llama_config(
        **{
            key: MLLAMA_TEXT[key]
            for key in ("num_attention_heads", "num_key_value_heads", "rope_theta", "rms_norm_eps", "rope_scaling")
        },
        num_hidden_layers=len(kept),
        head_dim=64,
    )
    write_byte_level(
        folder,
        n_vocab=512,
        pattern=PATTERN,
        special=SPECIAL,
        bos=SPECIAL[0],
        eos=SPECIAL[4],
        template=TEMPLATE,
        ignore_merges=True,
    )
    source, tensors = _mllama_tensors(), {}
    for name in llama_tensors(config):
        layer = name.split(".")[2] if ".layers." in name else None
        tensors[name] = source[name.replace(f".layers.{layer}.", f".layers.{kept[int(layer)]}.") if layer else name]
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:512]
    return _save(folder, config, tensors)


def _mllama(folder: Path, old_names: bool) -> Path:
    """Five layers, two of them cross-attention; eight rows more in the embedding than tokens."""
    write_byte_level(
        folder,
        n_vocab=512,
        pattern=PATTERN,
        special=SPECIAL,
        bos=SPECIAL[0],
        eos=SPECIAL[4],
        template=None,
        ignore_merges=True,
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    text = MLLAMA_TEXT
    tensors = _mllama_tensors()
    for layer in CROSS_LAYERS:
        for name in [name for name in tensors if name.startswith(f"model.layers.{layer}.self_attn")]:
            del tensors[name]
        cross = f"model.layers.{layer}.cross_attn"
        tensors |= _random(
            {
                f"{cross}.q_proj.weight": (256, 256),
                f"{cross}.k_proj.weight": (128, 256),
                f"{cross}.v_proj.weight": (128, 256),
                f"{cross}.o_proj.weight": (256, 256),
                f"{cross}.q_norm.weight": (64,),
                f"{cross}.k_norm.weight": (64,),
                f"{cross}_attn_gate": (1,),
                f"{cross}_mlp_gate": (1,),
            }
        )
    prefix, outer = ("language_model.model.", "") if old_names else ("model.language_model.", "model.")
    head = {"language_model.lm_head.weight" if old_names else "lm_head.weight": tensors.pop("lm_head.weight")}
    renamed = {prefix + name.removeprefix("model."): value for name, value in tensors.items()} | head
    renamed |= _random(
        {
            f"{outer}vision_model.class_embedding": (32,),
            f"{outer}vision_model.patch_embedding.weight": (32, 3, 4, 4),
            f"{outer}multi_modal_projector.weight": (256, 64),
            f"{outer}multi_modal_projector.bias": (256,),
        }
    )
    vision = {
        "model_type": "mllama_vision_model",
        "hidden_size": 32,
        "image_size": 16,
        "patch_size": 4,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "attention_heads": 2,
        "intermediate_size": 64,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 64,
        "max_num_tiles": 4,
    }
    return _save(
        folder,
        {
            "architectures": ["MllamaForConditionalGeneration"],
            "model_type": "mllama",
            "image_token_index": 512,
            "text_config": text,
            "vision_config": vision,
        },
        renamed,
    )


def mllama(folder: Path) -> Path:
    return _mllama(folder, old_names=True)


def mllama_new_names(folder: Path) -> Path:
    return _mllama(folder, old_names=False)


# fmt: off
FAMILIES: dict[str, Callable[[Path], Path]] = {made.__name__: made for made in (
    llama2, llama2_model_only, llama2_json_only, llama3, llama32, mistral, qwen2, qwen3, phi3, phi3_long, gemma3,
    gemma3_vision, gemma3_vision_new_names, mllama, mllama_new_names)}
# fmt: on


def make_family(name: str, folder: Path) -> Path:
    """The tiny checkpoint of one row of FAMILIES in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return FAMILIES[name](folder)


def attention_factor(scale: float, original: int) -> float:
    """LongRoPE's factor, for tests."""
    return math.sqrt(1 + math.log(scale) / math.log(original))
