"""A report as one HTML file: no network, no script, light and dark, printable."""

from html import escape
from typing import TYPE_CHECKING

from bench.reports.content import Table, method_lines, tables_of, turned
from bench.reports.plots import all_plots
from bench.reports.to_markdown import option
from bench.safety import Marked

if TYPE_CHECKING:
    from bench.reports import Report

# Colours: Okabe and Ito 2008 (distinguishable with colour blindness), lightened for the dark page.
STYLE = """
:root{--bg:#fff;--fg:#1b1f24;--dim:#5b6570;--rule:#d5dae0;--card:#f5f7f9;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#a5568a;--c4:#b07d00;--c5:#2f8fc4;--c6:#7a828b}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e4e8ec;--dim:#9aa5b0;--rule:#343b43;--card:#1c2126;
--c0:#56b4e9;--c1:#f0854a;--c2:#35c79a;--c3:#d99bc4;--c4:#e6b13a;--c5:#8fcbf0;--c6:#98a1aa}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:74rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;line-height:1.2;margin:.2rem 0}h2{margin:2.5rem 0 .5rem;border-bottom:2px solid var(--rule)}
h3{margin:1.8rem 0 .4rem;font-size:1.05rem}
.dim,figcaption,.note{color:var(--dim);font-size:.875rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:.3rem .5rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{vertical-align:bottom;font-weight:600;white-space:normal}th:first-child,td:first-child{text-align:left}
.Verdict td:nth-child(2),.Verdict th:nth-child(2){text-align:left}
.good{color:var(--c2);font-weight:600}.bad{color:var(--c1);font-weight:600}.open{color:var(--c4);font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1rem;
align-items:start}
figure{margin:0;padding:.8rem;background:var(--card);border-radius:.5rem;break-inside:avoid}
svg{width:100%;height:auto;display:block}svg text{font:12px system-ui,sans-serif;fill:var(--fg)}
.grid{stroke:var(--rule);stroke-width:1}.axis{stroke:var(--dim);stroke-width:1}
.line{fill:none;stroke-width:2}.thin{stroke-width:1;stroke-dasharray:4 4}
""" + "".join(f".fill{i}{{fill:var(--c{i})}}.line{i}{{stroke:var(--c{i})}}" for i in range(7)) + """
.line1{stroke-dasharray:7 3}.line2{stroke-dasharray:2 2}.line3{stroke-dasharray:9 3 2 3}.line4{stroke-dasharray:12 3}
.whisker{stroke-dasharray:none}
details{margin:.5rem 0}summary{cursor:pointer;padding:.3rem 0}
.q{border-left:3px solid var(--rule);padding:.2rem .8rem;margin:.6rem 0;break-inside:avoid;white-space:pre-line}
.q.tie{opacity:.75}.tag{display:inline-block;border:1px solid var(--rule);border-radius:1rem;padding:0 .5rem;
margin-right:.3rem;font-size:.75rem;color:var(--dim)}
ul{padding-left:1.2rem}li{overflow-wrap:anywhere}
@media print{body{max-width:none;font-size:11px}.plots{grid-template-columns:1fr 1fr}.scroll{overflow:visible}
th,td{padding:.15rem .3rem;white-space:normal}details>*{display:block}}
"""

VERDICT_CLASSES = {"non-inferior": "good", "inferior": "bad", "inconclusive": "open"}
KINDS = {"right_to_wrong": "turned wrong", "wrong_to_other_wrong": "wrong in another way",
         "wrong_to_right": "turned right"}


def to_html(report: "Report") -> str:
    """The page."""
    names = ", ".join(one.task for one in report.tasks)
    body = ['<p class="dim">medlite bench</p>', "<h1>What the low bits cost</h1>",
            '<p class="dim">Every answer is paired with the full-precision model\'s answer to the same question. '
            "Research and demonstration: a verdict about a question set, not about patients.</p>"]
    for one in report.tasks:
        tables = tables_of(one, report.floors.get(one.task))
        body.append(f"<h2>{escape(one.task)}: {len(one.baseline.samples):,} questions</h2>")
        body.append(table_html(tables[0]))
        figures = (f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
                   for caption, picture in all_plots(one))
        body.append(f'<div class="plots">{"".join(figures)}</div>')
        body += [table_html(table) for table in tables[1:]]
        body += [questions_html(name, marked) for name, marked in turned(one)]
        lines = "".join(f"<li>{escape(line)}</li>" for line in method_lines(one))
        body.append(f"<h3>Methods</h3><ul class='dim'>{lines}</ul>")
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>medlite bench: {escape(names)}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" '
            f'content="light dark"><style>{STYLE}</style></head><body>{"".join(body)}</body></html>\n')


def table_html(table: Table) -> str:
    """A table that scrolls sideways where it is wider than the page."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = "".join(f"<tr>{''.join(cell_html(cell) for cell in row)}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (f'<h3>{escape(table.title)}</h3><div class="scroll"><table class="{escape(table.title.split(",")[0])}">'
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}")


def cell_html(cell: str) -> str:
    """A cell; verdicts are coloured, and their word says the same without colour."""
    for word, name in VERDICT_CLASSES.items():
        if cell.startswith(word):
            return f'<td class="{name}">{escape(cell)}</td>'
    return f"<td>{escape(cell)}</td>"


def questions_html(name: str, marked: tuple[Marked, ...]) -> str:
    """The changed answers of a candidate, readable one by one; folded until opened."""
    shown = [one for one in marked if one.question]
    if not shown:
        return ""
    items = "".join(question_html(one) for one in shown)
    n_wrong = sum(one.flip.kind == "right_to_wrong" for one in shown)
    return (f"<details><summary>{escape(name)}: {len(shown)} changed answers, {n_wrong} turned wrong</summary>"
            f"{items}</details>")


def question_html(one: Marked) -> str:
    """One changed answer: what happened, the question, the three answers, the words that mark it."""
    flip = one.flip
    tags = "".join(f'<span class="tag">{escape(topic)}: {escape(", ".join(words[:4]))}</span>'
                   for topic, words in one.topics.items())
    sure = f"baseline was sure by {flip.baseline_margin_nats:.1f} nats" if flip.confident else "margin not known"
    margin = "near-tie at the baseline" if flip.near_tie else sure
    key, before, after = (escape(option(one, i)) for i in (flip.answer, flip.baseline_prediction,
                                                          flip.candidate_prediction))
    return (f'<div class="q{" tie" if flip.near_tie else ""}"><b>{KINDS[flip.kind]}</b> '
            f'<span class="dim">{escape(flip.id)} · {margin}</span>\n{escape(one.question)}\n'
            f"key <b>{key}</b> · baseline {before} · candidate {after}\n{tags}</div>")
