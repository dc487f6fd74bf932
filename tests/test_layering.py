"""A module imports its own floor or a lower one (docs: CONTRIBUTING.md), read from the source, deferred imports too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("medlite", "quantize", "bench") for path in (ROOT / package).rglob("*.py"))

# The first prefix that matches decides.
FLOORS: tuple[tuple[str, int], ...] = (
    ("medlite.cli", 9), ("medlite.__main__", 9),
    ("medlite.errors", 0), ("medlite.files", 0),
    ("medlite.artifact", 1), ("medlite.devices", 1), ("medlite.gguf_format", 1), ("medlite.onnx_format", 1),
    ("medlite.tokenizer_file", 1),
    ("medlite.demo", 1),
    ("medlite.registry", 2), ("medlite.hub", 2), ("medlite.engines", 2), ("medlite.catalog", 2), ("quantize", 2),
    ("medlite.fit", 2), ("medlite.offline", 0),
    ("medlite.chat", 3), ("medlite", 3),
    ("bench", 4),
)
TERMINAL_ONLY = {"click", "rich", "prompt_toolkit"}
# Programs that are run with python -m, not libraries.
PRINTERS = {"bench/measure_", "medlite/demo", "medlite/measure_", "quantize/measure", "quantize/kernels/measure.py"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    for prefix, floor in FLOORS:
        if module == prefix or module.startswith(prefix + "."):
            return floor
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS")


def imports_of(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names
                                      if (ROOT / node.module.replace(".", "/") / f"{alias.name}.py").exists()}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    own = module_name(path)
    for name in imports_of(path):
        package = name.split(".")[0]
        if package in ("medlite", "quantize", "bench") and name != "medlite":
            assert floor_of(name) <= floor_of(own), f"{own} imports {name} from a higher floor"
        if package in TERMINAL_ONLY:
            assert own.startswith("medlite.cli"), f"{own} imports {name}; only medlite.cli draws and prints"


def test_bench_and_quantize_do_not_know_each_other() -> None:
    for path in SOURCES:
        own = module_name(path).split(".")[0]
        other = {"bench": "quantize", "quantize": "bench"}.get(own)
        assert other not in {name.split(".")[0] for name in imports_of(path)}, path


def test_quantize_sees_only_the_ground_floors_of_medlite() -> None:
    for path in SOURCES:
        if module_name(path).startswith("quantize"):
            for name in imports_of(path):
                if name.startswith("medlite."):
                    assert floor_of(name) <= 1, f"{path} imports {name}"


def test_only_the_roof_prints() -> None:
    for path in SOURCES:
        relative = str(path.relative_to(ROOT))
        if module_name(path).startswith("medlite.cli") or any(relative.startswith(allowed) for allowed in PRINTERS):
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"]
        assert not calls, f"{relative}:{calls[0].lineno} prints"


def test_the_core_never_imports_torch_at_the_top() -> None:
    optional = {"torch", "transformers", "onnxruntime", "onnx", "sentencepiece", "matplotlib"}
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                     else [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            hit = {name.split(".")[0] for name in names} & optional
            assert not hit or "demo" in path.parts, f"{path} imports {hit} at the top"
