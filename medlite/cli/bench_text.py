"""`medlite bench text`: perplexity over a text file."""

from pathlib import Path

import click

from medlite.cli import print_json
from medlite.cli.bench_run import phase_bars


@click.command("text", epilog="""\b
Examples:
  medlite bench text notes.txt model-Q4_K_M.gguf
  medlite bench text notes.txt model-BF16.gguf model-Q8_0.gguf model-Q4_K_M.gguf
  medlite bench text notes.txt model-BF16.gguf model-Q2_K.gguf --context 256 --json""")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("models", nargs=-1, required=True)
@click.option("--context", "n_context", type=click.IntRange(8), default=512, show_default=True, metavar="TOKENS",
              help="Length of a chunk; its second half is scored.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", "n_threads", type=click.IntRange(0), default=0, help="Default: physical cores.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    file: Path, models: tuple[str, ...], n_context: int, device: str, n_threads: int, as_json: bool,
) -> None:
    """Perplexity of MODELS on a text FILE, as llama-perplexity defines it; differences are from the first model."""
    from dataclasses import asdict

    from bench.record import RunSettings
    from bench.run import text_in_child
    from bench.text import paired_difference
    from medlite.cli.display import stdout
    from medlite.cli.tables import text_table
    from medlite.registry import resolve_model

    settings = RunSettings(n_context=n_context, device=device, n_threads=n_threads)
    scores = []
    for path in map(resolve_model, models):
        with phase_bars(path.stem, quiet=as_json) as on_progress:
            scores.append(text_in_child(path, file, settings, on_progress=on_progress))
    differences = [paired_difference(scores[0], score) for score in scores[1:]]
    if as_json:
        print_json([{**asdict(score), "perplexity": score.perplexity, "standard_error": score.standard_error,
                     "difference_nats": asdict(d) if d else None}
                    for score, d in zip(scores, [None, *differences], strict=True)])
        return
    stdout.print(text_table(scores, differences))
