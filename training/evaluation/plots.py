"""Pictures of an evaluation, as PNG files. No pyplot: figures belong to nobody but their maker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from models.survival import crash_probability_by_step
from training.dataset.windows import Windows
from training.evaluation.baselines import slots_of
from training.evaluation.judgements import Curves, Trial
from training.evaluation.methods import MODEL
from training.evaluation.metrics import Risk, lead_times, steps_to_end
from training.evaluation.state_errors import errors_to_announce, survivors
from training.evaluation.tables import best_rival
from training.simulation.bicycle import DT_S

Floats = NDArray[np.floating[Any]]

_DPI = 90
_EXAMPLES_EACH = 3
_LEAST_FALSE_ALARMS = 1e-5
_LEAST_PROBABILITY = 1e-5
_LEAST_IN_BIN = 30


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


def draw_all(
    folder: Path, metrics: dict[str, Any], trial: Trial, risks: Mapping[str, Risk], curves: Curves
) -> None:
    """Write all of `report.PLOTS`.

    Args:
        folder: Where.
        metrics: What `evaluate` found.
        trial: The test windows.
        risks: By method.
        curves: Mean errors by step, by method.
    """
    windows, prediction = trial.windows, trial.prediction
    rival = best_rival(metrics["termination"]["all"])
    both = (MODEL, rival)
    reliability = {name: metrics["reliability"][name] for name in both}
    plot_reliability(reliability, folder / "reliability.png")
    plot_roc({n: risk.score for n, risk in risks.items()}, windows.ends, folder / "roc.png")
    thresholds = trial.lineup.thresholds
    leads = {n: lead_times(risks[n].score >= thresholds[n]["1"], windows) for n in both}
    plot_lead_times(leads, folder / "lead_time.png")
    plot_errors_by_step(curves, folder / "errors_by_step.png")
    by_step = crash_probability_by_step(prediction.dones)
    examples = pick_examples(windows, prediction.states, by_step)
    plot_trajectories(examples, folder / "trajectories.png")
    alive = survivors(windows)
    near, seen, _ = errors_to_announce(prediction.states[alive], windows.states[alive], trial.scale)
    plot_uncertainty(prediction.disagreement[alive][seen], near[seen], folder / "uncertainty.png")
    plot_corruptions(metrics["corruptions"]["corruptions"], folder / "corruptions.png")


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
            name = f"{title}\n(episode {windows.episode[row]}, step {windows.start_step[row]})"
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


def plot_reliability(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw observed against predicted shares by bin, on log axes, as most windows are near 0.

    Args:
        curves: By method, what `metrics.reliability` returned; bins with few windows are noise
            and left out.
        path: Where.
    """
    figure = Figure(figsize=(5.5, 5))
    axes = figure.subplots()
    floor = _LEAST_PROBABILITY
    axes.plot([floor, 1], [floor, 1], "--", color="grey", label="perfect")
    for name, curve in curves.items():
        enough = np.array(curve["windows"]) >= _LEAST_IN_BIN
        predicted, observed = (
            np.maximum(np.array(curve[key])[enough], floor) for key in ("predicted", "observed")
        )
        axes.plot(predicted, observed, "o-", label=name, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="predicted probability", ylabel="observed share")
    axes.set_title("Termination within the horizon: reliability")
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_roc(scores: Mapping[str, Floats], ends: NDArray[np.bool_], path: Path) -> None:
    """Draw recall against false alarms near zero, one line per method."""
    figure = Figure(figsize=(6.5, 5))
    axes = figure.subplots()
    for name, score in scores.items():
        false_alarms, recall, _ = roc_curve(ends, score)
        width = 2.5 if name == MODEL else 1.2
        axes.plot(np.maximum(false_alarms, _LEAST_FALSE_ALARMS), recall, label=name, lw=width)
    for rate in (0.001, 0.01):
        axes.axvline(rate, color="grey", linestyle=":")
    axes.set(xscale="log", xlim=(_LEAST_FALSE_ALARMS, 1), ylim=(0, 1.01))
    axes.set(xlabel="false alarm rate", ylabel="recall")
    axes.set_title("Termination within the horizon: ROC near zero")
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_lead_times(leads: Mapping[str, Floats], path: Path) -> None:
    """Draw how early each method first warned of each event, [episodes] s by method."""
    figure = Figure(figsize=(6.5, 4))
    axes = figure.subplots()
    longest = max((lead.max() for lead in leads.values() if len(lead)), default=DT_S)
    steps = round(float(longest) / DT_S)
    bins = [float(edge) for edge in (np.arange(steps + 2) - 0.5) * DT_S]
    axes.hist(list(leads.values()), bins=bins, label=list(leads))
    axes.set(xlabel="warning before the event, s (0: none)", ylabel="episodes")
    axes.set_title("Lead time at 1 % false alarms")
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_errors_by_step(curves: Mapping[str, Mapping[str, Floats]], path: Path) -> None:
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
            width = 2.5 if name == MODEL else 1.2
            axes.plot(np.arange(len(values)) * DT_S, values, label=name, lw=width)
        axes.set(xlabel="s", ylabel=quantity)
        axes.set_yscale("symlog", linthresh=0.01)
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_trajectories(examples: Sequence[Example], path: Path) -> None:
    """Draw neighbours in the ego frame, true and predicted, and the crash probability."""
    figure = Figure(figsize=(3.0 * len(examples), 5.6))
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
    # After the end the last state repeats; only what was driven is drawn.
    driven = slice(0, example.ended_at + 1 if example.ended_at else None)
    for slot in np.flatnonzero(true[0, :, 0] > 0.5):
        axes.plot(true[driven, slot, 2], true[driven, slot, 1], "k", linewidth=2.5, alpha=0.4)
        axes.plot(predicted[driven, slot, 2], predicted[driven, slot, 1], color="tab:blue", lw=1)
        axes.plot(true[driven, slot, 2][-1:], true[driven, slot, 1][-1:], "ko", markersize=3)
    axes.set(xlabel="to the right, m", ylabel="ahead, m")
    axes.set_title(example.title, fontsize="small")


