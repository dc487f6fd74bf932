"""Every extra that a message, a hint or a page names is one that `pip install` finds."""

import ast
import re
import tomllib

from tests.helpers.places import ROOT

EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])
NAMED = re.compile(r"medlite\[([\w,\s-]+)\]")


def test_every_extra_that_is_named_exists() -> None:
    pages = [ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for package in ("medlite", "quantize", "bench"):
        pages += [path for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".md", ".toml")]
    named = {
        (str(path.relative_to(ROOT)), extra.strip())
        for path in pages
        for names in NAMED.findall(path.read_text(encoding="utf-8"))
        for extra in names.split(",")
    }
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
