"""Filling a folder with recorded episodes: parallel, seeded, resumable.

What is recorded depends on the seed and the settings alone: not on the number of processes, nor
on interruptions. Each shard is one task with its own seed, and the dataset is the shortest run
of shards, from the first on, that holds enough transitions.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from models.backends.cpus import usable_cpus
from training.dataset.overlap import collected_seeds
from training.dataset.store import (
    MANIFEST,
    SCHEMA_VERSION,
    read_shard_note,
    shard_path,
    write_manifest,
    write_shard,
)
from training.running.locks import locked
from training.running.progress import Progress
from training.running.stopping import begin_worker, starting_workers
from training.simulation.behaviours import BEHAVIOURS, SHARES
from training.simulation.bicycle import DT_S
from training.simulation.fleets import DEFAULT_FLEET, MIXED, check_fleet, spec_of
from training.simulation.simulator import (
    CAUSES,
    MAX_STEPS,
    ROADS,
    SOURCE_ROADS,
    SOURCES,
    draw_episode,
    run_episode,
)
from training.simulation.vehicles import SURPRISING_SHARE

EPISODES_PER_SHARD = 50

PACKAGES = {"highway-env": ("highway-env", "gymnasium"), "sumo": ("eclipse-sumo", "libsumo")}
"""What decides the episodes of a source beside our own code; the simulator itself comes first."""

ALL = "all"
"""In place of a source: as many episodes of each."""

Counts = dict[str, int]


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
) -> None:
    """Record episodes into a folder until it holds enough transitions.

    Shards that are already there are kept, so an interrupted call is repeated to go on, and a
    finished dataset is extended by asking for more.

    Args:
        folder: Created if missing.
        transitions: Least number of transitions.
        seed: Of everything.
        environments: Share of each road of the source; those of `SOURCE_ROADS` by default.
        surprising_share: Of the drivers, how many have a sudden manoeuvre in store.
        fleet: One of `fleets.FLEETS`: cars of 5 x 2 m, or everybody; None: `DEFAULT_FLEET`. That of
            SUMO is mixed.
        source: One of `SOURCES`: which simulator; or `ALL`.
        workers: Processes; one per usable CPU by default. 1 runs in this process.
        progress: Whether to show how far it is.
        on_transitions: Called with the number of transitions recorded so far, now and then.

    Raises:
        ValueError: An argument makes no sense, the simulator is not installed, or the folder holds
            shards of other settings.
        FolderLockedError: Another command writes the folder.
        ChildProcessError: A worker process was killed.
        KeyboardInterrupt: Passed on; whole shards are kept, and its notes say how many there are.
    """
    if transitions < 1:
        raise ValueError(f"transitions must be at least 1, got {transitions}")
    settings = _settings(source, seed, environments, surprising_share, fleet)
    with locked(folder, "collecting"):
        counts = _existing_counts(folder, settings)
        (folder / MANIFEST).unlink(missing_ok=True)  # absent means unfinished
        kept = _sum(counts)["transitions"]
        bar = Progress("collecting", transitions, unit="steps", done=kept, is_shown=progress)

        def show() -> None:
            total = _sum(counts)
            names = ("episodes", CAUSES[1], CAUSES[2])
            bar.note(", ".join(f"{total[name]} {name}" for name in names))
            bar.reach(total["transitions"])
            on_transitions(total["transitions"])

        with bar:
            show()
            if _enough(counts, transitions) is None:
                _record(folder, settings, counts, transitions, workers or usable_cpus(), show)
        _finish(folder, settings, counts, transitions)


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
            raise ValueError(f"the fleet in SUMO is {MIXED!r}, got {fleet!r}")
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


def _existing_counts(folder: Path, settings: dict[str, Any]) -> dict[int, Counts]:
    """Return the counts of the shards that are there, by index, refusing foreign ones."""
    counts: dict[int, Counts] = {}
    for path in sorted(folder.glob("shard-*.safetensors")):
        found, counted = read_shard_note(path)
        for key in sorted(settings.keys() | found.keys()):
            here, wanted = found.get(key), settings.get(key)
            if here != wanted:
                raise ValueError(
                    f"{path} was collected with {key}={here!r}, but {key}={wanted!r} is asked for; "
                    "use another folder"
                )
        counts[int(path.stem.removeprefix("shard-"))] = counted
    return counts


def _enough(counts: dict[int, Counts], transitions: int) -> int | None:
    """Return how many shards, from the first on, hold enough transitions; None if too few do."""
    total, index = 0, 0
    while index in counts:
        total += counts[index]["transitions"]
        index += 1
        if total >= transitions:
            return index
    return None


def make_shard(folder: Path, index: int, settings: dict[str, Any]) -> Counts:
    """Simulate and write one shard; the task of one process.

    Args:
        folder: Where.
        index: Which; with the settings' seed it decides the seeds of the episodes.
        settings: What `collect` decided.

    Returns:
        The counts of `write_shard`.
    """
    seeds = collected_seeds(settings["seed"], index, settings["episodes_per_shard"])
    shares = settings["environment_shares"]
    rest = settings["max_steps"], settings["surprising_share"], settings["fleet"]
    episodes = []
    for seed in map(int, seeds):
        episodes.append(run_episode(seed, *draw_episode(seed, shares), *rest))
        if _stop is not None and _stop.is_set():
            raise KeyboardInterrupt
    return write_shard(shard_path(folder, index), episodes, settings)


_stop: Event | None = None
"""In a worker process: set by the parent when no more shards are wanted."""


def _start_worker(stop: Event) -> None:
    """Leave signals to the parent.

    Children need no limit on threads: they import no torch, and the simulator's matrices are too
    small for BLAS to split.
    """
    global _stop
    begin_worker(is_stoppable=False)
    _stop = stop


def _record(
    folder: Path,
    settings: dict[str, Any],
    counts: dict[int, Counts],
    transitions: int,
    workers: int,
    show: Callable[[], object],
) -> None:
    """Fill `counts` and the folder with shards until there are enough."""
    run = _in_this_process if workers == 1 else _in_processes
    try:
        with closing(run(folder, settings, counts, workers)) as done:
            for index, counted in done:
                counts[index] = counted
                show()
                if _enough(counts, transitions) is not None:
                    return
    except KeyboardInterrupt as exc:
        kept = _existing_counts(folder, settings)  # finished meanwhile, too
        exc.add_note(
            f"{_sum(kept)['transitions']:,} of {transitions:,} transitions kept in {len(kept)} "
            "whole shards"
        )
        raise


def _missing(counts: dict[int, Counts]) -> Iterator[int]:
    """Yield the indices of shards to make, for ever, lowest first."""
    index = 0
    while True:
        if index not in counts:
            yield index
        index += 1


def _in_this_process(
    folder: Path, settings: dict[str, Any], counts: dict[int, Counts], workers: int
) -> Generator[tuple[int, Counts]]:
    del workers
    for index in _missing(dict(counts)):
        yield index, make_shard(folder, index, settings)


@contextmanager
def _set_at_end(stop: Event) -> Iterator[None]:
    try:
        yield
    finally:
        stop.set()


def _in_processes(
    folder: Path, settings: dict[str, Any], counts: dict[int, Counts], workers: int
) -> Generator[tuple[int, Counts]]:
    """Yield shards as they get done, in any order. Closing it gives up those in work."""
    # Spawned, not forked: forking a process that has threads (torch, BLAS) can deadlock.
    spawn = multiprocessing.get_context("spawn")
    todo, stop = _missing(dict(counts)), spawn.Event()
    with (
        ProcessPoolExecutor(
            workers, mp_context=spawn, initializer=_start_worker, initargs=(stop,)
        ) as pool,
        _set_at_end(stop),
    ):

        def submit(index: int) -> Future[Counts]:
            with starting_workers():
                return pool.submit(make_shard, folder, index, settings)

        running = {submit(index): index for index in islice(todo, workers)}
        while True:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(future)
                try:
                    counted = future.result()
                except BrokenProcessPool as exc:
                    raise ChildProcessError(
                        "a worker process was killed; the kernel does that if memory runs out"
                    ) from exc
                yield index, counted
                following = next(todo)
                running[submit(following)] = following


def _sum(counts: dict[int, Counts]) -> Counts:
    names = ("episodes", "transitions", CAUSES[1], CAUSES[2])
    return {name: sum(counted[name] for counted in counts.values()) for name in names}


def _finish(
    folder: Path, settings: dict[str, Any], counts: dict[int, Counts], transitions: int
) -> None:
    """Drop what is beyond the last wanted shard, and write the manifest."""
    wanted = _enough(counts, transitions)
    assert wanted is not None, "recording stops only when there is enough"
    # By name, not by `counts`: shards finished after the last was counted lie there too.
    paths = [shard_path(folder, index) for index in range(wanted)]
    for path in folder.glob("shard-*"):
        if path not in paths:
            path.unlink()
    manifest = {
        **settings,
        "environments": list(ROADS),
        "behaviours": list(BEHAVIOURS),
        "libraries": {name: _version(name) for name in _packages(settings["source"])},
        "counts": _sum({index: counts[index] for index in range(wanted)}),
    }
    write_manifest(folder, paths, manifest)
