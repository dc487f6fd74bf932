"""`medlite bench sweep`: one checkpoint at several recipes, quantized in one pass, measured, compared."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medlite.cli.bench.asking import Asking, asking_options
from medlite.cli.bench.compare import check_report, report_option, show_report
from medlite.cli.bench.measuring import make_artifacts, measure_artifact
from medlite.cli.params import PATH, imatrix_option, json_option, pre_tokenizer_option, recipe_option
from medlite.errors import RecipeError
from medlite.files import make_folder

if TYPE_CHECKING:
    from bench.run.run import RunRequest
    from bench.settings import RunSettings

FLOOR_GROUP = 32  # questions a call of the rerun: another order of batches than RunSettings.n_group gives
RECIPES = ("BF16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


@click.command(
    "sweep",
    epilog="""\b
Examples:
  medlite bench sweep demo --report report.html
  medlite bench sweep ./Llama-3.2-1B-Instruct --recipe BF16 --recipe Q4_K_M --task medqa --report report.html
  medlite bench sweep ./Med42-8B --task medical --limit 500 --out sweep/
  medlite bench sweep ./Med42-8B --task medqa --floor --report report.html
  medlite bench sweep ./Med42-8B --recipe BF16 --recipe IQ2_M --imatrix clinical.gguf

What is finished already is kept, so a sweep that was stopped goes on when the same command is run again.""",
)
@click.argument("source")
@recipe_option("What to make and measure; the first one is the baseline.", default=RECIPES)
@asking_options(servers=False)
@click.option(
    "--floor",
    is_flag=True,
    help="Run the baseline once more, with other batches and threads: what it loses against itself is the noise floor.",
)
@imatrix_option
@pre_tokenizer_option
@click.option("--out", type=PATH, help="Folder for artifacts and records. Default: NAME-sweep.")
@report_option
@json_option()
def command(
    source: str,
    recipes: tuple[str, ...],
    asking: Asking,
    floor: bool,
    imatrix: Path | None,
    pre_tokenizer: str | None,
    out: Path | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Quantize SOURCE at several recipes, measure each, compare with the first. SOURCE: a checkpoint, or demo."""
    from bench.compare.floor import noise_floors
    from bench.compare.runs import compare_runs
    from bench.reports.content import Report
    from bench.run.kept import questions_sha256
    from bench.run.run import RunRequest
    from medlite.cli.display import stderr

    check_report(report)
    requests = [
        RunRequest(Path(), name, asking.settings(name), asking.data, asking.shots_data) for name in asking.task_names()
    ]
    datasets = {one.task: questions_sha256(one) for one in requests}  # now, not after the hour that quantizing takes
    folder, paths = artifact_paths(source, recipes, out)
    try:
        make_artifacts(folder, paths, imatrix=imatrix, pre_tokenizer=pre_tokenizer, quiet=as_json)
        runs = [
            measure_artifact(path, placed(requests, path, "runs"), datasets, quiet=as_json) for path in paths.values()
        ]
        first = next(iter(paths.values()))
        again = [replace(one, settings=other_settings(one.settings)) for one in requests]
        reruns = [measure_artifact(first, placed(again, first, "floor-runs"), datasets, quiet=as_json)] if floor else []
    except KeyboardInterrupt:
        stderr.print("stopped; the same command goes on from here")
        raise
    compared = compare_runs(runs[0], runs[1:], margin_points=asking.margin_points)
    show_report(Report(compared, noise_floors(runs[0], reruns)), report, as_json=as_json)


def artifact_paths(source: str, recipes: Sequence[str], out: Path | None) -> tuple[Path, dict[str, Path]]:
    """The checkpoint's folder, and where the GGUF file of each recipe goes. Raises RecipeError for fewer than two."""
    from medlite.demo import checkpoint_path
    from medlite.models.hub import find_checkpoint
    from medlite.models.registry import DEMO_NAME
    from quantize.gguf.recipes import find_recipe

    names = list(dict.fromkeys(find_recipe(name).name for name in recipes))
    if len(names) < 2:
        raise RecipeError("a sweep needs two recipes at least", hint="--recipe BF16 --recipe Q4_K_M")
    folder = checkpoint_path() if source == DEMO_NAME else find_checkpoint(source)
    name = DEMO_NAME if source == DEMO_NAME else folder.name
    target = out or Path(f"{name}-sweep")
    return folder, {recipe: target / f"{name}-{recipe}.gguf" for recipe in names}


def placed(requests: Sequence["RunRequest"], path: Path, kind: str) -> list["RunRequest"]:
    """The requests for one artifact, with their records in a folder next to it."""
    folder = path.parent / f"{path.stem}-{kind}"
    make_folder(folder)
    return [replace(one, artifact=path, out=folder / f"{one.task}.jsonl") for one in requests]


def other_settings(settings: "RunSettings") -> "RunSettings":
    """The same questions in other batches, and with one thread less where there are several."""
    from medlite.devices import physical_cores

    n_threads = settings.runtime.n_threads or physical_cores()
    runtime = replace(settings.runtime, n_threads=max(1, n_threads - 1))
    return replace(settings, runtime=runtime, n_group=FLOOR_GROUP, measure_speed=False)
