"""What a config may say, and what is refused because the runtime does not compute it."""

from pathlib import Path
from typing import Any

import pytest

from medlite.errors import CheckpointError
from tests.helpers.family_cases import config_of, read_family

# fmt: off
REFUSED = [
    ("llama3", {"attention_bias": True}, "attention_bias is True"),
    ("llama3", {"mlp_bias": True}, "mlp_bias is True"),
    ("llama3", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("llama3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("llama3", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling of type 'dynamic'"),
    ("llama3", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling of type 'yarn'"),
    ("llama3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
     "partial_rotary_factor 0.5"),
    ("llama3", {"sliding_window": 64}, "sliding_window is 64"),
    ("llama3", {"quantization_config": {"bits": 4}}, "quantization_config is"),
    ("llama3", {"num_local_experts": 8}, "num_local_experts is 8"),
    ("llama3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("mistral", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("phi3", {"partial_rotary_factor": 0.75}, "partial_rotary_factor is 0.75"),
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "long_factor"),
    ("phi3_long", {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [1.0] * 16,
                                    "attention_factor": 1.5}}, "attention_factor 1.5"),
    ("gemma3", {"sliding_window_pattern": 4}, "sliding_window_pattern 4"),
    ("gemma3", {"layer_types": ["full_attention"] * 8}, "layer_types"),
    ("gemma3", {"query_pre_attn_scalar": 168}, "query_pre_attn_scalar 168"),
    ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma3", {"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
    ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0},
                                    "full_attention": {}}}, "in sliding layers"),
    ("mllama", {"text_config": 3}, "text_config is a int"),
]
# fmt: on


@pytest.mark.parametrize(("family", "change", "message"), REFUSED)
def test_what_the_runtime_does_not_compute_is_refused(
    family: str, change: dict[str, Any], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = config_of(folders[family], **change)
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")):
        read_family(config)
