"""Which room may import which: an allow-list, read from the source, deferred imports too; and no import circles.

CONTRIBUTING.md shows the same rooms as a picture, docs/design.md says why.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.helpers.places import ROOT

PACKAGES = ("medlite", "quantize", "bench")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# What everybody may import.
GROUND = ("medlite.version", "medlite.errors", "medlite.files", "medlite.memo", "medlite.formats")
RUNTIME = (*GROUND, "medlite.devices", "medlite.native", "medlite.models", "medlite.engines")

# room -> the rooms that its modules may import beside their own. The longest prefix of a module's name is its room.
ROOMS: dict[str, tuple[str, ...]] = {
    "medlite": ("medlite.version", "medlite.chat", "medlite.engines"),  # __init__ alone: the public names, found on use
    "medlite.__main__": ("medlite.cli",),
    "medlite.version": (),
    "medlite.errors": (),
    "medlite.files": ("medlite.version", "medlite.errors"),
    "medlite.memo": ("medlite.errors", "medlite.files", "medlite.formats"),
    "medlite.offline": (),
    "medlite.devices": ("medlite.errors", "medlite.files", "medlite.native"),
    "medlite.native": ("medlite.errors",),
    "medlite.formats": ("medlite.version", "medlite.errors", "medlite.files"),
    "medlite.demo": (),
    "medlite.models": (*GROUND, "medlite.devices"),
    "medlite.engines": (*GROUND, "medlite.devices", "medlite.native", "medlite.models"),
    "medlite.fit": RUNTIME,
    "medlite.chat": RUNTIME,
    "medlite.cli": (*RUNTIME, "medlite.offline", "medlite.demo", "medlite.fit", "medlite.chat", "quantize", "bench"),
    "quantize": (  # __init__ alone: the public names, whose imports wait until one is asked for
        "quantize.check",
        "quantize.match",
        "quantize.source",
        "quantize.stream",
        "quantize.gguf",
        "quantize.onnx",
    ),
    "quantize.check": (*GROUND, "quantize.source", "quantize.stream", "quantize.gguf", "quantize.onnx"),
    "quantize.match": (*GROUND, "quantize.source", "quantize.families"),
    "quantize.source": (*GROUND, "medlite.native"),
    "quantize.families": (*GROUND, "quantize.source"),
    "quantize.kernels": GROUND,
    "quantize.stream": (
        *GROUND,
        "medlite.native",
        "quantize.match",
        "quantize.source",
        "quantize.families",
        "quantize.kernels",
    ),
    "quantize.gguf": (*GROUND, "quantize.match", "quantize.source", "quantize.families", "quantize.stream"),
    "quantize.onnx": (*GROUND, "quantize.match", "quantize.source", "quantize.families", "quantize.stream"),
    "bench": (*RUNTIME, "medlite.demo"),
}
# The rooms of bench lie in one another's reach, downwards: each may import those before it.
BENCH_FLOORS = (
    "bench.intervals",
    "bench.settings",
    "bench.ask",
    "bench.tasks",
    "bench.score",
    "bench.run",
    "bench.text",
    "bench.compare",
    "bench.reports",
    "bench.harness",
    "bench",
)

# Where a command or a process starts: our own modules may be imported inside functions there.
STARTS = ("medlite.cli", "medlite.demo.train", "bench.run.worker")

TERMINAL_ONLY = {"click", "rich", "prompt_toolkit"}
HEAVY = {"torch", "transformers", "onnxruntime", "onnx", "sentencepiece", "matplotlib"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def room_of(module: str, rooms: Mapping[str, object] = ROOMS) -> str:
    """The longest prefix of `module` that is a room."""
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in rooms:
            return ".".join(parts[:n])
    raise AssertionError(f"{module} is in no room: add it to ROOMS")


def imports_of(path: Path) -> Iterator[str]:
    """Every module of ours that the file imports, anywhere in it, deferred and type-checking imports included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def violations(own: str, imported: str) -> str | None:
    """Why `own` may not import `imported`; None if it may."""
    room, target = room_of(own), room_of(imported)
    if own.startswith("bench") and imported.startswith("bench"):
        floors = {name: i for i, name in enumerate(BENCH_FLOORS)}
        mine, other = room_of(own, floors), room_of(imported, floors)
        return None if floors[other] <= floors[mine] else f"{mine} lies below {other}"
    allowed = ROOMS[room]
    if (
        room == target
        or target in allowed
        or any(target.startswith(f"{name}.") for name in allowed if name != "medlite")
    ):
        return None
    return f"the room {room} may import {', '.join(allowed) or 'nothing'}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_a_module_imports_only_rooms_that_its_own_may(path: Path) -> None:
    own = module_name(path)
    for name in imports_of(path):
        why = violations(own, name)
        assert why is None, f"{own} imports {name}: {why}"


@pytest.mark.parametrize(
    ("own", "imported"),
    [
        ("medlite.chat.conversation", "quantize.gguf.plan"),
        ("medlite.engines.engine", "medlite.chat.session"),
        ("quantize.gguf.plan", "quantize.onnx.plan"),
        ("quantize.stream.slabs", "quantize.gguf.plan"),
        ("bench.ask.prompts", "bench.run.record"),
        ("bench.run.run", "quantize.match"),
        ("quantize.match", "bench.run.run"),
        ("medlite.formats.gguf", "medlite.engines.engine"),
        ("medlite.models.catalog", "medlite.cli.fit"),
    ],
)
def test_the_list_forbids_what_it_must(own: str, imported: str) -> None:
    """The check itself: each of these passed, or would have passed, an older list that named the forbidden few."""
    assert violations(own, imported) is not None


def test_every_room_of_the_list_exists() -> None:
    """A room that is gone would leave an allowance that nobody reads."""
    assert [name for name in ROOMS if name not in MODULES] == []


@pytest.mark.parametrize("room", [*ROOMS, *BENCH_FLOORS])
def test_the_picture_shows_every_room(room: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    picture = text[text.index("## Rooms") : text.index("## Before a commit")]
    name = room if room.startswith("medlite") else room.rpartition(".")[2]
    assert room == "medlite.__main__" or re.search(rf"\b{re.escape(name)}\b", picture)


def test_our_own_modules_are_imported_at_the_top() -> None:
    """Except where a program starts: an import inside a function hides an arrow, and often a circle."""
    for own, path in MODULES.items():
        if own.startswith(STARTS):
            continue
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                    assert not {name.split(".")[0] for name in names} & set(PACKAGES), f"{own}: {function.name}"


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(group)

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_no_import_circles() -> None:
    """Deferred imports included: two modules that need each other are one module, or lack a third."""
    graph = {
        name: {found for found in imports_of(path) if found != name and found in MODULES}
        for name, path in MODULES.items()
    }
    assert circles(graph) == []


def test_a_circle_is_found() -> None:
    assert sorted(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})[0]) == ["a", "b", "c"]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_only_the_command_line_draws(path: Path) -> None:
    own = module_name(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if hit := {name.split(".")[0] for name in names} & TERMINAL_ONLY:
            assert own.startswith("medlite.cli"), f"{own} imports {hit}; only medlite.cli draws and prints"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert own.startswith(("medlite.cli", "medlite.demo")), f"{path}:{node.lineno} prints"


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            hit = {name.split(".")[0] for name in names} & HEAVY
            assert not hit or "demo" in path.parts, f"{path} imports {hit} at the top"
