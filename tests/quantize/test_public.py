"""The public names do what the README of quantize shows."""

import re
from pathlib import Path

import pytest

from tests.helpers.places import ROOT
from tests.helpers.tiny_checkpoint import make_llama


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx", reason="needs the extra [onnx]")
    text = (ROOT / "quantize" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"In Python .*\n\n((?: {4}.*\n|\n)+)", text)
    assert found is not None
    make_llama(tmp_path / "Med42-8B")
    monkeypatch.chdir(tmp_path)
    exec(compile(re.sub(r"(?m)^ {4}", "", found[1]), "quantize/README.md", "exec"), {})
    assert sorted(path.name for path in tmp_path.glob("med42-*.gguf")) == ["med42-Q4_K_M.gguf", "med42-Q8_0.gguf"]
    assert (tmp_path / "med42-onnx" / "receipt.json").is_file()


def test_a_folder_and_a_file_are_checked_alike(tmp_path: Path) -> None:
    """The check finds the format itself; an importance matrix is of a GGUF file only."""
    import numpy as np

    from medlite.errors import ArtifactError
    from quantize import ONNX_RECIPES, match_checkpoint, open_checkpoint, plan_onnx, verify, write

    pytest.importorskip("onnx", reason="needs the extra [onnx]")
    checkpoint = open_checkpoint(make_llama(tmp_path / "m"))
    write([plan_onnx(match_checkpoint(checkpoint), ONNX_RECIPES["q8"], block=32).output(tmp_path / "out")])
    assert verify(tmp_path / "out", against=checkpoint).ok
    with pytest.raises(ArtifactError, match="only for GGUF files"):
        verify(tmp_path / "out", importance={"x": np.ones(4, np.float32)})


def test_outputs_of_different_models_are_not_written_together(tmp_path: Path) -> None:
    from medlite.errors import OutputError
    from quantize import RECIPES, match_checkpoint, open_checkpoint, plan_gguf, write

    models = [match_checkpoint(open_checkpoint(make_llama(tmp_path / str(n), num_hidden_layers=n))) for n in (1, 2)]
    outputs = [plan_gguf(model, RECIPES["Q8_0"]).output(tmp_path / f"{i}.gguf") for i, model in enumerate(models)]
    with pytest.raises(OutputError, match="cannot be written together"):
        write(outputs)
    assert not list(tmp_path.glob("*.gguf*"))