def plot_uncertainty(disagreement: Floats, error: Floats, path: Path) -> None:
    """Draw error against disagreement, both [N]: all steps, and the mean by tenth."""
    figure = Figure(figsize=(5.5, 4.5))
    axes = figure.subplots()
    floor = 1e-4
    x, y = np.maximum(disagreement, floor), np.maximum(error, floor)
    axes.hexbin(x, y, xscale="log", yscale="log", gridsize=40, bins="log", mincnt=1)
    tenths = [part for part in np.array_split(np.argsort(x), 10) if len(part)]
    axes.plot([x[p].mean() for p in tenths], [y[p].mean() for p in tenths], "o-", color="tab:red")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="disagreement of members after a step", ylabel="neighbour error after it, m")
    _save(figure, path)


def plot_corruptions(corruptions: Mapping[str, Any], path: Path) -> None:
    """Draw how well disagreement shows each kind of wrong state, and how often it is refused."""
    names = sorted(
        corruptions, key=lambda n: (not corruptions[n]["plausible"], corruptions[n]["auroc"])
    )
    place = np.arange(len(names))
    figure = Figure(figsize=(8, 0.24 * len(names) + 1.4))
    axes = figure.subplots()
    auroc = [corruptions[name]["auroc"] for name in names]
    colors = ["tab:grey" if corruptions[name]["plausible"] else "tab:blue" for name in names]
    axes.barh(place, auroc, color=colors, label="AUROC of disagreement (grey: may be real states)")
    unknown = [corruptions[name]["unknown"] for name in names]
    axes.plot(unknown, place, "k|", markersize=8, label="share answered unknown")
    axes.axvline(0.5, color="grey", linestyle=":")
    axes.set_yticks(place, names, fontsize="small")
    axes.set(xlim=(0, 1.02), ylim=(-0.7, len(names) - 0.3))
    axes.set_title("Wrong states against clean ones")
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.3, -0.04), ncols=2)
    _save(figure, path)
