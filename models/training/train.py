"""Recorded episodes to a checkpoint: windows, members in parallel, calibration."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.ensemble import WorldModelEnsemble
from models.files import checked
from models.highway import highway_spec
from models.spec import Spec
from models.training.augment import hide_far_neighbours
from models.training.calibrate import calibrate, trained_ranges
from models.training.dataset import Windows, make_windows, split_episodes
from models.training.member import MemberTrainer, choose_device
from models.training.options import TrainOptions
from models.training.parallel import run_in_processes
from models.training.store import load_store

_RUN, _WEIGHTS, _REPORT = "run.json", "best.safetensors", "report.json"


class TrainingError(ValueError):
    """A training run cannot start or go on; the message says why in one sentence."""


def train(store_folder: Path, out: Path, run_folder: Path, options: TrainOptions) -> str:
    """Train an ensemble on recorded episodes and write its checkpoint.

    Interrupted runs go on from where they stopped when called again with the same arguments.

    Args:
        store_folder: Where `world-model collect` wrote.
        out: Checkpoint folder to write.
        run_folder: Working folder: windows, members' states, TensorBoard logs.
        options: Arguments of the run.

    Returns:
        The checkpoint's version.

    Raises:
        TrainingError: The run folder belongs to a run with other arguments or data.
        KeyboardInterrupt: Interrupted; state was saved.
    """
    store = load_store(store_folder)
    parts = split_episodes(store, options.seed)
    strides = {"train": options.stride, "validation": 2, "calibration": 2}
    windows = {
        name: make_windows(store, parts[name], options.horizon, stride)
        for name, stride in strides.items()
    }
    spec = highway_spec()
    windows["train"] = hide_far_neighbours(
        windows["train"], spec, share=options.hidden_share, seed=options.seed
    )
    origin = {
        "dataset": store.manifest,
        "fingerprint": store.fingerprint,
        "split_seed": options.seed,
        "episodes": {name: len(part) for name, part in parts.items()},
    }
    return fit(windows, spec, out, run_folder, options, origin)


def fit(
    windows: dict[str, Windows],
    spec: Spec,
    out: Path,
    run_folder: Path,
    options: TrainOptions,
    origin: dict[str, Any],
) -> str:
    """Train an ensemble on windows of any spec and write its checkpoint.

    Args:
        windows: `train` for the members' weights, `validation` to watch training and to calibrate
            probabilities, `calibration` for thresholds and limits.
        spec: Meaning of the windows' features.
        out: Checkpoint folder to write.
        run_folder: Working folder.
        options: Arguments of the run.
        origin: Where the windows came from, for the record.

    Returns:
        The checkpoint's version.

    Raises:
        TrainingError: The run folder belongs to another run.
        MemberFailedError: A member's process failed.
        KeyboardInterrupt: Interrupted; state was saved.
    """
    started = time.perf_counter()
    checked(Spec, spec.to_json(), "the spec")
    _claim(run_folder, {"options": asdict(options), "origin": origin})
    for name in ("train", "validation"):
        windows[name].save(run_folder / "windows" / name)
    tasks = [(i, spec, options, run_folder) for i in range(options.members)]
    workers = 1 if choose_device(options.device).type == "cuda" else options.workers
    if workers == 1:
        for task in tasks:
            _train_member(*task)
    else:
        run_in_processes(_train_member, tasks, workers)
    architecture = options.architecture(spec)
    members = [architecture.build(spec) for _ in tasks]
    reports = []
    for i, member in enumerate(members):
        folder = _member_folder(run_folder, i)
        member.load_state_dict(load_file(folder / _WEIGHTS))
        reports.append(json.loads((folder / _REPORT).read_text()))
    ensemble = WorldModelEnsemble.from_members(members).eval().requires_grad_(False)
    calibration = calibrate(
        ensemble,
        trained_ranges(windows["train"]),
        windows["validation"],
        windows["calibration"],
        options,
        spec.dt_s,
    )
    return save_checkpoint(
        Checkpoint(
            ensemble=ensemble,
            spec=spec,
            architecture=architecture,
            calibration=calibration,
            name=f"{spec.name}-{len(members)}",
            training={
                "options": asdict(options),
                **origin,
                "windows": {name: len(part) for name, part in windows.items()},
                "members": reports,
                "duration_s": round(time.perf_counter() - started, 1),
                "torch": torch.__version__,
            },
        ),
        out,
    )


def recalibrate(
    checkpoint_folder: Path, store_folder: Path, out: Path, options: TrainOptions
) -> str:
    """Fit a checkpoint's probabilities, thresholds and limits to other recordings.

    A third of the episodes, at random, fixes the probabilities, the others the thresholds. The
    weights and the known ranges stay.

    Args:
        checkpoint_folder: The model.
        store_folder: Recordings of the traffic it will meet.
        out: Checkpoint folder to write; may be the first.
        options: Seed, false-alarm rate, miss rate, lead and uncertainty quantile count.

    Returns:
        The new checkpoint's version.

    Raises:
        TrainingError: The recordings have other features than the model, or no episode ends.
    """
    old, store = load_checkpoint(checkpoint_folder), load_store(store_folder)
    if old.spec != highway_spec():
        raise TrainingError(f"{checkpoint_folder} has other features than {store_folder}")
    horizon = old.calibration.horizon or options.horizon
    order = np.random.default_rng(options.seed).permutation(len(store.frame_count))
    parts = np.split(order, [len(order) // 3])
    validation, thresholds = (make_windows(store, np.sort(part), horizon, 2) for part in parts)
    for windows in (validation, thresholds):
        if not windows.ends.any():
            raise TrainingError(f"{store_folder} holds too few episodes that end")
    ranges = np.array(old.calibration.state_low), np.array(old.calibration.state_high)
    calibration = calibrate(old.ensemble, ranges, validation, thresholds, options, old.spec.dt_s)
    training = {**old.training, "recalibrated": {"fingerprint": store.fingerprint}}
    new = replace(old, calibration=calibration, training=training, metrics={})
    return save_checkpoint(new, out)


def _train_member(index: int, spec: Spec, options: TrainOptions, run_folder: Path) -> None:
    """Train one member into its folder; nothing to do if that was done before."""
    folder = _member_folder(run_folder, index)
    if (folder / _REPORT).exists():
        return
    if options.workers > 1:
        torch.set_num_threads(1)
    started = time.perf_counter()
    train_windows = Windows.open(run_folder / "windows" / "train")
    trainer = MemberTrainer(
        index,
        spec,
        options,
        train_windows,
        Windows.open(run_folder / "windows" / "validation"),
        folder,
    )
    model = trainer.run()
    weights = {name: x.cpu().contiguous() for name, x in model.state_dict().items()}
    save_file(weights, folder / _WEIGHTS)
    report = {
        "validation_loss": trainer.progress.history[-1]["validation_total"],
        "updates": trainer.progress.update,
        "duration_s": round(time.perf_counter() - started, 1),
        "history": trainer.progress.history,
    }
    (folder / _REPORT).write_text(json.dumps(report))


def _member_folder(run_folder: Path, index: int) -> Path:
    return run_folder / f"member-{index}"


def _claim(run_folder: Path, run: dict[str, Any]) -> None:
    """Mark a folder as this run's, or check that it already is."""
    run_folder.mkdir(parents=True, exist_ok=True)
    path = run_folder / _RUN
    text = json.dumps(run, indent=1)
    if path.exists() and path.read_text() != text:
        raise TrainingError(
            f"{run_folder} holds a run with other arguments or data; remove it or name another"
        )
    path.write_text(text)
