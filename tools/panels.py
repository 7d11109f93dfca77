"""Panels of a Grafana dashboard, drawn from data: enough of Grafana to see what it would show."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from PIL import Image

from tests.monitoring import Series, dashboard

GROUND, PANEL, EDGE, TEXT, FAINT = "#111217", "#1a1c22", "#2c2f38", "#d5d8e0", "#8e93a1"
COLORS = (
    *("#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9", "#56d8e0", "#ffa6b0"),
    *("#9aa0ad", "#c8f2c2"),
)
NAMED = {"green": "#299c46", "red": "#d44a3a", "orange": "#d98a00", "gray": "#8e93a1"}
NAMED |= {"yellow": "#f2cc0c", "blue": "#5794f2", "text": TEXT}
WIDTH_IN, UNIT_IN, DPI, COLUMNS = 16.0, 0.26, 110, 24
TITLE_UNITS = 2.0
HEAT = LinearSegmentedColormap.from_list("heat", ["#4a2c12", "#ff780a", "#fff0c0"])
BINARY = MultipleLocator(128 * 2**20)


def draw(panels: list[tuple[Any, list[Series]]], path: Path, title: str) -> None:
    """Draw panels in the places that the dashboard gives them, into a PNG of few colours.

    Args:
        panels: Each panel with its lines.
        path: Of the PNG.
        title: Of the whole.
    """
    rows = [panel for panel in dashboard()["panels"] if panel["type"] == "row"]
    places = [panel["gridPos"] for panel, _ in panels]
    units = max(place["y"] + place["h"] for place in places) + TITLE_UNITS
    end_s = max(one.times[-1] for _, series in panels for one in series)
    with mpl.rc_context({"font.size": 8, "text.color": TEXT, "font.family": "DejaVu Sans"}):
        figure = plt.figure(figsize=(WIDTH_IN, units * UNIT_IN), facecolor=GROUND)
        y = 1 - 0.5 * TITLE_UNITS / units
        figure.text(0.15 / COLUMNS, y, title, fontsize=12, weight="bold", va="center")
        for row in rows:
            paint_row(Cell(figure, row, units, end_s))
        for panel, series in panels:
            PAINTERS[panel["type"]](Cell(figure, panel, units, end_s), series)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, facecolor=GROUND)
        plt.close(figure)
    with Image.open(path) as image:
        image.convert("RGB").quantize(
            160, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        ).save(path, optimize=True)


class Cell:
    """A panel's place in the figure.

    Args:
        figure: The whole picture.
        panel: As in the dashboard's JSON.
        units: Height of the dashboard and its title.
        end_s: Where time ends.
    """

    def __init__(self, figure: Figure, panel: dict[str, Any], units: float, end_s: float) -> None:
        self.end_s = end_s
        self.panel = panel
        self.defaults = panel.get("fieldConfig", {}).get("defaults", {})
        self._figure = figure
        self._units = units
        place = panel["gridPos"]
        self.width = place["w"]
        self._x, self._y, self._h = place["x"], place["y"] + TITLE_UNITS, place["h"]

    def axes(
        self, left: float = 1.0, right: float = 0.25, top: float = 1.3, bottom: float = 1.9
    ) -> Axes:
        """Return axes inside a frame with the title; margins are in units of the grid."""
        gap_x, gap_y = 0.05 / COLUMNS, 0.12 / self._units
        x, y = self._x / COLUMNS, 1 - (self._y + self._h) / self._units
        width, height = self.width / COLUMNS, self._h / self._units
        frame = FancyBboxPatch(
            (x + gap_x, y + gap_y),
            width - 2 * gap_x,
            height - 2 * gap_y,
            boxstyle="round,pad=0,rounding_size=0.002",
            facecolor=PANEL,
            edgecolor=EDGE,
            zorder=-1,
            linewidth=0.8,
        )
        self._figure.add_artist(frame)
        self.write(self.panel["title"])
        return self._figure.add_axes(
            (
                x + left / COLUMNS,
                y + bottom / self._units,
                width - (left + right) / COLUMNS,
                height - (top + bottom) / self._units,
            ),
            facecolor="none",
        )

    def write(self, text: str, size: float = 9.0, color: str = TEXT) -> None:
        """Write the title."""
        x, y = (self._x + 0.15) / COLUMNS, 1 - (self._y + 0.7) / self._units
        self._figure.text(x, y, text, fontsize=size, weight="bold", color=color, va="center")


def paint_row(cell: Cell) -> None:
    """Paint the title of a row of panels."""
    cell.write(cell.panel["title"], 12)


def paint_stat(cell: Cell, series: list[Series]) -> None:
    """Paint the last value of the only series, in the color of its threshold."""
    axes = cell.axes(left=0, right=0, bottom=0.2)
    axes.axis("off")
    value = series[0].last if series else math.nan
    mappings = {k: v for m in cell.defaults.get("mappings", []) for k, v in m["options"].items()}
    text = mappings.get(f"{value:g}", {}).get("text") or unit(cell)(value)
    color = TEXT
    for threshold in cell.defaults.get("thresholds", {}).get("steps", []):
        if threshold["value"] is None or value >= threshold["value"]:
            color = NAMED.get(threshold["color"], threshold["color"])
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=20, weight="bold", color=color)


def paint_lines(cell: Cell, series: list[Series]) -> None:
    """Paint one line per series over time."""
    if not series:
        nothing(cell, cell.axes())
        return
    # What is never anything but zero takes its color last.
    series = sorted(series, key=lambda one: not any(one.values))
    names = [one.name for one in series if one.name]
    columns = max(1, int(cell.width * 9 // (max(map(len, names), default=0) + 5)))
    axes = cell.axes(bottom=1.3 + 0.62 * math.ceil(len(names) / columns))
    style = overrides(cell.panel)
    fill = cell.defaults.get("custom", {}).get("fillOpacity", 0) / 100
    for color, one in zip(COLORS * 3, series, strict=False):
        own = style.get(one.name, {})
        color = own.get("color", color)
        axes.plot(one.times, one.values, color=color, lw=1.4, ls=own.get("ls", "-"), label=one.name)
        if fill and "ls" not in own:
            axes.fill_between(one.times, one.values, color=color, alpha=fill, lw=0)
    scale(cell, axes, unit(cell))
    if cell.defaults.get("min") == 0:
        axes.set_ylim(bottom=0, top=None if any(map(any, [s.values for s in series])) else 1)
    if names:
        legend(axes, columns)


def paint_heatmap(cell: Cell, series: list[Series]) -> None:
    """Paint how many values fell into each bucket of a histogram over time."""
    axes = cell.axes(left=0.9)
    if not series:
        nothing(cell, axes)
        return
    bounds = sorted(series, key=lambda one: float(one.labels["le"]))
    upto = np.nan_to_num(np.array([one.values for one in bounds]))
    counts = np.maximum(np.diff(upto, axis=0, prepend=0), 0)
    shown = np.ma.masked_less(np.sqrt(counts), 0.1)  # a root: a few crashes among much that is safe
    axes.pcolormesh(bounds[0].times, range(len(bounds)), shown, cmap=HEAT, shading="nearest")
    scale(cell, axes, str)
    names = [f"{float(one.labels['le']):.4g}" for one in bounds]
    axes.set_yticks(range(0, len(bounds), 2), names[::2])
    axes.set_ylim(-0.5, len(bounds) - 0.5)
    text = "bucket's upper bound; the brighter, the more"
    axes.text(0.45, -0.17, text, transform=axes.transAxes, ha="center", va="top", color=FAINT)


def paint_states(cell: Cell, series: list[Series]) -> None:
    """Paint a bar for each series while it is there, such as an alert."""
    axes = cell.axes(left=0.3, bottom=1.2)
    if not series:
        nothing(cell, axes)
        return
    for place, (color, one) in enumerate(zip(COLORS * 3, series, strict=False)):
        spans = [(at - 0.5, 1.0) for at in one.times]
        axes.broken_barh(spans, (-place - 0.9, 0.4), facecolors=color, linewidth=0)
        axes.text(0, -place - 0.4, one.name, va="bottom")
    scale(cell, axes, str)
    axes.set_ylim(-max(3, len(series)) - 0.1, 0.2)
    axes.set_yticks([])


def paint_table(cell: Cell, series: list[Series]) -> None:
    """Paint what is served: one line of labels per series."""
    axes = cell.axes(left=0.2, bottom=0.3)
    axes.axis("off")
    columns = ("checkpoint", "version", "device", "instance")
    title = {column: column for column in columns}
    for place, labels in enumerate([title, *(one.labels for one in series)]):
        for k, column in enumerate(columns):
            color = TEXT if place else FAINT
            axes.text(0.25 * k, 0.85 - 0.22 * place, labels[column], fontsize=9.5, color=color)


PAINTERS: dict[str, Callable[[Cell, list[Series]], None]] = {
    "stat": paint_stat,
    "timeseries": paint_lines,
    "heatmap": paint_heatmap,
    "state-timeline": paint_states,
    "table": paint_table,
}


def overrides(panel: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return what the panel says of single lines, by their name."""
    found: dict[str, dict[str, str]] = {}
    for override in panel["fieldConfig"]["overrides"]:
        own = found.setdefault(override["matcher"]["options"], {})
        for item in override["properties"]:
            if item["id"] == "custom.lineStyle":
                own["ls"] = "--"
            if item["id"] == "color":
                fixed = item["value"]["fixedColor"]
                own["color"] = NAMED.get(fixed, fixed)
    return found


