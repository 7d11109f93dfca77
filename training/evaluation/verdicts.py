"""What the service would answer: its own rules, at the checkpoint's limits, on held-out windows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.safety import SAFE, UNKNOWN, UNSAFE, VERDICTS, Verdict, assess
from models.saturation import Saturations
from training.dataset.sources import Labels
from training.dataset.windows import Windows
from training.evaluation.alarms import false_alarms, summarise_leads
from training.evaluation.bootstrap import draw_counts, episode_share, percentile_interval
from training.evaluation.corruptions import CORRUPTIONS
from training.evaluation.doubt import impossible
from training.evaluation.metrics import FALSE_ALARM_RATES, SCORES, Risk, Scorecard, lead_times
from training.fitting.calibrate import Prediction, predict_windows

NOTICED_AUROC = 0.95
"""From here on, disagreement counts as noticing a corruption."""

Floats = NDArray[np.floating[Any]]
Booleans = NDArray[np.bool_]


def judge(checkpoint: Checkpoint, prediction: Prediction, windows: Windows) -> list[Verdict]:
    """Return the service's verdicts on N windows, as predicted."""
    return assess(
        prediction.states,
        prediction.dones,
        prediction.uncertainty,
        checkpoint.limits,
        actions=windows.actions,
    )


def verdict_scores(
    checkpoint: Checkpoint,
    prediction: Prediction,
    labels: Labels,
    windows: Windows,
    stride: int,
    draws: int,
) -> dict[str, Any]:
    """Return how often the service gives which verdict: of all, by behaviour, by cause of the end.

    Args:
        checkpoint: Whose limits count.
        prediction: Of the windows.
        labels: Names behaviours and causes.
        windows: N windows of known outcome.
        stride: Steps between their starts.
        draws: Resamples for intervals.
    """
    judged, dt_s = judge(checkpoint, prediction, windows), checkpoint.spec.dt_s
    verdicts = np.array([verdict.verdict for verdict in judged])
    unsafe, unknown = verdicts == UNSAFE, verdicts == UNKNOWN
    cause = labels.cause[windows.episode]
    goes_on = labels.is_calm[windows.episode] & (cause == 0)

    def rates(rows: Booleans) -> dict[str, Any]:
        harmless, part = rows & ~windows.ends, windows.take(np.flatnonzero(rows))
        return {
            "windows": int(rows.sum()),
            "unsafe_of_harmless": float(unsafe[harmless].mean()) if harmless.any() else None,
            "unknown": float(unknown[rows].mean()),
            "warned": summarise_leads(lead_times(unsafe[rows], part, dt_s), draws),
        }

    return {
        "crash_threshold": checkpoint.limits.crash_threshold,
        "all": _overall(judged, verdicts, windows, draws),
        "careful_alarms": false_alarms(unsafe, windows, goes_on, stride, draws, dt_s),
        "unknowns": false_alarms(unknown, windows, goes_on, stride, draws, dt_s),
        "behaviours": {
            labels.behaviours[code]: rates(windows.behaviour == code)
            for code in np.unique(windows.behaviour)
        },
        "causes": {
            name: rates(cause == code)
            for code, name in enumerate(labels.causes)
            if code and (cause == code).any()
        },
    }


def _overall(
    judged: list[Verdict], verdicts: NDArray[np.str_], windows: Windows, draws: int
) -> dict[str, Any]:
    """Return the share of each verdict among all windows, those that end and those that do not."""

    def share(hits: Booleans, rows: Booleans) -> dict[str, Any]:
        value, interval, episodes = episode_share(hits[rows], windows.episode[rows], draws)
        return {"share": value, "interval": list(interval), "episodes": episodes}

    everything = np.ones(len(windows), bool)
    return {
        "windows": len(windows),
        "episodes": len(np.unique(windows.episode)),
        **{name: share(verdicts == name, everything) for name in VERDICTS},
        "unsafe_of_harmless": share(verdicts == UNSAFE, ~windows.ends),
        "unsafe_of_ending": share(verdicts == UNSAFE, windows.ends),
        "safe_of_ending": share(verdicts == SAFE, windows.ends),
        "reasons": _answers(judged)["reasons"],
    }


def one_an_episode(windows: Windows, count: int, seed: int = 0) -> Windows:
    """Return at most `count` windows, at random, each from another episode."""
    order = np.random.default_rng(seed).permutation(len(windows))
    _, first = np.unique(windows.episode[order], return_index=True)
    return windows.take(np.sort(order[np.sort(first)[:count]]))


