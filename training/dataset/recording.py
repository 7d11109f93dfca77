"""Shards recorded in processes that a simulator may kill.

SUMO is not written in Python: a fault in it ends its process. Such an episode is driven again, the
first one in a new process; if that is killed, too, the episode is left out, always. So what is
recorded does not depend on who else was driven in the same process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from training.dataset.overlap import collected_seeds
from training.dataset.store import ShardNote, shard_path, write_shard
from training.running.workers import Worker, WorkerEndedError
from training.simulation.simulator import Episode, draw_episode, run_episode

MOST_LEFT_OUT, _FEW = 0.01, 5
"""Of all episodes, the share that may be left out; and the number that always may."""


def drive(seed: int, settings: Mapping[str, Any], run: Callable[..., Episode]) -> Episode:
    """Drive the episode that a seed stands for.

    Args:
        seed: Of the episode.
        settings: What `collect` decided.
        run: `run_episode`.
    """
    road, behaviour = draw_episode(seed, settings["environment_shares"])
    rest = settings["max_steps"], settings["surprising_share"], settings["fleet"]
    return run(seed, road, behaviour, *rest)


def seeds_of(index: int, settings: Mapping[str, Any]) -> list[int]:
    """Return the seeds of a shard's episodes."""
    seeds = collected_seeds(settings["seed"], index, settings["episodes_per_shard"])
    return [int(seed) for seed in seeds]


def make_shard(folder: Path, index: int, settings: dict[str, Any]) -> ShardNote:
    """Simulate and write one shard in this process.

    Args:
        folder: Where.
        index: Which; with the settings' seed it decides the seeds of the episodes.
        settings: What `collect` decided.
    """
    episodes = [drive(seed, settings, run_episode) for seed in seeds_of(index, settings)]
    return write_shard(shard_path(folder, index), episodes, settings)


def check_left_out(left_out: int, episodes: int) -> None:
    """Refuse a simulator that kills its process often.

    Args:
        left_out: Number of episodes that were left out.
        episodes: Number of the others.

    Raises:
        ChildProcessError: They are too many.
    """
    drawn = left_out + episodes
    if left_out > max(_FEW, MOST_LEFT_OUT * drawn):
        raise ChildProcessError(
            f"the simulator killed its process in {left_out} of {drawn} episodes, but at most "
            f"{MOST_LEFT_OUT:.0%} of them, or {_FEW}, are left out: is it installed as it should "
            "be (pip install 'world-model-service[training]')?"
        )


@dataclass
class _Task:
    """A shard in work, and the process that drives its episodes.

    Attributes:
        worker: The process.
        is_fresh: Whether it has driven no episode yet.
        index: Of the shard.
        waiting: Seeds of the episodes that are not driven yet, in order.
        episodes: Those that are.
        left_out: Seeds of those that the simulator does not survive.
    """

    worker: Worker
    is_fresh: bool = True
    index: int = -1
    waiting: list[int] = field(default_factory=list)
    episodes: list[Episode] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)

    def begin_shard(self, index: int, settings: Mapping[str, Any]) -> None:
        self.index, self.waiting = index, seeds_of(index, settings)
        self.episodes, self.left_out = [], []

    def begin_episode(self, settings: Mapping[str, Any]) -> None:
        self.worker.begin(drive, self.waiting[0], settings, run_episode)

    def end_episode(self, folder: Path) -> None:
        """Take what came of an episode; a new process follows one that was killed.

        Raises:
            WorkerEndedError: The process ended, but not by a fault of the simulator.
        """
        try:
            self.episodes.append(self.worker.result())
        except WorkerEndedError as exc:
            if not exc.is_fault:
                raise
            if self.is_fresh:
                self.left_out.append(self.waiting.pop(0))
            self.worker.close()
            self.worker, self.is_fresh = Worker(folder), True
        else:
            self.is_fresh = False
            self.waiting.pop(0)


def record_shards(
    folder: Path,
    settings: dict[str, Any],
    known: Mapping[int, ShardNote],
    workers: int,
    todo: Iterator[int],
) -> Generator[tuple[int, ShardNote]]:
    """Yield shards as they get done in processes, in any order; closing it gives up those in work.

    Args:
        folder: Where.
        settings: What `collect` decided.
        known: All shards that are there; the caller adds those that are yielded.
        workers: Number of processes.
        todo: Indices of the shards to make, without end.

    Raises:
        ChildProcessError: A process was killed, by the system or too often by the simulator.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="world-model-")))
        tasks: list[_Task] = []
        stack.callback(_close, tasks)
        for _ in range(workers):
            tasks.append(_Task(Worker(scratch)))
            tasks[-1].begin_shard(next(todo), settings)
            tasks[-1].begin_episode(settings)
        while True:
            ready = wait([task.worker.connection for task in tasks])
            for task in (task for task in tasks if task.worker.connection in ready):
                left_out = len(task.left_out)
                task.end_episode(scratch)
                if len(task.left_out) > left_out:
                    _check(known, tasks)
                if not task.waiting:
                    path = shard_path(folder, task.index)
                    yield task.index, write_shard(path, task.episodes, settings, task.left_out)
                    task.begin_shard(next(todo), settings)
                task.begin_episode(settings)


def _close(tasks: list[_Task]) -> None:
    for task in tasks:  # all are let go before any is waited for
        task.worker.connection.close()
    for task in tasks:
        task.worker.close()


def _check(known: Mapping[int, ShardNote], tasks: list[_Task]) -> None:
    """Do what `check_left_out` does with all episodes so far."""
    left_out = sum(len(note.left_out) for note in known.values())
    episodes = sum(note.counts["episodes"] for note in known.values())
    check_left_out(
        left_out + sum(len(task.left_out) for task in tasks),
        episodes + sum(len(task.episodes) for task in tasks),
    )
