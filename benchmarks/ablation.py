"""Which state features, and the analytic step, earn their place: one member each, same training.

    python -m benchmarks.ablation data/train --run runs/ablation

A feature is withheld by setting it to zero in training and test. Training is shorter than the
bundled model's, equal for all variants; scores are on test episodes. Finished variants are kept
in the run folder, so the command goes on where it stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from models.network.world_model import WorldModel
from models.spec import Spec
from models.survival import crash_probability
from training.dataset.store import load_store
from training.dataset.windows import Windows, make_windows, split_episodes
from training.evaluation.report import table
from training.fitting.calibrate import fit_hazard, predict_windows
from training.fitting.member import MemberTrainer
from training.fitting.options import Stage, TrainOptions
from training.fitting.parallel import run_in_processes

OPTIONS = TrainOptions(
    members=1,
    stages=(
        Stage(1, 600, 512),
        Stage(4, 300, 256),
        Stage(16, 1000, 256),
        Stage(16, 600, 512, only=("done_head",)),
    ),
)


@dataclass(frozen=True)
class Variant:
    """What a member is trained with.

    Attributes:
        name: Shown in the table.
        kinematics: Whether the member corrects the analytic step.
        withheld: Endings of the names of features that are set to zero.
    """

    name: str
    kinematics: bool = True
    withheld: tuple[str, ...] = ()


VARIANTS = (
    Variant("all features, analytic step"),
    Variant("without acceleration and yaw rate", withheld=("_acceleration", "_yaw_rate")),
    Variant("all features, no analytic step", kinematics=False),
    Variant(
        "without both, no analytic step", kinematics=False, withheld=("_acceleration", "_yaw_rate")
    ),
    Variant("without acceleration", withheld=("_acceleration",)),
    Variant("without yaw rate", withheld=("_yaw_rate",)),
    Variant("without curvature", withheld=("curvature",)),
    Variant("without lane offset", withheld=("lane_offset",)),
)


def withhold(windows: Windows, spec: Spec, endings: tuple[str, ...]) -> Windows:
    """Return windows in which the features with such names are zero."""
    if not endings:
        return windows
    states = np.array(windows.states)
    for i, feature in enumerate(spec.state):
        if feature.name.endswith(endings):
            states[..., i] = 0.0
    return replace(windows, states=states)


def run_variant(index: int, windows_folder: Path, run: Path) -> None:
    """Train and score one variant; the task of one process."""
    variant, spec = VARIANTS[index], highway_spec()
    result = run / f"variant-{index}.json"
    if result.exists():
        return
    torch.set_num_threads(1)
    parts = {
        name: withhold(Windows.open(windows_folder / name), spec, variant.withheld)
        for name in ("train", "validation", "test")
    }
    options = replace(OPTIONS, kinematics=variant.kinematics)
    trainer = MemberTrainer(
        0, spec, options, parts["train"], parts["validation"], run / f"variant-{index}"
    )
    model = trainer.run().eval().requires_grad_(False)
    scores = {"name": variant.name, **score(model, parts["validation"], parts["test"])}
    result.write_text(json.dumps(scores, indent=1))


def score(model: WorldModel, validation: Windows, test: Windows) -> dict[str, float]:
    """Return errors after the last step, and how well the end is foreseen."""
    ensemble = WorldModelEnsemble.from_members([model])
    scale, shift = fit_hazard(ensemble, validation)
    model.set_calibration(done_scale=scale, done_shift=shift)
    prediction = predict_windows(ensemble, test)
    risk, ends = crash_probability(prediction.dones), test.ends
    alive = test.valid[:, -1] & ~ends
    error = np.abs(prediction.states[alive, -1] - test.states[alive, -1])
    there = test.states[alive, -1, 6::7] > 0.5
    position = np.hypot(error[:, 7::7], error[:, 8::7])[there]
    threshold = np.quantile(risk[~ends], 0.99)
    rare = np.quantile(risk[~ends], 0.999)
    return {
        "neighbour_m": float(position.mean()),
        "neighbour_p95_m": float(np.quantile(position, 0.95)),
        "edge_m": float(error[:, 3:5].mean()),
        "speed_mps": float(error[:, 0].mean()),
        "auroc": float(roc_auc_score(ends, risk)),
        "average_precision": float(average_precision_score(ends, risk)),
        "recall_1": float(np.mean(risk[ends] >= threshold)),
        "recall_01": float(np.mean(risk[ends] >= rare)),
        "brier": float(np.mean((risk - ends) ** 2)),
    }


def _make_parts(data: Path, folder: Path) -> None:
    """Write the windows that all variants share."""
    store = load_store(data)
    parts = split_episodes(store, OPTIONS.seed)
    for name, stride in (("train", 4), ("validation", 2), ("test", 2)):
        windows = make_windows(store, parts[name], OPTIONS.horizon, stride)
        if name != "train":
            windows = windows.take(np.flatnonzero(windows.is_known))
        windows.save(folder / name)


COLUMNS = {
    "neighbour_m": "neighbour, m",
    "neighbour_p95_m": "p95, m",
    "edge_m": "edge, m",
    "speed_mps": "speed, m/s",
    "auroc": "AUROC",
    "average_precision": "AP",
    "recall_1": "recall at 1 %",
    "recall_01": "at 0.1 %",
    "brier": "Brier",
}


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--run", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--workers", default=2, show_default=True)
@click.option(
    "--first",
    type=click.IntRange(1, len(VARIANTS)),
    default=len(VARIANTS),
    show_default=True,
    help="So many variants, in the order of the list.",
)
def main(data: Path, run: Path, workers: int, first: int) -> None:
    """Train the variants, and print the table for docs/training.md."""
    windows = run / "windows"
    if not (windows / "test" / "states.npy").exists():
        _make_parts(data, windows)
    tasks = [(i, windows, run) for i in range(first)]
    run_in_processes(run_variant, tasks, workers)
    results = [json.loads((run / f"variant-{i}.json").read_text()) for i in range(first)]
    rows = [[x["name"], *(f"{x[name]:.4f}" for name in COLUMNS)] for x in results]
    print(table(["variant", *COLUMNS.values()], rows))


if __name__ == "__main__":
    main()
