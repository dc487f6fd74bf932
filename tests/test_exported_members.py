"""The public surface: `__all__` names what a package offers, all of it is there, and asking for it is all it costs."""

import importlib
import subprocess
import sys

import pytest

from tests.helpers.places import ROOT

# A function never has the name of a module inside its package: Python binds both to one attribute.
SURFACES = {
    "medlite": {"OpenSettings", "__version__", "load", "open_engine"},
    "quantize": {
        "ONNX_RECIPES",
        "RECIPES",
        "match_checkpoint",
        "open_checkpoint",
        "plan_gguf",
        "plan_onnx",
        "verify",
        "write",
    },
    "bench": {"compare_records", "read_record", "run_task", "write_report"},
}


@pytest.mark.parametrize("name", SURFACES)
def test_a_package_offers_what_its_list_says(name: str) -> None:
    package = importlib.import_module(name)
    assert set(package.__all__) == SURFACES[name]
    assert package.__all__ == sorted(package.__all__)
    for member in package.__all__:
        assert getattr(package, member) is not None
        for other in (ROOT / name / member, ROOT / name / f"{member}.py"):
            assert not other.exists(), f"{name}.{member} is a module too"


@pytest.mark.parametrize("name", SURFACES)
def test_a_misspelt_name_is_an_attribute_error(name: str) -> None:
    """As of any module: hasattr, from-imports and doctest rely on it."""
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'absent'"):
        _ = importlib.import_module(name).absent


@pytest.mark.parametrize("name", SURFACES)
def test_importing_a_package_imports_nothing_that_it_offers(name: str) -> None:
    """Every `import medlite.x` runs medlite/__init__.py, so it must stay light."""
    code = f"import sys; before = set(sys.modules); import {name}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    ours = {module for module in done.stdout.split() if module.split(".")[0] in ("medlite", "quantize", "bench")}
    assert ours <= {name, f"{name}.version"}
    assert "numpy" not in done.stdout.split()
