"""The service over loopback HTTP, side by side with its limits and its rivals.

    python -m benchmarks.serving

Prints Markdown, and writes it into docs/benchmarks.md after a full run. Rivals are installed into
environments of their own under .bench/ the first time, which takes minutes and gigabytes.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import tempfile
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.machine import describe_machine
from benchmarks.serving import load, report
from benchmarks.serving.candidates import (
    ENGINE,
    NAMES,
    OUR_SERVICE,
    ROOT,
    SERVERS,
    SERVICE,
    Candidate,
    Files,
    NotMeasuredError,
    install,
    installed_version,
)
from benchmarks.serving.figures import Medians, medians
from benchmarks.serving.processes import Cores, two_cores
from benchmarks.serving.run import Options, Subject, compare, look_at_ours, make_subject
from benchmarks.serving.weights import make_checkpoint, write_weights
from benchmarks.serving.workloads import NAMES as WORKLOADS
from benchmarks.serving.workloads import make_questions, read_episodes
from service.settings import PRETRAINED

DOCS = ROOT / "docs" / "benchmarks.md"
_IDLE_CONNECTIONS = 64
_IDLE_S = 10.0
_PINNED, _SHARED = "one core each", "both cores for all"


@click.command()
@click.option(
    "--only", multiple=True, type=click.Choice(NAMES), help="Candidates to measure; all by default."
)
@click.option(
    "--workloads", multiple=True, type=click.Choice(WORKLOADS), help="W1 to W4; all by default."
)
@click.option("--repetitions", default=5, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--seconds", default=5.0, show_default=True, type=click.FloatRange(min=1), help="A measurement."
)
@click.option(
    "--cores",
    default="both",
    show_default=True,
    type=click.Choice(["pinned", "shared", "both"]),
    help="One core each for server and load, all cores for both, or a table for each.",
)
@click.option("--short", is_flag=True, help="One repetition of a second, pinned; no file written.")
@click.option("--no-write", is_flag=True, help="Leave docs/benchmarks.md alone.")
def main(
    only: tuple[str, ...],
    workloads: tuple[str, ...],
    repetitions: int,
    seconds: float,
    cores: str,
    short: bool,
    no_write: bool,
) -> None:
    """Measure candidates side by side, and print tables."""
    if short:
        repetitions, seconds, cores = 1, 1.0, "pinned"
    try:
        wrk, pinned = load.need_wrk(), two_cores()
    except OSError as exc:
        raise click.ClickException(str(exc)) from exc
    placements = {_PINNED: pinned, _SHARED: Cores()}
    if cores != "both":
        placements.pop(_SHARED if cores == "pinned" else _PINNED)
    chosen = frozenset(only or NAMES)
    with tempfile.TemporaryDirectory() as folder:
        options = Options(frozenset(workloads or WORKLOADS), repetitions, seconds, Path(folder))
        text = _measured(chosen, placements, options, wrk)
    print(f"\n{text}")
    is_whole = not (short or only or workloads or cores != "both")
    if is_whole and not no_write:
        report.write_between_markers(DOCS, text)
        print(f"\nWritten into {DOCS.relative_to(ROOT)}")


def _measured(
    chosen: frozenset[str], placements: dict[str, Cores], options: Options, wrk: str
) -> str:
    """Install, measure, and return the report."""
    servers, problems = _installed([x for x in SERVERS if x.name in chosen])
    episodes = read_episodes()
    questions = make_questions(episodes)
    ours, plain = write_weights(make_checkpoint(episodes), options.folder)
    subject = make_subject(Files(ours, plain, {}), questions)
    one_core = next(iter(placements.values()))
    sizes, idle = look_at_ours(subject, one_core, _IDLE_CONNECTIONS, _IDLE_S)
    subject = replace(subject, files=Files(ours, plain, sizes))
    parts = [_heading(servers, options, wrk), _idle_line(idle)]
    for name, cores in placements.items():
        results = compare(servers, subject, cores, options, engine=ENGINE in chosen)
        title = f"Same weights, {name}"
        figures, refused = medians(results.repetitions), {**problems, **results.refused}
        parts.append(report.comparison(title, figures, options.workloads, refused, results.faults))
    if SERVICE in chosen:
        bundled = make_subject(Files(PRETRAINED, plain, sizes), questions)
        parts.append(_ensemble(bundled, placements, options))
    return "\n\n".join(parts)


def _ensemble(bundled: Subject, placements: dict[str, Cores], options: Options) -> str:
    """Measure our service with the bundled ensemble, and return that part of the report."""
    figures: dict[str, Medians] = {}
    missing: dict[str, str] = {}
    for name, cores in placements.items():
        results = compare([OUR_SERVICE], bundled, cores, options, engine=False)
        figures[name] = medians(results.repetitions)
        if reasons := [*results.refused.values(), *results.faults.values()]:
            missing[name] = "; ".join(reasons)
    return report.ensemble(figures, options.workloads, missing)


def _installed(candidates: list[Candidate]) -> tuple[list[Candidate], dict[str, str]]:
    """Return those whose packages are there, and why others are not."""
    ready, problems = [], {}
    for candidate in candidates:
        try:
            install(candidate)
            ready.append(candidate)
        except NotMeasuredError as exc:
            problems[candidate.title] = str(exc)
    return ready, problems


def _heading(servers: list[Candidate], options: Options, wrk: str) -> str:
    own = ("fastapi", "uvicorn", "uvloop", "httptools", "orjson", "pysimdjson")
    ours = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in own)
    rivals = [installed_version(x.requirements) for x in servers if x.requirements is not None]
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}. {describe_machine()}, wrk {wrk}.\n"
        f"Ours: {ours}. Rivals: {', '.join(rivals) or 'none'}.\n"
        f"Repetitions: {options.repetitions} of {options.seconds:g} s, interleaved; medians."
    )


def _idle_line(share: float) -> str:
    return (
        f"Idle with {_IDLE_CONNECTIONS} open connections, our service uses {share:.2%} of a core "
        f"(over {_IDLE_S:g} s)."
    )


if __name__ == "__main__":
    main()
