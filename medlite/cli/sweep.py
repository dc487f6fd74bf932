"""`medlite bench sweep`: one checkpoint at several recipes, quantized in one pass, measured, compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medlite.cli.bench_compare import show_report
from medlite.cli.bench_run import out_path, run_one, run_options, run_settings, wanted_tasks
from medlite.errors import RecipeError, RecordError

if TYPE_CHECKING:
    from bench.record import RunSettings


@click.command("sweep", epilog="""\b
Examples:
  medlite bench sweep demo --report report.html
  medlite bench sweep ./Llama-3.2-1B-Instruct --recipes BF16,Q8_0,Q4_K_M --task medqa --report report.html
  medlite bench sweep ./Med42-8B --task medical --limit 500 --out sweep/

What is finished already is kept, so a sweep that was stopped goes on when the same command is run again.""")
@click.argument("source")
@click.option("--recipes", default="BF16,Q8_0,Q5_K_M,Q4_K_M,Q3_K_M,Q2_K", show_default=True, metavar="NAME,...",
              help="The first one is the baseline.")
@run_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder for artifacts and records. Default: NAME-sweep.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="Write .html, .md or .json.")
@click.option("--format", "form", type=click.Choice(["table", "md", "json", "html"]), default="table",
              show_default=True, help="What to print.")
def command(
    source: str, recipes: str, out: Path | None, report: Path | None, form: str, **options: Any,
) -> None:
    """Quantize SOURCE at several recipes, measure each, compare with the first. SOURCE: a checkpoint, or demo."""
    from bench.reports import Report
    from bench.runs import compare_runs, read_runs

    quiet = form != "table"
    names = wanted_tasks(options)
    artifacts = make_artifacts(source, [r.strip() for r in recipes.split(",") if r.strip()], out, quiet=quiet)
    folders = []
    for path in artifacts:
        folder = path.parent / f"{path.stem}-runs"
        for name in names:
            file = out_path(folder, name, several=True)
            if file and not holds_run(file, path, run_settings(options, name)):
                run_one(path, name, options, out=file, resume=True, force=True, quiet=quiet)
        folders.append(folder)
    runs = [read_runs(folder) for folder in folders]
    show_report(Report(compare_runs(runs[0], runs[1:], margin_points=options["margin_points"])), report, form)


def make_artifacts(source: str, recipes: Sequence[str], out: Path | None, *, quiet: bool) -> list[Path]:
    """Paths of the GGUF files, in the order of `recipes`. A current file of an earlier sweep is kept."""
    from medlite.cli.quantize import write_with_progress
    from medlite.demo import checkpoint_path
    from medlite.hub import find_checkpoint
    from medlite.registry import DEMO_NAME
    from quantize.checkpoint import open_checkpoint
    from quantize.plan import make_plan
    from quantize.receipt import is_current
    from quantize.recipes import find_recipe
    from quantize.to_gguf import Output, WriteSettings

    if len(set(recipes)) < 2:
        raise RecipeError("a sweep needs two recipes at least", hint="--recipes BF16,Q4_K_M")
    folder = checkpoint_path() if source == DEMO_NAME else find_checkpoint(source)
    name = DEMO_NAME if source == DEMO_NAME else folder.name
    checkpoint = open_checkpoint(folder)
    target = out or Path(f"{name}-sweep")
    target.mkdir(parents=True, exist_ok=True)
    outputs = [Output(make_plan(checkpoint, recipe), target / f"{name}-{recipe.name}.gguf")
               for recipe in dict.fromkeys(find_recipe(name) for name in recipes)]
    missing = [output for output in outputs if not is_current(output.plan, output.path)]
    if missing:
        write_with_progress(missing, WriteSettings(force=True), quiet=quiet)
    return [output.path for output in outputs]


def holds_run(file: Path, artifact: Path, settings: "RunSettings") -> bool:
    """Whether `file` is a finished record of this artifact under these settings."""
    from bench.record import read_record
    from medlite.files import file_sha256

    if not file.exists():
        return False
    try:
        record = read_record(file)
    except RecordError:
        return False
    return record.complete and record.settings == settings and record.artifact.sha256 == file_sha256(artifact)