def corruption_scores(checkpoint: Checkpoint, windows: Windows, draws: int) -> dict[str, Any]:
    """Return whether disagreement separates corrupted states from clean ones, and the verdicts.

    Args:
        checkpoint: The model.
        windows: N clean windows, one per episode; their actions are kept.
        draws: Resamples of windows for the intervals.

    Returns:
        What is answered on `clean` states; by `corruptions`: AUROC of disagreement with its
        interval, answers, reasons, whether it is plausible, over states that the corruption
        changes, and what `detectable` holds: the same of those that physics finds
        `impossible` too, though not what they were made of, against clean ones that it finds
        possible; of `impossible` and of `plausible` ones all together the AUROC, how many are
        `noticed`, the lowest AUROC, and mean answers.
    """
    spec = checkpoint.spec
    clean = predict_windows(checkpoint.ensemble, windows)
    was_possible = ~impossible(windows.states[:, 0], spec)
    table, outcomes = {}, {}
    for number, corruption in enumerate(CORRUPTIONS):
        start = corruption.apply(windows.states[:, 0], seed=number, spec=spec)
        start = Saturations(spec).applied(start)  # as those of requests
        states = np.array(windows.states)
        states[:, 0] = start
        rows = np.flatnonzero((start != windows.states[:, 0]).any(1))
        if not len(rows):
            continue
        part = replace(windows, states=states).take(rows)
        prediction = predict_windows(checkpoint.ensemble, part)
        verdicts = judge(checkpoint, prediction, part)
        outcomes[corruption.name] = rows, prediction.uncertainty
        is_detectable = was_possible[rows] & impossible(start[rows], spec)
        table[corruption.name] = {
            "plausible": corruption.plausible,
            "windows": len(rows),
            **_separation(clean.uncertainty, [outcomes[corruption.name]], draws),
            **_answers(verdicts),
            "detectable": _detectable(
                clean, prediction, verdicts, rows, is_detectable, was_possible, draws
            ),
        }
    summary = {}
    for kind, plausible in (("impossible", False), ("plausible", True)):
        names = [name for name, scores in table.items() if scores["plausible"] is plausible]
        auroc = [table[name]["auroc"] for name in names]
        summary[kind] = {
            "corruptions": len(names),
            **_separation(clean.uncertainty, [outcomes[name] for name in names], draws),
            "noticed": sum(x >= NOTICED_AUROC for x in auroc),
            "lowest_auroc": min(auroc),
            **{answer: np.mean([table[n][answer] for n in names]).item() for answer in VERDICTS},
        }
    answers = _answers(judge(checkpoint, clean, windows))
    return {"windows": len(windows), "clean": answers, "corruptions": table, **summary}


def _detectable(
    clean: Prediction,
    prediction: Prediction,
    verdicts: list[Verdict],
    rows: NDArray[np.int64],
    is_detectable: Booleans,
    was_possible: Booleans,
    draws: int,
) -> dict[str, Any]:
    """Return what is noticed of corrupted states [n] that physics can tell from clean ones [N]."""
    some, possible = np.flatnonzero(is_detectable), np.flatnonzero(was_possible)
    if not len(some):
        return {"windows": 0, "auroc": None, "interval": [None, None], "refused": None}
    place = np.searchsorted(possible, rows[some])
    kept = [verdicts[i] for i in some]
    return {
        "windows": len(some),
        **_separation(clean.uncertainty[possible], [(place, prediction.uncertainty[some])], draws),
        "refused": float(np.mean([verdict.verdict != SAFE for verdict in kept])),
    }


def _answers(verdicts: list[Verdict]) -> dict[str, Any]:
    """Return the share of each verdict, and of each reason among all."""
    count = len(verdicts)
    counts = Counter(verdict.verdict for verdict in verdicts)
    reasons = Counter(reason.rule for verdict in verdicts for reason in verdict.reasons)
    return {
        **{name: counts[name] / count for name in VERDICTS},
        "reasons": {name: hits / count for name, hits in reasons.most_common()},
    }


def _separation(
    clean: Floats, corrupted: list[tuple[NDArray[np.int64], Floats]], draws: int
) -> dict[str, Any]:
    """Return the AUROC of uncertainty: all of [N] clean ones against (rows, uncertainty) pairs."""
    score = np.concatenate([clean, *(uncertainty for _, uncertainty in corrupted)])
    # Whoever cannot compute disagreement does not trust the rest either.
    score = np.where(np.isfinite(score), score, np.finfo(np.float32).max)
    window = np.concatenate([np.arange(len(clean)), *(rows for rows, _ in corrupted)])
    is_corrupted = np.arange(len(score)) >= len(clean)
    never = dict.fromkeys(FALSE_ALARM_RATES, np.inf)
    card = Scorecard(Risk(score, np.zeros(len(score))), is_corrupted, window, never)
    place = SCORES.index("auroc")
    drawn = np.array([card.scores(row)[place] for row in draw_counts(len(clean), draws)])
    return {
        "auroc": float(card.scores()[place]),
        "interval": list(percentile_interval(drawn)),
    }
