"""Another calibration for trained weights: recordings of other traffic, or other rates."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.dataset.overlap import origin_note, untrained
from training.dataset.sources import open_dataset
from training.fitting.calibrate import Floats, calibrate, summary, trained_ranges
from training.fitting.expected_error import scaled
from training.fitting.options import TrainOptions
from training.fitting.rates import Rates, rates_of
from training.fitting.train import TrainingError, named, refuse_too_few
from training.running.files import output, refuse_existing


def recalibrate(
    checkpoint_folder: Path,
    store_folder: Path,
    out: Path,
    options: TrainOptions,
    members: int | None = None,
    *,
    data_ranges: bool = False,
    allow_lower_recall: bool = False,
    overwrite: bool = False,
) -> str:
    """Fit a checkpoint's probabilities, thresholds and limits to other recordings.

    A third of the episodes, at random, fixes the probabilities, the others the thresholds. The
    weights stay, and so do the known ranges; of a checkpoint that has none, as an imported one,
    they become those of the recordings. Episodes that the weights may have been fitted to are left
    out: a guarantee is about others. Prints how many episodes there were and how many are needed,
    and what the old and the new limits do on the windows that fixed the thresholds.

    Args:
        checkpoint_folder: The model.
        store_folder: Recordings of the traffic it will meet.
        out: Checkpoint folder to write; may be the first, to be written over.
        options: Seed, false-alarm rate, doubt rate, miss rate, lead and quantiles count.
        members: Take the first so many members only; all by default.
        data_ranges: Whether the known ranges become those of the recordings.
        allow_lower_recall: Whether the new threshold may be reached by fewer of the windows that
            end than the old one.
        overwrite: Whether `out` may hold something.

    Returns:
        The new checkpoint's version.

    Raises:
        OutputExistsError: `out` holds something.
        FolderLockedError: Another command writes `out`.
        TrainingError: The recordings have other features than the model, or no episode ends, or
            recall would fall.
        ValueError: All episodes may have been trained on.
    """
    refuse_existing(out, overwrite=overwrite)
    old, data = load_checkpoint(checkpoint_folder, members=members), open_dataset(store_folder)
    if difference := old.spec.difference_to(data.spec):
        raise TrainingError(
            f"{checkpoint_folder} has other features than {store_folder}: {difference}"
        )
    horizon = old.calibration.horizon or options.horizon
    usable = untrained(old.training, data)
    if left_out := len(data) - len(usable):
        print(f"{left_out} of {len(data)} episodes may have fixed the weights: they are left out")
    order = np.random.default_rng(options.seed).permutation(usable)
    parts = np.split(order, [len(order) // 3])
    for part in parts:
        refuse_too_few(store_folder, part, "validation and calibration")
    validation, thresholds = (data.windows(np.sort(part), horizon, 2) for part in parts)
    for windows in (validation, thresholds):
        if not windows.ends.any():
            raise TrainingError(f"{store_folder} holds too few episodes that end")
    known = thresholds.take(np.flatnonzero(thresholds.is_known))
    before = rates_of(replace(old, held_members=None), known)
    ranges = _ranges(old, trained_ranges(validation, thresholds), store_folder, data_ranges)
    expected = old.expected_error
    if expected is not None:
        expected = scaled(expected, old.ensemble, old.spec, validation)
    calibration = calibrate(
        old.ensemble, ranges, validation, thresholds, options, old.spec, expected
    )
    training = {**old.training, "recalibrated": origin_note(data)}
    name = old.name if members is None else named(old.name, f"-of-which-{old.member_count}")
    new = replace(
        old,
        name=name,
        calibration=calibration,
        expected_error=expected,
        training=training,
        metrics={},
        held_members=None,
    )
    after = rates_of(new, known)
    print(f"Before: {before}\nAfter: {after}")
    if not allow_lower_recall:
        _refuse_lower_recall(before, after)
    notes = {**calibration.notes, "before": asdict(before), "after": asdict(after)}
    new = replace(new, calibration=replace(calibration, notes=notes))
    with output(out, "calibrating", overwrite=overwrite):
        version = save_checkpoint(new, out)
    print(summary(calibration))
    return version


def _ranges(
    old: Checkpoint, found: tuple[Floats, Floats], store_folder: Path, data_ranges: bool
) -> tuple[Floats, Floats]:
    """Return the known ranges, and say if they are not what the weights were trained on."""
    low, high = np.array(old.calibration.state_low), np.array(old.calibration.state_high)
    if not len(low):
        print(f"The checkpoint notes no trained ranges: those of {store_folder} are taken")
        return found
    if not data_ranges:
        return low, high
    names = np.array([feature.name for feature in old.spec.state])
    wider = names[(found[0] < low) | (found[1] > high)].tolist()
    beyond = f"beyond what the weights were trained on: {', '.join(wider)}" if wider else "narrower"
    print(f"The known ranges become those of {store_folder}; they are {beyond}")
    return found


def _refuse_lower_recall(before: Rates, after: Rates) -> None:
    if before.recall is None or after.recall is None or after.recall >= before.recall:
        return
    raise TrainingError(
        f"of {after.ending} windows that end, {100 * after.recall:.3g} % would reach the new "
        f"threshold {after.threshold:.4g}, {100 * before.recall:.3g} % reach the old one, "
        f"{before.threshold:.4g}: ask for a higher --false-alarm-rate, or pass --allow-lower-recall"
    )
