"""Every simulator by itself, as several kinds of trackers see it: all that targets are set for.

Of a source's held-out episodes: who foresees the end, beside physics with the same information and
true sizes; what the service answers before crashes, by kinds of who meets, and in careful driving;
errors of neighbours beside physics; whether the model doubts what it gets wrong.

Thresholds at given rates of false alarms come from calibration episodes of the same source, seen in
the same way, so that the rates are about those asked for; beside them one threshold for all sources
and ways is tried. Verdicts are at the checkpoint's own limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.safety import SAFE, UNKNOWN, UNSAFE, VERDICTS
from training.evaluation.alarms import false_alarms
from training.evaluation.baselines import gaps_of
from training.evaluation.bootstrap import episode_share
from training.evaluation.doubt import doubt_of_errors
from training.evaluation.judgements import STRIDE
from training.evaluation.kinds import CRASH, Parties
from training.evaluation.methods import MODEL, Thresholds
from training.evaluation.metrics import FALSE_ALARM_RATES, Risk, compare
from training.evaluation.seen import EVERYTHING, Seen
from training.evaluation.state_errors import (
    Sums,
    compare_final_errors,
    disagreement_scores,
    expected_scores,
)
from training.simulation.simulator import UNSEEN

Floats = NDArray[np.floating[Any]]
Booleans = NDArray[np.bool_]

ALL = "all sources"
COMMON_SCORES = ("recall_1", "recall_01", "false_alarms_1", "false_alarms_01")
LOST_SCORES = ("auroc", "average_precision", "recall_1", "recall_01")


@dataclass(frozen=True)
class Standards:
    """What windows are judged by.

    Attributes:
        own: By source, and for `EVERYTHING`: everybody's alarm thresholds for it in this way of
            seeing.
        common: Everybody's alarm thresholds for all sources and ways.
        limits: By quantity: the largest error but for a hundredth at home.
        parties: Who meets whom.
        draws: Resamples of episodes for intervals.
        stride: Steps between the starts of windows.
    """

    own: Mapping[int, Mapping[str, Thresholds]]
    common: Mapping[str, Thresholds]
    limits: Mapping[str, float | None]
    parties: Parties
    draws: int
    stride: int = STRIDE


def parts_of(seen: Seen, *, are_unseen: bool) -> Iterator[tuple[str, int, Booleans]]:
    """Yield names, sources and windows [N] of what is reported apart.

    Args:
        seen: The windows.
        are_unseen: Whether they are from roads that were never trained on.
    """
    store = seen.data.store
    source = store.source[seen.windows.episode]
    sources = [int(x) for x in np.unique(source)]
    if not are_unseen and len(sources) > 1:
        yield ALL, EVERYTHING, np.ones(len(source), bool)
    for code in sources:
        name = store.source_names[code]
        road = f", {UNSEEN.get(name, 'other roads')} (never trained on)" if are_unseen else ""
        yield f"{name}{road}", code, source == code


def part_scores(seen: Seen, rows: Booleans, source: int, standards: Standards) -> dict[str, Any]:
    """Return all that is reported of some of the windows.

    Args:
        seen: N windows.
        rows: [N], which.
        source: Whose thresholds count.
        standards: What they are judged by.
    """
    windows, draws = seen.windows.take(rows), standards.draws
    risks = {name: risk.take(rows) for name, risk in seen.risks.items()}
    thresholds = standards.own[source]
    common = compare(risks, windows, standards.common, draws, reference=MODEL)["methods"]
    return {
        "termination": compare(risks, windows, thresholds, draws, reference=MODEL),
        "common": {
            name: {
                key: {
                    "value": method["scores"][key],
                    "interval": method["intervals"].get(key, [None, None]),
                }
                for key in COMMON_SCORES
            }
            for name, method in common.items()
        },
        "crashes": crashes(seen, rows, thresholds, standards),
        "off_road": _answers(seen, rows & seen.windows.ends & ~_is_crash(seen), draws),
        "careful": careful(seen, rows, standards),
        "neighbours": neighbours(seen, rows, draws),
        "doubt": doubt(seen, rows, standards),
    }


def _is_crash(seen: Seen) -> Booleans:
    """Return which windows [N] a crash ends."""
    cause = seen.data.store.cause[seen.windows.episode]
    return np.asarray(seen.windows.ends & (cause == CRASH))


def _answers(seen: Seen, rows: Booleans, draws: int) -> dict[str, Any]:
    """Return the share of each verdict among some windows [N], with intervals."""
    episode, verdicts = seen.windows.episode[rows], seen.verdicts[rows]
    found: dict[str, Any] = {"windows": int(rows.sum()), "episodes": len(np.unique(episode))}
    for name in VERDICTS:
        found[name] = _share(verdicts == name, episode, draws)
    return found


def _share(hits: Booleans, episode: NDArray[np.integer[Any]], draws: int) -> dict[str, Any]:
    value, interval, _ = episode_share(hits, episode, draws)
    return {"share": value, "interval": list(interval)}


def crashes(
    seen: Seen, rows: Booleans, thresholds: Mapping[str, Thresholds], standards: Standards
) -> dict[str, Any]:
    """Return what is answered before crashes: to all of them, and by kinds of who meets.

    Args:
        seen: N windows.
        rows: [N], of which of them.
        thresholds: Everybody's.
        standards: What they are judged by.

    Returns:
        Shares of verdicts, what each method `missed` at each rate of false alarms, and how many
        of those who were hit were in `no_slot` when the window began; the same of `pairs`.
    """
    crash = rows & _is_crash(seen)

    def answers(some: Booleans) -> dict[str, Any]:
        episode, draws = seen.windows.episode[some], standards.draws
        return {
            **_answers(seen, some, draws),
            "missed": {
                rate: {
                    name: _share(risk.score[some] < thresholds[name][rate], episode, draws)
                    for name, risk in seen.risks.items()
                }
                for rate in FALSE_ALARM_RATES
            },
            "no_slot": _share(~_is_in_slots(seen, some), episode, draws),
        }

    pairs = {}
    which = np.flatnonzero(crash)
    for name, chosen in standards.parties.pairs(seen.windows.episode[which]).items():
        some = np.zeros(len(crash), bool)
        some[which[chosen]] = True
        pairs[name] = answers(some)
    return {**answers(crash), "pairs": pairs}


_TOUCH_M = 0.01
"""Gaps of recorded crashes are below 0; numbers of states are rounded."""


def _is_in_slots(seen: Seen, rows: Booleans) -> Booleans:
    """Return of some windows [N], which end in crashes, whether who was hit is in a slot [n]."""
    gaps = gaps_of(seen.windows.states[rows, -1], seen.data.spec)
    return np.asarray(gaps.min(-1) < _TOUCH_M)


def careful(seen: Seen, rows: Booleans, standards: Standards) -> dict[str, Any]:
    """Return what is answered in careful driving: to windows that go on, and a minute.

    False alarms a minute are those of careful drives that do not end at all.
    """
    windows, labels, draws = seen.windows, seen.data.labels, standards.draws
    calm = rows & labels.is_calm[windows.episode]
    goes_on, dt_s = calm & (labels.cause[windows.episode] == 0), seen.data.spec.dt_s

    def a_minute(verdict: str) -> dict[str, Any]:
        alarm = seen.verdicts == verdict
        return false_alarms(alarm, windows, goes_on, standards.stride, draws, dt_s)

    return {
        **_answers(seen, calm & ~windows.ends, draws),
        "false_alarms": a_minute(UNSAFE),
        "unknowns": a_minute(UNKNOWN),
    }


def neighbours(seen: Seen, rows: Booleans, draws: int) -> dict[str, Any] | None:
    """Return by method the errors of the neighbours' places, see `compare_final_errors`."""
    rows = rows & seen.alive
    names, index = np.unique(seen.windows.episode[rows], return_inverse=True)
    there = seen.there[rows]
    if not there.any():
        return None
    below = np.bincount(index, there.sum(1), len(names)).astype(np.float64)
    sums: dict[str, Sums] = {}
    for name, places in seen.places.items():
        error = np.where(there, places[rows], 0.0).sum(1)
        above = np.bincount(index, error, len(names)).astype(np.float64)
        sums[name] = {"neighbour_m": (above, below)}
    found = compare_final_errors(sums, draws, MODEL)
    return {name: by_quantity["neighbour_m"] for name, by_quantity in found.items()}


