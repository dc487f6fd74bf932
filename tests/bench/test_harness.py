"""What the harness gets from our engines: sums over tokens, greedy or not, cut from the left, replies that stop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.ask.question import Prompt
from bench.harness import cut, generate_text, score_pairs
from bench.score.scoring import encode, score_samples
from medlite.engines import open_engine
from medlite.engines.engine import OpenSettings
from tests.helpers.bench_toys import make_items, make_sample
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.toy_engine import ToyEngine


def test_pairs_score_as_samples_do() -> None:
    engine, items = ToyEngine(noise=0.3), make_items(2)
    expected = [lp for s in score_samples(engine, items) for lp in s.option_log_probabilities]
    pairs = [(e.context, c) for _, prompt in items for e in [encode(engine.tokenize, prompt)] for c in e.continuations]
    found = list(score_pairs(engine, pairs))
    assert [value for value, _ in found] == pytest.approx(expected, abs=1e-12)


def test_a_continuation_is_greedy_if_every_token_is_the_likeliest() -> None:
    engine = ToyEngine({"What?": " yes"})
    context = tuple(engine.tokenize("What?"))
    found = [greedy for _, greedy in score_pairs(engine, [(context, tuple(b" yes")), (context, tuple(b" no"))])]
    assert found == [True, False]


def test_what_does_not_fit_is_cut_from_the_left() -> None:
    assert cut(((1, 2, 3, 4), (5, 6)), 5) == ((1, 2, 3, 4), (5, 6))
    assert cut(((1, 2, 3, 4), (5, 6)), 3) == ((3, 4), (5, 6))
    assert cut(((1, 2), (5, 6, 7)), 1) == ((2,), (5, 6, 7))


def test_replies_stop_at_the_harness_s_words() -> None:
    engine = ToyEngine({"Q:": "metformin\n\nQ: next"})
    assert generate_text(engine, "Q:", {"until": ["\n\n"], "max_gen_toks": 40}) == "metformin"
    assert generate_text(engine, "Q:", {"until": "\n", "max_gen_toks": 4}) == "metf"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--tasks", "a"], ["artifact=m.gguf", "--tasks", "a"]),
        (["--tasks", "a", "--model_args", "n_threads=2"], ["artifact=m.gguf,n_threads=2", "--tasks", "a"]),
        (["--model_args=engine=ort", "--limit", "3"], ["artifact=m.gguf,engine=ort", "--limit", "3"]),
    ],
)
def test_the_artifact_is_put_into_the_harness_s_own_arguments(given: list[str], wanted: list[str]) -> None:
    from medlite.cli.bench.harness import harness_arguments

    assert harness_arguments("m.gguf", given) == ["run", "--model", "medlite", "--model_args", *wanted]


TASKS = {
    "toy_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
""",
    "toy_reply": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "x"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match}]
""",
    "toy_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}]
""",
}


@pytest.mark.slow
def test_the_harness_runs_its_three_kinds_of_tasks_on_a_gguf_file(tmp_path: Path) -> None:
    """Through the command line, in a process of its own, on rows made up here."""
    pytest.importorskip("lm_eval")
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    samples = [make_sample(i) for i in range(6)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": s.question, "answer": s.answer}) + "\n" for s in samples))
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
            f"test_split: test\n{text}"
        )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "medlite",
            "bench",
            "harness",
            str(model),
            "--tasks",
            ",".join(TASKS),
            "--include_path",
            str(tmp_path),
            "--output_path",
            str(tmp_path / "out"),
            "--model_args",
            "n_context=256,n_threads=1",
            "--device",
            "cpu",
            "--log_samples",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "TQDM_DISABLE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text())["results"]
    prompts = [(s, Prompt(f"{s.question}\nAnswer:", (" A", " B", " C", " D"))) for s in samples]
    engine = open_engine(model, OpenSettings(device="cpu", n_threads=1, n_context=256))
    expected = [s.correct for s in score_samples(engine, prompts)]
    engine.close()
    assert results["toy_choice"]["acc,none"] == pytest.approx(sum(expected) / len(expected))
    assert results["toy_text"]["word_perplexity,none"] > 1
    assert results["toy_reply"]["exact_match,none"] == 0


def test_without_the_harness_the_error_names_the_extra() -> None:
    from bench.harness import model_class
    from medlite.errors import MissingExtraError

    try:
        import lm_eval  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="lm_eval is not installed"):
            model_class()
    else:
        pytest.skip("lm_eval is installed here")
