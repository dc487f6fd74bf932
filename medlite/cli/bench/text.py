"""`medlite bench text`: perplexity and KL divergence over a text file."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medlite.cli import print_json, warn
from medlite.cli.bench.measuring import phase_bars
from medlite.cli.params import PATH, device_option, json_option, threads_option, value_option

if TYPE_CHECKING:
    from bench.settings import RunSettings
    from bench.text.run import TextResult


@click.command(
    "text",
    epilog="""\b
Examples:
  medlite bench text notes.txt model-Q4_K_M.gguf
  medlite bench text notes.txt model-BF16.gguf model-Q8_0.gguf model-Q4_K_M.gguf
  medlite bench text notes.txt model-BF16.gguf model-Q2_K.gguf --exact --context 256 --json""",
)
@click.argument("file", type=PATH)
@click.argument("models", nargs=-1, required=True)
@value_option("--context", click.IntRange(8), 512, "Tokens of a chunk; its second half is scored.", as_name="n_context")
@click.option(
    "--exact",
    is_flag=True,
    help="Keep the first model's whole distributions on disk while the others run, also where that takes "
    "more than 4 GiB: 4 bytes a token of the vocabulary, for each scored token of the text.",
)
@device_option()
@threads_option()
@json_option()
def command(
    file: Path, models: tuple[str, ...], n_context: int, exact: bool, device: str, n_threads: int | None, as_json: bool
) -> None:
    """Perplexity of MODELS on a text FILE, and how far each is from the first: KL divergence, same top token, change
    of probability. All as llama-perplexity defines them."""
    from bench.reports.to_terminal import distance_table, text_table
    from bench.settings import RunSettings, Runtime
    from bench.text.distance import MAX_TOKENS
    from bench.text.perplexity import paired_difference
    from medlite.cli.display import stdout
    from medlite.cli.draw import draw_table

    runtime = Runtime(device=device, n_context=n_context, n_threads=n_threads or 0)
    settings = RunSettings(runtime=runtime, max_tokens=0 if exact else MAX_TOKENS)
    results = measure_texts(file, models, settings, quiet=as_json)
    scores, distances = [one.score for one in results], [one.distance for one in results[1:] if one.distance]
    differences = [paired_difference(scores[0], score) for score in scores[1:]]
    if as_json:
        print_json(
            [
                {
                    **asdict(one.score),
                    "perplexity": one.score.perplexity,
                    "standard_error": one.score.standard_error,
                    "difference_nats": asdict(d) if d else None,
                    "distance": asdict(one.distance) if one.distance else None,
                }
                for one, d in zip(results, [None, *differences], strict=True)
            ]
        )
        return
    stdout.print(draw_table(text_table(scores, differences)))
    if distances:
        names = [score.artifact.file_name for score in scores[1:]]
        stdout.print(draw_table(distance_table(names, distances)))
    if any(distance.is_loose for distance in distances):
        warn("KL is only known to lie between the bounds shown; --exact knows it")


def measure_texts(file: Path, models: Sequence[str], settings: "RunSettings", *, quiet: bool) -> "list[TextResult]":
    """Each model's score, and from the second on the distance from the first, one model in memory at a time."""
    from bench.text.run import TextRequest, run_text
    from medlite.files import cache_folder
    from medlite.models.registry import resolve_model

    results: list[TextResult] = []
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="text-", dir=cache_folder()) as folder:
        kept = Path(folder) / "baseline" if len(models) > 1 else None
        for path in map(resolve_model, models):
            with phase_bars(path.stem, quiet=quiet) as on_progress:
                first = not results
                request = TextRequest(
                    path, file, settings, keep=kept if first else None, against=None if first else kept
                )
                results.append(run_text(request, on_progress))
    return results
