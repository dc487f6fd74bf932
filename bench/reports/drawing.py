"""Plots by matplotlib as inline SVG that follows the page: its colours are the page's CSS variables.

matplotlib draws each colour role as a hex number that nothing else uses; afterwards the numbers become var(--c0) and
so on. Text stays text, in the page's font. Equal input gives equal bytes.
"""

import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from medlite.files import cache_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT = 12.5
WIDTH, HEIGHT = 370, 270  # units; about a CSS pixel where the page shows three plots in a row
LEGEND_ROW = 20
LEGEND_COLUMNS = 3
BAR = 26  # units that a bar takes, its gap included
FRAME = 66  # units above and below the bars of a bar plot, for axis and label

SERIES = tuple(f"#c0de0{i}" for i in range(8))
GRID, AXIS, PAPER = "#c0de10", "#c0de11", "#c0de12"
# fmt: off
VARIABLES = {**{colour: f"var(--c{i})" for i, colour in enumerate(SERIES)},
             GRID: "var(--rule)", AXIS: "var(--dim)", PAPER: "var(--card)"}
# Told apart without colour: a marker and a dash each.
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 2)), (0, (7, 2, 2, 2)), (0, (10, 3)), (0, (4, 1)), (0, (1, 1)),
                           (0, (5, 1, 1, 1, 1, 1)))

RC: dict[str, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "font.family": "DejaVu Sans",
    "font.size": FONT, "axes.labelsize": FONT, "xtick.labelsize": FONT, "ytick.labelsize": FONT,
    "legend.fontsize": FONT, "legend.frameon": False, "figure.constrained_layout.h_pad": 0.07,
    "axes.facecolor": "none", "figure.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": AXIS, "xtick.color": AXIS, "ytick.color": AXIS,
    "xtick.labelcolor": "black", "ytick.labelcolor": "black",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "lines.linewidth": 1.8, "lines.markersize": 6, "hatch.linewidth": 1.5, "hatch.color": PAPER,
}
# fmt: on
STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten
TIP = "tip:"  # a gid that begins so becomes the element's tooltip


def draw(name: str, title: str, height: float, paint: Callable[["Axes"], None]) -> str:
    """What `paint` draws on a figure's axes, as an <svg> element for a page.

    name: of this plot, unlike any other's of the page. title: for those who do not see the plot. height: in units, of
    which the width has WIDTH.
    """
    matplotlib = _matplotlib()
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a matplotlibrc of the user's own does not change reports
        matplotlib.rcParams.update({**RC, "svg.hashsalt": name})
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the browser has other fonts
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return inline(text.getvalue(), name, title)


def inline(svg: str, name: str, title: str) -> str:
    """A whole SVG file as an element of a page: its colours, font and ids made the page's."""
    body = svg[svg.index("<svg") :].rstrip()
    body = re.sub(
        r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{escape(title)}">', body, count=1
    )
    body = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(rf'<g id="{TIP}([^"]*)">', r"<g><title>\1</title>", body)
    used = set(re.findall(r"#([\w.-]+)\)", body)) | set(re.findall(r'href="#([\w.-]+)"', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r"url\(#([\w.-]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'xlink:href="#([\w.-]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, variable)
    body = re.sub(r'(fill|stroke)="(var\([^"]*\))"', r'style="\1: \2"', body)  # an attribute does not know variables
    return re.sub(r"\s*\n\s*", "\n", body)


def series(i: int) -> dict[str, Any]:
    """Colour, marker and dash of series i."""
    return {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}


def legend(axes: "Axes", names: Sequence[str]) -> None:
    """The names of what `axes` shows, below it in columns."""
    axes.figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=legend_columns(names),
        handlelength=2.2,
        columnspacing=1.2,
        borderpad=0,
        labelspacing=0.3,
    )


def legend_columns(names: Sequence[str]) -> int:
    """As many as the width holds."""
    longest = max((len(name) for name in names), default=1)
    return max(1, min(LEGEND_COLUMNS, len(names), WIDTH // (8 * longest + 45)))


def legend_height(names: Sequence[str]) -> int:
    """Units that `legend` takes."""
    return LEGEND_ROW * -(-len(names) // legend_columns(names)) + 6


def tick_text(value: float, _position: object = None) -> str:
    """A short number: 0.001, 12, 15k, 1e-6."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value / 1000:g}k" if abs(value) >= 1e4 else f"{value:g}"


def plain_ticks(axes: "Axes", *, most: int = 6) -> None:
    """Short numbers on both axes, without offsets or powers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        axis.set_major_formatter(FuncFormatter(tick_text))
        if scale == "linear":
            axis.set_major_locator(MaxNLocator(most, steps=STEPS))


def _matplotlib() -> Any:
    """The library, with its font list kept in medlite's cache folder and no word on stderr."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    before = os.environ.get("MPLCONFIGDIR")
    if before is None:
        folder = cache_folder() / "matplotlib"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            folder = cache_folder()  # not there either: matplotlib takes a temporary folder of its own
        os.environ["MPLCONFIGDIR"] = str(folder)
    try:
        import matplotlib
        import matplotlib.font_manager  # reads or makes the font list, once a process
    finally:
        if before is None:
            del os.environ["MPLCONFIGDIR"]
    return matplotlib
