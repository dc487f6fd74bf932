"""What `pip install` puts together: the kernels' sources, the data files, the version and the pinned runtime."""

import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from medlite import __version__
from tests.helpers.places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("medlite", "quantize", "bench")
KERNELS = ROOT / "quantize" / "kernels"
TEXTS = [
    path
    for pattern in ("*.py", "*.toml", "*.txt", "*.md", "Makefile")
    for folder in (".", *PACKAGES, "docs", "tests")
    for path in ((ROOT / folder).glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern))
]


def names(folder: Path, *suffixes: str) -> set[str]:
    """The files below `folder`, as paths from the root of the repository; those of `suffixes`, or all."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and (not suffixes or path.suffix in suffixes)
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str], str]:
    """What setuptools puts into a wheel (but for the extension) and into an sdist, and all that it printed."""
    folder = tmp_path_factory.mktemp("built")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "-e", str(folder), "build_py", "-d", str(folder / "wheel")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment,
    )
    wheel = {path.relative_to(folder / "wheel").as_posix() for path in (folder / "wheel").rglob("*") if path.is_file()}
    sources = (folder / "medlite.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines()
    return wheel, set(sources), done.stdout + done.stderr


def extension(monkeypatch: pytest.MonkeyPatch, flags: str) -> setuptools.Extension:
    """The kernels as setup.py describes them to setuptools."""
    described: dict[str, Any] = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MEDLITE_KERNEL_FLAGS", flags)
    monkeypatch.setattr(setuptools, "setup", described.update)
    runpy.run_path("setup.py")
    (kernels,) = described["ext_modules"]
    return kernels


def test_every_kernel_source_is_compiled_and_every_header_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not listed would be missing from the extension, or leave it stale."""
    kernels = extension(monkeypatch, flags="")
    assert set(kernels.sources) == names(KERNELS, ".cc", ".cpp", ".c")
    assert set(kernels.depends) == names(KERNELS, ".h", ".hpp", ".inc")
    assert "-ffp-contract=off" in kernels.extra_compile_args
    assert kernels.optional


def test_a_check_of_the_kernels_cannot_pass_by_not_compiling_them(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = extension(monkeypatch, flags="-Wall -Werror")
    assert not kernels.optional
    assert {"-Wall", "-Werror", "-ffp-contract=off"} <= set(kernels.extra_compile_args)


def test_setuptools_has_nothing_to_warn_of(built: tuple[set[str], set[str], str]) -> None:
    assert built[2] == ""


def test_the_wheel_holds_every_file_of_the_packages_but_the_kernels_sources(
    built: tuple[set[str], set[str], str],
) -> None:
    """A kind of data file that package-data does not name would be missing from an installed medlite."""
    ours = {name for package in PACKAGES for name in names(ROOT / package)}
    assert built[0] == {name for name in ours if not name.endswith((".cc", ".h", ".so"))}


def test_a_source_distribution_can_be_built_and_checked(built: tuple[set[str], set[str], str]) -> None:
    assert {"setup.py", "pyproject.toml", "constraints.txt", *names(KERNELS, ".cc", ".h")} <= built[1]
    assert not [name for name in built[1] if name.startswith("tests")]


def files_that_state(pattern: str) -> set[str]:
    """The files of the repository with a line that `pattern` is found in, as paths from its root."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in TEXTS
        if re.search(pattern, path.read_text(encoding="utf-8")) and path != Path(__file__)
    }


def test_the_version_is_stated_once() -> None:
    """In medlite/version.py, from where setuptools reads it; the headings of the changelog are history."""
    assert files_that_state(rf"(?:version_*|medlite)[\s\"'=]*{re.escape(__version__)}\b") == {"medlite/version.py"}
    assert PROJECT["project"]["dynamic"] == ["version"]


def test_the_pin_of_the_runtime_is_stated_once() -> None:
    """quantize/stream/ggml.py and the engine call this version's C functions, and ask the metadata which it is.

    constraints.txt has no row for it: pip takes the version from pyproject, and two rows could disagree.
    """
    (pin,) = [row for row in PROJECT["project"]["dependencies"] if row.startswith("llama-cpp-python")]
    assert "==" in pin
    pinned = re.escape(pin.partition("==")[2])
    assert files_that_state(rf"(?:==|[\"'`]){pinned}\b") == {"pyproject.toml"}


def test_the_constraints_fit_every_dependency() -> None:
    """`make` installs with them; a row that a floor has overtaken would stop it, one that is missing would drift."""
    rows = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pinned = {canonicalize_name(name): version for name, _, version in (row.partition("==") for row in rows)}
    extras = PROJECT["project"]["optional-dependencies"]
    for text in [*PROJECT["project"]["dependencies"], *extras["dev"], *extras["onnx"]]:
        wanted = Requirement(text)
        if wanted.name not in ("llama-cpp-python", "medlite"):
            assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), text
