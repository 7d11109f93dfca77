"""Filling a folder with recorded episodes: parallel, seeded, resumable.

What is recorded depends on the seed and the settings alone: not on the number of processes, nor
on interruptions. Each shard is one task with its own seed, and the dataset is the shortest run
of shards, from the first on, that holds enough transitions.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

from models.backends.cpus import usable_cpus
from training.dataset.recording import make_shard, record_shards
from training.dataset.store import (
    MANIFEST,
    SCHEMA_VERSION,
    ShardNote,
    read_shard_note,
    shard_path,
    write_manifest,
)
from training.running.locks import locked
from training.running.progress import Progress
from training.simulation.behaviours import BEHAVIOURS, SHARES
from training.simulation.bicycle import DT_S
from training.simulation.fleets import DEFAULT_FLEET, MIXED, check_fleet, spec_of
from training.simulation.simulator import CAUSES, MAX_STEPS, ROADS, SOURCE_ROADS, SOURCES
from training.simulation.vehicles import SURPRISING_SHARE

EPISODES_PER_SHARD = 50

PACKAGES = {"highway-env": ("highway-env", "gymnasium"), "sumo": ("eclipse-sumo", "libsumo")}
"""What decides the episodes of a source beside our own code; the simulator itself comes first."""

ALL = "all"
"""In place of a source: as many episodes of each."""

MAY_KILL = ("sumo",)
"""Sources whose code may end its process by a fault; they never run in this one."""

Notes = dict[int, ShardNote]
"""Of shards, by their index."""


def collect(
    folder: Path,
    *,
    transitions: int,
    seed: int,
    environments: dict[str, float] | None = None,
    surprising_share: float = SURPRISING_SHARE,
    fleet: str | None = None,
    source: str = SOURCES[0],
    workers: int | None = None,
    progress: bool = True,
    on_transitions: Callable[[int], object] = lambda done: None,
) -> list[int]:
    """Record episodes into a folder until it holds enough transitions.

    Shards that are already there are kept, so an interrupted call is repeated to go on, and a
    finished dataset is extended by asking for more.

    Args:
        folder: Created if missing.
        transitions: Least number of transitions.
        seed: Of everything.
        environments: Share of each road of the source; those of `SOURCE_ROADS` by default.
        surprising_share: Of the drivers, how many have a sudden manoeuvre in store.
        fleet: One of `fleets.FLEETS`: cars of 5 x 2 m, or everybody; None: `DEFAULT_FLEET`, or
            mixed if SUMO is among the sources.
        source: One of `SOURCES`: which simulator; or `ALL`.
        workers: Processes; one per usable CPU by default. 1 runs in this process, unless the source
            is one of `MAY_KILL`.
        progress: Whether to show how far it is.
        on_transitions: Called with the number of transitions recorded so far, now and then.

    Returns:
        The seeds of the episodes that are left out, because the simulator does not survive them.

    Raises:
        ValueError: An argument makes no sense, the simulator is not installed, or the folder holds
            shards of other settings.
        FolderLockedError: Another command writes the folder.
        ChildProcessError: A worker process was killed, or its simulator killed it too often.
        KeyboardInterrupt: Passed on; whole shards are kept, and its notes say how many there are.
    """
    if transitions < 1:
        raise ValueError(f"transitions must be at least 1, got {transitions}")
    settings = _settings(source, seed, environments, surprising_share, fleet)
    with locked(folder, "collecting"):
        notes = _existing_notes(folder, settings)
        (folder / MANIFEST).unlink(missing_ok=True)  # absent means unfinished
        kept = _sum(notes)["transitions"]
        bar = Progress("collecting", transitions, unit="steps", done=kept, is_shown=progress)

        def show() -> None:
            total = _sum(notes)
            shown = [f"{total[name]} {name}" for name in ("episodes", CAUSES[1], CAUSES[2])]
            left_out = len(_left_out(notes))
            bar.note(", ".join([*shown, *([f"{left_out} left out"] if left_out else [])]))
            bar.reach(total["transitions"])
            on_transitions(total["transitions"])

        with bar:
            show()
            if _enough(notes, transitions) is None:
                _record(folder, settings, notes, transitions, workers or usable_cpus(), show)
        return _finish(folder, settings, notes, transitions)


def _settings(
    source: str,
    seed: int,
    environments: dict[str, float] | None,
    surprising_share: float,
    fleet: str | None,
) -> dict[str, Any]:
    """Return all that decides what is recorded, as JSON, after checking it."""
    sources = simulators_of(source)
    fleet = fleet_in(sources, fleet, DEFAULT_FLEET)
    known = {road: x for each in sources for road, x in SOURCE_ROADS[each].items()}
    environments = known if environments is None else environments
    if unknown := sorted(set(environments) - set(known)):
        raise ValueError(f"unknown environments {unknown}; known: {list(known)}")
    if min(environments.values(), default=0) < 0 or sum(environments.values()) <= 0:
        raise ValueError(f"environment shares must not be negative, nor all 0: {environments}")
    return {
        "schema_version": SCHEMA_VERSION,
        "spec": spec_of(fleet).name,
        "seed": seed,
        "dt_s": DT_S,
        "max_steps": MAX_STEPS,
        "episodes_per_shard": EPISODES_PER_SHARD,
        "environment_shares": environments,
        "behaviour_shares": dict(zip(BEHAVIOURS, SHARES, strict=True)),
        "surprising_share": surprising_share,
        "fleet": fleet,
        "source": source,
        "simulator": ", ".join(_version(PACKAGES[each][0]) for each in sources),
    }


def simulators_of(source: str) -> tuple[str, ...]:
    """Return the simulators that a source stands for: one of `SOURCES`, or for `ALL` each of them.

    Raises:
        ValueError: There is no such source.
    """
    if source not in (*SOURCES, ALL):
        raise ValueError(f"unknown source {source!r}; known: {[*SOURCES, ALL]}")
    return SOURCES if source == ALL else (source,)


def fleet_in(simulators: Sequence[str], fleet: str | None, default: str) -> str:
    """Return who is on the road: the fleet that is asked for, or the usual one; SUMO's is mixed.

    Args:
        simulators: Some of `SOURCES`.
        fleet: What is asked for, if anything.
        default: Taken without SUMO if nothing is asked for.

    Raises:
        ValueError: There is no such fleet in these simulators.
    """
    if "sumo" in simulators:
        if fleet not in (None, MIXED):
            raise ValueError(
                f"the fleet in SUMO is {MIXED!r}, got {fleet!r}; only highway-env alone has others"
            )
        return MIXED
    fleet = fleet or default
    check_fleet(fleet)
    return fleet


def _packages(source: str) -> list[str]:
    return [name for each in simulators_of(source) for name in PACKAGES[each]] + ["numpy"]


def _version(package: str) -> str:
    """Return the version of an installed package.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError as exc:
        raise ValueError(
            f"{package} is not installed: pip install 'world-model-service[training]'"
        ) from exc


