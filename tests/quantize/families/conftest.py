"""Every family's checkpoint, made once for the tests of this folder."""

from pathlib import Path

import pytest

from tests.helpers.family_cases import convert
from tests.helpers.tiny_families import FAMILIES, make_family


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family's checkpoint, with our 16-bit GGUF of it beside the weights."""
    root = tmp_path_factory.mktemp("families")
    made = {name: make_family(name, root / name) for name in FAMILIES}
    for folder in made.values():
        convert(folder, "BF16", folder / "source.gguf")
    return made
