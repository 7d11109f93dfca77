"""Results of drives with and without monitors: numbers and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from training.closed_loop.drives import Outcome
from training.evaluation.bootstrap import (
    draw_counts,
    percentile_interval,
    ratio_draws,
    share_interval,
)
from training.simulation.bicycle import DT_S
from training.simulation.simulator import CAUSES

NO_MONITOR = "no monitor"
MODEL, PHYSICS, VELOCITY = "model", "physics", "constant velocity"
"""Names of judges: the model; bicycle + constant rates; bicycle + constant velocity."""

_DRAWS = 1000
_DPI = 90
_COLORS = {
    MODEL: "tab:blue",
    PHYSICS: "tab:orange",
    VELOCITY: "tab:green",
    NO_MONITOR: "grey",
}
_RIVALS = {PHYSICS: "above_physics", VELOCITY: "above_velocity"}

Floats = NDArray[np.float64]


def compare_arms(drives: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """Return the results of all arms, which drove the same seeds.

    Differences are paired: resamples draw the same seeds for all arms.

    Args:
        drives: By arm, in the order of seeds; `NO_MONITOR` among them. Arms that end in
            ", model" are held against those of both kinds of physics.

    Returns:
        By arm what `arm_scores` returns; `prevented`, the share of terminations without a monitor
        that did not happen; `speed_kept`, the mean speed as a share of that without a monitor,
        over the steps that both drove; and `above_physics` and `above_velocity`, the model's
        terminated share minus that of physics; each with its interval.
    """
    base = drives[NO_MONITOR]
    counts = draw_counts(len(base), _DRAWS)
    ended = {arm: _terminated(part) for arm, part in drives.items()}
    results = {}
    for arm, part in drives.items():
        scores = arm_scores(part)
        remaining, drawn = ratio_draws(ended[arm], ended[NO_MONITOR], counts)
        scores["prevented"] = None if remaining is None else 1 - remaining
        scores["prevented_interval"] = list(percentile_interval(1 - drawn))
        kept, drawn = ratio_draws(*_common_speeds(part, base), counts)
        scores["speed_kept"], scores["speed_kept_interval"] = kept, list(percentile_interval(drawn))
        kind, _, judge = arm.rpartition(", ")
        for rival, name in _RIVALS.items():
            if judge == MODEL and f"{kind}, {rival}" in drives:
                above = ended[arm] - ended[f"{kind}, {rival}"]
                scores[name] = float(above.mean())
                drawn = counts @ above / len(above)
                scores[f"{name}_interval"] = list(percentile_interval(drawn))
        results[arm] = scores
    return results


def arm_scores(drives: Sequence[Outcome]) -> dict[str, Any]:
    """Return what happened in the drives of one arm, as plain JSON."""
    steps = sum(len(drive.speeds) for drive in drives)
    distance_m = DT_S * sum(sum(drive.speeds) for drive in drives)
    terminated = int(_terminated(drives).sum())
    judged = sum(drive.judged for drive in drives)
    round_trips = np.concatenate([drive.round_trips_s for drive in drives])
    return {
        "episodes": len(drives),
        "terminated": terminated / len(drives),
        "terminated_interval": list(share_interval(terminated, len(drives))),
        **{
            cause: sum(drive.cause == code for drive in drives) / len(drives)
            for code, cause in enumerate(CAUSES)
            if code
        },
        "provoked": sum(drive.is_provoked for drive in drives) / len(drives),
        "per_km": 1000 * terminated / distance_m,
        "mean_speed_mps": distance_m / (steps * DT_S),
        "overridden": sum(drive.overridden for drive in drives) / steps,
        "reward_per_episode": sum(sum(drive.rewards) for drive in drives) / len(drives),
        "reward_per_step": sum(sum(drive.rewards) for drive in drives) / steps,
        "unknown": sum(drive.unknown for drive in drives) / judged if judged else None,
        "requests": len(round_trips),
        "p50_ms": _quantile_ms(round_trips, 0.5),
        "p99_ms": _quantile_ms(round_trips, 0.99),
    }


def _terminated(drives: Sequence[Outcome]) -> Floats:
    return np.array([float(drive.cause > 0) for drive in drives])


def _common_speeds(drives: Sequence[Outcome], base: Sequence[Outcome]) -> tuple[Floats, Floats]:
    """Return the sums of speeds, of both, over the steps that both drove of each seed."""
    sums = []
    for drive, other in zip(drives, base, strict=True):
        assert drive.seed == other.seed, "arms drive the same seeds"
        steps = min(len(drive.speeds), len(other.speeds))
        sums.append([sum(drive.speeds[:steps]), sum(other.speeds[:steps])])
    ours, theirs = np.array(sums, np.float64).T
    return ours, theirs


def _quantile_ms(seconds: Floats, quantile: float) -> float | None:
    return 1000 * float(np.quantile(seconds, quantile)) if len(seconds) else None


def plot_closed_loop(results: Mapping[str, Any], path: Path) -> None:
    """Draw, by source and arm on trained roads, terminations, the speed, and steps overridden."""
    sources = results["results"]
    names = list(reversed(next(iter(sources.values()))["trained"]))
    figure = Figure(figsize=(9, (0.36 * len(names) + 0.8) * len(sources) + 1.1))
    figure.suptitle(
        "What monitors prevent, and what it costs (95 % intervals)",
        fontsize="medium",
    )
    grid = figure.subplots(len(sources), 3, sharey=True, squeeze=False)
    for row, (source, parts) in zip(grid, sources.items(), strict=True):
        _draw_arms(row, source, names, parts["trained"])
    judges = {name.rpartition(", ")[2] for name in names}
    shown = {judge: color for judge, color in _COLORS.items() if judge in judges}
    handles = [Patch(color=color, label=judge) for judge, color in shown.items()]
    figure.legend(handles=handles, fontsize="small", loc="lower center", ncols=len(handles))
    figure.tight_layout(rect=(0, 0.06 / len(sources), 1, 1))
    figure.savefig(path, dpi=_DPI)


def _draw_arms(
    axes: Sequence[Any], source: str, names: Sequence[str], arms: Mapping[str, Any]
) -> None:
    """Draw the three plots of a source; names from the bottom to the top."""
    left, middle, right = axes
    colors = [_COLORS[name.rpartition(", ")[2]] for name in names]
    shares = np.array([arms[name]["terminated"] for name in names])
    low, high = np.array([arms[name]["terminated_interval"] for name in names]).T
    errors = np.maximum([shares - low, high - shares], 0)
    left.barh(names, shares, xerr=errors, color=colors, ecolor="grey")
    left.set(xlabel="terminated share of drives", xlim=(0, None))
    left.set_title(f"{source}, {arms[names[0]]['episodes']} drives each", fontsize="small")
    middle.barh(names, [arms[name]["mean_speed_mps"] for name in names], color=colors)
    middle.set(xlabel="mean speed, m/s")
    right.barh(names, [100 * arms[name]["overridden"] for name in names], color=colors)
    right.set(xlabel="steps overridden, %")
