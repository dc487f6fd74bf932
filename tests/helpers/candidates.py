"""A model of the catalogue at every recipe, with its memory predicted."""

from medlite.cli.fit import recipe_candidates
from medlite.fit.recommend import Candidate, with_memory
from medlite.models.catalog import hf_config, read_catalog


def candidates_of(name: str, n_context: int = 8192) -> list[Candidate]:
    """The catalogue's model `name` at every recipe, largest file first."""
    found = recipe_candidates(hf_config(read_catalog()[name]))
    return [with_memory(candidate, [n_context], "f16") for candidate in found]
