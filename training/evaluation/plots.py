"""Pictures of an evaluation, as PNG files. No pyplot: figures belong to nobody but their maker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from training.evaluation.judgements import Curves, Trial
from training.evaluation.methods import MODEL
from training.evaluation.metrics import Risk, lead_times
from training.evaluation.physics import has_neighbours
from training.evaluation.state_errors import nearest_error, overall_error, survivors
from training.evaluation.tables import best_rival

Floats = NDArray[np.floating[Any]]

DPI = 90
_LEAST_FALSE_ALARMS = 1e-5
_LEAST_PROBABILITY = 1e-5
_MOST_FEATURES = 40
_FEW = 30
"""Bins with fewer windows than this are pale, and show how many they have."""


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
    windows, part, dt_s = trial.windows, metrics["termination"]["all"], trial.dt_s
    threshold = trial.lineup.checkpoint.limits.crash_threshold
    rival = best_rival(part)
    shown = (MODEL,) if rival is None else (MODEL, rival)
    size = f"{part['windows']} windows of {part['episodes']} episodes"
    ends = f"{part['windows_that_end']} of {size} end"
    plot_reliability(
        {name: metrics["reliability"][name] for name in shown},
        threshold,
        f"Termination within the horizon: reliability\n({ends})",
        folder / "reliability.png",
    )
    scores = {n: risk.score for n, risk in risks.items()}
    plot_roc(
        scores,
        windows.ends,
        threshold,
        f"Termination within the horizon: ROC near zero\n({ends})",
        folder / "roc.png",
    )
    thresholds = trial.lineup.thresholds
    leads = {n: lead_times(risks[n].score >= thresholds[n]["1"], windows, dt_s) for n in shown}
    plot_lead_times(leads, dt_s, folder / "lead_time.png")
    draw_states(folder, metrics, trial, curves)


def draw_states(folder: Path, metrics: dict[str, Any], trial: Trial, curves: Curves) -> None:
    """Write `report.STATE_PLOTS`; the arguments are those of `draw_all`."""
    errors, dt_s = metrics["features"], trial.dt_s
    driven = f"{errors['windows']} windows of {errors['episodes']} episodes"
    plot_errors_by_step(
        curves, dt_s, f"Mean errors by time ahead ({driven})", folder / "errors_by_step.png"
    )
    plot_features(errors, dt_s, folder / "features.png")
    _draw_uncertainty(trial, driven, folder / "uncertainty.png")


def _draw_uncertainty(trial: Trial, driven: str, path: Path) -> None:
    alive = survivors(trial.windows)
    predicted, true = trial.prediction.states[alive], trial.windows.states[alive]
    disagreement = trial.prediction.disagreement[alive]
    spec = trial.spec
    near, seen = nearest_error(predicted, true, spec) if has_neighbours(spec) else (None, None)
    if near is not None and seen is not None and seen.any():
        error, disagreement, name = near[seen], disagreement[seen], "neighbours' mean error, m"
    else:
        overall = overall_error(predicted, true, trial.scale)
        error, disagreement = overall.ravel(), disagreement.ravel()
        name = "error of all features, standard deviations"
    title = f"Does disagreement announce error?\n(all steps of {driven})"
    plot_uncertainty(disagreement, error, name, title, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Lay a figure out and write it."""
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)


def error_bars(values: Sequence[float], intervals: Sequence[Sequence[float | None]]) -> Floats:
    """Return lengths [2, N] of error bars; 0 where there is no interval."""
    bars = [
        [0.0 if end is None else abs(end - value) for end in interval]
        for value, interval in zip(values, intervals, strict=True)
    ]
    return np.array(bars, np.float64).reshape(-1, 2).T


