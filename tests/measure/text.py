"""`medlite bench text --exact` against llama-perplexity, on the same files and the same text, as a table.

    python -m tests.measure.text --llama-perplexity PROGRAM BASE.gguf CANDIDATE.gguf... [--text FILE] [--context N]

Without --text, 3,000 statements of the embedded demonstration corpus are the text.
"""

import argparse
import random
import re
import subprocess
import tempfile
from pathlib import Path

from bench.settings import RunSettings, Runtime
from bench.text.distance import TextDistance
from bench.text.perplexity import TextScore
from bench.text.run import TextRequest, run_text

N_STATEMENTS = 3000
# What llama-perplexity prints -> the name here. Source: llama.cpp tools/perplexity/perplexity.cpp, kl_divergence().
# fmt: off
PRINTED = {
    "Mean PPL(Q)": "perplexity", "Mean    KLD": "kl", "Median  KLD": "kl median", "99.0%   KLD": "kl 99 %",
    "Maximum KLD": "kl greatest", "Same top p": "same top token", "Mean    Δp": "mean Δp", "RMS Δp": "rms Δp",
}
# fmt: on
NUMBER = r"(-?[\d.]+)"


def demo_text(n_statements: int = N_STATEMENTS) -> str:
    """Statements of the demonstration model's training corpus, one a line, seeded."""
    from medlite.demo.corpus import load_corpus

    corpus, rng = load_corpus(), random.Random(0)
    return "\n".join(corpus.statement(rng) for _ in range(n_statements)) + "\n"


def theirs(program: Path, base: Path, candidate: Path, text: Path, n_context: int) -> dict[str, tuple[float, float]]:
    """What llama-perplexity prints for `candidate` against `base`: name -> (value, standard error, 0 if none)."""
    with tempfile.TemporaryDirectory() as folder:
        common = [str(program), "-f", str(text), "-c", str(n_context), "--kl-divergence-base", f"{folder}/base"]
        first = subprocess.run([*common, "-m", str(base)], capture_output=True, text=True, check=True)
        second = subprocess.run(
            [*common, "-m", str(candidate), "--kl-divergence"], capture_output=True, text=True, check=True
        )
    found = {"base perplexity": _number(r"Final estimate: PPL =\s*", first.stdout + first.stderr)}
    for printed, name in PRINTED.items():
        found[name] = _number(rf"{re.escape(printed)}\s*:\s*", second.stdout + second.stderr)
    return found


def _number(label: str, text: str) -> tuple[float, float]:
    match = re.search(rf"{label}{NUMBER}%?(?:\s*(?:±|\+/-)\s*{NUMBER})?", text)
    if match is None:
        raise SystemExit(f"llama-perplexity printed no {label}:\n{text[-2000:]}")
    return float(match[1]), float(match[2] or 0)


def ours(base: Path, candidate: Path, text: Path, n_context: int, folder: Path) -> dict[str, tuple[float, float]]:
    """The same numbers from `bench.text.run.run_text`, exact."""
    settings = RunSettings(runtime=Runtime(n_context=n_context, device="cpu"), max_tokens=0)
    base_score = run_text(TextRequest(base, text, settings, keep=folder / "base")).score
    found = run_text(TextRequest(candidate, text, settings, against=folder / "base"))
    score, distance = found.score, found.distance
    if distance is None:
        raise SystemExit("no distance came back")
    return {"base perplexity": (base_score.perplexity, base_score.standard_error), **as_printed(score, distance)}


def as_printed(score: TextScore, distance: TextDistance) -> dict[str, tuple[float, float]]:
    """Our numbers under the names above; Δp and same top token in percent, as they are printed there."""
    _, _, _, _, _, median, _, _, p99, _, greatest = distance.kl_quantiles
    percent = {"same top token": distance.same_top, "mean Δp": distance.delta_p, "rms Δp": distance.rms_delta_p}
    return {
        "perplexity": (score.perplexity, score.standard_error),
        "kl": (distance.kl.value, distance.kl.standard_error),
        "kl median": (median, 0.0),
        "kl 99 %": (p99, 0.0),
        "kl greatest": (greatest, 0.0),
        **{name: (100 * one.value, 100 * one.standard_error) for name, one in percent.items()},
    }


def main() -> None:
    """Print a Markdown table: measure, ours, theirs, and the standard error that both state."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.measure.text", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--llama-perplexity", required=True, type=Path, dest="program")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--context", type=int, default=256)
    options = parser.parse_args()
    base, *candidates = options.files
    print("| candidate | measure | medlite | llama-perplexity | its ± |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        text = options.text
        if text is None:
            text = Path(folder) / "text.txt"
            text.write_text(demo_text(), encoding="utf-8")
        for candidate in candidates:
            one = ours(base, candidate, text, options.context, Path(folder))
            other = theirs(options.program, base, candidate, text, options.context)
            for name, (value, error) in other.items():
                print(f"| {candidate.stem} | {name} | {one[name][0]:.5f} | {value:.5f} | {error or '·'} |")


if __name__ == "__main__":
    main()
