"""`medlite bench sweep`: one checkpoint at several recipes, quantized in one pass, measured, compared."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medlite.cli.bench.compare import check_report, show_report
from medlite.cli.bench.run import phase_bars, run_options, run_settings, wanted_tasks
from medlite.errors import RecipeError, RecordError

if TYPE_CHECKING:
    from bench.run.record import RunRecord
    from bench.settings import RunSettings

FLOOR_GROUP = 32  # questions a call of the rerun: another order of batches than RunSettings.n_group gives


@click.command(
    "sweep",
    epilog="""\b
Examples:
  medlite bench sweep demo --report report.html
  medlite bench sweep ./Llama-3.2-1B-Instruct --recipes BF16,Q8_0,Q4_K_M --task medqa --report report.html
  medlite bench sweep ./Med42-8B --task medical --limit 500 --out sweep/
  medlite bench sweep ./Med42-8B --task medqa --floor --report report.html

What is finished already is kept, so a sweep that was stopped goes on when the same command is run again.""",
)
@click.argument("source")
@click.option(
    "--recipes",
    default="BF16,Q8_0,Q5_K_M,Q4_K_M,Q3_K_M,Q2_K",
    show_default=True,
    metavar="NAME,...",
    help="The first one is the baseline.",
)
@run_options
@click.option(
    "--floor",
    is_flag=True,
    help="Run the baseline once more, with other batches and threads: what it loses against itself is the noise floor.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for artifacts and records. Default: NAME-sweep.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="Write .html, .md or .json.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "md", "json", "html"]),
    default="table",
    show_default=True,
    help="What to print.",
)
def command(
    source: str, recipes: str, floor: bool, out: Path | None, report: Path | None, form: str, **options: Any
) -> None:
    """Quantize SOURCE at several recipes, measure each, compare with the first. SOURCE: a checkpoint, or demo."""
    from bench.compare.floor import noise_floors
    from bench.compare.runs import compare_runs
    from bench.reports.content import Report
    from medlite.cli.display import stderr

    quiet = form != "table"
    check_report(report)
    wanted = [
        Wanted(name, run_settings(options, name), options["data"], options["shots_data"])
        for name in wanted_tasks(options)
    ]
    for one in wanted:
        one.check()
    try:
        paths = make_artifacts(source, [r.strip() for r in recipes.split(",") if r.strip()], out, quiet=quiet)
        runs = [measure_artifact(path, wanted, "runs", quiet=quiet) for path in paths]
        again = [replace(one, settings=other_settings(one.settings)) for one in wanted]
        reruns = [measure_artifact(paths[0], again, "floor-runs", quiet=quiet)] if floor else []
    except KeyboardInterrupt:
        stderr.print("stopped; the same command goes on from here")
        raise
    compared = compare_runs(runs[0], runs[1:], margin_points=options["margin_points"])
    show_report(Report(compared, noise_floors(runs[0], reruns)), report, form)


def make_artifacts(source: str, recipes: Sequence[str], out: Path | None, *, quiet: bool) -> list[Path]:
    """Paths of the GGUF files, in the order of `recipes`. A current file of an earlier sweep is kept."""
    from medlite.cli.quantize import write_with_progress
    from medlite.demo import checkpoint_path
    from medlite.models.hub import find_checkpoint
    from medlite.models.registry import DEMO_NAME
    from quantize.gguf.plan import make_plan
    from quantize.gguf.receipt import is_current
    from quantize.gguf.recipes import find_recipe
    from quantize.source.checkpoint import open_checkpoint
    from quantize.stream.writer import Output, WriteSettings

    if len(set(recipes)) < 2:
        raise RecipeError("a sweep needs two recipes at least", hint="--recipes BF16,Q4_K_M")
    found = list(dict.fromkeys(find_recipe(name) for name in recipes))
    folder = checkpoint_path() if source == DEMO_NAME else find_checkpoint(source)
    name = DEMO_NAME if source == DEMO_NAME else folder.name
    checkpoint = open_checkpoint(folder)
    target = out or Path(f"{name}-sweep")
    target.mkdir(parents=True, exist_ok=True)
    outputs = [Output(make_plan(checkpoint, recipe), target / f"{name}-{recipe.name}.gguf") for recipe in found]
    missing = [output for output in outputs if not is_current(output.plan, output.path)]
    if missing:
        write_with_progress(missing, WriteSettings(force=True), quiet=quiet)
    return [output.path for output in outputs]


@dataclass(frozen=True)
class Wanted:
    """One question set and how it shall be asked."""

    task: str
    settings: "RunSettings"
    data: Path | None
    shots_data: Path | None

    @cached_property
    def dataset_sha256(self) -> str:
        """Of the questions that will be asked; fetches them if need be. Raises TaskError if they cannot be had."""
        from bench.ask.question import samples_sha256
        from bench.run.measure import draw
        from bench.tasks import fetch, find_task
        from bench.tasks.local import local_task

        task = local_task(self.data) if self.task == "local" and self.data else find_task(self.task)
        samples, _ = fetch.load(task, self.data, self.shots_data, n_shots=self.settings.n_shots)
        return samples_sha256(draw(samples, self.settings.limit, self.settings.seed))

    def check(self) -> None:
        """Raise TaskError now, not after the hour that quantizing takes, if the questions cannot be had."""
        _ = self.dataset_sha256


def measure_artifact(path: Path, wanted: Sequence[Wanted], folder: str, *, quiet: bool) -> dict[str, "RunRecord"]:
    """The record of every question set, by task: the kept one where it still stands, else measured now."""
    from medlite.files import file_sha256

    target = path.parent / f"{path.stem}-{folder}"
    target.mkdir(exist_ok=True)
    files = {one: target / f"{one.task}.jsonl" for one in wanted}
    sha256 = file_sha256(path) if any(file.exists() for file in files.values()) else ""
    records = [kept_record(file, sha256, one) or run_one(path, file, one, quiet=quiet) for one, file in files.items()]
    return {record.task.name: record for record in records}


def kept_record(file: Path, artifact_sha256: str, wanted: Wanted) -> "RunRecord | None":
    """The finished record in `file`, if it is of this artifact, these settings and questions and this medlite."""
    from bench.run.record import read_record
    from medlite.version import __version__

    if not file.exists():
        return None
    try:
        record = read_record(file)
    except RecordError:
        return None
    asked = record.settings if wanted.settings.n_context else replace(record.settings, n_context=0)
    stands = (record.artifact.sha256, asked, record.task.dataset_sha256, record.environment.get("medlite"))
    needed = (artifact_sha256, wanted.settings, wanted.dataset_sha256, __version__)
    return record if record.complete and stands == needed else None


def run_one(path: Path, file: Path, wanted: Wanted, *, quiet: bool) -> "RunRecord":
    """One measurement in its own process; it goes on from an unfinished part, or begins anew if that is of another."""
    from bench.run.run import RunRequest, run_task
    from medlite.cli.display import stderr

    def run(resume: bool) -> "RunRecord":
        with phase_bars(f"{file.parent.name} {wanted.task}", quiet=quiet) as on_progress:
            request = RunRequest(
                path,
                wanted.task,
                wanted.settings,
                data=wanted.data,
                shots_data=wanted.shots_data,
                out=file,
                resume=resume,
                force=True,
            )
            return run_task(request, on_progress)

    try:
        record = run(resume=True)
    except RecordError as error:
        stderr.print(f"begins anew: {error}", style="dim", markup=False)
        record = run(resume=False)
    if not quiet:
        stderr.print(
            f"{file.parent.name} {wanted.task}: {record.n_correct:,} of {len(record.samples):,} right, "
            f"{record.performance.scoring_seconds:.0f} s",
            style="dim",
            markup=False,
        )
    return record


def other_settings(settings: "RunSettings") -> "RunSettings":
    """The same questions in other batches, and with one thread less where there are several."""
    from medlite.devices import physical_cores

    n_threads = settings.n_threads or physical_cores()
    return replace(settings, n_group=FLOOR_GROUP, n_threads=max(1, n_threads - 1), measure_speed=False)