def doubt(seen: Seen, rows: Booleans, standards: Standards) -> dict[str, Any] | None:
    """Return whether uncertainty, and what is expected, rank errors; are large ones doubted?"""
    rows = rows & seen.alive
    if not rows.any():
        return None
    episode, draws = seen.windows.episode[rows], standards.draws
    errors = {name: (x[rows], exists[rows]) for name, (x, exists) in seen.errors.items()}
    scores = disagreement_scores(
        seen.prediction.disagreement[rows],
        seen.prediction.uncertainty[rows],
        errors,
        episode,
        draws,
    )
    is_doubted = seen.verdicts[rows] != SAFE
    beyond = {}
    for name, (error, exists) in errors.items():
        limit, some = standards.limits[name], exists[:, -1]
        if limit is not None:
            beyond[name] = doubt_of_errors(
                error[some, -1], is_doubted[some], limit, episode[some], draws
            )
    expected = None if seen.expected is None else seen.expected[rows]
    return {
        "spearman": scores,
        "expected": expected_scores(expected, errors, episode, draws),
        "beyond": beyond,
    }


def lost(
    clean: Risk,
    risk: Risk,
    thresholds: tuple[Thresholds, Thresholds],
    seen: Seen,
    rows: Booleans,
    draws: int,
) -> dict[str, Any]:
    """Return what the model loses of its scores by seeing worse.

    Args:
        clean: Its risks of the N windows as the first kind of trackers sees them.
        risk: As this kind does.
        thresholds: Of both.
        seen: The windows.
        rows: [N], which count.
        draws: Resamples of episodes, the same in both.

    Returns:
        By score the difference, clean minus this, and its interval.
    """
    both = {"clean": clean.take(rows), "here": risk.take(rows)}
    names = dict(zip(both, thresholds, strict=True))
    found = compare(both, seen.windows.take(rows), names, draws, reference="clean")
    lead = found["methods"]["here"]["lead"]
    return {
        name: {"value": lead["scores"][name], "interval": lead["intervals"].get(name)}
        for name in LOST_SCORES
    }