def plot_reliability(
    curves: Mapping[str, Mapping[str, Sequence[Any]]],
    threshold: float | None,
    title: str,
    path: Path,
) -> None:
    """Draw observed against predicted shares by bin, on log axes, as most windows are near 0.

    Args:
        curves: By method, what `metrics.reliability` returned.
        threshold: The crash threshold that is served, if there is one.
        title: With the counts.
        path: Where.
    """
    figure = Figure(figsize=(6.5, 5.6))
    axes = figure.subplots()
    floor = _LEAST_PROBABILITY
    axes.plot([floor, 1], [floor, 1], "--", color="grey", label="perfect")
    if threshold is not None:
        label = f"served threshold, {threshold:.3g}"
        axes.axvline(threshold, color="tab:red", linestyle=":", label=label)
    for name, curve in curves.items():
        predicted, observed = (
            np.maximum(np.array(curve[key], np.float64), floor) for key in ("predicted", "observed")
        )
        low, high = error_bars(curve["observed"], curve["interval"])
        enough = np.array(curve["windows"]) >= _FEW
        (line,) = axes.plot(predicted[enough], observed[enough], "o", label=name, markersize=4)
        color = line.get_color()
        for rows, alpha in ((enough, 0.8), (~enough, 0.3)):
            x, y, bars = predicted[rows], observed[rows], (low[rows], high[rows])
            axes.errorbar(x, y, bars, fmt="none", ecolor=color, capsize=2, alpha=alpha)
        for i in np.flatnonzero(~enough).tolist():
            axes.plot(predicted[i], observed[i], "o", color=color, markersize=4, alpha=0.3)
            where = (predicted[i], observed[i])
            axes.annotate(f"n = {curve['windows'][i]}", where, fontsize="x-small", alpha=0.7)
    axes.set(xscale="log", yscale="log", xlim=(floor / 1.5, 1.5), ylim=(floor / 1.5, 1.5))
    axes.set(xlabel="predicted probability")
    axes.set(ylabel=f"observed share ({floor:g}: none), 95 % intervals over episodes")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    save_figure(figure, path)


def plot_roc(
    scores: Mapping[str, Floats],
    ends: NDArray[np.bool_],
    threshold: float | None,
    title: str,
    path: Path,
) -> None:
    """Draw recall against false alarms near zero, one line per method.

    Args:
        scores: By method, [N].
        ends: [N].
        threshold: Of the model's scores, which is served; marked, if there is one.
        title: With the counts.
        path: Where.
    """
    figure = Figure(figsize=(6.5, 5))
    axes = figure.subplots()
    for name, score in scores.items():
        false_alarms, recall, _ = roc_curve(ends, score)
        width = 2.5 if name == MODEL else 1.2
        axes.plot(np.maximum(false_alarms, _LEAST_FALSE_ALARMS), recall, label=name, lw=width)
    if threshold is not None:
        alarm = scores[MODEL] >= threshold
        place = max(float(alarm[~ends].mean()), _LEAST_FALSE_ALARMS), float(alarm[ends].mean())
        label = f"served threshold, {threshold:.3g}"
        axes.plot(*place, "o", color="tab:red", label=label, zorder=5)
    for rate, name in ((0.001, "0.1 % and 1 %"), (0.01, "")):  # no label: one line stands for both
        axes.axvline(rate, color="grey", linestyle=":", label=name or None)
    axes.set(xscale="log", xlim=(_LEAST_FALSE_ALARMS, 1), ylim=(0, 1.01))
    axes.set(xlabel="false alarm rate", ylabel="recall")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    save_figure(figure, path)


def plot_lead_times(leads: Mapping[str, Floats], dt_s: float, path: Path) -> None:
    """Draw how early each method first warned of each event, [episodes] s by method."""
    figure = Figure(figsize=(6.5, 4))
    axes = figure.subplots()
    longest = max((lead.max() for lead in leads.values() if len(lead)), default=dt_s)
    steps = round(float(longest) / dt_s)
    bins = [float(edge) for edge in (np.arange(steps + 2) - 0.5) * dt_s]
    axes.hist(list(leads.values()), bins=bins, label=list(leads))
    axes.set(xlabel="warning before the event, s (0: none)", ylabel="episodes")
    count = len(next(iter(leads.values())))
    axes.set_title(f"Lead time at 1 % false alarms ({count} episodes that end)", fontsize="medium")
    axes.legend(fontsize="small")
    save_figure(figure, path)


