"""Every extra that a message, a hint or a page names is one that `pip install` finds."""

import ast
import re
import tomllib
from pathlib import Path

from tests.helpers.places import ROOT

EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])
NAMED = re.compile(r"medlite\[([\w,\s-]+)\]")
BRACKETS = re.compile(r"extras? `\[([\w-]+)\]")
ROWS = re.compile(r'\bextra="([\w-]+)"')


def pages() -> list[Path]:
    """What names extras: sources, documents, the Makefile and pyproject itself."""
    found = [ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for package in ("medlite", "quantize", "bench"):
        found += [path for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".md", ".toml")]
    return found


def named_in(text: str) -> set[str]:
    """The extras that `text` names: medlite[a,b], the extra `[a]`, an engine's row with extra="a"."""
    lists = [*NAMED.findall(text), *BRACKETS.findall(text), *ROWS.findall(text)]
    return {extra.strip() for names in lists for extra in names.split(",")}


def test_every_extra_that_is_named_exists() -> None:
    named = {(str(path.relative_to(ROOT)), extra) for path in pages() for extra in named_in(path.read_text("utf-8"))}
    assert named
    assert {row for row in named if row[1] not in EXTRAS} == set()


def test_every_missing_extra_error_names_one() -> None:
    """The hint is made from the argument, so no text names the extra."""
    named = []
    for path in (path for package in ("medlite", "quantize", "bench") for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "MissingExtraError":
                extra = node.args[1]
                assert isinstance(extra, ast.Constant), f"{path}:{node.lineno} names its extra indirectly"
                named.append(extra.value)
    assert named
    assert set(named) <= EXTRAS


def test_every_extra_is_named_where_a_user_reads_it() -> None:
    """An extra that no hint and no page names helps nobody; [dev] is for whoever works on medlite."""
    named: set[str] = set()
    for path in pages():
        if path.name != "pyproject.toml":
            text = path.read_text(encoding="utf-8")
            named |= named_in(text) | set(re.findall(r'MissingExtraError\([^\n]*"([\w-]+)"\)', text))
    assert EXTRAS - named <= {"dev"}
