"""general.*: what a model is called and who made it, as GGUF metadata, from the model card beside the weights."""

from medlite.errors import CheckpointError
from medlite.formats.gguf import Kind, Value
from quantize.source.checkpoint import SourceFiles


def general_metadata(files: SourceFiles, architecture: str, n_params: int) -> dict[str, Value]:
    """general.*: name, base model, licence, languages, tags. Raises CheckpointError where the card cannot be read."""
    import gguf

    try:
        found = gguf.Metadata.load(None, files.folder, None, n_params)
        if found.name is None:
            found.name = files.folder.resolve().name
        if found.sampling_penalty_repeat is None:  # gguf < 0.20 reads only llama.cpp's spelling of it
            found.sampling_penalty_repeat = _repetition_penalty(files)
        if found.size_label is None:
            found.size_label = gguf.size_label(n_params, 0, 0, 0)
        writer = gguf.GGUFWriter(None, architecture)
        writer.add_type(gguf.GGUFType.MODEL)
        found.set_gguf_meta_model(writer)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{files.folder}: the model card cannot be read: {error}",
            hint="correct or remove README.md beside the weights",
        ) from error
    result: dict[str, Value] = {}
    for key, row in writer.kv_data[0].items():
        if int(row.type) == Kind.ARRAY:
            result[key] = Value(Kind.STRING, list(row.value), is_array=True)
        else:
            result[key] = Value(Kind(int(row.type)), row.value)
    return result


def _repetition_penalty(files: SourceFiles) -> float | None:
    """generation_config.json's repetition_penalty, where there is one."""
    stated = files.object_if_any("generation_config.json").get("repetition_penalty")
    return float(stated) if isinstance(stated, int | float) else None
