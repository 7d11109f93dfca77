"""How well errors can be ranked at all, beside how well the model's uncertainty ranks them.

    python -m benchmarks.expected_error models/pretrained data/train

Gradient-boosted trees are fitted to the logarithm of the model's own errors of the neighbours'
places at the end of windows, from the first state and the actions: on validation and calibration
episodes, once as each tracker sees them. On test episodes their ranking shows what an output made
for it could reach. It takes some ten minutes on one core.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingRegressor

from models.checkpoint import Checkpoint, load_checkpoint
from training.dataset.overlap import held_out
from training.dataset.sources import Simulated, open_dataset
from training.dataset.windows import Windows
from training.evaluation.report import table
from training.fitting.calibrate import predict_windows
from training.fitting.member import end_errors

TRACKS = ("perfect", "reference", "drawn")
_STRIDE, _TEST_STRIDE = 2, 4
_ACTION_PARTS = 4
"""Actions are read as means over so many parts of the horizon."""
_LEAST_M = 0.01
"""Smaller errors are all alike."""

Floats = NDArray[np.floating]


def features(windows: Windows) -> Floats:
    """Return what the trees see [N, S + parts x A]: the first state, and the actions by parts."""
    count, horizon, width = windows.actions.shape
    parts = windows.actions.reshape(count, _ACTION_PARTS, horizon // _ACTION_PARTS, width)
    return np.hstack([windows.states[:, 0], parts.mean(2).reshape(count, -1)])


def judged(checkpoint: Checkpoint, windows: Windows) -> tuple[Windows, Floats, Floats]:
    """Return the windows that go on to the end, their errors [N] in m, and uncertainties [N]."""
    windows = windows.take(np.flatnonzero(windows.valid[:, -1] & ~windows.ends))
    prediction = predict_windows(checkpoint.ensemble, windows)
    predicted, true = (torch.tensor(x[:, -1]) for x in (prediction.states, windows.states))
    member = next(iter(checkpoint.ensemble.members))
    errors = end_errors(member, predicted, true, checkpoint.spec).numpy()
    has_neighbours = errors > 0
    kept = windows.take(np.flatnonzero(has_neighbours))
    return kept, errors[has_neighbours], prediction.uncertainty[has_neighbours]


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(checkpoint: Path, data: Path) -> None:
    """Print Spearman's rank correlation with the error, by tracker and simulator."""
    torch.set_num_threads(1)
    known = load_checkpoint(checkpoint)
    horizon = known.calibration.horizon or 16
    rows = []
    for tracks in TRACKS:
        seen = open_dataset(data, tracks)
        assert isinstance(seen, Simulated)
        parts = held_out(known.training, seen).episodes
        fitted = np.concatenate([parts["validation"], parts["calibration"]])
        train, errors, _ = judged(known, seen.windows(fitted, horizon, _STRIDE))
        trees = HistGradientBoostingRegressor(max_iter=300, learning_rate=0.06, random_state=0)
        trees.fit(features(train), np.log(errors + _LEAST_M))
        test, errors, doubt = judged(known, seen.windows(parts["test"], horizon, _TEST_STRIDE))
        expected = trees.predict(features(test))
        for index, source in enumerate(seen.store.source_names):
            mine = seen.store.source[test.episode] == index
            ranks = (spearmanr(x[mine], errors[mine]).statistic for x in (doubt, expected))
            rows.append([tracks, source, str(mine.sum()), *(f"{x:.3f}" for x in ranks)])
    print(table(["tracks", "source", "windows", "uncertainty", "trees"], rows))


if __name__ == "__main__":
    main()