def _existing_notes(folder: Path, settings: dict[str, Any]) -> Notes:
    """Return the notes of the shards that are there, refusing foreign ones."""
    notes: Notes = {}
    for path in sorted(folder.glob("shard-*.safetensors")):
        note = read_shard_note(path)
        found = note.settings
        for key in sorted(settings.keys() | found.keys()):
            here, wanted = found.get(key), settings.get(key)
            if here != wanted:
                raise ValueError(
                    f"{path} was collected with {key}={here!r}, but {key}={wanted!r} is asked for; "
                    "use another folder"
                )
        notes[int(path.stem.removeprefix("shard-"))] = note
    return notes


def _enough(notes: Notes, transitions: int) -> int | None:
    """Return how many shards, from the first on, hold enough transitions; None if too few do."""
    total, index = 0, 0
    while index in notes:
        total += notes[index].counts["transitions"]
        index += 1
        if total >= transitions:
            return index
    return None


def _record(
    folder: Path,
    settings: dict[str, Any],
    notes: Notes,
    transitions: int,
    workers: int,
    show: Callable[[], object],
) -> None:
    """Fill `notes` and the folder with shards until there are enough."""
    may_be_killed = any(name in MAY_KILL for name in simulators_of(settings["source"]))
    todo = _missing({*notes})
    if workers == 1 and not may_be_killed:
        shards = _in_this_process(folder, settings, todo)
    else:
        shards = record_shards(folder, settings, notes, workers, todo)
    try:
        with closing(shards) as done:
            for index, note in done:
                notes[index] = note
                show()
                if _enough(notes, transitions) is not None:
                    return
    except KeyboardInterrupt as exc:
        kept = _existing_notes(folder, settings)  # one may have been finished meanwhile
        exc.add_note(
            f"{_sum(kept)['transitions']:,} of {transitions:,} transitions kept in {len(kept)} "
            "whole shards"
        )
        raise


def _missing(known: set[int]) -> Iterator[int]:
    """Yield the indices of shards to make, for ever, lowest first."""
    return (index for index in count() if index not in known)


def _in_this_process(
    folder: Path, settings: dict[str, Any], todo: Iterator[int]
) -> Generator[tuple[int, ShardNote]]:
    for index in todo:
        yield index, make_shard(folder, index, settings)


def _sum(notes: Notes) -> dict[str, int]:
    names = ("episodes", "transitions", CAUSES[1], CAUSES[2])
    return {name: sum(note.counts[name] for note in notes.values()) for name in names}


def _left_out(notes: Notes) -> list[int]:
    return [seed for index in sorted(notes) for seed in notes[index].left_out]


def _finish(folder: Path, settings: dict[str, Any], notes: Notes, transitions: int) -> list[int]:
    """Drop what is beyond the last wanted shard, write the manifest, and return who is left out."""
    wanted = _enough(notes, transitions)
    assert wanted is not None, "recording stops only when there is enough"
    # By name, not by `notes`: shards finished after the last was counted lie there too.
    paths = [shard_path(folder, index) for index in range(wanted)]
    for path in folder.glob("shard-*"):
        if path not in paths:
            path.unlink()
    kept = {index: notes[index] for index in range(wanted)}
    manifest = {
        **settings,
        "environments": list(ROADS),
        "behaviours": list(BEHAVIOURS),
        "libraries": {name: _version(name) for name in _packages(settings["source"])},
        "counts": _sum(kept),
        "left_out": _left_out(kept),
    }
    write_manifest(folder, paths, manifest)
    return _left_out(kept)
