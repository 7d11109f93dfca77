"""Figures as Markdown, and their place in the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.serving.candidates import ECHO, ENGINE, NAMES, RIVAL_SERVERS, SERVICE, TITLES
from benchmarks.serving.figures import Medians, best, ratio
from benchmarks.serving.run import ALONE_P50, ALONE_P99, FLOOD_P50, FLOOD_P99, FLOOD_RATE
from benchmarks.serving.workloads import CLOSED_LOOP, W4
from benchmarks.serving.workloads import NAMES as WORKLOADS
from training.running.files import replace_between

SERVING = "serving"
"""Name of the markers of this report."""
MISSING = "-"
_RIVALS = [rival.name for rival in RIVAL_SERVERS]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value: float | None) -> str:
    """Return a number with the digits that mean something."""
    if value is None:
        return MISSING
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def rates_table(figures: Medians, workloads: Iterable[str] = WORKLOADS) -> str:
    """Return requests a second of every candidate."""
    measures = _measures(workloads)
    rows = [
        [TITLES[name], *(shown(figures[name].get(measure)) for measure in measures)]
        for name in _in_order(figures, measures)
    ]
    return table(["requests/s", *measures], rows)


def ratios_table(figures: Medians, workloads: Iterable[str] = WORKLOADS) -> str:
    """Return our service beside the best rival, and as a share of both limits."""
    wanted = set(workloads)
    rows = []
    for measure in [*_measures(wanted), *([FLOOD_RATE] if W4 in wanted else [])]:
        rival = best(figures, _RIVALS, measure)
        rows.append(
            [
                "W3 @ 4 while polled" if measure == FLOOD_RATE else measure,
                MISSING if rival is None else TITLES[rival],
                *(
                    shown(ratio(figures, SERVICE, other, measure))
                    for other in (rival, ECHO, ENGINE)
                ),
            ]
        )
    columns = ["", "best rival", "ours / best rival", "ours / echo", "ours / engine in process"]
    return table(columns, rows)


def polls_table(figures: Medians) -> str:
    """Return latencies of polled safety checks alone and under the planners' flood."""
    measures = (ALONE_P50, ALONE_P99, FLOOD_P50, FLOOD_P99)
    rows = []
    for name in _in_order(figures, measures):
        own = figures[name]
        rise = own[FLOOD_P99] / own[ALONE_P99] if FLOOD_P99 in own and ALONE_P99 in own else None
        latencies = [shown(own.get(measure)) for measure in measures]
        rows.append([TITLES[name], *latencies, shown(rise), shown(own.get(FLOOD_RATE))])
    columns = ["ms", *measures, "p99 flood / alone", "flood requests/s"]
    return table(columns, rows)


def comparison(
    title: str,
    figures: Medians,
    workloads: Iterable[str],
    refused: Mapping[str, str],
    faults: Mapping[str, str],
) -> str:
    """Return all tables of one placement on cores, and what is missing in them.

    Args:
        title: Heading.
        figures: Medians.
        workloads: Those measured: "W1" and so on.
        refused: Why candidates were not measured, by title.
        faults: Why measures of candidates lack a repetition, by title.
    """
    notes = [f"- {name}: not measured: {reason}." for name, reason in refused.items()]
    notes += [f"- {name}: incomplete: {reason}." for name, reason in faults.items()]
    wanted = frozenset(workloads)
    parts = [f"### {title}"]
    if wanted - {W4}:
        parts.append(rates_table(figures, wanted))
    parts.append(ratios_table(figures, wanted))
    if W4 in wanted:
        parts.append(polls_table(figures))
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def ensemble(
    by_placement: Mapping[str, Medians], workloads: Iterable[str], missing: Mapping[str, str]
) -> str:
    """Return the figures of our service with the bundled ensemble, a column a placement.

    Args:
        by_placement: Medians, of our service only.
        workloads: Those measured: "W1" and so on.
        missing: Why figures are missing, by placement.
    """
    wanted = frozenset(workloads)
    polled = (ALONE_P50, ALONE_P99, FLOOD_P50, FLOOD_P99, FLOOD_RATE) if W4 in wanted else ()
    rows = [
        [
            f"{measure}, {_unit(measure)}",
            *(shown(figures.get(SERVICE, {}).get(measure)) for figures in by_placement.values()),
        ]
        for measure in (*_measures(wanted), *polled)
    ]
    notes = [f"- {name}: incomplete: {reason}." for name, reason in missing.items()]
    heading = "### Our service with the bundled ensemble"
    return "\n\n".join([heading, table(["", *by_placement], rows), *notes])


def markers(name: str) -> tuple[str, str]:
    """Return the lines before and behind a report in a page."""
    return f"<!-- {name}: start -->", f"<!-- {name}: end -->"


def write_between_markers(path: Path, text: str, name: str = SERVING) -> None:
    """Replace what is between the markers of a file.

    Raises:
        ValueError: The file lacks the markers.
    """
    replace_between(path, *markers(name), f"\n{text.strip()}\n\n")


def _measures(workloads: Iterable[str]) -> list[str]:
    wanted = set(workloads)
    return [x.measure(c) for x in CLOSED_LOOP if x.name in wanted for c in x.connections]


def _in_order(figures: Medians, measures: Iterable[str]) -> list[str]:
    """Return candidates that have one of the measures, ours first."""
    wanted = set(measures)
    return [name for name in NAMES if wanted & figures.get(name, {}).keys()]


def _unit(measure: str) -> str:
    return "ms" if "p50" in measure or "p99" in measure else "requests/s"
