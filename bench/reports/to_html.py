"""A report as one HTML file: no network, no script, light and dark, printable."""

from html import escape

from bench.compare.floor import NoiseFloor
from bench.compare.published import published_beside
from bench.compare.runs import TaskComparison
from bench.compare.safety import Marked
from bench.reports.content import Report, Table, evidence_of, mood, turned
from bench.reports.methods import method_lines
from bench.reports.plots import all_plots
from bench.reports.tables import answer_line, overview_table, published_table, tables_of, verdict_table
from bench.reports.to_markdown import option

# Colours: Okabe and Ito 2008 (distinguishable with colour blindness), lightened for the dark page.
STYLE = """
:root{--bg:#fff;--fg:#1b1f24;--dim:#5b6570;--rule:#d5dae0;--card:#f5f7f9;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#a5568a;--c4:#b07d00;--c5:#2f8fc4;--c6:#7a828b;--c7:#1b1f24}
@media screen and (prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e4e8ec;--dim:#9aa5b0;--rule:#343b43;
--card:#1c2126;--c0:#56b4e9;--c1:#f0854a;--c2:#35c79a;--c3:#d99bc4;--c4:#e6b13a;--c5:#8fcbf0;--c6:#98a1aa;--c7:#e4e8ec}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:76rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;line-height:1.2;margin:.2rem 0}h2{margin:2.5rem 0 .5rem;border-bottom:2px solid var(--rule)}
h3{margin:1.8rem 0 .4rem;font-size:1.05rem}
.dim,figcaption,.note{color:var(--dim);font-size:.875rem}
.answer{font-weight:600}
.scroll{overflow-x:auto}
table{border-collapse:separate;border-spacing:0;font-size:.875rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:.3rem .5rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{vertical-align:bottom;font-weight:600;white-space:normal}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--bg)}
td.good,td.bad,td.open{text-align:left}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}.open{color:var(--open);font-weight:600}
:root{--good:#00694d;--bad:#b04a00;--open:#7d5900}
@media screen and (prefers-color-scheme:dark){:root{--good:#35c79a;--bad:#f0854a;--open:#e6b13a}}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:1rem;margin:1.5rem 0;
align-items:start}
figure{margin:0;padding:.8rem;background:var(--card);border-radius:.5rem;break-inside:avoid}
figcaption{margin-top:.4rem}
svg{width:100%;height:auto;display:block}svg *{stroke-linejoin:round;stroke-linecap:butt}
svg text{font-family:system-ui,sans-serif;fill:var(--fg)}
details{margin:.5rem 0}summary{cursor:pointer;padding:.3rem 0}
.q{border-left:3px solid var(--rule);padding:.2rem .8rem;margin:.6rem 0;break-inside:avoid;white-space:pre-line;
overflow-wrap:anywhere}
.q.tie{opacity:.75}.tag{display:inline-block;border:1px solid var(--rule);border-radius:1rem;padding:0 .5rem;
margin-right:.3rem;font-size:.75rem;color:var(--dim)}
ul{padding-left:1.2rem}li{overflow-wrap:anywhere}
@media (max-width:40rem){body{padding:1rem .6rem 3rem}figure{padding:.4rem}}
@media print{html{font-size:11px}body{max-width:none;padding:0;font-size:11px}h2,h3,summary{break-after:avoid}
.plots{grid-template-columns:1fr 1fr;gap:.5rem}figure{padding:.3rem}
.scroll{overflow:visible}tr{break-inside:avoid}th:first-child,td:first-child{position:static}
th,td{padding:.15rem .25rem;white-space:normal}details::details-content{content-visibility:visible;block-size:auto}}
"""

# fmt: off
KINDS = {"right_to_wrong": "turned wrong", "wrong_to_other_wrong": "wrong in another way",
         "wrong_to_right": "turned right"}
# fmt: on


