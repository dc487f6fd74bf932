"""Which ggml type each tensor gets: one row a recipe. To add a recipe of llama.cpp's, add a row to RECIPES; one that
llama.cpp has got since needs its number in FILE_TYPES too. A mixture of one's own is a `--tensor-type`, not a recipe.

A recipe names a default type and the exceptions. The exceptions are llama.cpp's own mixtures, restated as data, so
that our file equals llama-quantize's in every tensor's type (tests/quantize/gguf/test_oracle.py compares every recipe).
Source: llama.cpp src/llama-quant.cpp, llama_tensor_get_type_impl and llama_ftype_get_default_type.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from medlite.errors import RecipeError
from medlite.formats.gguf import FILE_TYPES, GGML_TYPES, GgmlType
from quantize.families.categories import category_of


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: the i-th of n of its category, in which model, with or without an imatrix."""

    i: int
    n: int
    n_gqa: int  # query heads per KV head
    is_70b: bool
    has_imatrix: bool


When = Callable[[Place], bool]


def always(place: Place) -> bool:
    return True


def more_bits(place: Place) -> bool:
    """The first and last eighth of the layers, and every third between. Source: use_more_bits."""
    i, n = place.i, place.n
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def first_eighth(place: Place) -> bool:
    return place.i < place.n // 8


def first_sixteenth(place: Place) -> bool:
    return place.i < place.n // 16


def middle(place: Place) -> bool:
    return place.n // 8 <= place.i < 7 * place.n // 8


def first_two(place: Place) -> bool:
    return place.i < 2


def first_four(place: Place) -> bool:
    return place.i < 4


def grouped(place: Place) -> bool:
    """Four or more query heads share a value head: V is small and worth more bits."""
    return place.n_gqa >= 4


def no_imatrix(place: Place) -> bool:
    return not place.has_imatrix


def first_eighth_no_imatrix(place: Place) -> bool:
    return first_eighth(place) and not place.has_imatrix


def first_eighth_with_imatrix(place: Place) -> bool:
    return first_eighth(place) and place.has_imatrix


@dataclass(frozen=True)
class Rule:
    """Tensors of `category` get `type` when `when` holds."""

    category: str
    type: str
    when: When = always


@dataclass(frozen=True)
class Recipe:
    """name: as users type it, a row of FILE_TYPES. default: type of every weight matrix.

    output: type of the output head, and of an embedding that serves as one; None keeps the default.
    lifts_v_70b: a 70B's V of 3 or 4 bits gets Q5_K (8 query heads share it, so it is cheap).
    """

    name: str
    default: str
    rules: tuple[Rule, ...] = ()
    output: str | None = "Q6_K"
    lifts_v_70b: bool = True

    @property
    def file_type(self) -> int:
        """llama.cpp's number of it, for general.file_type."""
        return FILE_TYPES[self.name]

    @property
    def needs_imatrix(self) -> bool:
        """True if some tensor of it is garbage without an importance matrix, so llama.cpp refuses to make it."""
        types = {self.default, *(rule.type for rule in self.rules)}
        return self.name == "Q2_K_S" or not types.isdisjoint(IMATRIX_TYPES)


_MORE_V_AND_DOWN = (Rule("attn_v", "Q6_K", more_bits), Rule("ffn_down", "Q6_K", more_bits))
_IQ4 = (Rule("attn_v", "Q5_K", grouped), Rule("ffn_down", "Q5_K", first_eighth_no_imatrix))
# fmt: off
_IQ2_SMALL = (Rule("attn_v", "Q4_K", grouped), Rule("attn_v", "Q2_K"), Rule("ffn_down", "Q2_K", first_eighth),
              Rule("embedding", "Q2_K"))
_IQ2_LARGE = (Rule("attn_v", "Q4_K", grouped), Rule("attn_v", "IQ3_S"), Rule("ffn_down", "IQ3_S", first_eighth),
              Rule("attn_output", "IQ3_S"), Rule("embedding", "IQ3_S"))
# fmt: on
_IQ1 = (*_IQ2_SMALL, Rule("attn_output", "IQ2_XXS"))

