"""Artifacts that are kept while they are what would be made."""

from pathlib import Path

import numpy as np

from medlite.cli.bench.measuring import make_artifacts
from tests.helpers.tiny_checkpoint import make_llama
from tests.quantize.gguf.test_imatrix import write_gguf_imatrix


def test_an_artifact_is_made_once_and_again_for_another_importance_matrix(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "tiny")
    paths = {"Q4_0": tmp_path / "out" / "tiny-Q4_0.gguf", "Q8_0": tmp_path / "out" / "tiny-Q8_0.gguf"}
    name, width = "blk.0.ffn_down.weight", 512
    sums = np.linspace(0.1, 9.0, width, dtype=np.float32)[None]
    imatrix = write_gguf_imatrix(tmp_path / "i.gguf", {name: sums}, {name: np.asarray([[4.0]], np.float32)})

    def made(matrix: Path | None) -> list[int]:
        make_artifacts(folder, paths, imatrix=matrix, quiet=True)
        return [path.stat().st_mtime_ns for path in paths.values()]

    plain = made(None)
    assert made(None) == plain
    weighted = made(imatrix)
    assert all(one > other for one, other in zip(weighted, plain, strict=True))
    assert made(imatrix) == weighted
