"""Names: which tensor of a checkpoint becomes which tensor of the model, and whether all are there and fit.

The one place where a checkpoint's names meet a family's rules.
"""

import re
from dataclasses import replace

from medlite.errors import CheckpointError
from medlite.formats.safetensors import FLOAT_DTYPES, SourceTensor
from quantize.families.config import Config, positive
from quantize.families.family import Family, TensorRule
from quantize.source.checkpoint import Checkpoint

Shape = tuple[int, ...]
Sources = dict[str, tuple[SourceTensor, TensorRule]]


def match_names(checkpoint: Checkpoint, family: Family, config: Config) -> tuple[Sources, dict[str, str]]:
    """GGUF name -> (source tensor, rule), and ignored name -> reason. Every source tensor lands in exactly one.

    Raises CheckpointError where a tensor is unknown, missing, of a type that is no weight's, or misshapen.
    """
    sources: Sources = {}
    ignored: dict[str, str] = {}
    dropped = config["dropped_layers"]
    for tensor in checkpoint.tensors.values():
        reason = next((row.reason for row in family.ignored if re.fullmatch(row.pattern, tensor.name)), None)
        if reason is not None:
            ignored[tensor.name] = reason
            continue
        rule, match = _rule_of(tensor, family)
        target = rule.target
        if match.groups():
            layer = int(match[1])
            if layer in dropped:
                ignored[tensor.name] = f"layer {layer}, {family.dropped_reason}"
                continue
            target = target.format(layer - sum(i < layer for i in dropped))
        if target in sources:
            raise CheckpointError(f"{tensor.path}: {tensor.name} and {sources[target][0].name} both become {target}")
        if tensor.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{tensor.path}: {tensor.name} is {tensor.dtype}, one of {', '.join(FLOAT_DTYPES)} was needed",
                hint="start from the full-precision checkpoint, not from one that is quantized already",
            )
        if rule.extra_rows:
            tensor = _without_last_rows(tensor, rule.extra_rows)
            ignored[f"{tensor.name}[{tensor.shape[0]}:]"] = rule.extra_reason
        sources[target] = (tensor, rule)
    _check_complete(checkpoint, family, config, sources)
    return sources, ignored


def _rule_of(tensor: SourceTensor, family: Family) -> tuple[TensorRule, re.Match[str]]:
    """The family's rule that takes the tensor, and its match. Raises CheckpointError if there is none."""
    for rule in family.rules:
        if match := re.fullmatch(rule.pattern, tensor.name):
            return rule, match
    raise CheckpointError(
        f"{tensor.path}: no rule of {family.hf_name} takes {tensor.name}",
        hint="the checkpoint holds more than the architecture says; it may be an adapter",
    )


def _without_last_rows(tensor: SourceTensor, n_rows: int) -> SourceTensor:
    """`tensor` as if its last rows were not there. Raises CheckpointError if it has no more."""
    if len(tensor.shape) != 2 or tensor.shape[0] <= n_rows:
        raise CheckpointError(f"{tensor.path}: {tensor.name} has shape {tensor.shape}, more than {n_rows} rows needed")
    return replace(
        tensor, shape=(tensor.shape[0] - n_rows, tensor.shape[1]), n_bytes=tensor.n_bytes - n_rows * tensor.row_bytes
    )


def _check_complete(checkpoint: Checkpoint, family: Family, config: Config, sources: Sources) -> None:
    """Raise CheckpointError if a layer lacks a tensor, or one lies beyond the config's layers or has another shape."""
    for name, (rule, _) in expected_tensors(family, config).items():
        if name not in sources:
            raise CheckpointError(
                f"{checkpoint.folder}: no tensor becomes {name} ({rule.pattern})",
                hint="a shard is missing or the config is of another model",
            )
    n_layers, shapes = positive(config, "num_hidden_layers"), family.shapes(config)
    for name, (source, _) in sources.items():
        if file_order(name)[0] >= n_layers:
            raise CheckpointError(f"{source.path}: {source.name} lies beyond the config's {n_layers} layers")
        shape = shapes.get(name_in_layer(name), source.shape)
        if source.shape != shape:
            raise CheckpointError(f"{source.path}: {source.name} has shape {source.shape}, config.json says {shape}")


# --- what a family expects -------------------------------------------------------------------------------------------


def expected_tensors(family: Family, config: Config) -> dict[str, tuple[TensorRule, Shape]]:
    """GGUF name -> rule and shape of every tensor that a complete checkpoint has; extras are not in it."""
    shapes = family.shapes(config)
    tied = bool(config.get("tie_word_embeddings"))
    found: dict[str, tuple[TensorRule, Shape]] = {}
    for rule in family.rules:
        if rule.target == "output.weight" and tied:
            continue
        inner = name_in_layer(rule.target)
        if inner not in shapes:
            raise CheckpointError(f"{family.hf_name}: the config does not say the shape of {rule.target}")
        n_layers = positive(config, "num_hidden_layers") if inner != rule.target else 1
        found |= {rule.target.format(layer): (rule, shapes[inner]) for layer in range(n_layers)}
    return found


def name_in_layer(name: str) -> str:
    """The tensor's name without its layer, or without the {0} of a rule."""
    return re.sub(r"^blk\.(?:\d+|\{0\})\.", "", name)


def file_order(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's tensor map: tensors without a layer first, then by layer, then by name.

    Source: src/llama-model-loader.h, weight_name_comparer.
    """
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name)
