"""bench/README.md defines every measure: unit, direction, definition, source; and every column of a report is in it."""

import re

import pytest

from tests.helpers.places import GOLDEN, ROOT

README = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
REPORT = (GOLDEN / "bench_report.md").read_text(encoding="utf-8")
HEAD = "| measure | unit | better | definition | source |"


def measures() -> dict[str, list[str]]:
    """Name -> unit, better, definition, source, of all tables of measures."""
    found = {}
    for block in README.split("\n\n"):
        lines = block.strip().splitlines()
        if lines and lines[0] == HEAD:
            for line in lines[2:]:
                name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
                found[name.strip()] = [cell.strip(" |") for cell in cells]
    return found


MEASURES = measures()

# Column of the report -> the measure that it shows; None for names and counts that need no definition.
# fmt: off
COLUMNS: dict[str, str | None] = {
    "artifact": None, "subject": None, "topic": None, "questions": None, "n": None, "runs on": None,
    "verdict": "verdict", "accuracy %": "accuracy", "loss, points": "loss",
    "questions to decide": "questions to decide",
    "right→ wrong": "flips", "wrong→ right": "flips", "wrong→ other wrong": "flips", "p": "p",
    "confident losses": "near-tie, confident", "changed": "flips", "% of questions": "flips",
    "right→wrong (near-ties)": "near-tie, confident", "wrong→right (near-ties)": "near-tie, confident",
    "wrong→other wrong (near-ties)": "near-tie, confident", "lost: baseline's margin, nats": "margin of a flip",
    "lost: own margin, nats": "margin of a flip", "KL mean (nats)": "KL, full vocabulary",
    "90 %": "KL, full vocabulary", "99 %": "KL, full vocabulary", "greatest": "KL, full vocabulary",
    "error bound": "error bound", "KL over options": "KL over options", "same top token %": "same top token",
    "ECE": "ECE", "Brier": "Brier",
    "NLL (nats)": "NLL", "AURC": "AURC", "coverage at the baseline's error %": "coverage at the baseline's error",
    "BF16 %": "accuracy", "Q4_K_M": "loss", "Q2_K": "loss", "file": "file", "bits/weight": "bits/weight",
    "peak memory": "peak memory", "weights mapped": "weights mapped", "KV cache": "KV cache", "rest": "rest",
    "peak GPU memory": "peak GPU memory", "on the front by": "on the front",
    **{f"{share} % answered": "errors at a share answered" for share in (50, 70, 80, 90, 95, 100)},
    "load s": "load", "first token s": "first token", "prefill tok/s": "prefill",
    "decode tok/s": "decode", "questions/s": "questions/s",
    "processor J/question": "energy", "GPU J/question": "energy",
    "distinct questions %": "accuracy", "all rows % (weighted)": "all rows",
    "mean of subjects % (unweighted)": "mean of subjects",
}
# fmt: on


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_has_unit_direction_definition_and_source(name: str) -> None:
    assert len(MEASURES[name]) == 4
    unit, better, definition, source = MEASURES[name]
    assert unit
    assert better in ("lower", "higher", "–", "non-inferior", "yes")
    assert len(definition) > 15
    assert source


def test_every_column_of_the_report_is_defined() -> None:
    columns = {
        cell
        for line, rule in zip(REPORT.splitlines(), REPORT.splitlines()[1:], strict=False)
        if re.fullmatch(r"(\|---)+\|", rule)
        for cell in line.strip("| ").split(" | ")
    }
    assert columns == set(COLUMNS)
    assert {measure for measure in COLUMNS.values() if measure} <= set(MEASURES)