def to_html(report: Report) -> str:
    """The page: the verdicts, then task by task everything behind them."""
    names = ", ".join(one.task for one in report.tasks)
    body = [
        '<p class="dim">medlite bench</p>',
        "<h1>What the low bits cost</h1>",
        '<p class="dim">Every answer is paired with the full-precision model\'s answer to the same question. '
        "Research and demonstration: a verdict about a question set, not about patients.</p>",
    ]
    overview = overview_table(report.tasks, report.floors)
    body += [table_html(overview)] if overview else []
    for number, one in enumerate(report.tasks):
        body += task_html(one, report.floors.get(one.task), f"t{number}")
    for found in published_beside(report.tasks):
        body.append(table_html(published_table(found)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>medlite bench: {escape(names)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><style>{STYLE}</style></head><body>{"".join(body)}</body></html>\n'
    )


def task_html(one: TaskComparison, floor: NoiseFloor | None, prefix: str) -> list[str]:
    """One task: answer, verdicts, figures, tables, the questions that turned, methods. prefix: of ids on the page."""
    evidence = evidence_of(one, floor)
    body = [
        f"<h2>{escape(one.task)}: {len(one.baseline.samples):,} questions</h2>",
        f'<p class="answer">{escape(answer_line(one))}</p>',
        table_html(verdict_table(one, floor)),
    ]
    figures = (
        f"<figure>{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in all_plots(evidence, prefix)
    )
    body.append(f'<div class="plots">{"".join(figures)}</div>')
    body += [table_html(table) for table in tables_of(evidence)]
    questions = [questions_html(name, marked) for name, marked in turned(one)]
    body += ["<h3>The questions that turned</h3>", *questions] if any(questions) else []
    lines = "".join(f"<li>{escape(line)}</li>" for line in method_lines(one))
    return [*body, f"<h3>Methods</h3><ul class='dim'>{lines}</ul>"]


def table_html(table: Table) -> str:
    """A table that scrolls sideways where it is wider than the page; its note alone where it has no row."""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    title = f"<h3>{escape(table.title)}</h3>"
    if not table.rows:
        return title + note
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = "".join(f"<tr>{''.join(cell_html(cell) for cell in row)}</tr>" for row in table.rows)
    return (
        f'{title}<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def cell_html(cell: str) -> str:
    """A cell; verdicts are coloured."""
    name = mood(cell)
    return f'<td class="{name}">{escape(cell)}</td>' if name else f"<td>{escape(cell)}</td>"


def questions_html(name: str, marked: tuple[Marked, ...]) -> str:
    """The changed answers of a candidate, readable one by one; folded until opened."""
    shown = [one for one in marked if one.question]
    if not shown:
        return ""
    items = "".join(question_html(one) for one in shown)
    n_wrong = sum(one.flip.kind == "right_to_wrong" for one in shown)
    return (
        f"<details><summary>{escape(name)}: {len(shown)} changed answers, {n_wrong} turned wrong</summary>"
        f"{items}</details>"
    )


def question_html(one: Marked) -> str:
    """One changed answer: what happened, the question, the three answers, the words that mark it."""
    flip = one.flip
    tags = "".join(
        f'<span class="tag">{escape(topic)}: {escape(", ".join(words[:4]))}</span>'
        for topic, words in one.topics.items()
    )
    sure = f"baseline was sure by {flip.baseline_margin_nats:.1f} nats" if flip.confident else "margin not known"
    margin = "near-tie at the baseline" if flip.near_tie else sure
    key, before, after = (
        escape(option(one, i)) for i in (flip.answer, flip.baseline_prediction, flip.candidate_prediction)
    )
    return (
        f'<div class="q{" tie" if flip.near_tie else ""}"><b>{KINDS[flip.kind]}</b> '
        f'<span class="dim">{escape(flip.id)} · {margin}</span>\n{escape(one.question)}\n'
        f"key <b>{key}</b> · baseline {before} · candidate {after}\n{tags}</div>"
    )
