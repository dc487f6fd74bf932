"""An ONNX conversion that was killed continues and ends in the same bytes; nothing half-done gets a final name."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.tiny_checkpoint import llama_config, llama_tensors, make_llama, write_safetensors

pytest.importorskip("onnx", reason="needs the extra [onnx]")

from medlite.errors import ArtifactError, CheckpointError, MedliteError, OutputError
from medlite.files import part_path
from medlite.formats.artifact import open_artifact
from medlite.formats.onnx_folder import DATA_NAME, FACTS_NAME, MODEL_NAME
from medlite.formats.receipt import ONNX_RECEIPT_NAME
from quantize.match import match_checkpoint
from quantize.onnx.plan import plan_onnx
from quantize.onnx.recipes import ONNX_RECIPES
from quantize.onnx.verify import verify_onnx
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.journal import journal_path
from quantize.stream.writer import WriteSettings, Written, write
from tests.helpers.places import ROOT

KILL_AFTER = """
import os, sys
from pathlib import Path
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.onnx.plan import plan_onnx
from quantize.onnx.recipes import ONNX_RECIPES
from quantize.stream.writer import WriteSettings, write
folder, limit, signal_number = sys.argv[1:]
seen = 0
def on_bytes(n):
    global seen
    seen += n
    if seen > int(limit):
        os.kill(os.getpid(), int(signal_number))
plan = plan_onnx(match_checkpoint(open_checkpoint(Path(folder))), ONNX_RECIPES["q4m"], block=32)
write([plan.output(Path(folder) / "out")], WriteSettings(n_threads=2, on_bytes=on_bytes))
"""


def convert(folder: Path, recipe: str = "q4m", **settings: object) -> Written:
    plan = plan_onnx(match_checkpoint(open_checkpoint(folder)), ONNX_RECIPES[recipe], block=32)
    return write([plan.output(folder / "out")], WriteSettings(**settings))[0]  # type: ignore[arg-type]


def run_until_killed(folder: Path, limit: int, signal_number: int = 9) -> None:
    """Run a conversion that kills itself after `limit` output bytes, and see that it died of that."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILL_AFTER, str(folder), str(limit), str(signal_number)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal_number, done.stderr


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_llama(tmp_path / "m", num_hidden_layers=6)


def test_the_same_plan_gives_the_same_folder(folder: Path) -> None:
    convert(folder, n_threads=1)
    first = digests(folder / "out")
    convert(folder, n_threads=3, force=True)
    assert digests(folder / "out") == first


@pytest.mark.parametrize(("share", "signal_number"), [(0.1, 9), (0.9, 9), (0.5, 2)])
def test_a_killed_conversion_continues_to_the_same_bytes(share: float, signal_number: int, folder: Path) -> None:
    written = convert(folder)
    expected = digests(folder / "out")
    (folder / "out").rename(folder / "whole")
    run_until_killed(folder, int(share * written.output.plan.files[1].n_bytes), signal_number)
    assert not (folder / "out").exists()
    assert part_path(folder / "out").exists()
    assert convert(folder).n_resumed_bytes > 0.4 * share * written.output.plan.files[1].n_bytes
    assert digests(folder / "out") == expected
    assert not part_path(folder / "out").exists()
    assert not journal_path(folder / "out").exists()


def test_recipes_that_share_a_read_give_what_each_gives_alone(folder: Path) -> None:
    model = match_checkpoint(open_checkpoint(folder))
    plans = {name: plan_onnx(model, ONNX_RECIPES[name], block=32) for name in ("q8", "q4")}
    written = write([plan.output(folder / name) for name, plan in plans.items()])
    together = {one.output.plan.recipe: digests(one.path) for one in written}
    for name in plans:
        convert(folder, name, force=True)
        assert digests(folder / "out") == together[name]


def test_what_an_older_run_left_in_the_folder_is_not_published(folder: Path) -> None:
    convert(folder)
    expected = digests(folder / "out")
    (folder / "out").rename(folder / "whole")
    run_until_killed(folder, 1_000_000)
    (part_path(folder / "out") / "receipt.json.part").write_text("{")
    convert(folder)
    assert digests(folder / "out") == expected
    assert verify_onnx(folder / "out").ok


def test_a_lost_slab_is_written_again(folder: Path) -> None:
    convert(folder)
    expected = digests(folder / "out")
    (folder / "out").rename(folder / "whole")
    run_until_killed(folder, 1_000_000)
    with (part_path(folder / "out") / DATA_NAME).open("r+b") as handle:
        handle.write(bytes(50_000))
    convert(folder)
    assert digests(folder / "out") == expected


