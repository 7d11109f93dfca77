"""Pictures of an evaluation, as PNG files. No pyplot: figures belong to nobody but their maker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from models.training.baselines import slots_of
from models.training.bicycle import DT_S
from models.training.dataset import Windows
from models.training.metrics import steps_to_end

Floats = NDArray[np.floating[Any]]

_DPI = 110
_EXAMPLES_EACH = 3


@dataclass(frozen=True)
class Example:
    """One window to look at.

    Attributes:
        title: What it is.
        true: [H+1, S].
        predicted: [H+1, S].
        crash_probability: [H], up to each step.
        ended_at: Step at which it terminated, 0 if it did not.
    """

    title: str
    true: Floats
    predicted: Floats
    crash_probability: Floats
    ended_at: int


def pick_examples(windows: Windows, predicted: Floats, crash_probability: Floats) -> list[Example]:
    """Return windows to look at: some that terminate late, some that are driven on.

    Args:
        windows: N windows.
        predicted: [N, H+1, S].
        crash_probability: [N, H], up to each step.
    """
    ended_at = steps_to_end(windows)
    late = np.flatnonzero(ended_at > windows.horizon // 2)
    alive = np.flatnonzero(windows.valid[:, -1] & (ended_at == 0))
    examples = []
    for title, rows in (("terminates", late), ("drives on", alive)):
        count = min(_EXAMPLES_EACH, len(rows))
        for row in rows[np.linspace(0, len(rows) - 1, count).astype(int)]:
            name = f"{title} (episode {windows.episode[row]}, step {windows.start_step[row]})"
            examples.append(
                Example(
                    name,
                    windows.states[row],
                    predicted[row],
                    crash_probability[row],
                    int(ended_at[row]),
                )
            )
    return examples


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)


def plot_reliability(predicted: Sequence[float], observed: Sequence[float], path: Path) -> None:
    """Draw observed against predicted shares by bin; log axes, as most bins are near 0."""
    figure = Figure(figsize=(5, 5))
    axes = figure.subplots()
    axes.plot([1e-5, 1], [1e-5, 1], "--", color="grey", label="perfect")
    floor = 1e-5
    axes.plot(np.maximum(predicted, floor), np.maximum(observed, floor), "o-", label="model")
    axes.set(xscale="log", yscale="log", xlabel="predicted probability", ylabel="observed share")
    axes.set_title("Termination within the horizon: reliability")
    axes.legend()
    _save(figure, path)


def plot_roc(scores: dict[str, Floats], ends: NDArray[np.bool_], path: Path) -> None:
    """Draw recall against false alarms near zero, one line a method."""
    figure = Figure(figsize=(6, 5))
    axes = figure.subplots()
    for name, score in scores.items():
        false_alarms, recall, _ = roc_curve(ends, score)
        axes.plot(np.maximum(false_alarms, 1e-4), recall, label=name)
    axes.axvline(0.01, color="grey", linestyle=":")
    axes.set(xscale="log", xlim=(1e-4, 1), xlabel="false alarm rate", ylabel="recall")
    axes.set_title("Termination within the horizon: ROC near zero")
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_lead_times(leads: dict[str, Floats], path: Path) -> None:
    """Draw how early each method first warned of each event."""
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    axes.hist(list(leads.values()), bins=9, label=list(leads))
    axes.set(xlabel="warning before the event, s (0: none)", ylabel="episodes")
    axes.set_title("Lead time")
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_errors_by_step(curves: dict[str, dict[str, Floats]], path: Path) -> None:
    """Draw mean errors against the step.

    Args:
        curves: By method, by quantity with its unit: [H+1], the start included.
        path: Where.
    """
    quantities = list(next(iter(curves.values())))
    figure = Figure(figsize=(4.2 * len(quantities), 4))
    for axes, quantity in zip(
        figure.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True
    ):
        for name, by_quantity in curves.items():
            values = by_quantity[quantity]
            axes.plot(np.arange(len(values)) * DT_S, values, label=name)
        axes.set(xlabel="s", ylabel=quantity)
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_trajectories(examples: Sequence[Example], path: Path) -> None:
    """Draw neighbours in the ego frame, true and predicted, and the crash probability."""
    figure = Figure(figsize=(3.6 * len(examples), 6.4))
    grid = figure.subplots(2, len(examples), squeeze=False)
    for column, example in enumerate(examples):
        _draw_neighbours(grid[0][column], example)
        axes = grid[1][column]
        time = np.arange(1, len(example.crash_probability) + 1) * DT_S
        axes.plot(time, example.crash_probability, color="tab:red")
        if example.ended_at:
            axes.axvline(example.ended_at * DT_S, color="black", linestyle=":")
        axes.set(ylim=(-0.02, 1.02), xlabel="s", ylabel="crash probability")
    _save(figure, path)


def _draw_neighbours(axes: Any, example: Example) -> None:
    true, predicted = slots_of(example.true), slots_of(example.predicted)
    axes.plot([0], [0], "k^")
    for slot in np.flatnonzero(true[0, :, 0] > 0.5):
        axes.plot(true[:, slot, 2], true[:, slot, 1], color="black", linewidth=2.5, alpha=0.4)
        axes.plot(predicted[:, slot, 2], predicted[:, slot, 1], color="tab:blue", linewidth=1)
        axes.plot(true[-1:, slot, 2], true[-1:, slot, 1], "ko", markersize=3)
    axes.set(xlabel="to the right, m", ylabel="ahead, m")
    axes.set_title(example.title, fontsize="small")


def plot_uncertainty(uncertainty: Floats, error: Floats, path: Path) -> None:
    """Draw error against uncertainty, both [N]: all windows, and the mean by tenth."""
    figure = Figure(figsize=(5.5, 4.5))
    axes = figure.subplots()
    floor = 1e-4
    x, y = np.maximum(uncertainty, floor), np.maximum(error, floor)
    axes.hexbin(x, y, xscale="log", yscale="log", gridsize=40, bins="log", mincnt=1)
    tenths = [part for part in np.array_split(np.argsort(x), 10) if len(part)]
    axes.plot([x[p].mean() for p in tenths], [y[p].mean() for p in tenths], "o-", color="tab:red")
    axes.set(xlabel="uncertainty (disagreement of members)", ylabel="neighbour error at the end, m")
    _save(figure, path)
