"""Recorded episodes to a checkpoint: windows, members in parallel, calibration."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.checkpoint import (
    CONFIG,
    Checkpoint,
    checkpoint_version,
    read_spec_of,
    save_checkpoint,
)
from models.network.ensemble import WorldModelEnsemble
from models.spec import LONGEST_NAME, Spec
from training.dataset.overlap import origin_note
from training.dataset.sources import open_dataset
from training.dataset.windows import Windows, hide_far_neighbours
from training.fitting.calibrate import (
    calibrate,
    counted,
    episode_scores,
    guarantee_of,
    summary,
    trained_ranges,
)
from training.fitting.expected_error import fit_expected_error
from training.fitting.members import train_members
from training.fitting.options import TrainOptions
from training.running.files import output, refuse_existing, whole_file
from training.running.locks import locked

_RUN, _OUTPUT, _TRAINED, _WINDOWS = "run.json", "output.json", "checkpoint", "windows"
_OWN = re.compile(rf"{_TRAINED}|{_WINDOWS}|member-\d+")
"""Folders within a run's."""


class TrainingError(ValueError):
    """A training run cannot start or go on; the message says why in one sentence."""


def train(
    store_folder: Path,
    out: Path,
    run_folder: Path,
    options: TrainOptions,
    *,
    overwrite: bool = False,
) -> str:
    """Train an ensemble on recorded episodes and write its checkpoint.

    Interrupted runs go on from where they stopped when called again with the same arguments.

    Args:
        store_folder: Finished data set of either format, see `training.dataset.sources`.
        out: Checkpoint folder to write.
        run_folder: Working folder: windows, members' states, TensorBoard logs.
        options: Arguments of the run.
        overwrite: Whether `out` may hold what another run or command wrote.

    Returns:
        The checkpoint's version.

    Raises:
        TrainingError: The run folder belongs to a run with other arguments or data.
        OutputExistsError: `out` holds something that this run did not write.
        FolderLockedError: Another command trains in the run folder.
        KeyboardInterrupt: Interrupted; state was saved.
    """
    data = open_dataset(store_folder)
    parts = data.split(options.seed)
    strides = {"train": options.stride, "validation": 2, "calibration": 2}
    for name in strides:
        refuse_too_few(store_folder, parts[name], name)
    windows = {
        name: data.windows(parts[name], options.horizon, stride) for name, stride in strides.items()
    }
    spec = data.spec
    windows["train"] = hide_far_neighbours(
        windows["train"], spec, share=options.hidden_share, seed=options.seed
    )
    options = options.for_windows(len(windows["train"]))
    origin = {
        **origin_note(data),
        "split_seed": options.seed,
        "episodes": {name: len(part) for name, part in parts.items()},
    }
    return fit(windows, spec, out, run_folder, options, origin, overwrite=overwrite)


def fit(
    windows: dict[str, Windows],
    spec: Spec,
    out: Path,
    run_folder: Path,
    options: TrainOptions,
    origin: dict[str, Any],
    *,
    overwrite: bool = False,
) -> str:
    """Train an ensemble on windows of any spec and write its checkpoint.

    Prints how many calibration episodes there are and how many a guarantee needs: at the end, and
    before anything is trained if they are too few.

    Args:
        windows: `train` for the members' weights, `validation` to watch training and to calibrate
            probabilities, `calibration` for thresholds and limits.
        spec: Meaning of the windows' features.
        out: Checkpoint folder to write.
        run_folder: Working folder.
        options: Arguments of the run.
        origin: Where the windows came from, for the record.
        overwrite: Whether `out` may hold what another run or command wrote.

    Returns:
        The checkpoint's version.

    Raises:
        TrainingError: The run folder belongs to another run, or is one with `out`, or windows make
            no sense.
        OutputExistsError: `out` holds something that this run did not write.
        FolderLockedError: Another command trains in the run folder, or writes `out`.
        CheckpointError: The spec makes no sense.
        ValueError: The members have diverged.
        MemberFailedError: A member's process failed.
        KeyboardInterrupt: Interrupted; state was saved.
    """
    started = time.perf_counter()
    _refuse_overlap(run_folder, out)
    read_spec_of(spec.to_json(), "the spec")
    for name in ("train", "validation", "calibration"):
        _check_windows(name, windows[name], spec, options)
    _warn_of_few(windows["calibration"], options, spec.dt_s)
    with locked(run_folder, "training"):
        refuse_existing(out, overwrite=overwrite or _is_own(run_folder, out))
        _claim(run_folder, {"options": _claimed(options), "origin": origin})
        for name in ("train", "validation"):
            windows[name].save(run_folder / _WINDOWS / name)
        ensemble, reports = train_members(spec, options, run_folder)
        trained = _calibrated(windows, spec, options, origin, ensemble, reports, started)
        # Kept in the run's own folder first: nothing is lost if another command filled `out`.
        version = save_checkpoint(trained, run_folder / _TRAINED)
        with output(out, "training", overwrite=overwrite or _is_own(run_folder, out)):
            _note_output(run_folder, out, version)
            save_checkpoint(trained, out)
    print(summary(trained.calibration))
    return version