def plot_errors_by_step(
    curves: Mapping[str, Mapping[str, Floats]], dt_s: float, title: str, path: Path
) -> None:
    """Draw mean errors against the step.

    Args:
        curves: By method, by quantity with its unit: [H+1], the start included.
        dt_s: Length of a step.
        title: With the counts.
        path: Where.
    """
    quantities = list(next(iter(curves.values())))
    figure = Figure(figsize=(max(4.2 * len(quantities), 6.5), 4.3))
    figure.suptitle(title, fontsize="medium")
    for axes, quantity in zip(
        figure.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True
    ):
        for name, by_quantity in curves.items():
            values = by_quantity[quantity]
            width = 2.5 if name == MODEL else 1.2
            axes.plot(np.arange(len(values)) * dt_s, values, label=name, lw=width)
        axes.set(xlabel="s", ylabel=quantity)
        axes.set_yscale("symlog", linthresh=0.01)
        axes.legend(fontsize="x-small")
    save_figure(figure, path)


def plot_features(errors: Mapping[str, Any], dt_s: float, path: Path) -> None:
    """Draw the error of each feature after the last step, as a share of what changed.

    Args:
        errors: What `feature_errors` returned.
        dt_s: Length of a step.
        path: Where.
    """
    known = {
        f"{name}, {x['unit']}": (x["relative"][-1], x["relative_interval"][-1])
        for name, x in errors["features"].items()
        if x["relative"][-1] is not None
    }
    names = sorted(known, key=lambda name: known[name][0])[-_MOST_FEATURES:]
    values = [known[name][0] for name in names]
    figure = Figure(figsize=(8, 0.22 * len(names) + 1.8))
    axes = figure.subplots()
    axes.barh(
        names,
        values,
        xerr=error_bars(values, [known[name][1] for name in names]),
        ecolor="black",
        capsize=2,
        label="model's, with 95 % intervals over episodes",
    )
    axes.axvline(1, color="tab:red", linestyle=":", label="nothing changes")
    axes.set(xlabel="error, as a share of that of a prediction that nothing changes")
    axes.tick_params(axis="y", labelsize="small")
    what = f"the {len(names)} worst of {len(errors['features'])}" if len(known) > len(names) else ""
    axes.set_title(
        f"Errors after {errors['steps'][-1] * dt_s:.4g} s by feature {what}\n({errors['windows']} "
        f"windows of {errors['episodes']} episodes)",
        fontsize="medium",
    )
    axes.legend(fontsize="small", loc="lower right")
    save_figure(figure, path)


def plot_uncertainty(
    disagreement: Floats, error: Floats, name: str, title: str, path: Path
) -> None:
    """Draw error against disagreement, both [N]: all steps, and the mean by tenth."""
    figure = Figure(figsize=(6.5, 5))
    axes = figure.subplots()
    floor = 1e-4
    exists = np.isfinite(disagreement) & np.isfinite(error)
    x, y = np.maximum(disagreement[exists], floor), np.maximum(error[exists], floor)
    cells = axes.hexbin(x, y, xscale="log", yscale="log", gridsize=40, bins="log", mincnt=1)
    figure.colorbar(cells, label="steps")
    tenths = [part for part in np.array_split(np.argsort(x), 10) if len(part)]
    axes.plot(
        [x[p].mean() for p in tenths],
        [y[p].mean() for p in tenths],
        "o-",
        color="tab:red",
        label="mean by tenth",
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="disagreement of members after a step", ylabel=f"{name}, after it")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    save_figure(figure, path)
