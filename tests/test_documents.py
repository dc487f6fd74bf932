"""What the documents name exists: files, test files, modules that are run, links. `medlite ...` lines: tests/cli."""

import re
from pathlib import Path

import pytest

from tests.helpers.places import ROOT

PACKAGES = ("medlite", "quantize", "bench")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for name in (*PACKAGES, "docs", "tests") for path in (ROOT / name).rglob("*.md"))]
)
# Read as history, which names what was.
HISTORY = {ROOT / "CHANGELOG.md", *(ROOT / "docs" / "decisions").glob("*.md")}

RUN = re.compile(r"python3? -m ((?:medlite|quantize|bench|tests)(?:\.\w+)*)[^.\w]")
PYTEST = re.compile(r"pytest ([^`|\n]*)")
PATH = re.compile(r"`((?:medlite|quantize|bench|tests|docs)/[\w./-]*)`")
FILE = re.compile(r"`([\w/]+\.(?:py|cc|h|toml))`")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)")


# From the root of the repository, with a "/" before.
FILES = [
    f"/{path.relative_to(ROOT).as_posix()}" for name in (*PACKAGES, "tests") for path in (ROOT / name).rglob("*.*")
]
FILES += [f"/{path.name}" for path in ROOT.glob("*.*")]


def absent_links(text: str, folder: Path) -> list[str]:
    """The files that `text`, a document of `folder`, links to and that are not there."""
    return [name for name in LINK.findall(text) if not (folder / name).exists()]


def absent_names(text: str) -> list[str]:
    """The modules, test files and paths that `text` names and that are not there."""
    modules = [name.replace(".", "/") for name in RUN.findall(text)]
    tests = [word.partition("::")[0] for line in PYTEST.findall(text) for word in line.split() if "/" in word]
    return [
        *(
            name
            for name in modules
            if not (ROOT / f"{name}.py").exists() and not (ROOT / name / "__main__.py").exists()
        ),
        *(name for name in [*tests, *PATH.findall(text)] if not (ROOT / name).exists()),
        *(name for name in FILE.findall(text) if not any(path.endswith(f"/{name}") for path in FILES)),
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_names_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert absent_links(text, path.parent) == []
    assert path in HISTORY or absent_names(text) == []


def test_what_is_absent_is_found() -> None:
    assert absent_links("[the method](absent.md), [the web](https://example.org)", ROOT) == ["absent.md"]
    for text in (
        "run `python -m tests.measure.absent FOLDER`",
        "`MEDLITE_X=1 pytest -m slow tests/absent.py -k name`",
        "one row in `quantize/absent/`",
        "`absent.py` writes",
    ):
        assert len(absent_names(text)) == 1, text


COSTS = re.findall(
    r"^\| (?:a|an) ([\w -]+?)(?: of [^|]+)? \|.*\| `(\w+)` in `([\w/.]+)`[^|]*\|$",
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize(("addition", "table", "path"), COSTS, ids=[row[0] for row in COSTS])
def test_what_an_addition_costs_is_one_row_of_a_table_that_tests_go_through(
    addition: str, table: str, path: str
) -> None:
    """A new row is tested by existing, which is what CONTRIBUTING promises."""
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"\b{table}\b(\[\])?(: [^=\n]+)? = ", text), f"{path} has no table {table}"
    if path.endswith(".py"):
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        sources = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")]
        users = [
            source for source in sources if re.search(rf"from {module} import [^)\n]*(\([^)]*)?\b{table}\b", source)
        ]
        through = re.compile(rf"(parametrize\([^\n]*|\bin |product\()\b({table}|TABLE)\b")
        assert any(through.search(source) for source in users), f"no test goes through {table}"


def test_the_costs_are_read() -> None:
    assert {"model family", "GGUF recipe", "ONNX recipe", "engine", "question set", "report form", "command"} <= {
        addition for addition, _, _ in COSTS
    }
