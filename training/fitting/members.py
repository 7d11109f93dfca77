"""Train all members of an ensemble: several at once, resumable, with one progress for all."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import MutableSequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from models.network.ensemble import WorldModelEnsemble
from models.spec import Spec
from training.dataset.windows import Windows
from training.fitting.member import STATE, MemberTrainer, choose_device, updates_saved
from training.fitting.options import TrainOptions
from training.fitting.parallel import run_in_processes
from training.running.files import whole_file
from training.running.progress import Progress

_WEIGHTS, _REPORT = "best.safetensors", "report.json"


@dataclass
class Run:
    """What the members of a run share.

    Attributes:
        spec: Meaning of the features.
        options: Arguments of the run.
        folder: Holds `windows` and a folder a member.
    """

    spec: Spec
    options: TrainOptions
    folder: Path
    costs: list[int] = field(init=False)

    def __post_init__(self) -> None:
        # Counted in predicted rows, so that the time left is right although updates of later
        # stages take longer.
        stages = self.options.stages
        costs = (stage.rows * stage.horizon for stage in stages for _ in range(stage.updates))
        self.costs = [0, *accumulate(costs)]

    def member_folder(self, index: int) -> Path:
        """Return where a member is kept."""
        return self.folder / f"member-{index}"

    def updates_done(self) -> list[int]:
        """Return how many updates of each member are kept on disk."""
        folders = map(self.member_folder, range(self.options.members))
        return [
            self.options.updates if (folder / _REPORT).exists() else updates_saved(folder / STATE)
            for folder in folders
        ]

    def rows(self, updates: MutableSequence[int]) -> int:
        """Return how many rows were predicted in so many updates of each member."""
        return sum(self.costs[done] for done in updates)


def train_members(
    spec: Spec, options: TrainOptions, run_folder: Path
) -> tuple[WorldModelEnsemble, list[dict[str, Any]]]:
    """Train all members, as many at once as asked for.

    Args:
        spec: Meaning of the features.
        options: Arguments of the run.
        run_folder: Its working folder, with the windows.

    Returns:
        The ensemble, and a report on each member.

    Raises:
        MemberFailedError: A member's process failed.
        KeyboardInterrupt: Interrupted; states were saved. Its notes say how far members are.
    """
    run = Run(spec, options, run_folder)
    try:
        _train_all(run)
    except KeyboardInterrupt as exc:
        for i, done in enumerate(run.updates_done()):
            exc.add_note(f"member {i + 1}: {done:,} of {options.updates:,} updates done")
        raise
    members = [options.architecture(spec).build(spec) for _ in range(options.members)]
    reports = []
    for i, member in enumerate(members):
        folder = run.member_folder(i)
        member.load_state_dict(load_file(folder / _WEIGHTS))
        # A validation loss may be infinite early on, which no checkpoint holds.
        reports.append(json.loads((folder / _REPORT).read_text(), parse_constant=lambda _: None))
    return WorldModelEnsemble.from_members(members).eval().requires_grad_(False), reports


def _train_all(run: Run) -> None:
    options = run.options
    workers = 1 if choose_device(options.device).type == "cuda" else options.workers
    kept = run.updates_done()
    # Shared with the members' processes; each writes its own number only.
    updates: MutableSequence[int] = multiprocessing.get_context("spawn").RawArray("q", kept)
    total = options.members * run.costs[-1]
    with Progress("training", total, unit="rows", done=run.rows(kept)) as progress:

        def show() -> None:
            done = [min(n, options.updates) for n in updates]
            finished = sum(n == options.updates for n in done)
            progress.note(f"{finished} of {options.members} members done")
            progress.reach(run.rows(done))

        tasks = [(i, run, updates) for i in range(options.members)]
        if workers == 1:
            for task in tasks:
                _train_member(*task, show)
        else:
            run_in_processes(_train_member, tasks, workers, show)
        show()


def _train_member(
    index: int, run: Run, updates: MutableSequence[int], show: Any = lambda: None
) -> None:
    """Train one member into its folder; nothing to do if that was done before."""
    folder, options = run.member_folder(index), run.options
    if (folder / _REPORT).exists():
        return
    if options.workers > 1:
        torch.set_num_threads(1)
    started = time.perf_counter()

    def on_update(done: int) -> None:
        updates[index] = done
        show()

    train, validation = (
        Windows.open(run.folder / "windows" / name) for name in ("train", "validation")
    )
    trainer = MemberTrainer(index, run.spec, options, train, validation, folder, on_update)
    model = trainer.run()
    weights = {name: x.cpu().contiguous() for name, x in model.state_dict().items()}
    with whole_file(folder / _WEIGHTS) as path:
        save_file(weights, path)
    report = {
        "validation_loss": trainer.state.history[-1]["validation_total"],
        "updates": trainer.state.update,
        "duration_s": round(time.perf_counter() - started, 1),
        "history": trainer.state.history,
    }
    with whole_file(folder / _REPORT) as path:
        path.write_text(json.dumps(report))