def test_a_folder_is_only_replaced_on_request_and_only_if_it_is_ours(folder: Path) -> None:
    convert(folder)
    with pytest.raises(OutputError, match="exists already"):
        convert(folder, "q8")
    convert(folder, "q8", force=True)
    assert open_artifact(folder / "out").recipe == "q8"
    (folder / "out" / FACTS_NAME).unlink()
    with pytest.raises(OutputError, match="not replaced"):
        convert(folder, force=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_weight_that_is_no_number_leaves_nothing(value: float, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", dtype="F32")
    tensors = llama_tensors(llama_config())
    tensors["model.layers.1.mlp.up_proj.weight"][77, 3] = value
    write_safetensors(folder / "model.safetensors", tensors, "F32")
    with pytest.raises(CheckpointError, match=r"row 77 holds NaN or infinity|beyond float16's range"):
        convert(folder)
    assert not (folder / "out").exists()
    assert not part_path(folder / "out").exists()
    assert not journal_path(folder / "out").exists()


def test_without_a_tokenizer_json_nothing_is_begun(tmp_path: Path) -> None:
    from tests.helpers.tiny_families import make_family

    folder = make_family("llama2_model_only", tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        convert(folder)
    assert not part_path(folder / "out").exists()


def test_the_facts_are_the_plan_s(folder: Path) -> None:
    written = convert(folder)
    artifact = open_artifact(written.path)
    assert (artifact.format, artifact.recipe, artifact.n_vocab, artifact.n_context_trained) == ("onnx", "q4m", 512, 512)
    assert artifact.n_bytes == written.output.plan.n_bytes
    assert artifact.n_params == sum(value.size for value in llama_tensors(llama_config(num_hidden_layers=6)).values())
    genai = json.loads((written.path / "genai_config.json").read_text())
    assert genai["model"]["type"] == "llama"
    assert genai["model"]["eos_token_id"] == [350, 353, 511]  # <|end_of_text|>, <|eot_id|>, config.json
    assert genai["search"]["past_present_share_buffer"] is True


# --- verify ----------------------------------------------------------------------------------------------------------


def test_a_sound_folder_is_sound_and_equals_its_source(folder: Path) -> None:
    written = convert(folder)
    found = verify_onnx(written.path, against=open_checkpoint(folder))
    assert found.ok
    assert all(one.identical for one in found.comparisons)
    assert len(found.comparisons) == len(written.output.plan.tensors)


@pytest.mark.parametrize("name", [DATA_NAME, MODEL_NAME, FACTS_NAME, "tokenizer.json", "genai_config.json"])
def test_every_changed_byte_is_found(name: str, folder: Path) -> None:
    path = convert(folder).path / name
    rng = np.random.default_rng(1)
    content = path.read_bytes()
    for position in rng.integers(0, len(content), 4).tolist():
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(bytes(changed))
        assert not verify_onnx(path.parent).ok
    path.write_bytes(content)
    assert verify_onnx(path.parent).ok


def test_the_changed_tensor_is_named(folder: Path) -> None:
    written = convert(folder)
    tensor = next(t for t in written.output.plan.tensors if t.name == "blk.3.attn_q.weight")
    with (written.path / DATA_NAME).open("r+b") as handle:
        handle.seek(tensor.parts[1].offset)
        handle.write(np.array([np.nan], np.float16).tobytes())
    problems = verify_onnx(written.path).problems
    assert any("blk.3.attn_q.weight.scales holds NaN" in line for line in problems)
    assert any("blk.3.attn_q.weight.scales has changed" in line for line in problems)


def test_another_model_s_weights_are_not_taken_for_the_source_s(folder: Path, tmp_path: Path) -> None:
    written = convert(folder)
    other = make_llama(tmp_path / "other", num_hidden_layers=6)
    write_safetensors(other / "model.safetensors", llama_tensors(llama_config(num_hidden_layers=6), seed=9), "BF16")
    found = verify_onnx(written.path, against=open_checkpoint(other))
    assert any("is not the source's tensor" in line for line in found.problems)


def cut_data(path: Path) -> None:
    with (path / DATA_NAME).open("r+b") as handle:
        handle.truncate(10_000)


def move_first_piece(receipt: Path, offset: int) -> None:
    stated = json.loads(receipt.read_text())
    stated["tensors"][0]["pieces"][0]["offset"] = offset
    receipt.write_text(json.dumps(stated))


DAMAGES = {
    "truncated data": cut_data,
    "no data": lambda path: (path / DATA_NAME).unlink(),
    "no graph": lambda path: (path / MODEL_NAME).unlink(),
    "graph of zeros": lambda path: (path / MODEL_NAME).write_bytes(bytes(5000)),
    "empty graph": lambda path: (path / MODEL_NAME).write_bytes(b""),
    "facts of another schema": lambda path: (path / FACTS_NAME).write_text('{"schema": "x"}'),
    "facts that are a list": lambda path: (path / FACTS_NAME).write_text("[]"),
    "facts cut short": lambda path: (path / FACTS_NAME).write_text('{"schema": "medlite-onnx-1"'),
    "facts without sizes": lambda path: (path / FACTS_NAME).write_text('{"schema": "medlite-onnx-1"}'),
    "receipt of another schema": lambda path: (path / ONNX_RECEIPT_NAME).write_text('{"schema": "x"}'),
    "receipt with a piece past the end": lambda path: move_first_piece(path / ONNX_RECEIPT_NAME, 1 << 40),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_a_finding_never_a_crash(damage: str, folder: Path) -> None:
    path = convert(folder).path
    DAMAGES[damage](path)
    assert not verify_onnx(path).ok


@pytest.mark.parametrize(
    "key",
    [
        "n_vocab",
        "n_layer",
        "head_dim",
        "kv_type",
        "end_tokens",
        "special_tokens",
        "chat_template",
        "n_params",
        "shared_cache",
        "long_rope_from",
    ],
)
@pytest.mark.parametrize("value", [-1, "x", [1 << 60], 1 << 60, {"a": 1}, True])
def test_hostile_facts_are_refused_or_harmless(key: str, value: object, folder: Path) -> None:
    path = convert(folder, measure=False, hash_source=False).path / FACTS_NAME
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {key: value}))
    try:
        open_artifact(path.parent)
    except MedliteError as error:
        assert isinstance(error, ArtifactError)  # noqa: PT017 - either outcome is fine, another exception is not
