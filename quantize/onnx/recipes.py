"""How each weight of an ONNX model is stored: one row a recipe. To add a recipe, add a row to ONNX_RECIPES."""

import difflib
import re
from dataclasses import dataclass

from medlite.errors import RecipeError
from quantize.families.categories import category_of
from quantize.onnx.blocks import BLOCKS, BlockFormat
from quantize.onnx.storage import Storage

DEFAULT_RECIPE = "q4m"
DEFAULT_BLOCK = 32  # 128 decodes a third faster and costs 1.2 to 1.7 times the KL divergence


@dataclass(frozen=True)
class OnnxRecipe:
    """bits: of a weight matrix; 32 and 16 are plain floats. int8: categories that get 8 bits instead of 4, and
    n_int8_layers: the first layers of which every matrix does.

    symmetric: whether 4-bit blocks do without a zero point. 8-bit blocks always do.
    """

    name: str
    bits: int
    int8: tuple[str, ...] = ()
    n_int8_layers: int = 0
    symmetric: bool = True
    summary: str = ""

    @property
    def is_quantized(self) -> bool:
        return self.bits < 16


# Why q4m lifts what it lifts: KL divergence (nats a token, +-0.00003, n = 3072) of a trained Llama of 5.1 M weights,
# block 32, against float32, when one category of q4 gets 8 bits: none 0.00096, output 0.00039, embedding 0.00069,
# attn_k and attn_q 0.00093, every other one 0.00094 to 0.00095. Together: output + embedding 0.00014, with attn_v
# 0.00015, with ffn_down too 0.00012, with the whole first layer 0.00005. Without zero points q4 has 0.00111; q8 has
# 0.00002. README.md has the table of the demo checkpoint and the command that makes it.
# fmt: off
ONNX_RECIPES: dict[str, OnnxRecipe] = {row.name: row for row in (
    OnnxRecipe("fp32", 32, summary="exact, for parity checks"),
    OnnxRecipe("fp16", 16, summary="half the size; a CPU computes in float32 all the same"),
    OnnxRecipe("q8", 8, summary="near-lossless"),
    OnnxRecipe("q4m", 4, ("output", "embedding", "attn_v", "ffn_down"), n_int8_layers=1, symmetric=False,
               summary="int4, with int8 where it counts"),
    OnnxRecipe("q4", 4, symmetric=False, summary="all int4, the smallest"),
)}
# fmt: on


def find_onnx_recipe(name: str) -> OnnxRecipe:
    """The row of ONNX_RECIPES. Raises RecipeError naming what is near or known."""
    recipe = ONNX_RECIPES.get(name.lower())
    if recipe is None:
        near = difflib.get_close_matches(name.lower(), ONNX_RECIPES, n=2, cutoff=0.5)
        raise RecipeError(
            f"unknown ONNX recipe {name!r}",
            hint=f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(ONNX_RECIPES)}",
        )
    return recipe


def choose_storage(
    recipe: OnnxRecipe, block: int, name: str, shape: tuple[int, ...], category: str = ""
) -> tuple[Storage, str]:
    """How the tensor `name` of `shape` is stored, and why. category: empty for that of a GGUF name.

    Raises RecipeError where the block does not divide its rows: the runtime's embedding lookup knows no part blocks.
    """
    if len(shape) < 2:
        return Storage(32), "a vector or a norm stays float"
    if not recipe.is_quantized:
        return Storage(recipe.bits), "default"
    if block not in BLOCKS:
        raise RecipeError(f"--block {block}: unknown", hint=f"known: {', '.join(map(str, BLOCKS))}")
    if shape[-1] % block:
        fitting = [str(b) for b in BLOCKS if shape[-1] % b == 0]
        hint = f"--block {' or '.join(fitting)}" if fitting else "--recipe fp16, which has no blocks"
        raise RecipeError(f"{name}: row length {shape[-1]} is not a multiple of {block} (--block)", hint=hint)
    category = category or category_of(name)
    layer = re.search(r"\.(\d+)\.", name)
    is_lifted = layer is not None and int(layer[1]) < recipe.n_int8_layers
    if recipe.bits == 4 and (category in recipe.int8 or is_lifted):
        return Storage(8, BlockFormat(8, block)), category if category in recipe.int8 else "first layer"
    return Storage(recipe.bits, BlockFormat(recipe.bits, block, recipe.symmetric)), "default"
