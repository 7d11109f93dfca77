"""Filling a folder with recorded episodes: parallel, seeded, resumable.

What is recorded depends on the seed and the settings alone: not on the number of processes, nor
on interruptions. Each shard is one task with its own seed, and the dataset is the shortest run
of shards, from the first on, that holds enough transitions.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from models.backends.cpus import usable_cpus
from models.highway import highway_spec
from training.dataset.store import (
    MANIFEST,
    SCHEMA_VERSION,
    read_shard_note,
    shard_path,
    write_manifest,
    write_shard,
)
from training.simulation.behaviours import BEHAVIOURS, SHARES
from training.simulation.bicycle import DT_S
from training.simulation.roads import ENVIRONMENTS
from training.simulation.simulator import CAUSES, MAX_STEPS, draw_episode, run_episode
from training.simulation.vehicles import SURPRISING_SHARE

EPISODES_PER_SHARD = 50
ENVIRONMENT_SHARES = {"highway": 0.54, "merge": 0.15, "racetrack": 0.24, "roundabout": 0.07}
"""How often an episode is on each road; see `dataset.UNSEEN_ENVIRONMENT`."""

Counts = dict[str, int]


def collect(
    folder: Path,
    *,
    transitions: int,
    seed: int,
    environments: dict[str, float] | None = None,
    surprising_share: float = SURPRISING_SHARE,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Record episodes into a folder until it holds enough transitions.

    Shards that are already there are kept, so an interrupted call is repeated to go on, and a
    finished dataset is extended by asking for more.

    Args:
        folder: Created if missing.
        transitions: Least number of transitions.
        seed: Of everything.
        environments: Share of each environment; `ENVIRONMENT_SHARES` by default.
        surprising_share: Of the drivers, how many have a sudden manoeuvre in store.
        workers: Processes; one per usable CPU by default. 1 runs in this process.
        progress: Whether to show a bar.

    Raises:
        ValueError: An argument makes no sense, or the folder holds shards of other settings.
        KeyboardInterrupt: Passed on after the shards in work were finished and kept.
    """
    if transitions < 1:
        raise ValueError(f"transitions must be at least 1, got {transitions}")
    shares = ENVIRONMENT_SHARES if environments is None else environments
    settings = _settings(seed, shares, surprising_share)
    folder.mkdir(parents=True, exist_ok=True)
    counts = _existing_counts(folder, settings)
    (folder / MANIFEST).unlink(missing_ok=True)  # absent means unfinished
    bar = tqdm(total=transitions, unit="step", unit_scale=True, disable=not progress)
    with bar:
        _show(bar, counts)
        if _enough(counts, transitions) is None:
            _record(folder, settings, counts, transitions, workers or usable_cpus(), bar)
    _finish(folder, settings, counts, transitions)


def _settings(seed: int, environments: dict[str, float], surprising_share: float) -> dict[str, Any]:
    """Return all that decides what is recorded, as JSON, after checking it."""
    unknown = sorted(set(environments) - set(ENVIRONMENTS))
    if unknown:
        raise ValueError(f"unknown environments {unknown}; known: {list(ENVIRONMENTS)}")
    if min(environments.values(), default=0) < 0 or sum(environments.values()) <= 0:
        raise ValueError(f"environment shares must not be negative, nor all 0: {environments}")
    return {
        "schema_version": SCHEMA_VERSION,
        "spec": highway_spec().name,
        "seed": seed,
        "dt_s": DT_S,
        "max_steps": MAX_STEPS,
        "episodes_per_shard": EPISODES_PER_SHARD,
        "environment_shares": environments,
        "behaviour_shares": dict(zip(BEHAVIOURS, SHARES, strict=True)),
        "surprising_share": surprising_share,
        "highway_env": version("highway-env"),
    }


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
    source = np.random.SeedSequence([settings["seed"], index])
    # 63 bits, because seeds are stored as int64.
    seeds = source.generate_state(settings["episodes_per_shard"], np.uint64) >> np.uint64(1)
    shares = settings["environment_shares"]
    rest = settings["max_steps"], settings["surprising_share"]
    episodes = [run_episode(int(seed), *draw_episode(int(seed), shares), *rest) for seed in seeds]
    return write_shard(shard_path(folder, index), episodes, settings)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, so that shards get whole.

    Children need no limit on threads: they import no torch, and the simulator's matrices are too
    small for BLAS to split.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _record(
    folder: Path,
    settings: dict[str, Any],
    counts: dict[int, Counts],
    transitions: int,
    workers: int,
    bar: Any,
) -> None:
    """Fill `counts` and the folder with shards until there are enough."""
    run = _in_this_process if workers == 1 else _in_processes
    try:
        with closing(run(folder, settings, counts, workers)) as done:
            for index, counted in done:
                counts[index] = counted
                _show(bar, counts)
                if _enough(counts, transitions) is not None:
                    return
    except KeyboardInterrupt:
        print(
            f"interrupted: {len(counts)} whole shards kept in {folder}; "
            "the same command goes on from there",
            file=sys.stderr,
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


def _in_processes(
    folder: Path, settings: dict[str, Any], counts: dict[int, Counts], workers: int
) -> Generator[tuple[int, Counts]]:
    """Yield shards as they get done, in any order. Closing it waits for those in work."""
    # Spawned, not forked: forking a process that has threads (torch, BLAS) can deadlock.
    spawn = multiprocessing.get_context("spawn")
    todo = _missing(dict(counts))
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker) as pool:

        def submit(index: int) -> Future[Counts]:
            return pool.submit(make_shard, folder, index, settings)

        running = {submit(index): index for index in islice(todo, workers)}
        while True:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(future)
                yield index, future.result()
                following = next(todo)
                running[submit(following)] = following


def _show(bar: Any, counts: dict[int, Counts]) -> None:
    total = _sum(counts)
    bar.set_postfix(
        {name: total[name] for name in ("episodes", CAUSES[1], CAUSES[2])}, refresh=False
    )
    bar.update(total["transitions"] - bar.n)


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
        "environments": list(ENVIRONMENTS),
        "behaviours": list(BEHAVIOURS),
        "libraries": {name: version(name) for name in ("highway-env", "numpy", "gymnasium")},
        "counts": _sum({index: counts[index] for index in range(wanted)}),
    }
    write_manifest(folder, paths, manifest)
