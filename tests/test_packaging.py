"""What `pip install` puts together: the kernels' sources, the data files, the pinned runtime."""

import tomllib

from medlite import __version__
from tests.helpers.places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
KERNELS = PROJECT["tool"]["setuptools"]["ext-modules"][0]


def test_every_kernel_source_is_compiled_and_every_header_watched() -> None:
    """A file that is not listed would be missing from the extension, or leave it stale."""
    for key, pattern in (("sources", "*.cc"), ("depends", "*.h")):
        found = {str(path.relative_to(ROOT)) for path in (ROOT / "quantize" / "kernels").glob(pattern)}
        assert set(KERNELS[key]) == found
    assert KERNELS["optional"]
    assert "-ffp-contract=off" in KERNELS["extra-compile-args"]


def test_the_version_is_stated_once() -> None:
    assert PROJECT["project"]["version"] == __version__


def test_the_runtime_is_pinned_alike_everywhere() -> None:
    """quantize/stream/ggml.py and the engine call this version's C functions."""
    (pin,) = [row for row in PROJECT["project"]["dependencies"] if row.startswith("llama-cpp-python")]
    assert "==" in pin
    assert pin in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def test_every_kind_of_data_file_is_packaged() -> None:
    """A file type that package-data does not name would be missing from an installed medlite."""
    patterns = {pattern.removeprefix("*") for pattern in PROJECT["tool"]["setuptools"]["package-data"]["*"]}
    for package in ("medlite", "quantize", "bench"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".py", ".so", ".cc", ".h"):
                assert path.suffix in patterns or path.name in patterns, path
