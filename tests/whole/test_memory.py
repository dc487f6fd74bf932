"""Memory stays bounded whatever the model's size: a 70B-shaped checkpoint, sparse on disk."""

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.places import ROOT
from tests.helpers.tiny_checkpoint import llama_config, write_tokenizer

LIMIT_BYTES = 700_000_000
# fmt: off
SHAPE_70B = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8,
             "head_dim": 128, "vocab_size": 128256}
# fmt: on

CONVERT = """
import sys
from pathlib import Path
from medlite.files import check_free_space
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.stream.writer import WriteSettings, write
folder, target = Path(sys.argv[1]), sys.argv[2]
plan = plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q4_K_M"])
if target:
    write([plan.output(Path(target))], WriteSettings(n_threads=2, hash_source=False))
status = Path("/proc/self/status").read_text()
print(plan.n_bytes, next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def make_sparse(folder: Path, n_layers: int) -> Path:
    """A checkpoint of a 70B's shape whose weights are holes: zeros that take no disk."""
    folder.mkdir()
    config = llama_config(**SHAPE_70B, num_hidden_layers=n_layers)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, 512)
    hidden, ffn, n_key = 8192, 28672, 1024
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (128256, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (128256, hidden),
    }
    for layer in range(n_layers):
        name = f"model.layers.{layer}."
        shapes |= {
            name + key + ".weight": shape
            for key, shape in {
                "input_layernorm": (hidden,),
                "post_attention_layernorm": (hidden,),
                "self_attn.q_proj": (hidden, hidden),
                "self_attn.k_proj": (n_key, hidden),
                "self_attn.v_proj": (n_key, hidden),
                "self_attn.o_proj": (hidden, hidden),
                "mlp.gate_proj": (ffn, hidden),
                "mlp.up_proj": (ffn, hidden),
                "mlp.down_proj": (hidden, ffn),
            }.items()
        }
    header, offset = {}, 0
    for key, shape in shapes.items():
        n_bytes = 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + n_bytes]}
        offset += n_bytes
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as handle:
        handle.write(struct.pack("<Q", len(raw)) + raw)
        handle.truncate(8 + len(raw) + offset)
    return folder


def run(folder: Path, target: str) -> tuple[int, int]:
    """(planned bytes, peak resident bytes) of a fresh process that plans, and converts where target is given."""
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(folder), target],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    planned, peak_kib = done.stdout.split()
    return int(planned), int(peak_kib) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_a_70b_is_planned_in_bounded_memory(tmp_path: Path) -> None:
    """The sizes of a real 70B (42.5 GB at Q4_K_M), from headers alone."""
    planned, peak = run(make_sparse(tmp_path / "m", 80), "")
    assert planned == pytest.approx(42.52e9, rel=2e-3)
    assert peak < LIMIT_BYTES


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_the_first_layers_of_a_70b_are_converted_in_bounded_memory(tmp_path: Path) -> None:
    planned, peak = run(make_sparse(tmp_path / "m", 2), str(tmp_path / "m.gguf"))
    assert (tmp_path / "m.gguf").stat().st_size == planned
    assert peak < LIMIT_BYTES
