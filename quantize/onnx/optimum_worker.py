"""Export a checkpoint to a float32 ONNX graph with Optimum: run by the Python of an environment that has it.

    python - SOURCE OUT < optimum_worker.py

It imports nothing of medlite, so that environment needs Optimum alone. OUT gets model.onnx (its weights inside, or
beside it where they exceed 2 GB), the tokenizer's files, and versions.json: package -> version.
"""

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

# Before anything is imported that would ask: nothing is downloaded, nothing reported.
# fmt: off
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
           "ORT_DISABLE_TELEMETRY": "1"}
# fmt: on
PACKAGES = ("optimum-onnx", "optimum", "transformers", "torch", "onnx")
TASK = "text-generation-with-past"  # one graph that takes and returns the key-value cache


def own_configs(config: Any) -> dict[str, Any] | None:
    """Export settings of a model type that Optimum 2.1 does not know; None where it does."""
    if config.model_type != "biogpt":
        return None
    from optimum.exporters.onnx.config import TextDecoderWithPositionIdsOnnxConfig
    from optimum.utils import NormalizedTextConfig

    biogpt = type(
        "BioGptOnnxConfig", (TextDecoderWithPositionIdsOnnxConfig,), {"NORMALIZED_CONFIG_CLASS": NormalizedTextConfig}
    )
    return {"model": biogpt(config, task="text-generation", use_past=True, use_past_in_inputs=True)}


def stay_offline(event: str, _arguments: tuple[Any, ...]) -> None:
    """An audit hook: looking up or calling another machine is an error; urllib3 only binds to this one, as a probe."""
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise RuntimeError(f"{event} was attempted, and an export needs no network")


def main() -> None:
    os.environ.update(OFFLINE)
    sys.addaudithook(stay_offline)
    source, out = sys.argv[1:]
    from optimum.exporters.onnx import main_export
    from transformers import AutoConfig, AutoTokenizer

    own = own_configs(AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False))
    # Post-processing merges equal weights; on tied models above 2 GB it fails in protobuf, and ours merges them too.
    main_export(
        source,
        output=out,
        task=TASK,
        no_post_process=True,
        do_validation=False,
        local_files_only=True,
        trust_remote_code=False,
        framework="pt",
        device="cpu",
        library_name="transformers",
        **({"custom_onnx_configs": own} if own else {}),
    )
    if not (Path(out) / "tokenizer.json").exists():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, ImportError, TypeError) as error:
            sys.stderr.write(f"no tokenizer.json could be made: {error}\n")
        else:
            if tokenizer.is_fast:
                tokenizer.save_pretrained(out)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    (Path(out) / "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main()
