"""What is found on every source, as each kind of trackers sees it, as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.safety import VERDICTS
from training.evaluation.methods import MODEL
from training.evaluation.seen import JUDGED, PHYSICS
from training.evaluation.tables import number, ranged, table

_SCORES = {
    "auroc": ("AUROC", 4),
    "average_precision": ("AP", 4),
    "recall_1": ("recall at 1 %", 4),
    "recall_01": ("recall at 0.1 %", 4),
    "false_alarms_01": ("realised of 0.1 %", 5),
    "ece": ("ECE", 4),
}
_COMMON = {
    "recall_1": ("recall at 1 %", 4),
    "false_alarms_1": ("realised of 1 %", 5),
    "recall_01": ("recall at 0.1 %", 4),
    "false_alarms_01": ("realised of 0.1 %", 5),
}
_LOST = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "recall_1": "recall at 1 %",
    "recall_01": "recall at 0.1 %",
}

Part = Mapping[str, Any]


def source_sections(metrics: Mapping[str, Any]) -> list[str]:
    """Return what the report says of each source, the most important first."""
    sources = metrics.get("sources")
    if sources is None:
        return []
    horizon_s = _horizon_s(metrics)
    return [
        "### By source, as trackers see it\n",
        "Thresholds come from calibration episodes of the same source, seen in the same way; "
        "roads that were never trained on have those of their source. Physics gets the same first "
        "states, sizes too, and isotonic fits on validation episodes. Brackets: 95 % intervals, "
        "by bootstrap over episodes; that of an ECE lies high.\n",
        score_table(sources),
        *_seen_worse(sources),
        *verdict_sections(sources, horizon_s),
        *_error_sections(sources, horizon_s),
        "One threshold for all sources and ways of seeing, on their calibration episodes "
        "together:\n",
        common_table(sources),
        "### All sources together\n",
        f"What follows is of {sources['tracks'][0]} tracks.\n",
    ]


def card_sections(metrics: Mapping[str, Any]) -> list[str]:
    """Return what a model card says of each source: who foresees the end, and the verdicts."""
    sources = metrics.get("sources")
    if sources is None:
        return []
    return [
        "### By source, as trackers see it\n",
        score_table(sources),
        *verdict_sections(sources, _horizon_s(metrics)),
        "### All sources together\n",
    ]


def summary_of(sources: Mapping[str, Any]) -> dict[str, Any]:
    """Return by source and trackers what decides most, for whoever asks the service."""
    found: dict[str, Any] = {}
    for source, tracks, part in _parts(sources):
        scored, crash, calm = part["termination"], part["crashes"], part["careful"]
        found.setdefault(source, {})[tracks] = {
            **{name: scored["methods"][MODEL]["scores"][name] for name in _SCORES},
            "windows": scored["windows"],
            "crash_windows": crash["windows"],
            **{f"crash_{verdict}": crash[verdict]["share"] for verdict in VERDICTS},
            **{f"careful_{verdict}": calm[verdict]["share"] for verdict in VERDICTS},
            "neighbour_m": (part["neighbours"] or {MODEL: {"mean": None}})[MODEL]["mean"],
        }
    return found


def _horizon_s(metrics: Mapping[str, Any]) -> float:
    return float(metrics["dataset"]["dt_s"] * metrics["dataset"]["horizon"])


def _parts(sources: Mapping[str, Any]) -> Iterator[tuple[str, str, Part]]:
    """Yield source, trackers and results; a source's ways of seeing one below the other."""
    found = sources["found"]
    for source in found[sources["tracks"][0]]:
        for tracks in sources["tracks"]:
            if source in found[tracks]:
                yield source, tracks, found[tracks][source]


def score_table(sources: Mapping[str, Any]) -> str:
    """Return who foresees the end, by source."""
    rows = []
    for source, tracks, part in _parts(sources):
        scored = part["termination"]
        for name in JUDGED:
            m = scored["methods"][name]
            cells = (
                ranged(m["scores"][key], m["intervals"].get(key), digits)
                for key, (_, digits) in _SCORES.items()
            )
            count = f"{scored['windows_that_end']} of {scored['windows']}"
            rows.append([source, tracks, count, name, *cells])
    header = ("source", "tracks", "windows that end", "method")
    return table((*header, *(title for title, _ in _SCORES.values())), rows)


def common_table(sources: Mapping[str, Any]) -> str:
    """Return recall and false alarms at one threshold for all."""
    rows = []
    for source, tracks, part in _parts(sources):
        for name in JUDGED:
            scores = part["common"][name]
            cells = (
                ranged(scores[key]["value"], scores[key]["interval"], digits)
                for key, (_, digits) in _COMMON.items()
            )
            rows.append([source, tracks, name, *cells])
    header = ("source", "tracks", "method", *(title for title, _ in _COMMON.values()))
    return table(header, rows)


def _seen_worse(sources: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            source,
            tracks,
            *(ranged(part["lost"][key]["value"], part["lost"][key]["interval"]) for key in _LOST),
        ]
        for source, tracks, part in _parts(sources)
        if part["lost"] is not None
    ]
    if not rows:
        return []
    first = sources["tracks"][0]
    return [
        f"What the model loses against {first} tracks, on the same windows and resamples:\n",
        table(("source", "tracks", *_LOST.values()), rows),
    ]