# fmt: off
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (
    Recipe("F32", "F32", output=None),
    Recipe("F16", "F16", output=None),
    Recipe("BF16", "BF16", output=None),
    Recipe("Q8_0", "Q8_0", output=None),
    Recipe("Q4_0", "Q4_0", (Rule("ffn_down", "Q4_1", first_eighth_with_imatrix),)),
    Recipe("Q4_1", "Q4_1"),
    Recipe("Q5_0", "Q5_0", (Rule("ffn_down", "Q5_1", first_eighth_with_imatrix),)),
    Recipe("Q5_1", "Q5_1"),
    Recipe("Q2_K", "Q2_K", (Rule("attn_v", "Q4_K", grouped), Rule("attn_v", "Q3_K"), Rule("ffn_down", "Q3_K"),
                                Rule("attn_output", "Q3_K"))),
    Recipe("Q2_K_S", "Q2_K", (Rule("attn_v", "Q4_K", grouped), Rule("ffn_down", "Q4_K", first_eighth))),
    Recipe("Q3_K_S", "Q3_K"),
    Recipe("Q3_K_M", "Q3_K", (Rule("attn_v", "Q5_K", first_two), Rule("attn_v", "Q4_K"),
                                  Rule("ffn_down", "Q5_K", first_sixteenth), Rule("ffn_down", "Q4_K"),
                                  Rule("attn_output", "Q4_K"))),
    Recipe("Q3_K_L", "Q3_K", (Rule("attn_v", "Q5_K"), Rule("ffn_down", "Q5_K"), Rule("attn_output", "Q5_K"))),
    Recipe("Q4_K_S", "Q4_K", (Rule("attn_v", "Q5_K", first_four), Rule("ffn_down", "Q5_K", first_eighth))),
    Recipe("Q4_K_M", "Q4_K", _MORE_V_AND_DOWN),
    Recipe("Q5_K_S", "Q5_K"),
    Recipe("Q5_K_M", "Q5_K", _MORE_V_AND_DOWN),
    Recipe("Q6_K", "Q6_K"),
    Recipe("IQ4_NL", "IQ4_NL", _IQ4),
    Recipe("IQ4_XS", "IQ4_XS", _IQ4),
    Recipe("IQ3_M", "IQ3_S", (Rule("attn_v", "Q4_K"), Rule("ffn_down", "Q4_K", first_eighth),
                                  Rule("attn_output", "Q4_K"))),
    Recipe("IQ3_S", "IQ3_S", (Rule("attn_v", "Q4_K", grouped),)),
    Recipe("IQ3_XS", "IQ3_S", (Rule("attn_v", "Q4_K", grouped), Rule("attn_k", "IQ3_XXS"),
                                   Rule("attn_q", "IQ3_XXS"), Rule("ffn_gate", "IQ3_XXS", middle),
                                   Rule("ffn_up", "IQ3_XXS", middle))),
    Recipe("IQ3_XXS", "IQ3_XXS", (Rule("attn_v", "Q4_K", grouped), Rule("attn_v", "IQ3_S", no_imatrix),
                                      Rule("attn_k", "IQ2_S"), Rule("attn_q", "IQ2_S"),
                                      Rule("ffn_down", "Q4_K", first_eighth_no_imatrix),
                                      Rule("ffn_down", "Q3_K", no_imatrix),
                                      Rule("attn_output", "IQ3_S"), Rule("embedding", "IQ3_S")),
           output="Q5_K"),
    Recipe("IQ2_M", "IQ2_S", _IQ2_LARGE, output="Q5_K", lifts_v_70b=False),
    Recipe("IQ2_S", "IQ2_XS", _IQ2_LARGE, output="Q5_K", lifts_v_70b=False),
    Recipe("IQ2_XS", "IQ2_XS", _IQ2_SMALL, output="Q5_K", lifts_v_70b=False),
    Recipe("IQ2_XXS", "IQ2_XXS", _IQ2_SMALL, output="Q5_K", lifts_v_70b=False),
    Recipe("IQ1_M", "IQ1_M", _IQ1, output="Q5_K", lifts_v_70b=False),
    Recipe("IQ1_S", "IQ1_S", _IQ1, output="Q5_K", lifts_v_70b=False),
    Recipe("TQ1_0", "TQ1_0", (Rule("embedding", "Q4_K"),)),
    Recipe("TQ2_0", "TQ2_0", (Rule("embedding", "Q4_K"),)),
)}
# fmt: on