def nothing(cell: Cell, axes: Axes) -> None:
    """Say that there are no values, and why if that is known."""
    axes.axis("off")
    needs_gpu = "mpty without a GPU" in cell.panel["description"]
    text = "no data: there was no GPU" if needs_gpu else "no data"
    axes.text(0.5, 0.4, text, ha="center", va="center", fontsize=9, color=FAINT)


def scale(cell: Cell, axes: Axes, form: Callable[[float], str]) -> None:
    """Show time as minutes:seconds and values in their unit, on a faint grid."""
    axes.set_xlim(0, cell.end_s)
    minutes = FuncFormatter(lambda s, _: f"{int(s) // 60}:{int(s) % 60:02}")
    axes.xaxis.set_major_locator(MultipleLocator(30 if cell.width > 5 else 60))
    axes.xaxis.set_major_formatter(minutes)
    steps = BINARY if cell.defaults.get("unit") == "bytes" else None
    axes.yaxis.set_major_locator(steps or MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axes.tick_params(colors=FAINT, labelsize=8, length=0, pad=4)
    axes.grid(color=EDGE, lw=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def legend(axes: Axes, columns: int) -> None:
    """Add the names of the lines below the axes."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.46, -0.13),
        ncol=columns,
        fontsize=8,
        frameon=False,
        labelcolor=TEXT,
        handlelength=1.0,
        columnspacing=1.0,
        labelspacing=0.25,
        handletextpad=0.4,
        borderpad=0,
    )


def unit(cell: Cell) -> Callable[[float], str]:
    """Return how a panel's values are written."""
    return UNITS.get(cell.defaults.get("unit", "short"), lambda value: f"{value:.4g}")


def _seconds(value: float) -> str:
    for size, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return "0"


def _bytes(value: float) -> str:
    for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:g} B"


UNITS: dict[str, Callable[[float], str]] = {
    "s": _seconds,
    "bytes": _bytes,
    "percentunit": lambda value: f"{100 * value:.3g} %",
    "reqps": lambda value: f"{value:.3g}/s",
    "ops": lambda value: f"{value:.3g}/s",
}
