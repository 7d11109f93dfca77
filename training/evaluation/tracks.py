"""Each source as each kind of trackers sees it, part by part; what is computed is in `sources`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.dataset.sources import Indices, Simulated, fleet_of
from training.dataset.trackers import Tracking
from training.evaluation.judgements import Trial
from training.evaluation.kinds import parties_of
from training.evaluation.methods import MODEL, Thresholds
from training.evaluation.metrics import Risk
from training.evaluation.preparing import Cutter
from training.evaluation.seen import EVERYTHING, Calibrated, Sight, thresholds_of
from training.evaluation.sources import Standards, lost, part_scores, parts_of
from training.fitting.calibrate import Prediction
from training.simulation.fleets import CARS

Kept = Callable[[str, Callable[[], tuple[Any, dict[str, NDArray[Any]]]]], Any]
"""Returns a part's result and arrays by its name, computed now if they were not before."""

CLEAN = "perfect"
DEFAULT_TRACKS = (CLEAN, "reference")
"""Of mixed fleets: all is seen as it is, and as the reference's tracker has it."""


def tracks_of(data: Simulated, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return by which trackers episodes are judged: those asked for, or what makes sense."""
    if asked:
        return tuple(dict.fromkeys(asked))
    return () if fleet_of(data.manifest) == CARS else DEFAULT_TRACKS


def seen_by(data: Simulated, tracks: str) -> Simulated:
    """Return the same episodes as trackers of a kind see them, see `Tracking.model`."""
    return replace(data, tracking=Tracking(model=tracks))


def part_names(tracks: tuple[str, ...]) -> list[str]:
    """Return the names of the parts that `by_source` computes."""
    return [f"{part}-{name}" for part in ("calibration", "sources") for name in tracks]


def by_source(
    test: Trial, tracks: tuple[str, ...], cut: Cutter, episodes: Mapping[str, Indices], kept: Kept
) -> dict[str, Any]:
    """Judge all methods on every source, as seen by several kinds of trackers.

    Args:
        test: Test windows as the first kind sees them, with a model that physics can be put beside.
        tracks: Names of the kinds.
        cut: Cuts windows.
        episodes: By part of the split.
        kept: Computes parts, or knows them.

    Returns:
        The `tracks` and the `limits` of home errors; `found` by tracks, then by source, see
        `part_scores`, and beside them what is `lost` against the first kind.
    """
    data, checkpoint = test.data, test.lineup.checkpoint
    assert isinstance(data, Simulated)
    views = {name: seen_by(data, name) for name in tracks}
    sights = {
        name: Sight(view, checkpoint, cut.of(view), episodes["validation"])
        for name, view in views.items()
    }
    calibrated: list[Calibrated] = []
    for name, sight in sights.items():
        scale = calibrated[0].scale if calibrated else None
        fix = partial(_calibrated, sight, episodes["calibration"], scale)
        _, arrays = kept(f"calibration-{name}", fix)
        calibrated.append(Calibrated(**arrays))
    common, limits = thresholds_of(calibrated, EVERYTHING), calibrated[0].limits()
    sources = [EVERYTHING, *range(len(data.store.source_names))]
    own = [{source: each.thresholds(source) for source in sources} for each in calibrated]
    parties, found, first = parties_of(data.store), {}, dict[str, NDArray[Any]]()
    for place, (name, sight) in enumerate(sights.items()):
        standards = Standards(own[place], common, limits, parties, test.bootstrap)
        baseline = _First(own[0], first) if place else None
        known = None if place else test.prediction
        judged = partial(_judged, sight, episodes, calibrated[0].scale, standards, baseline, known)
        found[name], risks = kept(f"sources-{name}", judged)
        first = first or risks
    return {
        "tracks": list(tracks),
        "limits": limits,
        "calibration_windows": len(calibrated[0].ends),
        "found": found,
    }


def _calibrated(
    sight: Sight, episodes: Indices, scale: NDArray[np.floating[Any]] | None
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    return {}, sight.calibrated(episodes, scale).arrays()


class _First(NamedTuple):
    """What the model makes of the same windows as the first kind of trackers sees them.

    Attributes:
        thresholds: By source, everybody's.
        risks: By part of the split, [N] each.
    """

    thresholds: Mapping[int, Mapping[str, Thresholds]]
    risks: Mapping[str, NDArray[np.float64]]


def _judged(
    sight: Sight,
    episodes: Mapping[str, Indices],
    scale: NDArray[np.floating[Any]],
    standards: Standards,
    first: _First | None,
    known: Prediction | None,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what is found by source, and the model's risks by part of the split."""
    results: dict[str, Any] = {}
    risks: dict[str, NDArray[Any]] = {}
    for part in ("test", "unseen"):
        if not len(episodes[part]):
            continue
        seen = sight.seen(episodes[part], scale, known if part == "test" else None)
        risk = seen.risks[MODEL]
        risks[part] = risk.score
        for name, source, rows in parts_of(seen, are_unseen=part == "unseen"):
            results[name] = part_scores(seen, rows, source, standards)
            results[name]["lost"] = None
            if first is not None:
                clean = Risk(first.risks[part], first.risks[part])
                of_both = first.thresholds[source][MODEL], standards.own[source][MODEL]
                results[name]["lost"] = lost(clean, risk, of_both, seen, rows, standards.draws)
    return results, risks