FLOAT_TYPES = ("F32", "F16", "BF16")

# What a row that the block does not divide gets instead. Source: tensor_type_fallback.
# fmt: off
FALLBACKS: dict[str, str] = {
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}
# fmt: on

# Types that are garbage without importance weights. Source: tensor_requires_imatrix.
IMATRIX_TYPES = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")


def find_recipe(name: str) -> Recipe:
    """The row of RECIPES, by name in any case. Raises RecipeError naming the nearest rows."""
    import difflib

    recipe = RECIPES.get(name.upper())
    if recipe is None:
        near = difflib.get_close_matches(name.upper(), RECIPES, n=3, cutoff=0.4)
        raise RecipeError(
            f"unknown recipe {name!r}",
            hint=f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(RECIPES)}",
        )
    return recipe


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Matrices that are not norms are quantized. Source: tensor_allows_quantization."""
    return len(shape) > 1 and name.endswith("weight") and "_norm.weight" not in name


@dataclass(frozen=True)
class Choice:
    """The type a tensor gets, and why where it is not the recipe's default."""

    type: GgmlType
    reason: str


def choose_types(
    recipe: Recipe,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    n_gqa: int,
    is_70b: bool,
    has_imatrix: bool,
    overrides: tuple[tuple[str, str], ...] = (),
) -> dict[str, Choice]:
    """The type of every tensor, by name.

    shapes: by GGUF name, outermost first; in llama.cpp's order (layer, then name).
    overrides: (regular expression, type name) pairs; the first that is found in a name decides, before the recipe.
    """
    totals = Counter(map(category_of, shapes))
    seen: Counter[str] = Counter()
    choices: dict[str, Choice] = {}
    for name, shape in shapes.items():
        if not is_quantized(name, shape):
            choices[name] = Choice(GGML_TYPES["F32"], "a vector or a norm stays F32")
            continue
        if recipe.default in FLOAT_TYPES:
            choices[name] = Choice(GGML_TYPES[recipe.default], "default")
            continue
        manual = next((wanted for pattern, wanted in overrides if re.search(pattern, name)), None)
        if manual is not None:
            choice = Choice(GGML_TYPES[manual], "--tensor-type")
        else:
            category = category_of(name)
            place = Place(seen[category], totals[category], n_gqa, is_70b, has_imatrix)
            choice = _mixture(recipe, shape[-1], category, place, tied="output.weight" not in shapes)
            seen[category] += 1
        choices[name] = _fit(choice, shape[-1])
    return choices


def _mixture(recipe: Recipe, row_length: int, category: str, place: Place, *, tied: bool) -> Choice:
    """The type that the recipe's rows give, before the row length is looked at."""
    default = GGML_TYPES[recipe.default]
    if category == "output" or (category == "embedding" and tied):
        if row_length % default.block_weights:
            return Choice(GGML_TYPES["Q8_0"], f"head: its rows do not divide into {default.name} blocks")
        return Choice(GGML_TYPES[recipe.output], "head") if recipe.output else Choice(default, "default")
    choice = Choice(default, "default")
    for rule in recipe.rules:
        if rule.category == category and rule.when(place):
            name = rule.when.__name__.replace("_", " ")
            choice = Choice(GGML_TYPES[rule.type], category if rule.when is always else f"{category}: {name}")
            break
    if category == "attn_v" and place.is_70b and recipe.lifts_v_70b and choice.type.name in ("Q3_K", "Q4_K"):
        return Choice(GGML_TYPES["Q5_K"], "attn_v of a 70B: 8 heads share it")
    return choice


def _fit(choice: Choice, n: int) -> Choice:
    """`choice`, or the fallback where blocks do not divide rows of `n`, F16 where nothing does."""
    if n % choice.type.block_weights == 0:
        return choice
    why = f"rows of {n} do not divide into {choice.type.name} blocks of {choice.type.block_weights}"
    fallback = GGML_TYPES[FALLBACKS.get(choice.type.name, choice.type.name)]
    return Choice(fallback if n % fallback.block_weights == 0 else GGML_TYPES["F16"], why)
