"""Pictures of what only features show that physics can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.spec import Spec
from models.survival import crash_probability_by_step
from training.dataset.windows import Windows
from training.evaluation.baselines import slots_of
from training.evaluation.judgements import Trial
from training.evaluation.metrics import steps_to_end
from training.evaluation.plots import DPI, error_bars, save_figure

Floats = NDArray[np.floating[Any]]

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
        spec: Of the states.
    """

    title: str
    true: Floats
    predicted: Floats
    crash_probability: Floats
    ended_at: int
    spec: Spec


def draw_driving(folder: Path, metrics: dict[str, Any], trial: Trial) -> None:
    """Write all of `report.PHYSICS_PLOTS`.

    Args:
        folder: Where.
        metrics: What `evaluate` found.
        trial: The test windows.
    """
    prediction, threshold = trial.prediction, trial.lineup.checkpoint.limits.crash_threshold
    by_step = crash_probability_by_step(prediction.dones)
    examples = pick_examples(trial.windows, prediction.states, by_step, trial.spec)
    plot_trajectories(examples, threshold, folder / "trajectories.png")
    wrong = metrics["corruptions"]
    title = f"Wrong states against clean ones ({wrong['windows']} windows at most in each way)"
    plot_corruptions(wrong["corruptions"], title, folder / "corruptions.png")


def pick_examples(
    windows: Windows, predicted: Floats, crash_probability: Floats, spec: Spec
) -> list[Example]:
    """Return windows to look at: some that terminate late, some that are driven on.

    Args:
        windows: N windows.
        predicted: [N, H+1, S].
        crash_probability: [N, H], up to each step.
        spec: Of the states.
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
                    spec,
                )
            )
    return examples


def plot_trajectories(examples: Sequence[Example], threshold: float | None, path: Path) -> None:
    """Draw neighbours in the ego frame, true and predicted, and the crash probability."""
    figure = Figure(figsize=(3.0 * len(examples), 6.6))
    grid = figure.subplots(2, len(examples), squeeze=False)
    for column, example in enumerate(examples):
        _draw_neighbours(grid[0][column], example)
        dt_s = example.spec.dt_s
        axes = grid[1][column]
        time = np.arange(1, len(example.crash_probability) + 1) * dt_s
        axes.plot(time, example.crash_probability, color="tab:red", label="crash probability")
        if threshold is not None:
            label = "served threshold"
            axes.axhline(threshold, color="tab:orange", linestyle="--", lw=1, label=label)
        if example.ended_at:
            end_s = example.ended_at * dt_s
            axes.axvline(end_s, color="black", linestyle=":", label="the end")
        axes.set(ylim=(-0.02, 1.02), xlabel="s", ylabel="crash probability")
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.suptitle("Test windows: neighbours seen from the ego, and the crash probability")
    figure.legend(handles.values(), handles.keys(), fontsize="small", loc="lower center", ncols=6)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=DPI)


def _draw_neighbours(axes: Any, example: Example) -> None:
    true, predicted = (slots_of(x, example.spec) for x in (example.true, example.predicted))
    axes.plot([0], [0], "k^", label="ego")
    # After the end the last state repeats; only what was driven is drawn.
    driven = slice(0, example.ended_at + 1 if example.ended_at else None)
    for slot in np.flatnonzero(true[0, :, 0] > 0.5):
        x, y = true[driven, slot, 2], true[driven, slot, 1]
        axes.plot(x, y, "k", linewidth=2.5, alpha=0.4, label="neighbour, true")
        x_predicted, y_predicted = predicted[driven, slot, 2], predicted[driven, slot, 1]
        axes.plot(x_predicted, y_predicted, color="tab:blue", lw=1, label="neighbour, predicted")
        axes.plot(x[-1:], y[-1:], "ko", markersize=3, label="where it was at last")
    axes.set(xlabel="to the right, m", ylabel="ahead, m")
    axes.set_title(example.title, fontsize="small")


def plot_corruptions(corruptions: Mapping[str, Any], title: str, path: Path) -> None:
    """Draw how well disagreement shows each kind of wrong state, and how often it is refused."""
    names = sorted(
        corruptions, key=lambda n: (not corruptions[n]["plausible"], corruptions[n]["auroc"])
    )
    place = np.arange(len(names))
    figure = Figure(figsize=(8, 0.24 * len(names) + 1.4))
    axes = figure.subplots()
    auroc = [corruptions[name]["auroc"] for name in names]
    bars = error_bars(auroc, [corruptions[name]["interval"] for name in names])
    colors = ["tab:grey" if corruptions[name]["plausible"] else "tab:blue" for name in names]
    label = "AUROC of disagreement, 95 % intervals (grey: may be real states)"
    axes.barh(place, auroc, xerr=bars, color=colors, ecolor="tab:orange", label=label)
    unknown = [corruptions[name]["unknown"] for name in names]
    axes.plot(unknown, place, "k|", markersize=8, label="share answered unknown")
    axes.axvline(0.5, color="grey", linestyle=":", label="chance")
    axes.set_yticks(
        place, [f"{name} ({corruptions[name]['windows']})" for name in names], fontsize="small"
    )
    axes.set(xlim=(0, 1.02), ylim=(-0.7, len(names) - 0.3))
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.3, -0.04), ncols=3)
    save_figure(figure, path)