def _calibrated(
    windows: dict[str, Windows],
    spec: Spec,
    options: TrainOptions,
    origin: dict[str, Any],
    ensemble: WorldModelEnsemble,
    reports: list[dict[str, Any]],
    started: float,
) -> Checkpoint:
    """Return the checkpoint of trained members, after calibrating them."""
    ranges, held_out = trained_ranges(windows["train"]), windows["validation"]
    expected = fit_expected_error(ensemble, spec, windows["train"], held_out, options.seed)
    calibration = calibrate(
        ensemble, ranges, held_out, windows["calibration"], options, spec, expected
    )
    return Checkpoint(
        ensemble=ensemble,
        spec=spec,
        architecture=options.architecture(spec),
        calibration=calibration,
        expected_error=expected,
        name=named(spec.name, f"-{options.members}"),
        training={
            "options": asdict(options),
            **origin,
            "windows": {name: len(part) for name, part in windows.items()},
            "members": reports,
            "duration_s": round(time.perf_counter() - started, 1),
            "torch": torch.__version__,
        },
    )


def named(name: str, end: str) -> str:
    """Return a name of a checkpoint; a long beginning is cut, for what it is called must fit."""
    return f"{name[: LONGEST_NAME - len(end)]}{end}"


def refuse_too_few(store_folder: Path, episodes: NDArray[np.int64], part: str) -> None:
    """Refuse a part of a data set without episodes.

    Raises:
        TrainingError: There are none.
    """
    if not len(episodes):
        raise TrainingError(f"{store_folder} holds too few episodes to set some apart for {part}")


def _refuse_overlap(run_folder: Path, out: Path) -> None:
    """Refuse folders that fill each other: the training would find its output full at its end."""
    run, output = run_folder.resolve(), out.resolve()
    if run.is_relative_to(output):
        raise TrainingError(
            f"the checkpoint's folder {out} holds the run's, {run_folder}: give each its own"
        )
    if output.is_relative_to(run) and _OWN.fullmatch(output.relative_to(run).parts[0]):
        raise TrainingError(
            f"the checkpoint's folder {out} is one that the run in {run_folder} writes itself: "
            "name another"
        )


def _check_windows(name: str, windows: Windows, spec: Spec, options: TrainOptions) -> None:
    """Refuse windows that would end a training after hours, or make limits that mean nothing."""
    if not windows.is_known.any():
        raise TrainingError(f"the windows for {name} hold none whose outcome is known")
    dims = windows.states.shape[-1], windows.actions.shape[-1]
    if dims != (spec.state_dim, spec.action_dim):
        raise TrainingError(
            f"the windows for {name} have dims {dims[0]}/{dims[1]}, the spec has "
            f"{spec.state_dim}/{spec.action_dim}"
        )
    if windows.horizon < options.horizon:
        raise TrainingError(
            f"the windows for {name} have {windows.horizon} steps, the stages need "
            f"{options.horizon}"
        )
    for field in ("states", "actions", "rewards"):
        # A sum costs no copy of the array; doubles hold that of any floats.
        if not np.isfinite(getattr(windows, field).sum(dtype=np.float64)):
            raise TrainingError(f"the windows for {name} hold {field} that are not finite")


def _warn_of_few(windows: Windows, options: TrainOptions, dt_s: float) -> None:
    """Say before the hours of a training that no crash threshold will come of it."""
    scores = episode_scores(np.zeros(len(windows)), windows, options.lead_steps)
    expected = guarantee_of(scores, options, dt_s)
    if expected.threshold is None:
        follows = "will guarantee nothing" if options.allow_unguaranteed else "will not be there"
        print(f"{counted(expected)}: the crash threshold {follows}")


def _claimed(options: TrainOptions) -> dict[str, Any]:
    """Return the options that make a run another one: this one does not touch its members."""
    return {name: x for name, x in asdict(options).items() if name != "allow_unguaranteed"}


def _claim(run_folder: Path, run: dict[str, Any]) -> None:
    """Mark a folder as this run's, or check that it already is."""
    run_folder.mkdir(parents=True, exist_ok=True)
    path = run_folder / _RUN
    text = json.dumps(run, indent=1)
    if path.exists() and path.read_text() != text:
        raise TrainingError(
            f"{run_folder} holds a run with other arguments or data; remove it or name another"
        )
    with whole_file(path) as partial:
        partial.write_text(text)


def _note_output(run_folder: Path, out: Path, version: str) -> None:
    note = {"folder": str(out.resolve()), "version": version}
    with whole_file(run_folder / _OUTPUT) as path:
        path.write_text(json.dumps(note))


def _is_own(run_folder: Path, out: Path) -> bool:
    """Return whether this run wrote what the output folder holds, to the end or not."""
    path = run_folder / _OUTPUT
    if not path.exists():
        return False
    note = json.loads(path.read_text())
    if note["folder"] != str(out.resolve()):
        return False
    return not (out / CONFIG).exists() or checkpoint_version(out) == note["version"]
