"""Which features earn their place beside sizes, places and speeds: one member each, same training.

    python -m benchmarks.ablation data/train --run runs/ablation

The data are of mixed fleets, seen by drawn trackers. A feature is withheld by setting it to zero in
training and test. Training is shorter than the bundled model's, equal for all variants; scores are
on test episodes. Finished variants are kept in the run folder, so the command goes on where it
stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from models.highway import VEHICLE_LENGTH_M, VEHICLE_WIDTH_M
from models.network.ensemble import WorldModelEnsemble
from models.network.world_model import WorldModel
from models.road_users import road_users_spec
from models.survival import crash_probability
from training.dataset.store import load_store
from training.dataset.trackers import Tracking
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


RATES = tuple(f"neighbour_{i}_{part}" for part in ("acceleration", "yaw_rate") for i in range(1, 5))
"""All that the layout may have beside sizes, places and speeds; it has room for two of them."""

SPEC = road_users_spec(RATES)


@dataclass(frozen=True)
class Variant:
    """What a member is trained with.

    Attributes:
        name: Shown in the table.
        rates: Those of `RATES` that the member sees; the others are set to zero.
        has_sizes: Whether road users have their own sizes; else all are of 5 x 2 m.
        kinematics: Whether the member corrects the analytic step.
    """

    name: str
    rates: tuple[str, ...] = ()
    has_sizes: bool = True
    kinematics: bool = True


VARIANTS = (
    Variant("34: accelerations of the nearest two", (RATES[0], RATES[1])),
    Variant("34: yaw rates of the nearest two", (RATES[4], RATES[5])),
    Variant("34: both of the nearest", (RATES[0], RATES[4])),
    Variant("32: no rates"),
    Variant("36: accelerations of all four", RATES[:4]),
    Variant("40: all rates", RATES),
    Variant("40, everybody taken for 5 x 2 m", RATES, has_sizes=False),
    Variant("40, no analytic step", RATES, kinematics=False),
)


def seen_by(variant: Variant, windows: Windows) -> Windows:
    """Return windows as a variant sees them."""
    states = np.array(windows.states)
    for name in set(RATES) - set(variant.rates):
        states[..., SPEC.state_index(name)] = 0.0
    if not variant.has_sizes:
        for feature, size_m in (("length", VEHICLE_LENGTH_M), ("width", VEHICLE_WIDTH_M)):
            for i, each in enumerate(SPEC.state):
                if each.name.endswith(feature):
                    states[..., i] = np.where(states[..., i] > 0, size_m, 0.0)
    return replace(windows, states=states)


def run_variant(index: int, windows_folder: Path, run: Path) -> None:
    """Train and score one variant; the task of one process."""
    variant = VARIANTS[index]
    result = run / f"variant-{index}.json"
    if result.exists():
        return
    torch.set_num_threads(1)
    parts = {
        name: seen_by(variant, Windows.open(windows_folder / name))
        for name in ("train", "validation", "test")
    }
    options = replace(OPTIONS, kinematics=variant.kinematics)
    trainer = MemberTrainer(
        0, SPEC, options, parts["train"], parts["validation"], run / f"variant-{index}"
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
    assert SPEC.geometry is not None
    place = [[SPEC.state_index(x) for x in (slot.dx, slot.dy)] for slot in SPEC.geometry.slots]
    size = [SPEC.state_index(slot.gate) for slot in SPEC.geometry.slots]
    position = np.linalg.norm(error[:, place], axis=-1)[test.states[alive, -1][:, size] > 0]
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
        windows = make_windows(
            store, parts[name], OPTIONS.horizon, stride, spec=SPEC, tracking=Tracking()
        )
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