def verdict_sections(sources: Mapping[str, Any], horizon_s: float) -> list[str]:
    """Return what the service answers before crashes and in careful driving."""
    return [
        "### Verdicts before crashes and in careful driving\n",
        f"At the checkpoint's own limits. A crash window has the crash within {horizon_s:g} s; in "
        "no slot: who was hit is in none when the window begins, so that no state shows him. "
        "Careful windows are those of careful drivers that go on.\n",
        verdict_table(sources),
        "By kinds, who drives first, of all sources together, roads that were never trained on "
        "left out. Missed: by method, at 1 % false alarms:\n",
        pair_table(sources),
    ]


def verdict_table(sources: Mapping[str, Any]) -> str:
    """Return the shares of verdicts, by source."""
    rows = []
    for source, tracks, part in _parts(sources):
        crash, calm = part["crashes"], part["careful"]
        alarms = calm["false_alarms"]
        rows.append(
            [
                source,
                tracks,
                _count(crash),
                *(_share(crash[verdict]) for verdict in VERDICTS),
                _share(crash["no_slot"]),
                _count(calm),
                *(_share(calm[verdict]) for verdict in ("unsafe", "unknown")),
                ranged(alarms["per_minute"], alarms["interval"], 2),
            ]
        )
    header = (
        *("source", "tracks", "crash windows (episodes)"),
        *(f"`{verdict}`" for verdict in VERDICTS),
        *("in no slot", "careful windows (episodes)", "careful `unsafe`", "careful `unknown`"),
        "false alarms a minute",
    )
    return table(header, rows)


def pair_table(sources: Mapping[str, Any]) -> str:
    """Return the shares of verdicts before crashes, by pair of kinds."""
    rows, found = [], sources["found"]
    together = next(iter(found[sources["tracks"][0]]))  # the first part is the widest
    of_first = found[sources["tracks"][0]][together]["crashes"]["pairs"]
    for pair in of_first:  # the same windows, hence the same pairs, in all ways of seeing
        for tracks in sources["tracks"]:
            crash = found[tracks][together]["crashes"]["pairs"][pair]
            missed = (number(crash["missed"]["1"][name]["share"], 4) for name in JUDGED)
            rows.append(
                [
                    pair,
                    tracks,
                    _count(crash),
                    *(_share(crash[verdict]) for verdict in VERDICTS),
                    _share(crash["no_slot"]),
                    " / ".join(missed),
                ]
            )
    header = (
        *("pair", "tracks", "crash windows (episodes)"),
        *(f"`{verdict}`" for verdict in VERDICTS),
        "in no slot",
        f"missed: {' / '.join(JUDGED)}",
    )
    return table(header, rows)


def _error_sections(sources: Mapping[str, Any], horizon_s: float) -> list[str]:
    return [
        "### Neighbours beside physics, by source\n",
        f"Mean error of the neighbours' places after {horizon_s:g} s, in m: a window begins with "
        "what was reported, and what is aimed at is true.\n",
        neighbour_table(sources),
        "### Doubt, by source\n",
        "Spearman: uncertainty of a window, and the error that the model expects of itself, "
        "against its error after the last step. Beyond the limit, the 99 % quantile of the errors "
        f"of calibration windows as {sources['tracks'][0]} tracks show them, a verdict should be "
        "`unknown` or `unsafe` more often (doubted): by how many times is the ratio.\n",
        doubt_table(sources),
    ]


def neighbour_table(sources: Mapping[str, Any]) -> str:
    """Return the neighbours' errors of all methods, and the model's beside physics."""
    rows = []
    for source, tracks, part in _parts(sources):
        found = part["neighbours"]
        if found is not None:
            means = (ranged(found[name]["mean"], found[name]["interval"], 3) for name in JUDGED)
            leads = (
                ranged(found[name]["lead"], found[name]["lead_interval"], 3) for name in PHYSICS
            )
            rows.append([source, tracks, *means, *leads])
    header = (MODEL, *PHYSICS, *(f"{MODEL} minus {name}" for name in PHYSICS))
    return table(("source", "tracks", *header), rows)


def doubt_table(sources: Mapping[str, Any]) -> str:
    """Return how well uncertainty ranks errors, and how often large ones are doubted."""
    names = {"all_sd": "all features", "neighbour_m": "neighbours' places"}
    rows = []
    for source, tracks, part in _parts(sources):
        for key, title in names.items():
            if part["doubt"] is None or key not in part["doubt"]["beyond"]:
                continue
            rho = part["doubt"]["spearman"]["end"][key]
            found = part["doubt"]["beyond"][key]
            expected = part["doubt"]["expected"] if key == "neighbour_m" else None
            rows.append(
                [
                    source,
                    tracks,
                    title,
                    ranged(rho["spearman"], rho["interval"], 3),
                    ranged(expected["spearman"], expected["interval"], 3) if expected else "",
                    number(found["limit"]),
                    str(found["beyond"]["windows"]),
                    _share(found["beyond"]),
                    _share(found["within"]),
                    ranged(found["ratio"], found["interval"], 2),
                ]
            )
    header = (
        *("source", "tracks", "error of", "Spearman", "Spearman, expected error", "limit"),
        "windows beyond",
        *("doubted beyond", "doubted within", "ratio"),
    )
    return table(header, rows)


def _count(answers: Mapping[str, Any]) -> str:
    return f"{answers['windows']} ({answers['episodes']})"


def _share(part: Mapping[str, Any]) -> str:
    return ranged(part["share"], part["interval"])
