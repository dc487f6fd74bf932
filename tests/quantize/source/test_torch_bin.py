"""pytorch_model*.bin shards: read in place, never unpickled beyond plain tensors."""

import importlib.util
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medlite.errors import CheckpointError, MissingExtraError
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.writer import write
from tests.helpers.gguf_compare import assert_equal_tensors
from tests.helpers.tiny_families import make_family

needs_torch = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch: pip install 'medlite[torch]'"),
    pytest.mark.filterwarnings("ignore"),
]


def with_torch(test: Callable[..., None]) -> Callable[..., None]:
    for mark in needs_torch:
        test = mark(test)
    return test


def to_bin(folder: Path, n_shards: int = 1, **options: Any) -> dict[str, Any]:
    """Replace the folder's safetensors by .bin shards with the same tensors."""
    import torch
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if n_shards == 1:
        torch.save(state, folder / "pytorch_model.bin", **options)
        return state
    index: dict[str, str] = {}
    for i in range(n_shards):
        name = f"pytorch_model-{i + 1:05d}-of-{n_shards:05d}.bin"
        part = {key: state[key] for key in list(state)[i::n_shards]}
        torch.save(part, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    return state


def convert(folder: Path, target: Path) -> None:
    write([plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q4_K_M"]).output(target)])


@with_torch
@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("family", ["llama2", "llama3"])
def test_bin_shards_give_the_file_that_safetensors_give(family: str, n_shards: int, tmp_path: Path) -> None:
    folder = make_family(family, tmp_path / family)
    convert(folder, tmp_path / "safetensors.gguf")
    to_bin(folder, n_shards)
    convert(folder, tmp_path / "bin.gguf")
    assert_equal_tensors(tmp_path / "safetensors.gguf", tmp_path / "bin.gguf")


@with_torch
def test_a_tied_head_and_a_view_are_found_in_their_storage(tmp_path: Path) -> None:
    import torch

    folder = make_family("llama3", tmp_path / "llama3")
    state = to_bin(folder)
    name = "model.layers.0.self_attn.q_proj.weight"
    wide = torch.cat([torch.zeros_like(state[name]), state[name]])
    state[name] = wide[state[name].shape[0] :]  # the second half of a storage
    state["model.copy"] = state["model.norm.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    tensors = open_checkpoint(folder).tensors
    raw = (folder / "pytorch_model.bin").read_bytes()
    for key, value in state.items():
        tensor = tensors[key]
        assert raw[tensor.offset :][: tensor.n_bytes] == value.view(torch.uint8).numpy().tobytes(), key
    assert tensors["model.copy"].offset == tensors["model.norm.weight"].offset


@with_torch
def test_equal_storages_are_told_apart(tmp_path: Path) -> None:
    """Same sizes at the same distance: the bytes decide which record is whose."""
    import torch

    from quantize.source.torch_bin import read_torch_header

    state = {f"t{i}": torch.full((64, 64), float(i)) for i in range(20)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    raw = (tmp_path / "pytorch_model.bin").read_bytes()
    for tensor in read_torch_header(tmp_path / "pytorch_model.bin"):
        assert raw[tensor.offset :][: tensor.n_bytes] == state[tensor.name].numpy().tobytes()


class Attack:
    """Would write a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@with_torch
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    import torch

    from quantize.source.torch_bin import read_torch_header

    torch.save({"a": torch.zeros(2, 2), "b": Attack(tmp_path / "ran")}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="weights_only=True"):
        read_torch_header(tmp_path / "x.bin")
    assert not (tmp_path / "ran").exists()


@with_torch
@pytest.mark.parametrize("content", ["list", "nested", "empty", "strided", "complex", "old format", "pickle", "cut"])
def test_what_is_no_checkpoint_is_refused(content: str, tmp_path: Path) -> None:
    import torch

    from quantize.source.torch_bin import read_torch_header

    path, values = tmp_path / "x.bin", torch.arange(64.0).reshape(8, 8)
    made: dict[str, Any] = {
        "list": [values],
        "nested": {"model": {"a": values}, "step": 3},
        "empty": {},
        "strided": {"a": values.T},
        "complex": {"a": values.to(torch.complex64)},
    }
    if content == "pickle":
        path.write_bytes(pickle.dumps({"a": [1, 2]}))
    else:
        torch.save(made.get(content, {"a": values}), path, _use_new_zipfile_serialization=content != "old format")
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"x\.bin"):
        read_torch_header(path)


@with_torch
def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    import torch

    from quantize.source.torch_bin import read_torch_header

    torch.save({"a": torch.zeros(64, 64)}, tmp_path / "plain.bin")
    with zipfile.ZipFile(tmp_path / "plain.bin") as source, zipfile.ZipFile(tmp_path / "x.bin", "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch_header(tmp_path / "x.bin")


def test_without_torch_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_family("llama3", tmp_path / "llama3")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError) as caught:
        open_checkpoint(folder)
    assert "medlite[torch]" in str(caught.value.hint)


def test_safetensors_are_read_where_both_are_there(tmp_path: Path) -> None:
    folder = make_family("llama3", tmp_path / "llama3")
    (folder / "pytorch_model.bin").write_bytes(b"never looked at")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    assert len(open_checkpoint(folder).tensors) == 21
